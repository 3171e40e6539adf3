"""The cloudformation provider on the bench: a stack with an instance of the bench's AMI.

The stack's user data is the boot script of the ec2 provider, with the stack's parameters in place
of a template's variables; so its logs and its end look the same.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_ec2
import msgspec

from pytest_ephemeral import aws
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation.stacks import name_of
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2.user_data import PREFIX, boot_script
from pytest_ephemeral.tables import Template
from pytest_ephemeral.testing import Kind

PARAMETERS = ("COLOUR", "NAME", "GREETING")


class Bench(bench_ec2.Bench):
    """See ``bench.Bench``."""

    def template(self, kind: Kind) -> Template:
        own = super().template(kind)
        ports = own.endpoints()
        urls = {name: f"http://{{output:Address}}:{port}" for name, port in ports.items()}
        folder = Path(tempfile.mkdtemp(prefix="stack-"))
        file = folder / "stack.json"
        file.write_text(json.dumps(_stack(own)))
        return StackTemplate(
            name=kind,
            file=str(file),
            parameters={"Image": "{image:app}"},
            url=urls.pop("http"),
            further=urls,
        )

    def traces(self, environment: Environment) -> Sequence[str]:
        client = aws.client("cloudformation")
        stacks = [
            stack["StackStatus"]
            for stack in client.describe_stacks()["Stacks"]
            if stack["StackName"] == name_of(environment.id)
            and stack["StackStatus"] != "DELETE_COMPLETE"
        ]
        return [*stacks, *super().traces(environment)]


def _stack(own: Any) -> dict[str, Any]:
    """A stack of one instance that runs what a template of the ec2 provider runs."""
    installed = f"$PYTEST_EPHEMERAL_ROOT{PREFIX}/*/application.py"
    commands = {
        name: command.replace('"$PREFIX/application.py"', installed)
        for name, command in own.processes().items()
    }
    script = boot_script(
        SimpleNamespace(id="stack"),
        msgspec.structs.replace(own, command=commands),
        {name: f"@{name}@" for name in PARAMETERS},
        ["@GREETING@"],
        "",
    )
    parts = re.split("@([A-Z]+)@", script)
    joined = [{"Ref": part} if at % 2 else part for at, part in enumerate(parts)]
    instance = {
        "ImageId": {"Ref": "Image"},
        "InstanceType": "t3.small",
        "SubnetId": os.environ[bench_ec2.SUBNETS].split(",")[0],
        "UserData": {"Fn::Base64": {"Fn::Join": ["", joined]}},
    }
    strings = {name: {"Type": "String", "Default": ""} for name in PARAMETERS}
    return {
        "Parameters": {"Image": {"Type": "String"}, **strings},
        "Resources": {"Instance": {"Type": "AWS::EC2::Instance", "Properties": instance}},
        "Outputs": {"Address": {"Value": {"Fn::GetAtt": ["Instance", "PrivateIp"]}}},
    }
