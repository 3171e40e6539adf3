"""pytest-freezer and freezegun: the clock stands still, and the environment does not end."""

from datetime import datetime
from urllib.request import urlopen

import pytest


@pytest.mark.freeze_time("2001-02-03")
def test_under_a_frozen_clock(ephemeral_env_function):
    assert datetime.now().year == 2001
    with urlopen(ephemeral_env_function.url, timeout=10) as answer:
        assert answer.read() == b"ok"


def test_after_it(ephemeral_env_function):
    assert datetime.now().year > 2001
    with urlopen(ephemeral_env_function.url, timeout=10) as answer:
        assert answer.read() == b"ok"
