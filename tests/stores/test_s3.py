"""The S3 store when S3, the network or the credentials fail."""

from __future__ import annotations

import threading

import pytest

from pytest_ephemeral import aws
from pytest_ephemeral.errors import (
    ConfigurationError,
    RecordConflictError,
    RecordExistsError,
    StoreError,
    UnavailableError,
)
from pytest_ephemeral.store.probe import check_conditions
from pytest_ephemeral.store.s3 import S3Store
from stores.s3_server import PAGE
from support import victims
from support.processes import run_python

MEBIBYTE = 1 << 20


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    return S3Store(f"s3://{bucket}/team/shop")


# -- S3-compatible endpoints -----------------------------------------------------------------


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_an_endpoint_without_conditional_writes_is_refused(store, s3, bucket, header):
    """It would report success while two runs damage each other's records."""
    check_conditions(store)
    s3.fail(f"ignore {header}", method="PUT", part=f"{bucket}/team/shop/probe/", times=4)
    with pytest.raises(StoreError, match=f"ignores {header}"):
        check_conditions(store)
    assert list(store.paths("")) == []


# -- lost, truncated and refused responses --------------------------------------------------


def test_a_create_with_a_lost_response_succeeds(store, s3):
    """boto3 repeats the request; S3 then reports the record that the first attempt created."""
    s3.fail("lost", method="PUT", part="environments/a")
    version = store.create("environments/a", b"mine")
    assert store.read("environments/a") == (b"mine", version)


def test_a_replace_with_a_lost_response_succeeds(store, s3):
    """The writer gets the new version, and can continue with it."""
    first = store.create("a", b"one")
    s3.fail("lost", method="PUT", part="/a?")
    second = store.replace("a", b"two", first)
    assert store.read("a") == (b"two", second)


def test_equal_content_of_another_writer_is_a_conflict(store, s3):
    """A write is recognised by its writer, not by its bytes: two increments from 5 are two."""
    first = store.create("a", b"5")
    store.replace("a", b"6", first)
    with pytest.raises(RecordConflictError):
        store.replace("a", b"6", first)
    with pytest.raises(RecordExistsError):
        store.create("a", b"6")


def test_no_update_is_lost_despite_lost_responses(store, s3, monkeypatch):
    """Four processes append to one record while their PUT requests fail in several ways."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "12")  # one process may get all faults
    store.create("tokens", b"")
    for fault in ("lost", "503 SlowDown", "lost", "409 ConditionalRequestConflict") * 3:
        s3.fail(fault, method="PUT", part="/tokens?")
    with victims.pool(4) as pool:
        pool.starmap(_add_numbers, [(store.url, number) for number in range(4)], chunksize=1)
    added = store.read("tokens").data.decode().split()
    assert set(added) == {f"{number}.{count}" for number in range(4) for count in range(5)}


def _add_numbers(url: str, number: int) -> None:
    store = S3Store(url)
    for count in range(5):
        while True:
            data, version = store.read("tokens")
            try:
                store.replace("tokens", data + f"{number}.{count} ".encode(), version)
            except RecordConflictError:
                continue
            break


def test_conflicting_writers_retry(store, s3):
    """S3 answers 409 when another conditional write is under way."""
    s3.fail("409 ConditionalRequestConflict", method="PUT", part="/a?", times=3)
    store.create("a", b"one")
    assert store.read("a").data == b"one"


def test_requests_to_a_busy_s3_are_retried(store, s3):
    """boto3 retries them, up to its number of attempts."""
    s3.fail("503 SlowDown", method="PUT", part="/a?", times=2)
    store.create("a", b"one")
    s3.fail("503 SlowDown", method="GET", part="/a?", times=2)
    assert store.read("a").data == b"one"


def test_an_interrupted_read_is_repeated(store, s3):
    """A truncated record is never returned."""
    store.create("a", b"0123456789")
    s3.fail("cut", method="GET", part="/a?")
    assert store.read("a").data == b"0123456789"


def test_a_damaged_record_upload_is_refused(store, s3):
    """S3 compares the body with its SHA-256."""
    s3.fail("damaged", method="PUT", part="/a?")
    with pytest.raises(StoreError, match="BadDigest"):
        store.create("a", b"one")
    assert not store.has("a")


# -- blobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "part"), [(MEBIBYTE, "/blob?"), (20 * MEBIBYTE, "partNumber=2")])
def test_a_damaged_blob_upload_is_refused(store, s3, tmp_path, size, part):
    """The blob is small, or one of its parts is damaged; no upload is left."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * size)
    s3.fail("damaged", method="PUT", part=part)
    with pytest.raises(StoreError, match="BadDigest"):
        store.upload("images/blob", source)
    assert not store.has("images/blob")
    uploads = aws.client("s3").list_multipart_uploads(Bucket=store.bucket)
    assert "Uploads" not in uploads


def test_a_changed_blob_is_refused(store, tmp_path):
    """The error has its path and both digests, and no file is left."""
    source = tmp_path / "source"
    source.write_bytes(b"content")
    store.upload("images/blob", source)
    kept = aws.client("s3").head_object(Bucket=store.bucket, Key="team/shop/images/blob")
    aws.client("s3").put_object(
        Bucket=store.bucket,
        Key="team/shop/images/blob",
        Body=b"contenT",
        Metadata=kept["Metadata"],
    )
    with pytest.raises(StoreError, match=r"images/blob .* is not what was put there") as caught:
        store.download("images/blob", tmp_path / "back" / "blob")
    assert str(caught.value).count("sha256:") == 2
    assert not list((tmp_path / "back").iterdir())


def test_an_interrupted_blob_download_is_repeated(store, s3, tmp_path):
    """The whole blob is downloaded."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * MEBIBYTE)
    store.upload("images/blob", source)
    s3.fail("cut", method="GET", part="/blob")
    store.download("images/blob", tmp_path / "back")
    assert tmp_path.joinpath("back").read_bytes() == source.read_bytes()


# -- many records --------------------------------------------------------------------------


def test_all_pages_of_a_listing_are_read(store):
    """S3 returns a listing in pages, and marks each but the last as truncated."""
    names = [f"many/{number:04}" for number in range(2 * PAGE + 1)]
    for name in names:
        store.create(name, b"")
    page = aws.client("s3").list_objects_v2(Bucket=store.bucket)
    assert (page["KeyCount"], page["IsTruncated"]) == (PAGE, True)
    assert list(store.paths("many")) == names


def test_records_are_read_concurrently(store, monkeypatch):
    """Two hundred records would take seconds, one after the other."""
    for number in range(8):
        store.create(f"many/{number}", b"")
    together = threading.Barrier(8)
    read = store._read

    def meets_the_others(path):
        together.wait(timeout=30)
        return read(path)

    monkeypatch.setattr(store, "_read", meets_the_others)
    assert len(list(store.records("many"))) == 8


def test_a_folder_object_is_not_a_record(store):
    """The name of a folder object ends in a slash."""
    store.create("catalog/a", b"")
    aws.client("s3").put_object(Bucket=store.bucket, Key="team/shop/catalog/", Body=b"")
    assert list(store.paths("catalog")) == ["catalog/a"]


# -- configuration and credentials -----------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://Bucket", "s3://a_b/x", "s3://bucket/x?y"]
)
def test_a_url_without_a_bucket_is_a_configuration_error(url):
    """The error shows the form of a valid URL."""
    with pytest.raises(ConfigurationError, match="s3://BUCKET/PREFIX"):
        S3Store(url)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/a/b/"])
def test_a_trailing_slash_in_the_url_is_ignored(url):
    """A store has one URL."""
    assert S3Store(url).url == url.rstrip("/")


def test_a_missing_bucket_is_named_with_a_remedy(s3):
    """The error of every operation is one line with the command that creates the bucket."""
    store = S3Store("s3://not-there/x")
    for act in (store.read, store.has, lambda path: list(store.paths(path))):
        with pytest.raises(StoreError, match=r"no bucket 'not-there'.*aws s3 mb") as caught:
            act("a")
        assert "\n" not in str(caught.value)


def test_a_denied_request_names_the_permission(store, s3):
    """The error also has the resource, and the command that shows the identity."""
    s3.fail("403 AccessDenied", method="PUT", part="/a?")
    with pytest.raises(StoreError, match=rf"s3:PutObject .* {store.bucket}/team/shop/\*") as caught:
        store.create("a", b"")
    assert "aws sts get-caller-identity" in str(caught.value)


def test_expired_credentials_are_named(store, s3):
    """The error is one line."""
    s3.fail("400 ExpiredToken", method="GET", part="/a?")
    with pytest.raises(UnavailableError, match="have expired") as caught:
        store.read("a")
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_named(store, monkeypatch):
    """The error names AWS_PROFILE as a way to provide them."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UnavailableError, match=r"no credentials.*AWS_PROFILE"):
        store.read("a")


def test_an_unknown_profile_is_named(store, monkeypatch):
    """The error has the profile's name."""
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(UnavailableError, match="no-such-profile"):
        store.read("a")


def test_a_profile_gives_credentials_region_and_endpoint(store, s3, monkeypatch, tmp_path):
    """They are read as by every program that uses boto3."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config = tmp_path / "config"
    config.write_text(
        "[profile ci]\naws_access_key_id = AKIACI\naws_secret_access_key = secret\n"
        f"region = eu-west-1\nendpoint_url = {s3.url}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "ci")
    store.create("a", b"one")
    assert store.read("a").data == b"one"


def test_the_role_of_a_profile_is_assumed(store, s3, monkeypatch, tmp_path):
    """The role is the profile's `role_arn`; boto3 renews its credentials."""
    config = tmp_path / "config"
    config.write_text(
        "[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = secret\n"
        "[profile deploy]\nrole_arn = arn:aws:iam::123456789012:role/deploy\n"
        "source_profile = base\nregion = eu-west-1\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "deploy")
    s3.requests()
    store.create("a", b"one")
    assert [target.partition("?")[0] for target in s3.requests()] == [
        "POST /",  # STS
        f"PUT /{store.bucket}/team/shop/a",
    ]


def test_an_unreachable_s3_is_a_store_error(store, monkeypatch):
    """S3 may come back, so it is not a configuration error."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreError, match=r"can't read a in the store .*127\.0\.0\.1:9"):
        store.read("a")


def test_missing_boto3_names_the_extra_to_install():
    """The error comes when the store is opened."""
    code = (
        "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from pytest_ephemeral.errors import UnavailableError\n"
        "from pytest_ephemeral.store.s3 import S3Store\n"
        "try: S3Store('s3://bucket')\n"
        "except UnavailableError as error: print(error)"
    )
    assert "pip install 'pytest-ephemeral[aws]'" in run_python(code)


def test_opening_a_store_does_not_import_boto3():
    """boto3 takes half a second to load."""
    code = (
        "import sys; from pathlib import Path; from pytest_ephemeral.store import open_store\n"
        "open_store('s3://bucket/x', Path('/')); print('boto3' in sys.modules)"
    )
    assert run_python(code) == "False\n"
