"""The shop's command line: ``shop serve``, ``shop work``, ``shop load-demo-data``."""

from __future__ import annotations

import argparse
import os
import signal
import threading

from shop import __version__, database
from shop.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """Run one of the shop's processes."""
    arguments = _parser().parse_args(argv)
    settings = Settings.read(os.environ)
    database.create(settings.database)
    if arguments.verb == "serve":
        return _serve(settings, arguments.host, arguments.port)
    if arguments.verb == "work":
        return _work(settings)
    return _load_demo_data(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shop", description="The Tea Cupboard.")
    parser.add_argument("--version", action="version", version=f"shop {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="the web server")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    verbs.add_parser("work", help="the worker that packs orders")
    verbs.add_parser("load-demo-data", help="fill the shelves")
    return parser


def _serve(settings: Settings, host: str, port: int) -> int:
    from waitress.server import create_server

    from shop.web import create_app

    server = create_server(create_app(settings), host=host, port=port, ident="shop")
    print(f"web: listening on http://{host}:{port}/", flush=True)
    server.run()
    return 0


def _work(settings: Settings) -> int:
    from shop.worker import work

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    work(settings, stop)
    return 0


def _load_demo_data(settings: Settings) -> int:
    from shop.demo import TEAS, load

    load(settings)
    print(f"loaded {len(TEAS)} teas into {settings.database}")
    return 0
