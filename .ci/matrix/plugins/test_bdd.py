"""pytest-bdd: a step uses the environment."""

from urllib.request import urlopen

from pytest_bdd import scenarios, then, when

scenarios("site.feature")


@when("I open the site", target_fixture="page")
def opened(ephemeral_url):
    with urlopen(ephemeral_url, timeout=10) as answer:
        return answer.read()


@then("it says ok")
def says_ok(page):
    assert page == b"ok"
