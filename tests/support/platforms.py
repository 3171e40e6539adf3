"""Marks of tests that some platforms can not run."""

from __future__ import annotations

import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
