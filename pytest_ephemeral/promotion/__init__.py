"""From approval to production: approvals, and DNS records changed by compare-and-swap."""
