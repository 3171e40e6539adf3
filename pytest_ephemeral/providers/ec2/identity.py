"""Check that a resource belongs to an environment, by the resource's own tags and account.

A record only says where to look. It may be damaged, copied from another record, or forged by
someone who can write to the store. So a resource is changed or removed only if its own tags name
the environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import ElsewhereError, TamperedRecordError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import resources, security_groups
from pytest_ephemeral.providers.ec2.instance_watcher import InstanceWatcher
from pytest_ephemeral.providers.ec2.run_instances import could_have_written
from pytest_ephemeral.providers.ec2.tags import has_our_token, tags_of
from pytest_ephemeral.providers.protocol import CLAIMED_BY

#: In a handle: the number of the account that the environment was launched in.
ACCOUNT: Final = "account"


def account_of(region: str) -> dict[str, str]:
    """The part of a handle that records the account of the credentials."""
    return {ACCOUNT: aws.identity(region)["Account"]}


def check_account(environment: Environment, region: str | None) -> None:
    """Check that the credentials belong to the account that the environment was launched in.

    In another account, AWS answers "not found" for resources that exist.

    Raises:
        ElsewhereError: They belong to another account.
    """
    recorded = environment.handle.get(ACCOUNT)
    if recorded is None:
        return
    current = aws.identity(region)["Account"]
    if current != recorded:
        raise ElsewhereError(
            f"{environment.id} is in the AWS account {recorded}, and these credentials are of "
            f"{current}: nothing was removed. Use credentials of {recorded}, such as AWS_PROFILE"
        )


def check_instances(watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]) -> None:
    """Check that recorded instances have the environment's tags.

    Instances that EC2 does not list are not checked.

    Raises:
        TamperedRecordError: An instance is not the environment's.
    """
    own = {one["InstanceId"] for one in watcher.recall(environment)}
    for one in resources.describe_instances(watcher.client, [id for id in ids if id not in own]):
        # Some services that are compatible with EC2 do not return the client token.
        launched = has_our_token(one) or not one.get("ClientToken")
        if tags_of(one).get(labels.ID) != environment.id or not launched:
            raise _tampered_record(environment, f"instance {one['InstanceId']}")


def without_moved(
    watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]
) -> list[str]:
    """The recorded instances that were not taken over by another environment.

    The record names the environment that claimed them; their own tags say whether it has them.
    EC2 is asked, as the watcher's last poll may be older.
    """
    claimer = environment.handle.get(CLAIMED_BY)
    if claimer is None:
        return list(ids)
    found = resources.describe_instances(watcher.client, ids)
    moved = {
        one["InstanceId"]
        for one in found
        if tags_of(one).get(labels.ID) == claimer and has_our_token(one)
    }
    return [id for id in ids if id not in moved]


def check_group(client: Any, environment: Environment, id: str) -> bool:
    """Check that a recorded security group has the name and tags of the environment's run.

    Returns:
        Whether the group exists.

    Raises:
        TamperedRecordError: The environment's run has not created the group.
    """
    found = security_groups.describe(client, "group-id", [id])
    run = environment.labels.get(labels.RUN)
    for one in found:
        tags = tags_of(one)
        named = str(one["GroupName"]) == security_groups.name_of(tags.get(labels.ID, ""))
        if not (named and security_groups.is_shared(one) and tags.get(labels.RUN) == run):
            raise _tampered_record(environment, f"security group {id}")
    return bool(found)


def check_stack(environment: Environment, stack: Mapping[str, Any], name: str) -> None:
    """Check that a recorded stack has the environment's name and tags.

    Raises:
        TamperedRecordError: The stack is not the environment's.
    """
    if stack["StackName"] != name or tags_of(stack).get(labels.ID) != environment.id:
        raise _tampered_record(environment, f"stack {stack['StackName']}")


def check_request(environment: Environment, recorded: str) -> None:
    """Check that launching this environment could have recorded a request.

    Raises:
        TamperedRecordError: It could not.
    """
    try:
        request = json.loads(recorded)
    except ValueError:
        request = None
    if not could_have_written(environment, request):
        raise _tampered_record(environment, "request for instances")


def _tampered_record(environment: Environment, what: str) -> TamperedRecordError:
    return TamperedRecordError(
        f"the record of {environment.id} was tampered with, or is damaged: it names the {what}, "
        "which is not this environment's. It was left alone. See whose it is; then remove the "
        "record from the store"
    )
