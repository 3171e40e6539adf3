"""The whole way of three versions of a shop to production, on this one machine.

    python demo.py FOLDER [--approve browser|command]

Version 1.4.2 is production. 1.5.0 is built, pushed, baked, tested, approved and promoted, while a
client resolves production's name and asks the shop again and again; then 1.4.2 goes. 1.6.0 does
not know the name it is known by: it passes its tests, fails its verification, and production stays
1.5.0. The exit status is 0 when all that is true, and the client has not met a single failure.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHOP = Path(__file__).parents[1] / "shop"
NAME = "shop.example.test"
PORT = 8080

PROMOTION = f"""
[promotion.production]
dns = "hosts"
file = "hosts"
record = "{NAME}"
verify = {{ http = "/healthz", timeout = "3s" }}
requires = ["acceptance", "approval"]
drain = "2s"
keep-old = "3s"
"""

#: What 1.6.0 gets wrong: it knows itself by its address, and not by the name customers use.
MISTAKE = """
    @app.before_request
    def only_known_hosts() -> None:
        if not request.host.startswith("127."):
            abort(421)

"""


class Shop:
    """A copy of the example, to be released from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("dist", ".ephemeral", "__pycache__", ".pytest_cache")
        shutil.copytree(SHOP, folder, ignore=ignored)
        with (folder / "ephemeral.toml").open("a") as file:
            file.write(PROMOTION)

    def write(self, version: str, *, mistaken: bool = False) -> None:
        """Become another version."""
        project = self.folder / "pyproject.toml"
        lines = project.read_text().splitlines(keepends=True)
        released = f'version = "{version}"\n'
        project.write_text(
            "".join(released if line.startswith("version = ") else line for line in lines)
        )
        if mistaken:
            web = self.folder / "src" / "shop" / "web.py"
            before = "    app.register_blueprint(pages)\n"
            web.write_text(web.read_text().replace(before, MISTAKE + before, 1))

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command of the pipeline, showing what it says; returns what it prints as data."""
        print(f"$ {' '.join(command)}", flush=True)
        program = Path(sys.executable).with_name(command[0])
        done = subprocess.run(
            [program, *command[1:]], cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, end="", flush=True)
        if done.returncode != status:
            sys.exit(f"that ended with {done.returncode}, and {status} was expected")
        return done.stdout

    def ask(self, *command: str) -> dict[str, Any]:
        """Run a command for what it knows, without showing it."""
        program = Path(sys.executable).with_name("pytest-ephemeral")
        done = subprocess.run(
            [program, "--json", *command], cwd=self.folder, capture_output=True, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def address(self) -> str:
        """Where the name leads, by the file that serves it."""
        for line in (self.folder / "hosts").read_text().splitlines():
            address, *names = line.split()
            if NAME in names:
                return address
        raise LookupError(f"{NAME} leads nowhere")


class Client(threading.Thread):
    """Someone who resolves the name and asks the shop, all the time."""

    def __init__(self, shop: Shop) -> None:
        super().__init__()
        self.versions: list[str] = []
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._shop = shop
        self._over = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        while not self._over.wait(0.01):
            try:
                version = self._ask()
            except (OSError, LookupError, ValueError) as error:
                self.failures.append(str(error))
                continue
            self.answers[version] += 1
            if self.versions[-1:] != [version]:
                self.versions.append(version)

    def _ask(self) -> str:
        url = f"http://{self._shop.address()}:{PORT}/healthz"
        request = urllib.request.Request(url, headers={"Host": f"{NAME}:{PORT}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(json.load(answer)["version"])

    def stop(self) -> None:
        """Be done."""
        self._over.set()
        self.join()


def test_and_bring_up(shop: Shop, version: str) -> str:
    """Build, push, bake and test a version, and bring one up; returns the environment's id."""
    print(f"\n== {version}: build, push, bake, test", flush=True)
    shutil.rmtree(shop.folder / "dist", ignore_errors=True)
    shop.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", ".")
    shop.run("pytest-ephemeral", "artifact", "push", f"dist/shop-{version}-py3-none-any.whl")
    shop.run("pytest-ephemeral", "bake", "shop")
    stage = ("--ephemeral-stage", "acceptance", "--ephemeral-bake", "never")
    shop.run("pytest", "--ephemeral-env", *stage, "-q", "-p", "no:cacheprovider")
    shop.run("pytest-ephemeral", "up", "staging", "--ttl", "30m")
    up = [one for one in shop.ask("list")["environments"] if one["template"] == "staging"]
    return str(max(up, key=lambda one: one["created_at"])["id"])


def approve(shop: Shop, id: str, how: str) -> None:
    """Ask a person, and be that person."""
    print(f"\n== {id}: a person decides, {how}", flush=True)
    shop.run("pytest-ephemeral", "approval", "request", id)
    if how == "command":
        shop.run("pytest-ephemeral", "approve", id, "--by", "Anna", "--comment", "Looks right.")
    else:
        with _board(shop) as link:
            _click(link, id)
    shop.run("pytest-ephemeral", "approval", "request", id, "--wait", "1m")


@contextmanager
def _board(shop: Shop) -> Iterator[str]:
    program = Path(sys.executable).with_name("pytest-ephemeral")
    board = subprocess.Popen(
        [program, "board", "--port", "0"], cwd=shop.folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert board.stdout is not None
        yield board.stdout.readline().strip()
    finally:
        board.terminate()
        board.communicate()


def _click(link: str, id: str) -> None:
    """Open the board in a browser, and say yes there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(link)
        card = page.locator(f"#decide-{id}")
        card.get_by_label("Your name").fill("Anna")
        card.get_by_label("Comment").fill("Looks right.")
        card.get_by_role("button", name="Approve").click()
        page.locator("#decided").get_by_text(id).wait_for()
        browser.close()


def wait_until_gone(shop: Shop, environment: dict[str, Any]) -> None:
    """Wait until nothing answers where an environment was, and its record is closed."""
    host, began = environment["endpoints"]["http"]["host"], time.monotonic()
    while time.monotonic() < began + 60:
        with socket.socket() as probe:
            answers = probe.connect_ex((host, PORT)) == 0
        ids = {one["id"] for one in shop.ask("list")["environments"]}
        if not answers and environment["id"] not in ids:
            print(f"{environment['id']} has gone by itself, {time.monotonic() - began:.1f} s later")
            return
        time.sleep(0.2)
    sys.exit(f"{environment['id']} is still there")


def pipeline(shop: Shop, how: str) -> Client:
    """All of it; returns the client, and what it has seen."""
    shop.write("1.4.2")
    first = test_and_bring_up(shop, "1.4.2")
    approve(shop, first, "command")
    shop.run("pytest-ephemeral", "promote", first, "--to", "production")
    old = shop.ask("show", first)["environment"]
    client = Client(shop)
    client.start()
    try:
        shop.write("1.5.0")
        second = test_and_bring_up(shop, "1.5.0")
        approve(shop, second, how)
        print(f"\n== {second} becomes production", flush=True)
        shop.run("pytest-ephemeral", "promote", second, "--to", "production", "--dry-run")
        shop.run("pytest-ephemeral", "promote", second, "--to", "production")
        wait_until_gone(shop, old)
        shop.write("1.6.0", mistaken=True)
        third = test_and_bring_up(shop, "1.6.0")
        approve(shop, third, "command")
        print(f"\n== {third} is to become production, and does not know its own name", flush=True)
        shop.run("pytest-ephemeral", "promote", third, "--to", "production", status=1)
        shop.run("pytest-ephemeral", "history", "production")
    finally:
        client.stop()
    return client


def clean_up(shop: Shop) -> None:
    """Production too: this was a demonstration."""
    left = shop.ask("list")["environments"]
    if left:
        shop.run("pytest-ephemeral", "down", "--production", *(one["id"] for one in left))


def main() -> int:
    """Run it, and say whether it went as it should."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="to work in; must not be there yet")
    parser.add_argument("--approve", choices=["browser", "command"], default="command")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    os.environ.setdefault("SHOP_KEY", secrets.token_urlsafe())
    os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
    shop = Shop(folder / "shop")
    try:
        client = pipeline(shop, arguments.approve)
    finally:
        clean_up(shop)
    print(f"\nThe client saw {dict(client.answers)}, in the order {', '.join(client.versions)}.")
    print(f"Failed requests: {len(client.failures)}", *client.failures[:5], sep="\n  ")
    return 0 if client.versions == ["1.4.2", "1.5.0"] and not client.failures else 1


if __name__ == "__main__":
    sys.exit(main())
