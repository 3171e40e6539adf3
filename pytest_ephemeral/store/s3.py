"""A store in an S3 bucket, for machines that share no file system.

Creation is a put with the condition that the object does not exist (``If-None-Match: *``).
Compare-and-swap is a put with the condition that the ETag, which is the version, is unchanged
(``If-Match``). S3 guarantees both for all writers:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral import aws, files
from pytest_ephemeral.errors import (
    ConfigurationError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
    UnavailableError,
)
from pytest_ephemeral.store import Versioned, parts_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: How often a request is made at most, if S3 asks for a retry or its answer is incomplete.
_ATTEMPTS: Final = 8
#: How many records are read in parallel.
_READERS: Final = 16
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_GONE: Final = frozenset({"NoSuchKey", "404"})


class S3Store:
    """Records and blobs as objects in a bucket; see ``Store``.

    The constructor makes no call to AWS.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ConfigurationError: The URL has no valid bucket.
        UnavailableError: boto3 is not installed.
    """

    def __init__(self, url: str) -> None:
        if find_spec("boto3") is None:
            raise UnavailableError(
                f"{url} needs boto3, which is not installed: pip install 'pytest-ephemeral[aws]'"
            )
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(self.bucket) or set(prefix) & set("?#"):
            raise ConfigurationError(
                f"{url!r} names no bucket: give s3://BUCKET/PREFIX, the bucket's name as "
                "`aws s3 ls` prints it"
            )
        self._prefix = f"{'/'.join(parts_of(prefix.strip('/')))}/" if prefix.strip("/") else ""
        self.url = f"s3://{self.bucket}/{self._prefix}".rstrip("/")

    def create(self, path: str, data: bytes) -> str:
        """Create a record."""
        with self._explain_errors("create", path):
            version = self._put(path, data, IfNoneMatch="*")
        if version is None:
            raise RecordExistsError(f"{path} is in the store {self.url} already")
        return version

    def read(self, path: str) -> Versioned:
        """Read a record."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        with self._explain_errors("read", path):
            for attempt in range(_ATTEMPTS):
                try:
                    return self._read(path)
                except (FlexibleChecksumError, HTTPClientError, IncompleteReadError):
                    if attempt == _ATTEMPTS - 1:
                        raise  # boto3 does not retry an incomplete answer
        raise AssertionError  # the last attempt has returned or raised

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Replace a record if it is still at that version."""
        with self._explain_errors("change", path):
            written = self._put(path, data, IfMatch=version)
        if written is None:
            raise RecordConflictError(f"{path} was changed or removed by someone else meanwhile")
        return written

    def delete(self, path: str) -> None:
        """Remove a record or blob."""
        with self._explain_errors("delete", path):
            self._client.delete_object(**self._object(path))

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all records in the folder ``prefix`` and below, sorted as S3 lists them."""
        folder = f"{'/'.join(parts_of(prefix.strip('/')))}/" if prefix.strip("/") else ""
        with self._explain_errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix + folder
            )
            keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
        # An object whose key ends with a slash is a "folder" from the AWS console.
        yield from (key.removeprefix(self._prefix) for key in keys if not key.endswith("/"))

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """All complete records with their content; several are read in parallel."""
        with ThreadPoolExecutor(_READERS) as pool:
            for path, data in pool.map(self._record, self.paths(prefix)):
                if data is not None:
                    yield path, data

    def upload(self, path: str, source: Path) -> None:
        """Upload a file's content, unless the path exists; large files in parts.

        S3 checks the SHA-256 of each part. The SHA-256 of the whole file is stored as metadata, for
        ``download``.
        """
        if self.has(path):
            return
        with self._explain_errors("write", path), source.open("rb") as content:
            self._client.upload_fileobj(
                content,
                self.bucket,
                self._prefix + path,
                ExtraArgs={
                    "ChecksumAlgorithm": "SHA256",
                    "Metadata": {"sha256": files.digest_of(files.chunks(source))},
                },
            )

    def download(self, path: str, destination: Path) -> None:
        """Write a blob's content to a file, atomically; check its SHA-256."""
        with self._explain_errors("read", path):
            if (found := self._head(path)) is None:
                raise RecordMissingError(f"the store {self.url} has no {path}")
            destination.parent.mkdir(parents=True, exist_ok=True)
            half = destination.with_name(files.TEMPORARY + os.urandom(8).hex())
            try:
                self._client.download_file(self.bucket, self._prefix + path, str(half))
                digest = files.digest_of(files.chunks(half))
                if digest != found["Metadata"].get("sha256", digest):
                    raise StoreError(
                        f"{path} in the store {self.url} is not what was put there: it is now "
                        f"{digest}, and was {found['Metadata']['sha256']}. Remove that object, "
                        "and write it again"
                    )
                half.replace(destination)
            finally:
                half.unlink(missing_ok=True)

    def has(self, path: str) -> bool:
        """Whether a record or blob exists."""
        wanted = self._object(path)["Key"]
        with self._explain_errors("read", path):
            # Not HEAD: its errors have no body, and so no reason.
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=wanted, MaxKeys=1)
        return any(one["Key"] == wanted for one in page.get("Contents", []))

    @property
    def _client(self) -> Any:
        return aws.client("s3")

    def _object(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + "/".join(parts_of(path))}

    def _record(self, path: str) -> tuple[str, bytes | None]:
        try:
            return path, self.read(path).data
        except RecordMissingError:
            return path, None

    def _read(self, path: str) -> Versioned:
        from botocore.exceptions import ClientError

        try:
            answer = self._client.get_object(**self._object(path), ChecksumMode="ENABLED")
        except ClientError as error:
            if aws.code(error) in _GONE:
                raise RecordMissingError(f"the store {self.url} has no {path}") from None
            raise
        with closing(answer["Body"]) as body:
            return Versioned(body.read(), answer["ETag"])

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            return dict(self._client.head_object(**self._object(path)))
        except ClientError as error:
            if aws.code(error) in _GONE:
                return None
            raise

    def _put(self, path: str, data: bytes, **condition: str) -> str | None:
        """Put a record with a condition; return its new version, or None if the condition fails.

        If the answer to a put is lost, boto3 repeats it, and S3 refuses it because of the first
        one. So every put has a unique mark: if a put is refused but the object has its mark, it
        has succeeded. If another writer has replaced the object by then, the put counts as
        refused, and the caller reads the record again.
        """
        from botocore.exceptions import ClientError

        mark = os.urandom(16).hex()
        request = {"Body": data, "ChecksumAlgorithm": "SHA256", "Metadata": {"write": mark}}
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._client.put_object(**self._object(path), **request, **condition)
                return str(answer["ETag"])
            except ClientError as error:
                if aws.code(error) in {"PreconditionFailed", *_GONE}:
                    break
                if aws.code(error) != "ConditionalRequestConflict" or attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(random.SystemRandom().uniform(0, 0.05 * 2**attempt))
        found = self._head(path)
        return str(found["ETag"]) if found and found["Metadata"].get("write") == mark else None

    @contextmanager
    def _explain_errors(self, verb: str, path: str) -> Iterator[None]:
        """Turn errors of boto3 and S3 into ours, with the likely cause and advice.

        Raises:
            UnavailableError: There are no valid credentials.
            StoreError: The store can't be read or written for another reason.
        """
        from boto3.exceptions import Boto3Error
        from botocore import exceptions
        from botocore.exceptions import ClientError

        unanswered = (exceptions.ConnectionError, exceptions.HTTPClientError, Boto3Error, OSError)
        what = f"can't {verb} {path or 'anything'} in the store {self.url}"
        try:
            with aws.translate_errors():
                try:
                    yield
                except ClientError as error:
                    if cause := self._cause(error):
                        raise StoreError(f"{what}: {cause}") from error
                    raise
                except unanswered as error:
                    raise StoreError(f"{what}: {' '.join(str(error).split())}") from error
        except ClientError as error:
            raise StoreError(f"{what}: {' '.join(str(error).split())}") from error

    def _cause(self, error: ClientError) -> str | None:
        """The cause of an error that concerns this bucket; None if it is another."""
        match aws.code(error):
            case "NoSuchBucket":
                return (
                    f"there is no bucket {self.bucket!r}. Create it with `aws s3 mb "
                    f"s3://{self.bucket}`, or name another"
                )
            case "AccessDenied" | "AllAccessDisabled" | "403" | "400":
                return (
                    "access denied. These credentials need s3:ListBucket on "
                    f"{self.bucket}, and s3:GetObject, s3:PutObject and s3:DeleteObject on "
                    f"{self.bucket}/{self._prefix}*. See whose credentials they are with `aws "
                    "sts get-caller-identity`"
                )
            case "PermanentRedirect" | "AuthorizationHeaderMalformed" | "301":
                return (
                    f"the bucket {self.bucket!r} is in another region. Set AWS_DEFAULT_REGION to it"
                )
        return None
