"""The docker and compose providers on a real engine, when all is well and when it is not."""
