"""Environments: brought up and taken down in one place, recorded before they are made."""
