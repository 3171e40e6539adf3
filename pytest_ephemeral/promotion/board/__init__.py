"""The board: a page that shows environments and takes approvals."""
