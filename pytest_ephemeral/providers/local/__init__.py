"""Environments on this very machine."""
