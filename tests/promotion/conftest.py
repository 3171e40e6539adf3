"""Two environments that answer, and a name for one of them."""

from promoting import make_stage, served, stage

__all__ = ["make_stage", "served", "stage"]
