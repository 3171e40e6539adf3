"""A customer buys tea in a browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect


def test_an_order_is_placed_and_packed(page: Page) -> None:
    """The order's page has the customer and the total; no test sets the shop's URL."""
    page.goto("/")
    expect(page.get_by_role("listitem")).to_have_count(8)
    page.get_by_role("link", name=re.compile("Assam")).click()
    page.get_by_label("Your name").fill("Ada <b>")
    page.get_by_label("How many").fill("2")
    page.get_by_role("button", name="Order").click()
    expect(page.get_by_role("heading")).to_contain_text("Thank you, Ada <b>.")
    expect(page.locator("tr.total")).to_contain_text("19.00")


def test_base_url_is_the_url_of_the_environment(
    page: Page, base_url: str, ephemeral_url: str
) -> None:
    """The environment has its own address on this machine."""
    assert base_url == ephemeral_url
    page.goto("healthz")
    assert page.url == f"{ephemeral_url}healthz"
    assert page.evaluate("location.origin") + "/" == ephemeral_url


@pytest.mark.ephemeral_env("staging-german")
def test_another_template_has_another_url(page: Page, ephemeral_env_module) -> None:
    """The marker selects the template of the environment."""
    page.goto(ephemeral_env_module.url)
    expect(page).to_have_title(re.compile("Der Teeschrank"))
