"""Measure the time that environments add to a test run: ``make bench``."""
