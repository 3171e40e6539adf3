"""Two tests that use the environment, as a user would write them."""

from urllib.request import urlopen


def test_the_site_answers(ephemeral_url):
    with urlopen(ephemeral_url, timeout=10) as answer:
        assert answer.read() == b"ok"


def test_the_environment_says_what_it_is(ephemeral_env):
    assert ephemeral_env.template == "site"
    with urlopen(ephemeral_env.url, timeout=10) as answer:
        assert answer.status == 200
