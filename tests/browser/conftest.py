"""The suite is for the pytest that the tests start: it needs an environment, and a browser."""

collect_ignore = ["suite"]
