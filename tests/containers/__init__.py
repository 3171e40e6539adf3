"""The docker and compose providers on a real engine, with and without failures."""
