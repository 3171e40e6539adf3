"""Read the JUnit results in a folder: report skips that are not allowed, or count the tests.

python .ci/skips.py RESULTS            exit status 1 if a test was skipped that should have run
python .ci/skips.py --count RESULTS    print "<N> passed, <N> failed"
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

#: The allowed reasons of skips: properties of the machine, not software that could be installed.
ALLOWED = re.compile(r"only on (macOS|Windows)|this kernel|this file system|as root", re.IGNORECASE)


def main(arguments: list[str]) -> int:
    """Run the command, and return the exit status."""
    files = sorted(Path(arguments[-1]).glob("*.xml"))
    cases = [case for file in files for case in ET.parse(file).iter("testcase")]  # noqa: S314
    if "--count" in arguments:
        failed = sum(_has(case, "failure") or _has(case, "error") for case in cases)
        skipped = sum(_has(case, "skipped") for case in cases)
        print(f"{len(cases) - failed - skipped} passed, {failed} failed")
        return 0
    refused = [case for case in cases if _is_refused(case)]
    for case in refused:
        name = f"{case.get('classname')}::{case.get('name')}"
        print(f"skipped, and should have run: {name}: {_reason(case)}")
    return 1 if refused or not cases else 0


def _has(case: ET.Element, kind: str) -> bool:
    return case.find(kind) is not None


def _reason(case: ET.Element) -> str:
    skipped = case.find("skipped")
    return "" if skipped is None else skipped.get("message", "")


def _is_refused(case: ET.Element) -> bool:
    skipped = case.find("skipped")
    # pytest reports an expected failure as a skip of this type, but the test did run.
    if skipped is None or skipped.get("type") == "pytest.xfail":
        return False
    return not ALLOWED.search(_reason(case))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
