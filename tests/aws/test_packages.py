"""Files of stacks that are large or name local files: they are uploaded to S3, and removed."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from aws.test_stacks import stack_of, stacks_left, up
from pytest_ephemeral import providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import ConfigurationError, DestroyError, LaunchError
from pytest_ephemeral.providers.cloudformation import upload
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate

BUCKET = "templates"

#: A template with intrinsic functions, and a local path that CloudFormation can't read.
PARENT = """\
AWSTemplateFormatVersion: 2010-09-09
Description: "Größe: ünïcode, {size}"
Parameters:
  Given: {{Type: String, Default: "127.0.0.1"}}
  Colour: {{Type: String}}
Conditions:
  IsBlue: !Equals [!Ref Colour, blue]
Resources:
  Queue:   # it stays as it is written
    Type: AWS::SQS::Queue
    Condition: IsBlue
    Properties:
      QueueName: !Sub "${{AWS::StackName}}-${{Colour}}"
  Child:
    Type: AWS::CloudFormation::Stack
    Properties:
      TemplateURL: nested/child.yaml
Outputs:
  Host: {{Value: !Ref Given}}
  Queue: {{Value: !If [IsBlue, !GetAtt Queue.QueueName, none]}}
"""
CHILD = """\
Resources:
  Topic: {Type: AWS::SNS::Topic}
"""


@pytest.fixture
def s3(bench: Bench) -> Iterator[Any]:
    """An S3 client, with a bucket; files of ours that remain in it at the end fail the test."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="pytest-ephemeral/stacks/theirs", Body=b"")
    yield client
    left = keys(client)
    for key in left:
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)
    assert left == ["pytest-ephemeral/stacks/theirs"]


def keys(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def written(bench: Bench, *, padding: int = 0, **keys: Any) -> StackTemplate:
    """Write the files of a stack with a nested stack, padded to a size; return its template."""
    (bench.folder / "nested").mkdir(exist_ok=True)
    (bench.folder / "nested" / "child.yaml").write_text(CHILD)
    (bench.folder / "parent.yaml").write_text(PARENT.format(size="x" * padding))
    return StackTemplate(
        **{
            "name": "stack",
            "file": "parent.yaml",
            "url": "http://{output:Host}",
            "further": {"queue": "http://{output:Queue}"},
            "parameters": {"Colour": "blue"},
            "bucket": BUCKET,
            **keys,
        }
    )


@pytest.mark.parametrize("padding", [0, 60_000])
def test_nested_stacks_and_large_files_are_sent_by_s3(bench: Bench, s3: Any, padding: int) -> None:
    """Intrinsic functions remain as written. Destroy removes the files from the bucket."""
    bench.account.asked("CreateStack")
    environment = up(bench, written(bench, padding=padding))
    sent = bench.account.asked("CreateStack")[0]
    assert ("TemplateURL" in sent) == (padding > 0)
    folder = f"pytest-ephemeral/stacks/{environment.id}/"
    assert environment.endpoints["queue"].host == f"{stack_of(environment)['StackName']}-blue"
    ours = [key for key in keys(s3) if key.startswith(folder)]
    assert len(ours) == 1 + (padding > 0)
    text = boto3.client("cloudformation").get_template(StackName=environment.handle["stack"])
    kept = PARENT.format(size="x" * padding)
    before, after = kept.split("nested/child.yaml")
    assert str(text["TemplateBody"]).startswith(before)
    assert str(text["TemplateBody"]).endswith(after)
    bench.lifecycle.destroy(environment)


def test_a_failed_resource_in_a_nested_stack_is_named(bench: Bench, s3: Any) -> None:
    """The error names the resource itself, not the nested stack that could not be created."""
    bench.account.tell("failing", Topic="orders are forbidden")
    with pytest.raises(LaunchError, match="orders are forbidden") as caught:
        bench.lifecycle.bring_up(written(bench))
    assert "Topic (AWS::SNS::Topic)" in str(caught.value)
    assert "Embedded" not in str(caught.value)
    assert (stacks_left(), bench.ledger.entries()) == ([], [])


def test_retained_resources_of_a_nested_stack_are_named(bench: Bench, s3: Any) -> None:
    """They are named although they are in the nested stack's template."""
    wanted = written(bench)
    child = CHILD.replace("}", ", DeletionPolicy: Retain}")
    (bench.folder / "nested" / "child.yaml").write_text(child)
    environment = up(bench, wanted)
    with pytest.raises(DestroyError, match=r"Topic \(AWS::SNS::Topic"):
        bench.lifecycle.destroy(environment)
    bench.lifecycle.destroy(environment)


def test_reap_removes_the_files_of_an_unrecorded_stack(bench: Bench, s3: Any) -> None:
    """The stack's tag names them. A tag that names the folder of others removes nothing."""
    wanted = written(bench)
    bench.config.templates = {"stack": wanted}
    environment = up(bench, wanted)
    providers.load("cloudformation").extend(environment, datetime.now(UTC) - timedelta(minutes=1))
    bench.ledger.remove(environment.id)
    reaped = reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
    assert [(one.id, one.error) for one in reaped] == [(environment.id, "")]
    upload.remove_tagged(f"s3://{BUCKET}/pytest-ephemeral/stacks/", environment.id)


def test_files_sent_before_an_interruption_are_removed(
    bench: Bench, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are recorded before the upload, so destroy removes them even without a stack."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pytest_ephemeral.providers.cloudformation.stacks.create", die)
        patch.setattr(type(bench.lifecycle), "_abandon", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            up(bench, written(bench))
    (entry,) = bench.ledger.entries()
    assert len(keys(s3)) == 2
    providers.load("cloudformation").destroy(entry)
    bench.ledger.remove(entry.id)


#: A template that names local files and folders in each supported way, and in others.
REFERENCES = """\
Resources:
  One: {Type: AWS::Lambda::Function, Properties: {Code: ./code, Handler: main.f}}
  Two: {Type: AWS::Lambda::Function, Properties: {Code: code, Handler: main.f}}
  Three: {Type: AWS::Serverless::Function, Properties: {CodeUri: "single.py"}}
  Four: {Type: AWS::StepFunctions::StateMachine, Properties:
    {DefinitionS3Location: states.json}}
  Five: {Type: AWS::Lambda::Function, Properties: {Code: {ZipFile: "code"}}}
  Six: {Type: AWS::Serverless::Function, Properties: {CodeUri: s3://theirs/code}}
  Seven: {Type: AWS::CloudFormation::Stack, Properties: {TemplateURL: !Sub "${X}"}}
  Eight: {Type: AWS::Glue::Job, Properties: {Command: {ScriptLocation: single.py}}}
  Ten:
    Type: AWS::Serverless::Function
    Properties:
      Handler: main.f
  Nine:
    Fn::Transform: {Name: AWS::Include, Parameters: {Location: snippet.yaml}}
"""


def test_code_and_definition_files_are_uploaded(bench: Bench, s3: Any) -> None:
    """A folder is sent as an archive, a file as it is, equal content once. Other values remain."""
    code = bench.folder / "code"
    (code / "deep").mkdir(parents=True)
    (code / "main.py").write_text("print()\n")
    (code / "deep" / "tool").write_text("#!/bin/sh\n")
    (code / "deep" / "tool").chmod(0o755)
    (code / "deep" / "back").symlink_to(code)
    (bench.folder / "single.py").write_text("pass\n")
    (bench.folder / "states.json").write_text("{}")
    (bench.folder / "snippet.yaml").write_text("{}")
    (bench.folder / "code.yaml").write_text(REFERENCES)
    _, place = upload.find_folder(written(bench), "x")
    sent: dict[str, bytes] = {}
    packaged = upload.packaging.package(bench.folder / "code.yaml", "", place, sent.__setitem__)
    assert sorted(name.partition(".")[2] for name in sent) == [
        *("json", "py", "yaml", "zip", "zip", "zip")
    ]
    assert re.search(r"Properties:\n {6}CodeUri: .*\.zip.*\n {6}Handler: main.f", packaged)
    (archive,) = [one for one in sent.values() if b"deep/tool" in one and b"states" not in one]
    with zipfile.ZipFile(BytesIO(archive)) as found:
        assert found.namelist() == ["deep/tool", "main.py"]
        assert found.getinfo("deep/tool").external_attr >> 16 == 0o100755
        assert found.getinfo("main.py").external_attr >> 16 == 0o100644
    (name,) = [name for name, content in sent.items() if content is archive]
    pair = json.dumps({"S3Bucket": BUCKET, "S3Key": f"pytest-ephemeral/stacks/x/{name}"})
    assert packaged.count(f"Code: {pair}, Handler") == 2
    assert packaged.count("s3://templates/pytest-ephemeral/stacks/x/") == 4
    for same in ('{ZipFile: "code"}', "s3://theirs/code", '!Sub "${X}"'):
        assert same in packaged


def test_a_json_template_with_tabs_is_read(bench: Bench, s3: Any) -> None:
    """YAML does not allow tabs as indentation, but JSON does."""
    child = {"Type": "AWS::CloudFormation::Stack", "Properties": {"TemplateURL": "child.json"}}
    body = {"Resources": {"Child": child}, "Outputs": {"Host": {"Value": "127.0.0.1"}}}
    topic = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}}
    wanted = written(bench, file="parent.json", parameters={}, further={})
    (bench.folder / "parent.json").write_text(json.dumps(body, indent="\t"))
    (bench.folder / "child.json").write_text(json.dumps(topic, indent="\t"))
    environment = up(bench, wanted)
    assert environment.url == "http://127.0.0.1:80/"
    bench.lifecycle.destroy(environment)


@pytest.mark.parametrize(
    ("keys", "body", "said"),
    [
        ({"bucket": None}, PARENT, "Set a bucket"),
        ({}, PARENT.replace("child", "none"), r"TemplateURL in .*: there is no .*none\.yaml"),
        ({}, PARENT.replace("nested/child.yaml", "parent.yaml"), "nested in itself"),
        ({}, PARENT.replace("nested/child.yaml", "nested"), "is a folder"),
        ({}, "#" * 1_048_577, "CloudFormation accepts at most 1048576"),
        ({"bucket": "nobodys"}, PARENT, r"templates.stack.bucket: 'nobodys': it does not exist"),
        ({}, CHILD.replace("SNS::Topic", "IAM::Role"), 'Write: capabilities = \\["CAPABILITY_IAM'),
    ],
)
def test_configuration_errors_are_reported_before_launch(
    bench: Bench, s3: Any, keys: Any, body: str, said: str
) -> None:
    """No stack is created, and no record remains."""
    wanted = written(bench, **keys)
    (bench.folder / "parent.yaml").write_text(body.replace("{{", "{").replace("}}", "}"))
    with pytest.raises(ConfigurationError, match=said):
        bench.lifecycle.bring_up(msgspec.structs.replace(wanted))
    assert (stacks_left(), bench.ledger.entries()) == ([], [])


def test_files_left_in_the_bucket_are_reported(bench: Bench, s3: Any) -> None:
    """The error has the command that removes them. The record remains until they are gone."""
    environment = up(bench, written(bench))
    bench.account.fault("DELETE", "AccessDenied", times=1)
    with pytest.raises(DestroyError, match="aws s3 rm --recursive s3://templates/"):
        bench.lifecycle.destroy(environment)
    assert [one.id for one in bench.ledger.entries()] == [environment.id]
    bench.lifecycle.destroy(environment)
    assert (stacks_left(), bench.ledger.entries()) == ([], [])
