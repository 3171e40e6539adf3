"""The ec2 provider on the bench: a simulated account whose instances run on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bench_local import keys_for, marked_processes

from pytest_ephemeral import aws, labels
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.tables import Recipe, Template
from pytest_ephemeral.testing import APPLICATION, Kind

SUBNETS = "EPHEMERAL_BENCH_SUBNETS"
SERVE = f'exec "{sys.executable}" "$PREFIX/application.py" "$HOST"'


class Bench:
    """See ``bench.Bench``."""

    parts = ("web", "worker")

    def unavailable(self) -> str:
        if sys.platform != "linux":
            return "the simulated instances need Linux: a loopback address each"
        missing = [name for name in ("boto3", "moto", "flask") if find_spec(name) is None]
        missing += [name for name in ("curl", "base64", "timeout") if shutil.which(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    @contextmanager
    def platform(self) -> Iterator[None]:
        """Start a simulated account for this process and its children."""
        from aws.conftest import quick
        from aws.harness import account

        with account() as self.account, pytest.MonkeyPatch.context() as patch:
            for name, value in self.account.variables.items():
                patch.setenv(name, value)
            patch.setenv(SUBNETS, ",".join(self.account.subnets))
            quick(patch)
            yield

    def recipe(self, root: Path) -> Recipe:
        content = APPLICATION.read_text()
        return Ec2Recipe(
            name="app",
            base=self.account.base,
            subnet=self.account.subnets[0],
            install=[f"cat > $PREFIX/application.py <<'END'\n{content}\nEND"],
            verify=['test -f "$PREFIX/application.py"'],
        )

    def template(self, kind: Kind) -> Template:
        keys: dict[str, Any] = {"image": "app", "subnet": os.environ[SUBNETS].split(",")}
        return Ec2Template(name=kind, **keys, **keys_for(kind, SERVE))

    def traces(self, environment: Environment) -> Sequence[str]:
        client = aws.client("ec2")
        filters = [{"Name": f"tag:{labels.ID}", "Values": [environment.id]}]
        found = client.describe_instances(Filters=filters)["Reservations"]
        states = [one["State"]["Name"] for each in found for one in each["Instances"]]
        return [
            *(state for state in states if state != "terminated"),
            *unused_groups(client, environment.labels[labels.RUN]),
            *marked_processes(environment.id),
        ]


def unused_groups(client: Any, run: str) -> list[str]:
    """List a run's security groups that no instance uses any more: they are leaks."""
    filters = [{"Name": f"tag:{labels.RUN}", "Values": [run]}]
    groups = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    found = client.describe_instances(Filters=filters)["Reservations"]
    used = {
        group["GroupId"]
        for each in found
        for one in each["Instances"]
        if one["State"]["Name"] != "terminated"
        for group in one["SecurityGroups"]
    }
    return [one["GroupName"] for one in groups if one["GroupId"] not in used]
