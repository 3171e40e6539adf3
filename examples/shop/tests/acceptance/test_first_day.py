"""A shop on its first day: nothing on the shelves, nobody in the packing room."""

from __future__ import annotations

import requests

from pytest_ephemeral import Environment


def test_the_first_tea_is_put_on_the_shelf(
    empty_shop: Environment, http: requests.Session, manager: requests.Session
) -> None:
    """The catalogue starts empty, and shows the first tea as soon as it is there."""
    assert "The cupboard is bare." in http.get(empty_shop.url).text
    tea = {"name": "Pu-erh", "description": "Old, and proud of it.", "price": 1800, "stock": 5}
    answer = manager.put(f"{empty_shop.url}api/products/pu-erh", json=tea)
    assert answer.ok, answer.text
    assert "Pu-erh" in http.get(empty_shop.url).text


def test_an_order_waits_until_somebody_packs_it(
    empty_shop: Environment, http: requests.Session, manager: requests.Session
) -> None:
    """This template has no worker, so an order stays where it is."""
    tea = {"name": "Mate", "description": "Through a straw.", "price": 640, "stock": 1}
    assert manager.put(f"{empty_shop.url}api/products/mate", json=tea).ok
    order = {"customer": "Alan", "basket": {"mate": 1}}
    number = http.post(f"{empty_shop.url}api/orders", json=order).json()["id"]
    assert http.get(f"{empty_shop.url}api/orders/{number}").json()["state"] == "placed"
    assert "sold out" in http.get(empty_shop.url).text
