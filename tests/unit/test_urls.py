"""URLs: joining them, hiding their passwords, and reaching hosts without a proxy."""

from __future__ import annotations

import pytest

from pytest_ephemeral import proxies, urls


@pytest.mark.parametrize("base", ["http://h:1/", "http://h:1"])
@pytest.mark.parametrize("path", ["/a?b=/c", "a?b=/c", "//a?b=/c"])
def test_join_uses_exactly_one_slash(base: str, path: str) -> None:
    """Both sides, one of them or neither may have a slash."""
    assert urls.join(base, path) == "http://h:1/a?b=/c"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:80/@name", "http://h:80/@name"),
        ("http://h/", "http://h/"),
        ("http://user@h/", "http://user@h/"),
        ("http://u:secret@h:80/p", "http://u:***@h:80/p"),
        ("redis://:secret@h/0", "redis://:***@h/0"),
        ("http://u:sec@ret@h/", "http://u:***@h/"),
        ("http://u:sec/ret@h/", "http://u:***@h/"),
        ("http://u:123@h/", "http://u:***@h/"),
        (
            "web=http://u:secret@h/,pg=postgresql://v:secret@i:5432",
            "web=http://u:***@h/,pg=postgresql://v:***@i:5432",
        ),
        ("staging-7f3k2q", "staging-7f3k2q"),
    ],
)
def test_hide_password_masks_passwords_in_urls(url: str, shown: str) -> None:
    """This includes passwords that are not percent-encoded. Other text is unchanged."""
    assert urls.hide_password(url) == shown


def test_exempt_sets_no_proxy_in_both_cases() -> None:
    """Some clients read only one of them. Hosts that are already in the list stay."""
    environ = {"HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost, 10.0.0.1"}
    listed = "localhost,10.0.0.1,127.4.9.3"
    assert proxies.exempt(environ, "127.4.9.3") == {"no_proxy": listed, "NO_PROXY": listed}


@pytest.mark.parametrize(
    "environ",
    [{}, {"NO_PROXY": "h"}, {"HTTP_PROXY": ""}, {"HTTP_PROXY": "http://p:1", "no_proxy": "*"}],
)
def test_exempt_sets_nothing_if_no_proxy_is_used(environ: dict[str, str]) -> None:
    """No proxy is set, or all hosts that use it are exempt."""
    assert proxies.exempt(environ, "127.4.9.3") == {}


def test_restore_resets_changed_variables() -> None:
    """A variable that other code has set in the meantime is not changed."""
    before = {"HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost"}
    environ = dict(before)
    exemptions = proxies.Exemptions(environ)
    exemptions.add("127.4.9.3")
    exemptions.add("127.4.9.4")
    assert environ["no_proxy"] == "localhost,127.4.9.3,127.4.9.4"
    exemptions.restore()
    assert environ == before
    exemptions.add("127.4.9.3")
    environ["NO_PROXY"] = "mine"
    exemptions.restore()
    assert environ == {**before, "NO_PROXY": "mine"}
