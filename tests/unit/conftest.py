"""A machine of its own for every test that bakes."""

from support.machines import here

__all__ = ["here"]
