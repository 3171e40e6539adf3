"""The shop on EC2: it is baked into an AMI, and its acceptance suite runs on instances."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import boto3

from aws.conftest import Bench
from support import processes
from support.shop import build_wheel, copy_shop
from support.waiting import until


def test_the_acceptance_suite_passes_on_ec2(bench: Bench, tmp_path: Path) -> None:
    """The run bakes, launches, tests and terminates. Nothing remains, and the AMI can be pruned."""
    folder = copy_shop(tmp_path / "shop")
    build_wheel(folder)
    boto3.client("s3").create_bucket(Bucket="shop")
    configuration(folder / "ephemeral.toml", bench)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*command: str) -> str:
        environ = {**os.environ, "PATH": path}
        return processes.run(*command, folder=folder, environ=environ).stdout

    assert "these cost at most $0.01" in run("python", "-m", "pytest", "--ephemeral-env")
    records = folder / ".ephemeral" / "environments"
    until(lambda: not list(records.glob("*.json")), within=60)  # the run does not wait for EC2
    assert bench.account.left() == []
    run("pytest-ephemeral", "images", "prune", "--keep", "0")
    assert bench.account.verified() == {}


def configuration(file: Path, bench: Bench) -> None:
    """Change the shop's configuration: its image and templates are on EC2."""
    image = (
        f'provider = "ec2"\nbase = "{bench.account.base}"\n'
        f'subnet = "{bench.account.subnets[0]}"\nbucket = "shop"'
    )
    subnets = json.dumps(bench.account.subnets)
    text = file.read_text().replace('provider = "local"', image)
    templates = re.compile(r'(\[templates\.[a-z-]+\]\nimage = "shop")')
    file.write_text(templates.sub(rf"\1\nsubnet = {subnets}", text))
