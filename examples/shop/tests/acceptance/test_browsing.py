"""Tests that only look: they all share one shop, whatever their number."""

from __future__ import annotations

import pytest
import requests

from pytest_ephemeral import Environment


def test_the_catalogue_shows_every_tea(ephemeral_url: str, http: requests.Session) -> None:
    """The first page names all that the API knows, with prices."""
    page = http.get(ephemeral_url)
    teas = http.get(f"{ephemeral_url}api/products").json()
    assert page.ok
    assert len(teas) == 8
    for tea in teas:
        assert tea["name"] in page.text
        assert f"€ {tea['price'] / 100:.2f}" in page.text


def test_a_tea_has_a_page_of_its_own(ephemeral_url: str, http: requests.Session) -> None:
    """With its description and a form to order it."""
    page = http.get(f"{ephemeral_url}teas/sencha")
    assert "Steamed long" in page.text
    assert 'name="quantity"' in page.text


def test_an_unknown_tea_is_not_found(ephemeral_url: str, http: requests.Session) -> None:
    """For people and for programs, each in their language."""
    assert http.get(f"{ephemeral_url}teas/coffee").status_code == 404
    answer = http.get(f"{ephemeral_url}api/products/coffee")
    assert answer.status_code == 404
    assert "error" in answer.json()


def test_the_footer_says_where_this_shop_stands(ephemeral_url: str, http: requests.Session) -> None:
    """Nobody should take the staging shop for the real one."""
    assert '<span id="mode">staging</span>' in http.get(ephemeral_url).text


def test_the_shop_is_healthy(ephemeral_env: Environment, http: requests.Session) -> None:
    """And says which version it is."""
    health = http.get(f"{ephemeral_env.url_for('http')}healthz").json()
    assert health["status"] == "ok"
    assert health["version"].count(".") == 2


def test_what_answers_is_what_is_installed(
    ephemeral_env: Environment, http: requests.Session
) -> None:
    """The version that answers is the one of the program inside the environment."""
    asked = ephemeral_env.run(["sh", "-c", "$PREFIX/bin/shop --version"])
    assert asked.returncode == 0, asked.stderr
    health = http.get(f"{ephemeral_env.url}healthz").json()
    assert asked.stdout.strip() == f"shop {health['version']}"


@pytest.mark.parametrize("verb", ["put", "delete"])
def test_strangers_may_not_change_the_shelves(
    ephemeral_url: str, http: requests.Session, verb: str
) -> None:
    """Without the key, the catalogue can't be changed."""
    path = "api/products/coffee" if verb == "put" else "api/products"
    assert http.request(verb, f"{ephemeral_url}{path}", json={}).status_code == 403


@pytest.mark.ephemeral_env("staging", "staging-german")
def test_prices_are_written_as_people_there_write_them(
    ephemeral_env: Environment, http: requests.Session
) -> None:
    """The same test against two templates, and so in two languages."""
    page = http.get(ephemeral_env.url).text
    language, price = {
        "staging": ("en", "€ 9.50"),
        "staging-german": ("de", "9,50 €"),
    }[ephemeral_env.template]
    assert f'<html lang="{language}">' in page
    assert price in page
