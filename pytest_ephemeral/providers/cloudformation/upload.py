"""A stack's own folder in S3: what its template is too large for, or names by local paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_ephemeral import aws
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EphemeralError,
    UnavailableError,
)
from pytest_ephemeral.providers.cloudformation import packaging
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2 import transfers
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.protocol import Check

#: CloudFormation takes no larger template in a request, in bytes; nor from S3:
#: "CloudFormation quotas" in its user guide.
LARGEST: Final = 51200
LARGEST_IN_S3: Final = 1_048_576


class Source(NamedTuple):
    """A template as CloudFormation is given it.

    Attributes:
        arguments: ``TemplateBody`` or ``TemplateURL``.
        bucket: The bucket that its folder is in; empty if it needs none.
    """

    arguments: Mapping[str, str]
    bucket: str = ""


def check(template: StackTemplate, root: Path) -> bool:
    """Whether a template, or a part of it, has to go through S3.

    Raises:
        ConfigurationError: It can't be read, names what is not there, is too large, or has no
            bucket and needs one.
    """
    file, where = root / template.file, f"templates.{template.name}.file"
    size = len(packaging.read(file, where).encode())
    if size > LARGEST_IN_S3:
        raise ConfigurationError(
            f"{where}: {file} has {size} bytes, and CloudFormation accepts at most "
            f"{LARGEST_IN_S3}: move "
            "parts of it into nested stacks"
        )
    local = packaging.list_local(file, where)
    if size <= LARGEST and not local:
        return False
    if template.bucket is None:
        reason = (
            f"names {local[0]}"
            if local
            else f"has {size} bytes, and a request may have at most {LARGEST}"
        )
        raise ConfigurationError(
            f"{where}: {file} {reason}: CloudFormation reads that from S3. Name a bucket of yours "
            'in the stack\'s region: bucket = "…"'
        )
    return True


def try_template(template: StackTemplate, root: Path) -> Check:
    """Whether a template's files and bucket are there, and CloudFormation can read it."""
    from botocore.exceptions import ClientError

    name = f"stack {template.name}"
    try:
        with aws.translate_errors():
            if check(template, root):
                find_folder(template, "doctor")
                return Check(name, True, f"its files and the bucket {template.bucket} exist")
            body = packaging.read(root / template.file, f"templates.{template.name}.file")
            client = aws.client("cloudformation", template.region)
            client.get_template_summary(TemplateBody=body)
    except ClientError as error:
        return Check(name, False, f"{template.file}: {describe_error(error)}")
    except EphemeralError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"CloudFormation accepts {template.file}")


def find_folder(template: StackTemplate, id: str) -> tuple[Any, packaging.S3Folder]:
    """An environment's folder in its template's bucket, and a client of S3 for it.

    Raises:
        ConfigurationError: There is no such bucket, or it may not be used.
    """
    bucket = str(template.bucket)
    where = f"templates.{template.name}.bucket"
    region = transfers.find_bucket(bucket, template.region, where)
    client = aws.client("s3", region)
    prefix = f"{transfers.STACKS}/{id}/"
    return client, packaging.S3Folder(bucket, prefix, str(client.meta.endpoint_url))


def send(template: StackTemplate, root: Path, client: Any, place: packaging.S3Folder) -> Source:
    """Upload what a template names, and itself where it is too large for a request."""

    def put(name: str, content: bytes) -> None:
        client.put_object(Bucket=place.bucket, Key=f"{place.prefix}{name}", Body=content)

    file, where = root / template.file, f"templates.{template.name}.file"
    body = packaging.package(file, where, place, put)
    if len(body.encode()) <= LARGEST:
        return Source({"TemplateBody": body}, place.bucket)
    put("stack.template", body.encode())
    return Source({"TemplateURL": place.url("stack.template")}, place.bucket)


def folder(bucket: str, id: str) -> str:
    """The URL of an environment's folder in a bucket: the value of its stack's tag."""
    return f"s3://{bucket}/{transfers.STACKS}/{id}/"


def remove(bucket: str, id: str) -> None:
    """Delete an environment's folder; nothing else in the bucket is ever touched.

    Raises:
        DestroyError: Something remains.
    """
    from botocore.exceptions import ClientError

    url = folder(bucket, id)
    try:
        with aws.translate_errors():
            transfers.remove(url)
    except (ClientError, UnavailableError) as error:
        if aws.code(error) == "NoSuchBucket":
            return
        raise DestroyError(
            f"{id}: its files in {url} remain: {describe_error(error)}. Remove them: "
            f"aws s3 rm --recursive {url}"
        ) from error


def remove_tagged(url: str, id: str) -> None:
    """Delete the folder that a stack's tag names, if that is its own; see ``remove``."""
    bucket = url.removeprefix("s3://").partition("/")[0]
    if bucket and url == folder(bucket, id):
        remove(bucket, id)
