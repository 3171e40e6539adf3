"""A simulated machine for every test that bakes."""

from support.machines import here

__all__ = ["here"]
