"""The shop's pages and its JSON API."""

from __future__ import annotations

import hmac
import sqlite3
from contextlib import AbstractContextManager

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    jsonify,
    redirect,
    request,
    url_for,
)
from flask import render_template as render
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from shop import __version__, bell, catalogue, database, orders
from shop.catalogue import Product
from shop.settings import Settings
from shop.texts import TEXTS, money

pages = Blueprint("pages", __name__)
api = Blueprint("api", __name__, url_prefix="/api")


def create_app(settings: Settings) -> Flask:
    """The WSGI application."""
    app = Flask("shop")
    app.config["SHOP"] = settings
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.jinja_env.globals.update(
        text=TEXTS[settings.language],
        language=settings.language,
        mode=settings.mode,
        version=__version__,
    )
    app.jinja_env.filters["money"] = lambda cents: money(cents, settings.language)
    app.register_blueprint(pages)
    app.register_blueprint(api)
    app.register_error_handler(HTTPException, _problem)
    app.register_error_handler(orders.RefusedError, _refused)
    return app


def _settings() -> Settings:
    settings: Settings = current_app.config["SHOP"]
    return settings


def _open() -> AbstractContextManager[sqlite3.Connection]:
    return database.transaction(_settings().database)


# -- pages ---------------------------------------------------------------------------------


@pages.get("/")
def catalogue_page() -> str:
    with _open() as db:
        return render("catalogue.html", products=catalogue.products(db))


@pages.get("/teas/<slug>")
def product_page(slug: str) -> str:
    with _open() as db:
        product = catalogue.product(db, slug) or abort(404)
    return render("product.html", product=product)


@pages.post("/teas/<slug>/order")
def order_from_page(slug: str) -> AnyResponse:
    customer = request.form.get("customer", "")
    quantity = request.form.get("quantity", 1, type=int)
    with _open() as db:
        number = orders.place(db, customer, {slug: quantity})
    bell.ring(_settings().redis)
    return redirect(url_for("pages.order_page", number=number), code=303)


@pages.get("/orders/<int:number>")
def order_page(number: int) -> str:
    with _open() as db:
        order = orders.order(db, number) or abort(404)
    return render("order.html", order=order)


@pages.get("/healthz")
def healthz() -> Response:
    with _open() as db:
        db.execute("SELECT 1 FROM products LIMIT 1")
    return jsonify(status="ok", version=__version__)


# -- the API -------------------------------------------------------------------------------


@api.get("/products")
def list_products() -> Response:
    with _open() as db:
        return jsonify(catalogue.products(db))


@api.get("/products/<slug>")
def show_product(slug: str) -> Response:
    with _open() as db:
        return jsonify(catalogue.product(db, slug) or abort(404))


@api.put("/products/<slug>")
def put_product(slug: str) -> Response:
    _needs_key()
    try:
        product = Product(**{"colour": "#6b5b4b", **request.get_json(), "slug": slug})  # type: ignore[typeddict-item]
        with _open() as db:
            catalogue.put(db, product)
    except (TypeError, sqlite3.Error) as error:
        abort(400, f"That is no product: {error}")
    return jsonify(product)


@api.delete("/products")
def clear_products() -> Response:
    _needs_key()
    with _open() as db:
        return jsonify(removed=catalogue.clear(db))


@api.get("/orders")
def list_orders() -> Response:
    with _open() as db:
        return jsonify(orders.orders(db))


@api.post("/orders")
def place_order() -> tuple[Response, int]:
    match request.get_json():
        case {"customer": str(customer), "basket": dict(basket)} if all(
            type(quantity) is int for quantity in basket.values()
        ):
            pass
        case _:
            abort(400, 'An order looks like {"customer": "Ada", "basket": {"assam": 2}}.')
    with _open() as db:
        number = orders.place(db, customer, basket)
        placed = orders.order(db, number)
    bell.ring(_settings().redis)
    return jsonify(placed), 201


@api.get("/orders/<int:number>")
def show_order(number: int) -> Response:
    with _open() as db:
        return jsonify(orders.order(db, number) or abort(404))


@api.delete("/orders")
def clear_orders() -> Response:
    _needs_key()
    with _open() as db:
        return jsonify(removed=orders.clear(db))


def _needs_key() -> None:
    """Only who knows ``SHOP_KEY`` may change what is sold."""
    key = _settings().key
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if not key or not hmac.compare_digest(given.encode(), key.encode()):
        abort(403, "This needs the shop's key.")


# -- what went wrong -----------------------------------------------------------------------


def _problem(error: HTTPException) -> tuple[Response | str, int]:
    status = error.code or 500
    if request.path.startswith("/api/"):
        return jsonify(error=error.description), status
    message = TEXTS[_settings().language]["missing"] if status == 404 else error.description
    return render("problem.html", message=message), status


def _refused(error: orders.RefusedError) -> tuple[Response | str, int]:
    if request.path.startswith("/api/"):
        return jsonify(error=str(error)), 409
    return render("problem.html", message=str(error)), 409
