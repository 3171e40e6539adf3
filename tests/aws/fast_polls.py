"""Polls more often in the process that imports it, so that tests wait less.

It is a plugin for pytest (``-p aws.fast_polls``), or is imported before the command line. With
``PACE=users`` it does nothing, because those tests count the calls.
"""

from __future__ import annotations

import os

import pytest

from aws.conftest import quick

if os.environ.get("PACE") != "users":
    quick(pytest.MonkeyPatch())
