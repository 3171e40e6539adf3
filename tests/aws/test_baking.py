"""AMIs: baked once, verified, found again, and gone with their snapshots."""

from __future__ import annotations

from typing import Any

import pytest

from aws.conftest import Bench
from pytest_ephemeral.errors import BakeError, ConfigurationError, ImageMissingError
from pytest_ephemeral.providers.ec2.tables import BaseQuery


def test_a_bake_is_verified_and_leaves_only_the_ami(bench: Bench) -> None:
    """Builder, verifier and their groups are gone; the same key is not baked again."""
    image = bench.bake()
    assert bench.account.left() == []
    bench.account.calls()
    assert bench.bake() == image
    assert "ec2:RunInstances" not in bench.account.calls()


def test_what_is_printed_is_logged_and_shown(bench: Bench) -> None:
    """The install script's output comes back over the console."""
    shown: list[str] = []
    bench.images.obtain(bench.recipe(), mode="missing", say=print, live=shown.append)
    assert "installed" in shown
    (log,) = (bench.folder / "state" / "bakes").glob("*.log")
    assert "installed" in log.read_text()


def test_a_script_that_fails_leaves_nothing(bench: Bench) -> None:
    """The last lines are in the error; no AMI, no instance, no group is left."""
    with pytest.raises(BakeError, match="status 3") as caught:
        bench.bake(install=["echo no compiler", "exit 3"])
    assert "no compiler" in str(caught.value)
    assert bench.account.left() == []


def test_an_image_that_does_not_verify_is_removed(bench: Bench) -> None:
    """AMI and snapshots of what fails its verify go with it."""
    with pytest.raises(BakeError, match="verifying it"):
        bench.bake(verify=["false"])
    assert bench.account.left() == []
    assert bench.images.catalog.entries() == []


def test_a_pending_ami_is_waited_for_through_throttles(bench: Bench) -> None:
    """An AMI that is not visible at first, then pending, with the account over its limit."""
    bench.account.tell("times", ami=1.0)
    bench.account.fault("DescribeImages", "InvalidAMIID.NotFound", times=1, after=3)
    bench.account.fault("DescribeImages", "RequestLimitExceeded", kind="throttle", times=2, after=4)
    assert bench.bake().reference.startswith("ami-")


@pytest.mark.parametrize(
    "action", ["CreateSecurityGroup", "RunInstances", "CreateImage", "StopInstances", "CreateTags"]
)
def test_an_answer_that_is_lost_makes_nothing_twice(bench: Bench, action: str) -> None:
    """Done, but never heard of: asked again, it is found, and not made once more."""
    bench.account.fault(action, kind="lost")
    bench.bake()
    assert bench.account.left() == []


def test_an_artifact_too_large_for_user_data_asks_for_a_bucket(bench: Bench) -> None:
    """Without a bucket it is refused in words; with one, it goes by presigned URL."""
    large = bench.folder / "large.bin"
    large.write_bytes(b"x" * 20000)
    keys: dict[str, Any] = {"artifact": str(large), "install": ['cp "$ARTIFACT" "$PREFIX/"']}
    keys["verify"] = ['test "$(wc -c < "$PREFIX/large.bin")" -eq 20000']
    with pytest.raises(ConfigurationError, match="bucket"):
        bench.bake(**keys)
    import boto3

    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="transfers")
    bench.bake(bucket="transfers", **keys)
    assert "Contents" not in s3.list_objects_v2(Bucket="transfers")


def test_a_base_by_owner_and_name(bench: Bench) -> None:
    """What matches, for the processors that are asked for, is baked from and stands in the key."""
    ec2 = bench.account.ec2
    wanted, other = (
        ec2.register_image(Name=name, RootDeviceName="/dev/xvda", Architecture=architecture)
        for name, architecture in (("debian-1", "x86_64"), ("debian-2", "arm64"))
    )
    try:
        image = bench.bake(base=BaseQuery(owner="self", name="debian-*"))
        assert image.inputs["base"] == wanted["ImageId"]
    finally:
        for one in (wanted, other):
            (found,) = ec2.describe_images(ImageIds=[one["ImageId"]])["Images"]
            ec2.deregister_image(ImageId=one["ImageId"])
            ec2.delete_snapshot(SnapshotId=found["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])


def test_an_ami_baked_elsewhere_is_taken_as_it_is(bench: Bench) -> None:
    """It is checked to be there, and never removed."""
    keys: dict[str, Any] = {"base": None, "install": None, "artifact": None, "verify": []}
    image = bench.bake(reference=bench.account.base, **keys)
    assert image.reference == bench.account.base
    bench.images.prune(0, ())
    found = bench.account.ec2.describe_images(ImageIds=[bench.account.base])["Images"]
    assert found[0]["State"] == "available"
    with pytest.raises(ConfigurationError, match="not there"):
        bench.bake(reference="ami-0123456789abcdef0", **keys)


def test_pruning_deregisters_and_deletes_snapshots(bench: Bench) -> None:
    """All of it goes, and an AMI that someone else has removed is told of in words."""
    image = bench.bake()
    bench.images.prune(0, ())
    assert not bench.account.ec2.describe_images(
        Filters=[{"Name": "image-id", "Values": [image.reference]}]
    )["Images"]
    assert bench.images.catalog.entries() == []
    assert bench.account.left() == []
    again = bench.bake()
    bench.account.ec2.deregister_image(ImageId=again.reference)
    with pytest.raises(ImageMissingError, match=again.reference):
        bench.bake()


def test_it_is_copied_to_other_regions(bench: Bench) -> None:
    """A copy is launched from there, and goes with the image."""
    import boto3

    bench.bake(copy_to=["eu-west-1"])
    there = boto3.client("ec2", region_name="eu-west-1")
    (copied,) = there.describe_images(Owners=["self"])["Images"]
    assert {tag["Value"] for tag in copied["Tags"]} >= {"verified", "app"}
    bench.images.prune(0, ())
    assert there.describe_images(Owners=["self"])["Images"] == []
    assert there.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []
