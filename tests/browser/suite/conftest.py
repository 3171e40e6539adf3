"""The browser that the shop is looked at with: the system's Chromium, not one that is downloaded.

Nothing here says where the shop is: ``page`` has ``base_url``, and that is the environment's URL.
"""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Root may not use Chromium's sandbox."""
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    chromium = os.environ["CHROMIUM"]
    return {**browser_type_launch_args, "executable_path": chromium, "args": sandbox}
