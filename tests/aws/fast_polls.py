"""Looks more often, in the process that imports it: nobody counts the calls, and tests wait less.

As a plugin (``-p aws.fast_polls``) for pytest, or imported before the command line. With
``PACE=users`` it does nothing: then calls are counted.
"""

from __future__ import annotations

import os

import pytest

from aws.conftest import quick

if os.environ.get("PACE") != "users":
    quick(pytest.MonkeyPatch())
