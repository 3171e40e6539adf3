"""Folders in S3: for the files and logs of bakes, by presigned URLs, and for stacks' files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral import aws
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe

#: The parents of bakes' folders and of stacks' folders.
FOLDER: Final = "pytest-ephemeral/bakes"
STACKS: Final = "pytest-ephemeral/stacks"

#: Seconds for which URLs are valid after the bake's time-out; less if the credentials expire.
MARGIN: Final = 900


class Transfer(msgspec.Struct, frozen=True):
    """One bake's folder in a bucket.

    Attributes:
        bucket: The bucket's name.
        folder: The bake's id.
        seconds: Seconds for which URLs are valid.
        region: The bucket's region.
    """

    bucket: str
    folder: str
    seconds: int
    region: str | None = None

    @property
    def url(self) -> str:
        """The folder's URL, for the ``TRANSFER`` tag: removal finds the folder by it."""
        return f"s3://{self.bucket}/{FOLDER}/{self.folder}/"

    def upload(self, name: str, content: Path | bytes) -> str:
        """Upload a file or bytes; return a presigned URL to download them from."""
        client, key = aws.client("s3", self.region), self._key(name)
        if isinstance(content, bytes):
            client.put_object(Bucket=self.bucket, Key=key, Body=content)
        else:
            client.upload_file(str(content), self.bucket, key)
        parameters = {"Bucket": self.bucket, "Key": key}
        url: str = client.generate_presigned_url("get_object", parameters, self.seconds)
        return url

    def upload_url(self, name: str) -> str:
        """A presigned URL to upload a file to."""
        parameters = {"Bucket": self.bucket, "Key": self._key(name)}
        client = aws.client("s3", self.region)
        url: str = client.generate_presigned_url("put_object", parameters, self.seconds)
        return url

    def download(self, name: str) -> str | None:
        """The text of an uploaded file; None if it is not there."""
        client = aws.client("s3", self.region)
        from botocore.exceptions import ClientError

        try:
            found = client.get_object(Bucket=self.bucket, Key=self._key(name))
        except ClientError as error:
            if aws.code(error) in {"NoSuchKey", "404"}:
                return None
            raise
        content: bytes = found["Body"].read()
        return content.decode(errors="replace")

    def _key(self, name: str) -> str:
        return f"{FOLDER}/{self.folder}/{name}"


def open_transfer(recipe: Ec2Recipe, folder: str, seconds: int) -> Transfer:
    """The folder of a bake in its recipe's bucket, in any region.

    Raises:
        ConfigurationError: There is no such bucket, or it may not be used.
    """
    bucket = str(recipe.bucket)
    region = find_bucket(bucket, recipe.region, f"images.{recipe.name}.bucket")
    return Transfer(bucket, folder, seconds, region)


def find_bucket(bucket: str, region: str | None, where: str) -> str | None:
    """The region of a bucket.

    Args:
        bucket: The bucket's name.
        region: The region to send the request to; the bucket may be in another.
        where: The key in the configuration that names it, for messages.

    Raises:
        ConfigurationError: There is no such bucket, or it may not be used.
    """
    from botocore.exceptions import ClientError

    try:
        found = aws.client("s3", region).head_bucket(Bucket=bucket)
    except ClientError as error:  # without a body, and so without a reason
        missing = aws.code(error) == "404"
        reason = "it does not exist" if missing else "these credentials have no access to it"
        raise ConfigurationError(
            f"{where}: {bucket!r}: {reason} ({aws.code(error)}). See `aws s3 ls s3://{bucket}`"
        ) from error
    headers = found["ResponseMetadata"]["HTTPHeaders"]
    return str(headers.get("x-amz-bucket-region") or region or "") or None


def remove(url: str) -> None:
    """Delete the files in a bake's or stack's folder, and nothing else in the bucket."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not prefix.startswith((f"{FOLDER}/", f"{STACKS}/")) or not prefix.endswith("/"):
        return
    client = aws.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for one in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=one["Key"])
