"""pytest-playwright and pytest-base-url: ``base_url`` is the environment's."""


def test_the_base_url_is_the_environments(base_url, ephemeral_url):
    assert base_url == ephemeral_url
