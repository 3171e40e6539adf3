"""Baking AMIs: they are verified, reused, and removed with their snapshots."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws.conftest import Bench
from aws.wire import Request
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import BakeError, ConfigurationError, ImageMissingError
from pytest_ephemeral.providers.ec2 import builders
from pytest_ephemeral.providers.ec2.tables import BaseQuery
from pytest_ephemeral.providers.ec2.tags import tags_of


def test_a_bake_leaves_only_the_verified_ami(bench: Bench) -> None:
    """The builder, the verifier and their groups are removed. The key is not baked again."""
    image = bench.bake()
    assert bench.account.left() == []
    bench.account.calls()
    assert bench.bake() == image
    assert "ec2:RunInstances" not in bench.account.calls()


def test_install_output_is_shown_live_and_logged(bench: Bench) -> None:
    """The install script's output comes back over the console."""
    shown: list[str] = []
    bench.images.obtain(bench.recipe(), mode="missing", say=print, live=shown.append)
    assert any(line.endswith("s  installed") for line in shown)
    (log,) = (bench.folder / "state" / "bakes").glob("*.log")
    assert "installed" in log.read_text()


def test_a_failed_install_script_leaves_nothing(bench: Bench) -> None:
    """The error contains the last lines of output. No AMI, instance or group remains."""
    with pytest.raises(BakeError, match="status 3") as caught:
        bench.bake(install=["echo no compiler", "exit 3"])
    assert "no compiler" in str(caught.value)
    assert bench.account.left() == []


def test_an_image_with_failed_verification_is_removed(bench: Bench) -> None:
    """Its AMI and snapshots are removed, and the catalog has no record of it."""
    with pytest.raises(BakeError, match="verifying it"):
        bench.bake(verify=["false"])
    assert bench.account.left() == []
    assert bench.images.catalog.entries() == []


def test_a_bake_waits_for_a_pending_ami_despite_throttling(bench: Bench) -> None:
    """The AMI is not visible at first, then pending, and the account is over its request limit."""
    bench.account.tell("times", ami=1.0)
    bench.account.fault("DescribeImages", "InvalidAMIID.NotFound", times=1, after=3)
    bench.account.fault("DescribeImages", "RequestLimitExceeded", kind="throttle", times=2, after=4)
    assert bench.bake().reference.startswith("ami-")


@pytest.mark.parametrize(
    "action", ["CreateSecurityGroup", "RunInstances", "CreateImage", "StopInstances", "CreateTags"]
)
def test_a_lost_response_creates_no_duplicates(bench: Bench, action: str) -> None:
    """A call takes effect, but its answer is lost: the retry finds the resource and adds none."""
    bench.account.fault(action, kind="lost")
    bench.bake()
    assert bench.account.left() == []


def test_a_large_artifact_requires_a_bucket(bench: Bench) -> None:
    """Without a bucket, an error says so. With one, it is sent by presigned URL, then deleted."""
    large = bench.folder / "large.bin"
    large.write_bytes(b"x" * 20000)
    keys: dict[str, Any] = {"artifact": str(large), "install": ['cp "$ARTIFACT" "$PREFIX/"']}
    keys["verify"] = ['test "$(wc -c < "$PREFIX/large.bin")" -eq 20000']
    with pytest.raises(ConfigurationError, match="bucket"):
        bench.bake(**keys)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="transfers")
    bench.bake(bucket="transfers", **keys)
    assert "Contents" not in s3.list_objects_v2(Bucket="transfers")


@pytest.mark.parametrize("bucket", [None, "transfers"])
def test_files_and_python_are_available_and_part_of_the_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, bucket: str | None
) -> None:
    """The install script finds the files and the Python; both are inputs of the key."""
    boto3.client("s3").create_bucket(Bucket="transfers")
    monkeypatch.setenv("PATH", str(Path(sys.executable).resolve().parent), prepend=":")
    (bench.folder / "deploy").mkdir()
    (bench.folder / "deploy/settings").write_text("blue")
    version = "{}.{}".format(*sys.version_info)
    keys: dict[str, Any] = {
        "bucket": bucket,
        "files": ["deploy"],
        "python": version,
        "install": ['cp deploy/settings "$PREFIX/"', 'python -V > "$PREFIX/python"', "ls -A"],
        "verify": ['grep -x blue "$PREFIX/settings"', f'grep "Python {version}" "$PREFIX/python"'],
    }
    image = bench.bake(**keys)
    (bench.folder / "deploy/settings").write_text("blue ")
    with pytest.raises(BakeError, match=r"verifying it"):
        bench.bake(**keys)
    assert (image.inputs["python"], image.inputs["files"][:7]) == (version, "sha256:")
    with pytest.raises(BakeError, match=r"images.app.python: there is no python3.98 on PATH"):
        bench.bake(**{**keys, "python": "3.98"})


def test_the_base_ami_can_be_found_by_owner_and_name(bench: Bench) -> None:
    """The matching AMI for the recipe's processor architecture is the base, and part of the key."""
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


def test_an_existing_ami_is_used_and_never_removed(bench: Bench) -> None:
    """A missing AMI is an error. Pruning leaves an existing one in place."""
    keys: dict[str, Any] = {"base": None, "install": None, "artifact": None, "verify": []}
    image = bench.bake(reference=bench.account.base, **keys)
    assert image.reference == bench.account.base
    bench.images.prune(0, ())
    found = bench.account.ec2.describe_images(ImageIds=[bench.account.base])["Images"]
    assert found[0]["State"] == "available"
    with pytest.raises(ConfigurationError, match="not there"):
        bench.bake(reference="ami-0123456789abcdef0", **keys)


def test_pruning_deregisters_and_deletes_snapshots(bench: Bench) -> None:
    """Nothing of the image remains. An AMI that others have removed is reported by its id."""
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


def test_an_ami_is_copied_to_other_regions(bench: Bench) -> None:
    """The copy is tagged as verified. Pruning the image removes the copy and its snapshots, too."""
    bench.bake(copy_to=["eu-west-1"])
    there = boto3.client("ec2", region_name="eu-west-1")
    (copied,) = there.describe_images(Owners=["self"])["Images"]
    assert {tag["Value"] for tag in copied["Tags"]} >= {"verified", "app"}
    bench.images.prune(0, ())
    assert there.describe_images(Owners=["self"])["Images"] == []
    assert there.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_builders_are_locked_down_and_tagged(bench: Bench) -> None:
    """They require IMDSv2, allow no ingress, tag all resources, and have tokens of their own."""
    for action in ("RunInstances", "CreateSecurityGroup", "CreateImage"):
        bench.account.asked(action)
    bench.account.calls()
    image = bench.bake()
    launched = bench.account.asked("RunInstances")
    assert len({form["ClientToken"] for form in launched}) == 2  # the builder's and the verifier's
    for form in launched:
        assert form["MetadataOptions.HttpTokens"] == "required"
        assert form["MetadataOptions.HttpPutResponseHopLimit"] == "2"
        assert form["InstanceInitiatedShutdownBehavior"] == "terminate"
        for kind in ("instance", "volume", "network-interface"):
            assert tags_in(form, kind)["pytest-ephemeral.key"] == image.key
    assert "ec2:AuthorizeSecurityGroupIngress" not in bench.account.calls()
    for form in bench.account.asked("CreateSecurityGroup"):
        assert tags_in(form, "security-group")["pytest-ephemeral.key"] == image.key
    (form,) = bench.account.asked("CreateImage")
    for kind in ("image", "snapshot"):
        assert tags_in(form, kind)["pytest-ephemeral.state"] == "quarantined"


def tags_in(form: dict[str, str], kind: str) -> dict[str, str]:
    return Request({}, "ec2", "", "", form, b"").tags(kind)


def test_amis_copies_and_snapshots_are_tagged_verified(bench: Bench) -> None:
    """The tag is on the AMI, on its copy in another region, and on the snapshots of both."""
    image = bench.bake(copy_to=["eu-west-1"])
    for region in ("us-east-1", "eu-west-1"):
        ec2 = boto3.client("ec2", region_name=region)
        filters = [{"Name": "tag:pytest-ephemeral.key", "Values": [image.key]}]
        (ami,) = ec2.describe_images(Filters=filters)["Images"]
        (snapshot,) = ec2.describe_snapshots(Filters=filters)["Snapshots"]
        assert ami["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] == snapshot["SnapshotId"]
        for one in (ami, snapshot):
            assert tags_of(one)["pytest-ephemeral.state"] == "verified"


@pytest.mark.parametrize("bucket", [None, "secrets"])
def test_passed_secrets_are_not_in_the_image_or_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, bucket: str | None
) -> None:
    """Neither are presigned URLs, though cloud-init keeps user data in several places."""
    if bucket:
        boto3.client("s3").create_bucket(Bucket=bucket)
    monkeypatch.setenv("TOKEN", "t0p-s3cret")
    install = ["echo token $TOKEN", 'cp "$ARTIFACT" "$PREFIX/application.py"']
    image = bench.bake(pass_env=["TOKEN"], bucket=bucket, install=install)
    (log,) = (bench.folder / "state" / "bakes").glob("*.log")
    assert "token ***" in log.read_text().splitlines()
    disk = Path(bench.account.tell("disk", image=image.reference))
    found = [path for path in disk.rglob("*") if path.is_file()]
    assert any(path.name == "application.py" for path in found)
    for path in found:
        content = path.read_bytes()
        assert b"t0p-s3cret" not in content, path
        assert b"X-Amz-Signature" not in content, path


def test_output_is_read_from_the_console_if_uploads_fail(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Presigned URLs expire with their credentials; the bake must not then wait for an hour."""
    boto3.client("s3").create_bucket(Bucket="closed")
    monkeypatch.setattr(builders, "SECOND_LOOK", 0.2)
    bench.account.fault("PUT", "AccessDenied", times=99)
    shown: list[str] = []
    recipe = bench.recipe(bucket="closed", artifact=None, install=["echo made it"], verify=[])
    bench.images.obtain(recipe, mode="missing", say=print, live=shown.append)
    assert any(line.endswith("s  made it") for line in shown)


def test_a_bake_waits_until_the_ami_can_be_launched(bench: Bench) -> None:
    """An AMI that was reported as available may be unknown to the next call, which is repeated."""
    bench.account.fault("RunInstances", "InvalidAMIID.NotFound", times=2, after=1)
    bench.bake()
    assert bench.account.left() == []


def test_a_missing_bucket_is_reported_before_launch(bench: Bench) -> None:
    """The error names the setting and the bucket."""
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"images.app.bucket: 'nowhere': it does not"):
        bench.bake(bucket="nowhere")
    assert "ec2:RunInstances" not in bench.account.calls()


def test_the_base_ami_can_come_from_an_ssm_parameter(bench: Bench) -> None:
    """The parameter's value is part of the key. A missing parameter is an error."""
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/golden/base", Value=bench.account.base, Type="String")
    assert bench.bake(base="ssm:/golden/base").inputs["base"] == bench.account.base
    with pytest.raises(ConfigurationError, match="no parameter '/golden/none' in SSM"):
        bench.bake(base="ssm:/golden/none")
    ssm.delete_parameter(Name="/golden/base")


def test_a_forced_bake_replaces_the_ami_in_all_regions(bench: Bench) -> None:
    """``--force`` removes the old AMIs, too. One with a running environment is left to reap."""
    bench.keys = {"copy_to": ["eu-west-1"]}
    first = bench.bake()
    second = bench.bake("always")
    assert second.reference != first.reference
    assert images_of("us-east-1") == {second.reference}
    assert len(images_of("eu-west-1")) == 1
    environment = bench.lifecycle.bring_up(bench.template()).environment
    third = bench.bake("always")
    assert images_of("us-east-1") == {second.reference, third.reference}
    bench.lifecycle.destroy(environment)
    reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
    for region in ("us-east-1", "eu-west-1"):
        assert len(images_of(region)) == 1
    assert images_of("us-east-1") == {third.reference}


def images_of(region: str) -> set[str]:
    """Return the baked AMIs in a region."""
    filters = [{"Name": "tag-key", "Values": ["pytest-ephemeral.key"]}]
    found = boto3.client("ec2", region_name=region).describe_images(Filters=filters)
    return {one["ImageId"] for one in found["Images"]}


def test_two_stores_can_bake_the_same_key_concurrently(bench: Bench, tmp_path: Path) -> None:
    """Without a common store, neither bake removes the resources of the other."""
    other = Bench(bench.account, bench.folder, store=tmp_path / "other-store")
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(one.bake, install=["sleep 1"], verify=[]) for one in (bench, other)]
        references = {one.result().reference for one in made}
    assert len(references) == 2
    assert bench.account.left() == []
    for one in (bench, other):
        one.images.prune(0, ())


def test_a_failed_copy_is_retried_by_the_next_bake(bench: Bench) -> None:
    """The verified AMI remains; the next bake makes only the copy."""
    bench.account.fault("CopyImage", "ResourceLimitExceeded")
    with pytest.raises(BakeError, match="ResourceLimitExceeded"):
        bench.bake(copy_to=["eu-west-1"])
    (made,) = images_of("us-east-1")
    assert bench.bake(copy_to=["eu-west-1"]).reference == made
    assert len(images_of("eu-west-1")) == 1
    assert bench.account.left() == []


def test_images_in_use_are_not_pruned(bench: Bench) -> None:
    """Neither is an image of production. See also the tests of the command line."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    assert bench.images.prune(0, ()) == []
    bench.lifecycle.destroy(environment)
    (image,) = bench.images.catalog.entries()
    assert bench.images.prune(0, {image.key}) == []
    assert len(bench.images.prune(0, ())) == 1
