"""Waiting for an AMI to become available."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pytest_ephemeral import aws
from pytest_ephemeral.errors import BakeError
from pytest_ephemeral.providers.ec2 import amis, deregistration


class Answers:
    """An EC2 client that gives the answers in turn, and repeats the last one."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        model = SimpleNamespace(service_name=self)
        self.meta = SimpleNamespace(service_model=model, region_name=None)

    def describe_images(self, **_: Any) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer[0].isupper():
            raise ClientError({"Error": {"Code": answer, "Message": ""}}, "DescribeImages")
        made = [{"Ebs": {"SnapshotId": "snap-1"}}] if answer == "available" else []
        return {"Images": [{"ImageId": "ami-1", "State": answer, "BlockDeviceMappings": made}]}


@pytest.fixture
def frequent_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often, and accept ``Answers`` in place of a client."""
    monkeypatch.setattr(amis, "POLL", 0.02)
    monkeypatch.setattr(amis, "UNSEEN", 0.1)
    monkeypatch.setattr(amis, "SAY_AGAIN", 0.05)
    client = aws.client

    def find(service: Any, *asked: Any, **more: Any) -> Any:
        return service if isinstance(service, Answers) else client(service, *asked, **more)

    monkeypatch.setattr(aws, "client", find)


GONE, BUSY = "InvalidAMIID.NotFound", "RequestLimitExceeded"


@pytest.mark.usefixtures("frequent_polling")
def test_waiting_for_an_ami_survives_unclear_responses() -> None:
    """The AMI is invisible at times and pending for long, and calls are throttled for long."""
    said: list[str] = []
    seen = Answers(GONE, *["pending"] * 9, GONE, *[BUSY] * 9, "pending", "available")
    assert amis.wait(seen, "ami-1", said.append)["State"] == "available"
    assert any("ami-1 is pending" in line for line in said)


@pytest.mark.usefixtures("frequent_polling")
@pytest.mark.parametrize(
    ("answer", "said"),
    [(GONE, "still not visible"), ("pending", "still pending"), ("failed", "is failed")],
)
def test_an_ami_that_never_becomes_available_is_reported(answer: str, said: str) -> None:
    """It never becomes visible, is pending for longer than allowed, or has failed."""
    with pytest.raises(BakeError, match=said):
        amis.wait(Answers(answer), "ami-1", print, within=0.3)


@pytest.mark.usefixtures("frequent_polling")
def test_snapshots_are_found_despite_throttling() -> None:
    """A pending AMI lists its snapshots only later; a throttled call must not lose any."""
    found = {"ImageId": "ami-1", "State": "pending"}
    seen = Answers("pending", BUSY, "available")
    assert deregistration.find_snapshots(seen, found) == ["snap-1"]
