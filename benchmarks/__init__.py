"""What an environment costs over doing without: ``make bench``."""
