"""A stack's folder in S3, for a large template and for files that it names by local paths."""

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

#: The largest template in a request, and from S3, in bytes: "CloudFormation quotas" in its user
#: guide.
LARGEST: Final = 51200
LARGEST_IN_S3: Final = 1_048_576


class Source(NamedTuple):
    """A template, in the form of a request to CloudFormation.

    Attributes:
        arguments: ``TemplateBody`` or ``TemplateURL``.
        bucket: The bucket with the stack's folder; empty if it needs none.
    """

    arguments: Mapping[str, str]
    bucket: str = ""


def check(template: StackTemplate, root: Path) -> bool:
    """Check a template's files; return whether it needs S3.

    Raises:
        ConfigurationError: A file is missing, can't be read or is too large, or the template needs
            a bucket and has none.
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
            f"{where}: {file} {reason}: CloudFormation reads that from S3. Set a bucket in the "
            'stack\'s region: bucket = "…"'
        )
    return True


def check_template(template: StackTemplate, root: Path) -> Check:
    """Check that a template's files and bucket exist, and that CloudFormation can read it."""
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
    """An environment's folder in its template's bucket, and an S3 client of the bucket's region.

    Raises:
        ConfigurationError: There is no such bucket, or no permission to use it.
    """
    bucket = str(template.bucket)
    where = f"templates.{template.name}.bucket"
    region = transfers.find_bucket(bucket, template.region, where)
    client = aws.client("s3", region)
    prefix = f"{transfers.STACKS}/{id}/"
    return client, packaging.S3Folder(bucket, prefix, str(client.meta.endpoint_url))


def send(template: StackTemplate, root: Path, client: Any, place: packaging.S3Folder) -> Source:
    """Upload a template's local files, and the template if it is too large for a request."""

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
    """Delete an environment's folder, and nothing else in the bucket.

    Raises:
        DestroyError: A file can't be deleted.
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
    """Delete the folder in a stack's tag, if it is that environment's folder; see ``remove``."""
    bucket = url.removeprefix("s3://").partition("/")[0]
    if bucket and url == folder(bucket, id):
        remove(bucket, id)
