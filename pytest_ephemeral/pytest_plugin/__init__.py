"""What runs inside pytest: the only importers of it."""
