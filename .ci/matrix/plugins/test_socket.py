"""pytest-socket: tests without sockets, and one with, beside an environment of each test."""

from urllib.request import urlopen

import pytest
from pytest_socket import SocketBlockedError


def test_without_sockets(ephemeral_env_function):
    with pytest.raises(SocketBlockedError):
        urlopen(ephemeral_env_function.url, timeout=10)


@pytest.mark.enable_socket
def test_with_sockets(ephemeral_env_function):
    with urlopen(ephemeral_env_function.url, timeout=10) as answer:
        assert answer.read() == b"ok"
