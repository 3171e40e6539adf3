import pytest


@pytest.fixture(scope="session")
def url(ephemeral_url):
    return ephemeral_url
