"""Environments: launched and destroyed in one place, and recorded before they are created."""
