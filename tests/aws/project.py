"""A user's project on the simulated account: an ``ephemeral.toml``, a suite, and commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from aws.conftest import APPLICATION, Bench
from aws.harness import TESTS

VERB = "import sys, aws.fast_polls; from pytest_ephemeral.cli import main; sys.exit(main())"
PROGRAM = [sys.executable, "-c", VERB]
PYTEST = [sys.executable, "-m", "pytest", "-p", "aws.fast_polls", "-p", "no:cacheprovider"]

CONFIGURATION = """\
default-template = "web"
store = {store}

[images.app]
provider = "ec2"
base = {base}
subnet = {subnet}
artifact = "application.py"
install = ['cp "$ARTIFACT" "$PREFIX/application.py"']
verify = ['test -f "$PREFIX/application.py"']

[templates.web]
image = "app"
command = 'exec "{python}" "$PREFIX/application.py" "$HOST" "$PORT"'
subnet = {subnets}
port = 18573
env = {{ COLOUR = "blue" }}
ready = {{ http = "/" }}
"""

#: A user's suite: it sends requests to the application.
SUITE = """\
import urllib.request

def get(url, path="/"):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url.rstrip("/") + path, timeout=10) as answer:
        return answer.read().decode()

def test_it_answers(ephemeral_url):
    assert get(ephemeral_url) == "hello"

def test_it_has_its_variables(ephemeral_env):
    assert get(ephemeral_env.url, "/variable/COLOUR") == "blue"
"""


class Project:
    """A folder with a configuration and a suite.

    Args:
        bench: The bench whose account the project uses.
    """

    def __init__(self, bench: Bench, more: str = "") -> None:
        self.bench = bench
        self.folder = bench.folder / "project"
        self.folder.mkdir()
        (self.folder / "application.py").write_text(APPLICATION.read_text())
        (self.folder / "test_suite.py").write_text(SUITE)
        text = CONFIGURATION.format(
            store=json.dumps(bench.store.url),
            base=json.dumps(bench.account.base),
            subnet=json.dumps(bench.account.subnets[0]),
            subnets=json.dumps(bench.account.subnets),
            python=sys.executable,
        )
        (self.folder / "ephemeral.toml").write_text(text + more)

    def run(self, *words: str, status: int | None = 0, **variables: str) -> Any:
        """Run ``pytest`` or a command of ``pytest-ephemeral``; return the finished process."""
        process = self.start(*words, **variables)
        stdout, stderr = process.communicate(timeout=150)
        done = subprocess.CompletedProcess(words, process.returncode, stdout, stderr)
        assert status in {None, done.returncode}, done.stdout + done.stderr
        return done

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """Start the same command as ``run``, without waiting for it."""
        path = os.pathsep.join([str(TESTS), str(TESTS / "aws" / "site")])
        return subprocess.Popen(
            [*PYTEST, *words[1:]] if words[0] == "pytest" else [*PROGRAM, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def json(self, *words: str) -> Any:
        """Return a command's JSON output."""
        return json.loads(self.run("--json", *words).stdout)
