"""Looks more often, in the process that imports it: nobody counts the calls, and tests wait less.

As a plugin (``-p aws.quickly``) for pytest, or imported before the command line.
"""

from __future__ import annotations

import pytest

from aws.conftest import quick

quick(pytest.MonkeyPatch())
