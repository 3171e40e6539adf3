"""Credentials, regions and endpoints are those of boto3; an error is one line before any change."""

from __future__ import annotations

import re
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from aws.conftest import Bench
from aws.project import Project
from aws.test_calls import is_watching
from pytest_ephemeral import aws, cli
from pytest_ephemeral.errors import UnavailableError
from support import web
from support.waiting import until

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

SSO = """\
[profile work]
sso_session = corp
sso_account_id = 123456789012
sso_role_name = dev
region = us-east-1
[sso-session corp]
sso_start_url = https://corp.awsapps.test/start
sso_region = us-east-1
"""
ROLE = """\
[profile base]
aws_access_key_id = testing
aws_secret_access_key = testing
[profile work]
role_arn = arn:aws:iam::123456789012:role/deploy
source_profile = base
region = us-east-1
"""

TOKEN = """\
[profile work]
role_arn = arn:aws:iam::123456789012:role/deploy
web_identity_token_file = /nowhere/token
region = us-east-1
"""

#: Problem → variables (None: not set), a configuration file, a fault, and the message.
WRONG = {
    "no credentials": (dict.fromkeys(KEYS), "", (), "no credentials.*AWS_PROFILE"),
    "no such profile": ({"AWS_PROFILE": "nobody"}, "", (), "nobody.*aws configure list-profiles"),
    "no region": (dict.fromkeys(REGIONS), "", (), "no region: set AWS_DEFAULT_REGION"),
    "no word for a region": (dict.fromkeys(REGIONS, "eu west"), "", (), "eu west.*DEFAULT_REGION"),
    "no url": ({"AWS_ENDPOINT_URL": "localhost:4566"}, "", (), "localhost:4566.*AWS_ENDPOINT_URL"),
    "nobody there": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "", (), "can't be reached.*127.0.0.1:9"
    ),
    "no configuration": ({"AWS_PROFILE": "a"}, "[profile a\n", (), "configuration is invalid"),
    "signed out": (
        {"AWS_PROFILE": "work", **dict.fromkeys(KEYS)}, SSO, (), "sign-in has expired.*sso login"
    ),
    "expired": ({}, "", ("GetCallerIdentity", "ExpiredToken"), "have expired.*sign in again"),
    "wrong partition": (
        {}, "", ("GetCallerIdentity", "InvalidClientTokenId"), "does not know.*their partition"
    ),
    "no token file": (
        {"AWS_PROFILE": "work", **dict.fromkeys(KEYS)}, TOKEN, (), "can't be read.*/nowhere/token"
    ),
    "role refused": (
        {"AWS_PROFILE": "work", **dict.fromkeys(KEYS)},
        ROLE,
        ("AssumeRole", "AccessDenied"),
        r"may not do this \(AssumeRole\)",
    ),
}  # fmt: skip


@pytest.fixture
def project(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(bench)
    monkeypatch.chdir(made.folder)
    return made


def break_it(what: str, bench: Bench, folder: Path, patch: pytest.MonkeyPatch) -> str:
    """Break the access to AWS in one way; return the expected message."""
    variables, text, fault, said = WRONG[what]
    patch.setenv("AWS_CONFIG_FILE", str(folder / "aws"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    (folder / "aws").write_text(text)
    for name, value in variables.items():
        patch.delenv(name) if value is None else patch.setenv(name, value)
    if fault:
        bench.account.fault(*fault, times=9)
    return said


@pytest.mark.parametrize("what", WRONG)
def test_the_cli_reports_access_problems_in_one_line(
    what: str,
    bench: Bench,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command exits with 2, before anything is baked, launched or recorded."""
    with monkeypatch.context() as patch:
        said = break_it(what, bench, project.folder, patch)
        bench.account.calls()
        assert cli.main(["up", "web"]) == 2
    printed = capsys.readouterr().err
    (line,) = printed.splitlines()
    assert re.search(f"^error: AWS.*{said}", line), line
    # The poller may still read the instances of an earlier test.
    looks = {"sts:GetCallerIdentity", "sts:AssumeRole", "ec2:DescribeInstances"}
    assert set(bench.account.calls()) <= looks
    assert bench.ledger.entries() == []


@pytest.mark.parametrize("what", ["no credentials", "no region", "expired"])
def test_pytest_reports_access_problems_in_one_line(
    what: str, bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest exits with 4 (a usage error) before the first test, without a traceback."""
    with monkeypatch.context() as patch:
        said = break_it(what, bench, project.folder, patch)
        done = project.run("pytest", "--ephemeral-env", status=4)
    assert re.search(f"ERROR: .*{said}", done.stdout + done.stderr), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "passed" not in done.stdout


STORE = """\
store = "s3://nobodys-bucket/records"
[images.app]
provider = "local"
install = ["true"]
[templates.web]
image = "app"
command = "sleep 60"
port = 8080
"""


def test_a_store_without_credentials_stops_the_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is printed once, before the first test, even if the provider is local."""
    (project.folder / "ephemeral.toml").write_text(STORE)
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(project.folder / "none"))
    done = project.run("pytest", "--ephemeral-env", status=4)
    said = done.stdout + done.stderr
    assert len(re.findall("no credentials", said)) == 1, said
    assert "Traceback" not in said
    assert "passed" not in said


SERVICES = """\
[profile work]
{who}
region = us-east-1
services = local
[services local]
ec2 =
  endpoint_url = {url}
sts =
  endpoint_url = {url}
"""


def test_a_profile_can_set_endpoints_per_service(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in a ``services`` section of the configuration file."""
    who = "\n".join(f"{name.lower()} = testing" for name in KEYS)
    (project.folder / "aws").write_text(SERVICES.format(who=who, url=bench.account.url))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.folder / "aws"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    for name in (*KEYS, *REGIONS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    check = project.json("doctor")["checks"]["ec2"][0]
    assert (check["ok"], check["detail"].rpartition(" ")[2]) == (True, "us-east-1")


def test_variables_can_set_endpoints_per_service(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``AWS_ENDPOINT_URL_EC2`` and its siblings take precedence over ``AWS_ENDPOINT_URL``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for service in ("EC2", "STS", "CLOUDFORMATION"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", bench.account.url)
    assert project.json("doctor")["checks"]["ec2"][0]["ok"]
    bench.account.calls()
    assert project.run("reap", "--account", "123456789012").returncode == 0
    assert "ec2:DescribeInstances" in bench.account.calls()


def test_aws_region_is_used_if_no_other_region_is_set(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike AWS's other tools, boto3 ignores ``AWS_REGION``; its own choice takes precedence."""
    (project.folder / "aws").write_text("[default]\nregion = eu-west-3\n")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.folder / "none"))
    assert aws.client("ec2").meta.region_name == "eu-west-1"
    assert aws.client("ec2", "us-east-2").meta.region_name == "us-east-2"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.folder / "aws"))
    assert aws.client("ec2").meta.region_name == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert aws.client("ec2").meta.region_name == "eu-west-2"


def test_the_role_of_a_profile_is_assumed(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``doctor`` shows the identity of the assumed role."""
    (project.folder / "aws").write_text(ROLE)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.folder / "aws"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    for name in KEYS:
        monkeypatch.delenv(name)
    check = project.json("doctor")["checks"]["ec2"][0]
    assert "assumed-role/deploy" in check["detail"]


def test_doctor_reports_expired_credentials(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exits with 1, because this project uses AWS."""
    with monkeypatch.context() as patch:
        said = break_it("expired", bench, project.folder, patch)
        done = project.run("doctor", status=1)
    assert re.search(f"FAIL AWS: .*{said}", done.stdout)


@pytest.mark.parametrize(
    ("status", "said"),
    [(200, "a web page answered.*HTTPS_PROXY"), (403, "a web page answered"), (502, "(502)")],
)
def test_a_web_page_instead_of_aws_is_reported_in_one_line(
    status: int,
    said: str,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A proxy sends it, or a network that requires a sign-in."""

    class Portal(web.Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            page = b"<!DOCTYPE html><title>Welcome</title><p>Sign in & surf.<br>"
            self.answer(status, page, Content_Type="text/html; charset=utf-8")

    with web.serving(web.server_of(Portal)) as portal, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{portal.server_port}")
        assert cli.main(["up", "web"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^error: AWS.*{said}", line), line


@pytest.mark.parametrize(("command", "status"), [("bake app", 2), ("reap", 6)])
def test_an_unresponsive_endpoint_times_out_quickly(
    command: str,
    status: int,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It accepts connections but never answers. STS is called first, twice, and nothing else is."""
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        patch.setattr(aws, "_ANSWER", 0.2)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert cli.main(command.split()) == status
        # Other services have half a minute to answer: a call of one would take longer.
        assert time.monotonic() - started < 20
    assert "AWS can't be reached: Read timeout on endpoint URL" in capsys.readouterr().err


def test_an_unresponsive_service_is_asked_three_times(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 would try ten times, for a minute each."""
    until(lambda: not is_watching())  # the poller of earlier tests: its polls would be counted
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        patch.setattr(aws, "_LATEST_ANSWER", 0.2)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="Read timeout"), aws.translate_errors():
            aws.client("ec2").describe_instances()
        silent.setblocking(False)
        connections = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                connections += 1
    assert connections == 3


def test_an_encoded_refusal_names_the_decode_command(bench: Bench) -> None:
    """Only STS can decode its thousand characters; the command contains all of them."""
    encoded = "Encoded authorization failure message: " + "x" * 1000
    error = ClientError(
        {"Error": {"Code": "UnauthorizedOperation", "Message": f"You may not. {encoded}"}},
        "RunInstances",
    )
    said = pytest.raises(UnavailableError, match="decode-authorization-message")
    with said as caught, aws.translate_errors():
        raise error
    assert "You may not." in str(caught.value)
    (line,) = str(caught.value).splitlines()
    assert line.endswith(f"decode-authorization-message --encoded-message {'x' * 1000}")
