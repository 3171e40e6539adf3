"""Tests that buy and destroy: they have a shop to themselves, fresh for this module."""

from __future__ import annotations

import time

import pytest
import requests

from pytest_ephemeral import Environment


@pytest.fixture
def shop(ephemeral_env_module: Environment) -> str:
    """The URL of this module's own shop."""
    return ephemeral_env_module.url


def wait_until_packed(http: requests.Session, shop: str, number: int, seconds: float = 10) -> None:
    """Ask after an order until the worker has packed it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        order = http.get(f"{shop}api/orders/{number}").json()
        if order["state"] == "packed":
            assert order["packed_at"] >= order["placed_at"]
            return
        time.sleep(0.02)
    pytest.fail(f"order {number} was still {order['state']} after {seconds} s")


def test_an_order_is_placed_and_packed(shop: str, http: requests.Session) -> None:
    """From the API to the packing room, which is another process."""
    basket = {"assam": 2, "rooibos": 1}
    placed = http.post(f"{shop}api/orders", json={"customer": "Ada", "basket": basket})
    assert placed.status_code == 201
    assert placed.json()["total"] == 2 * 950 + 720
    wait_until_packed(http, shop, placed.json()["id"])


def test_the_order_form_leads_to_the_order(shop: str, http: requests.Session) -> None:
    """As a customer does it, in a browser."""
    page = http.post(f"{shop}teas/earl-grey/order", data={"customer": "Grace", "quantity": "3"})
    assert page.ok
    assert "/orders/" in page.url
    assert "Thank you, Grace." in page.text
    assert "€ 26.70" in page.text


def test_what_is_not_there_is_not_sold(shop: str, http: requests.Session) -> None:
    """A refused order takes nothing, not even what there would have been enough of."""
    basket = {"genmaicha": 1, "gyokuro": 4}
    refused = http.post(f"{shop}api/orders", json={"customer": "Ada", "basket": basket})
    assert refused.status_code == 409
    assert refused.json()["error"] == "There are only 3 of Gyokuro left."
    # Other tests of this module buy other teas meanwhile, from another xdist worker.
    assert http.get(f"{shop}api/products/genmaicha").json()["stock"] == 30


class TestDestructive:
    """What no shop that others use would survive."""

    @pytest.fixture
    def shop(self, ephemeral_env_class: Environment) -> str:
        """The URL of a shop for this class alone."""
        return ephemeral_env_class.url

    def test_wipe(self, shop: str, http: requests.Session, manager: requests.Session) -> None:
        """Everything is deleted, and the shop still answers."""
        http.post(f"{shop}api/orders", json={"customer": "Ada", "basket": {"sencha": 1}})
        assert manager.delete(f"{shop}api/orders").json() == {"removed": 1}
        assert manager.delete(f"{shop}api/products").json() == {"removed": 8}
        assert "The cupboard is bare." in http.get(shop).text
