"""From a person's yes to production: approvals, and names moved by compare-and-swap."""
