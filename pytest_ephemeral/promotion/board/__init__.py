"""The page on which people see environments and decide."""
