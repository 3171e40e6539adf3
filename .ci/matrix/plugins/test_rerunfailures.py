"""pytest-rerunfailures: the test that is run again has its environment, and the same one."""

from pathlib import Path
from urllib.request import urlopen

import pytest


@pytest.mark.flaky(reruns=2)
def test_it_passes_the_second_time(ephemeral_env):
    seen = Path("seen")
    first = seen.read_text() if seen.exists() else ""
    seen.write_text(ephemeral_env.id)
    with urlopen(ephemeral_env.url, timeout=10) as answer:
        assert answer.read() == b"ok"
    assert first == ephemeral_env.id
