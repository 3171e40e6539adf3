"""pytest-timeout: a test that hangs is ended, and its environment with it."""

import time

import pytest


@pytest.mark.xfail(strict=True)
@pytest.mark.timeout(0.5)
def test_that_hangs(ephemeral_env_function):
    time.sleep(60)
