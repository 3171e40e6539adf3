"""Exclude the suite, which is for inner pytest runs: it needs an environment and a browser."""

collect_ignore = ["suite"]
