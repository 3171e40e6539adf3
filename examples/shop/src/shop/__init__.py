"""The Tea Cupboard: a small shop with a catalogue, orders, and a packing room."""

from importlib.metadata import version

__version__ = version("shop")
