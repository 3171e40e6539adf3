"""The local provider: environments on this machine, which need nothing installed."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from pytest_ephemeral.providers.local.windows import UnsupportedProvider as LocalProvider
else:
    from pytest_ephemeral.providers.local.provider import LocalProvider

__all__ = ["LocalProvider"]
