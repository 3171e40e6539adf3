"""The minimum versions of dependencies have no known vulnerabilities."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

#: The first version of each library with the fix of a published vulnerability, and its CVE.
FIXED = {
    "requests": ("2.32.4", "CVE-2024-47081"),
    "waitress": ("3.0.1", "CVE-2024-49768"),
    "Werkzeug": ("3.0.6", "CVE-2024-49767"),
    "dnspython": ("2.6.1", "CVE-2023-29483"),
    "cryptography": ("44.0.1", "CVE-2024-12797"),
}


@pytest.mark.parametrize("name", list(FIXED))
def test_lower_bounds_include_security_fixes(name: str) -> None:
    """An installation with the lowest allowed versions has the fix, too."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["dns"], *extras["sign"], *extras["board"]]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(asked), re.MULTILINE))
    version, hole = FIXED[name]
    numbers = tuple(map(int, bounds[name].split(".")))
    assert numbers >= tuple(map(int, version.split("."))), hole
