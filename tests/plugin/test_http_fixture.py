"""``ephemeral_http``: a session of requests with the environment's URL as its base."""

from __future__ import annotations

TESTS = """
import requests

def test_paths(ephemeral_http, ephemeral_env):
    assert isinstance(ephemeral_http, requests.Session)
    base = ephemeral_env.url
    for path in ("/hello?a=1", "hello?a=1", "//hello?a=1"):
        assert ephemeral_http.get(path).url == base + "hello?a=1"
    assert ephemeral_http.get("").url == ephemeral_http.get("/").url == base
    assert "asked for //" not in ephemeral_env.logs()

def test_whole_urls(ephemeral_http, ephemeral_env):
    assert ephemeral_http.get(ephemeral_env.url_for("http", "other")).ok

def test_every_command(ephemeral_http):
    for verb in ("get", "post", "put", "patch", "delete", "options"):
        assert getattr(ephemeral_http, verb)("/it").text == "plain"
    assert ephemeral_http.request("GET", "/it").ok
    assert ephemeral_http.send(ephemeral_http.prepare_request(requests.Request("GET", "/it"))).ok

def test_each_test_has_its_own_cookies(ephemeral_http):
    ephemeral_http.cookies.set("basket", "full")

def test_cookies_of_another_test(ephemeral_http):
    assert not ephemeral_http.cookies
"""


def test_the_http_session_accepts_paths(project, run):
    """Paths are relative to the URL, without double slashes; each test has a new session."""
    project.write(test_it=TESTS)
    run().assert_outcomes(passed=5)


def test_a_test_without_the_option_is_skipped(project, pytester):
    """Without ``--ephemeral-env``, the other fixtures skip a test, too."""
    project.write(test_it="def test_it(ephemeral_http): raise AssertionError")
    pytester.runpytest_inprocess("-p", "no:randomly").assert_outcomes(skipped=1)
