"""Tests with the system's Chromium, instead of a downloaded browser.

Nothing here sets the URL of the shop: ``page`` uses ``base_url``, the environment's URL.
"""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Use the system's Chromium; root has to disable its sandbox."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    chromium = os.environ["CHROMIUM"]
    return {**browser_type_launch_args, "executable_path": chromium, "args": sandbox}
