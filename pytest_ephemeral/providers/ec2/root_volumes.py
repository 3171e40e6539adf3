"""Replace the root volumes of running instances.

All other things stay: addresses, roles, groups, other volumes. AWS creates the new volume from an
AMI, reboots the instance from it, and deletes the old volume. That takes minutes.
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/replace-root.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2.instance_watcher import Instance

#: Seconds between polls, and after which waiting for a replacement ends.
POLL: Final = 5.0
WITHIN: Final = 1800.0

SUCCEEDED: Final = "succeeded"
#: States of a replacement that has not ended.
UNDER_WAY: Final = frozenset({"pending", "in-progress"})


def replace(client: Any, instances: Collection[str], image: str) -> None:
    """Replace the root volumes of instances, and wait until they boot from the new ones.

    Args:
        client: An EC2 client.
        instances: The ids of the instances, which must be running.
        image: The AMI's id.

    Raises:
        EphemeralError: A replacement failed, or took too long; the message names the instance.
        ClientError: AWS refuses.
    """
    tasks = [begin(client, id, image) for id in instances]

    def look() -> bool:
        found = aws.poll(client, partial(_describe, tasks=tasks)) or ()
        states = {one["InstanceId"]: str(one["TaskState"]) for one in found}
        if failed := {id: at for id, at in states.items() if at not in {SUCCEEDED, *UNDER_WAY}}:
            raise EphemeralError(
                "; ".join(
                    f"the root volume of {id} was not replaced: {at}" for id, at in failed.items()
                )
            )
        return len(states) == len(tasks) and set(states.values()) == {SUCCEEDED}

    if not waiting.wait_until(look, within=WITHIN, every=POLL):
        raise EphemeralError(
            f"AWS has not replaced the root volume of {' '.join(instances)} in {WITHIN / 60:g} "
            "minutes: see `aws ec2 describe-replace-root-volume-tasks`"
        )


def begin(client: Any, instance: str, image: str) -> str:
    """Start replacing the root volume of an instance; return the task's id.

    boto3 adds a client token, so a retry after a lost answer does not start a second replacement.
    """
    answer = client.create_replace_root_volume_task(
        InstanceId=instance, ImageId=image, DeleteReplacedRootVolume=True
    )
    return str(answer["ReplaceRootVolumeTask"]["ReplaceRootVolumeTaskId"])


def other_volumes(instance: Instance) -> list[str]:
    """The device names of an instance's volumes other than the root volume."""
    names = [str(one["DeviceName"]) for one in instance.get("BlockDeviceMappings", ())]
    return [name for name in names if name != instance["RootDeviceName"]]


def _describe(client: Any, tasks: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    answer = client.describe_replace_root_volume_tasks(ReplaceRootVolumeTaskIds=tasks)
    return list(answer["ReplaceRootVolumeTasks"])
