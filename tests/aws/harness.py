"""The test's side of the harness: starts the server, prepares an account, sets faults."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.lacks import skip_without

REGION = "us-east-1"
#: The region that AMIs are copied to.
COPIES = "eu-west-1"
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Known:
    """The facts about an account that another process needs to use it."""

    base: str
    subnets: list[str]

    @classmethod
    def of(cls, text: str) -> Known:
        return cls(**json.loads(text))


class Account:
    """A simulated account, with a network whose addresses are this machine's own.

    Attributes:
        url: The endpoint: ``AWS_ENDPOINT_URL``.
        subnets: Two subnets, in two zones.
        base: An AMI to bake from.
        variables: The environment variables with which a process uses it.
    """

    def __init__(self, url: str, octet: int) -> None:
        import boto3

        self.url = url
        self.variables = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.0/8,127.0.0.1",
        }

        def client(service: str, region: str) -> Any:
            return boto3.client(
                service,
                region_name=region,
                endpoint_url=url,
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
            )

        self.ec2 = client("ec2", REGION)
        self.regions = [self.ec2, client("ec2", COPIES)]
        self.stacks = client("cloudformation", REGION)
        vpc = self.ec2.create_vpc(CidrBlock="127.77.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [
            self.ec2.create_subnet(
                VpcId=vpc, CidrBlock=f"127.77.{octet + at}.0/23", AvailabilityZone=f"{REGION}{zone}"
            )["Subnet"]["SubnetId"]
            for at, zone in ((0, "a"), (2, "b"))
        ]
        self.base = self.ec2.register_image(Name="base", RootDeviceName="/dev/xvda")["ImageId"]
        self.calls()

    def known(self) -> str:
        """Return the text that ``Known.of`` reads."""
        return json.dumps({"base": self.base, "subnets": self.subnets})

    def tell(self, verb: str, **what: Any) -> Any:
        """Send a command to the harness, and return its result."""
        data = json.dumps(what).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/_harness/{verb}", data=data, timeout=30) as answer:
            return json.load(answer)

    def calls(self) -> list[str]:
        """Return the calls since this was last called, such as ``ec2:RunInstances``."""
        return [name for name, _ in self.tell("calls")]

    def asked(self, action: str) -> list[dict[str, str]]:
        """Return the parameters of an action's calls since this was last called for it."""
        asked: list[dict[str, str]] = self.tell("asked", action=action)
        return asked

    def fault(
        self,
        action: str,
        code: str = "",
        *,
        kind: str = "refuse",
        times: int = 1,
        after: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Make calls fail, or delay them.

        Args:
            action: A regular expression.
            code: The error code of the answer.
            kind: ``refuse``, ``throttle``, ``lost`` (done, and the answer never arrives), ``cut``
                (done, and half of the answer arrives) or ``delay`` (done, after ``seconds``).
            times: The number of calls that meet the fault.
            after: The number of calls that succeed before.
            seconds: How long calls are delayed.
        """
        rule = {"action": action, "code": code, "kind": kind, "times": times, "after": after}
        self.tell("fault", **rule, seconds=seconds)

    def left(self) -> list[str]:
        """List what remains: instances, groups, stacks, snapshots and unverified AMIs."""
        found: list[str] = self.tell("left", base=self.base, regions=[REGION, COPIES])
        return found

    def verified(self) -> dict[str, str]:
        """Return the AMIs whose tags say ``verified``, in all regions, with their keys."""
        found: dict[str, str] = self.tell("verified", regions=[REGION, COPIES])
        return found

    def clear(self) -> None:
        """Remove all resources that a test has left."""
        if ids := [one.split()[0] for one in self.left() if one.startswith("i-")]:
            for id in ids:
                no = {"Value": False}
                self.ec2.modify_instance_attribute(InstanceId=id, DisableApiTermination=no)
            self.ec2.terminate_instances(InstanceIds=ids)
            self.ec2.get_waiter("instance_terminated").wait(
                InstanceIds=ids, WaiterConfig={"Delay": 1}
            )
        for one in {*self.left(), *self.verified()}:
            if one.startswith("ami-"):
                self.ec2.deregister_image(ImageId=one)
        for one in self.left():
            if one.startswith("snap-"):
                self.ec2.delete_snapshot(SnapshotId=one)
        for group in self.ec2.describe_security_groups()["SecurityGroups"]:
            if group["GroupName"] != "default":
                self.ec2.delete_security_group(GroupId=group["GroupId"])


@contextmanager
def account(*, real: bool = True) -> Iterator[Account]:
    """Start a server with a simulated account.

    Args:
        real: Whether instances run their user data.
    """
    if real and shutil.which("curl") is None:
        skip_without("curl", "instances read their metadata with it (apt-get install curl)")
    with ExitStack() as stack:
        octet = stack.enter_context(_claimed_octet())
        # Short, because pip and virtual environments write paths into scripts' first lines.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ec2-"))) / "g"
        process = subprocess.Popen(
            [sys.executable, "-m", "aws.server", str(folder), *([] if real else ["--hollow"])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"},
        )
        stack.enter_context(process)
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.stdin.close)
        yield Account(process.stdout.readline().strip(), octet)


@contextmanager
def _claimed_octet() -> Iterator[int]:
    """Claim four of the 256 networks in 127.77.0.0/16 that no other harness here uses."""
    with socket.socket(socket.AF_UNIX) as claim:
        for octet in range(0, 256, 4):
            try:
                claim.bind(f"\0pytest-ephemeral-harness-{octet}")
            except OSError:
                continue
            yield octet
            return
    raise RuntimeError("64 harnesses run on this machine already")
