"""Instances that are stopped, started and changed, and root volumes that are replaced.

moto does not implement the replacement: this follows the API reference.
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateReplaceRootVolumeTask.html
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aws.wire import Answer, Request, forward, refuse, xml


class Restarts:
    """The part of ``Strict`` for instances that are stopped, started or changed."""

    moto: Any
    times: Any
    clock: Any
    lock: Any
    guests: Any
    backend: Callable[[str], Any]
    instance: Callable[[str], Any]
    _boot: Callable[[str], None]
    _set: Callable[[Any, str], None]
    shutdown: Callable[[str], None]

    def __init__(self) -> None:
        self._tasks: dict[str, dict[str, str]] = {}
        #: The state in which replacements of root volumes end.
        self.task_state = "succeeded"
        super().__init__()

    def _ec2_StopInstances(self, request: Request) -> Answer:
        answer = forward(self.moto, request)
        for id in request.listed("InstanceId") if answer.ok else ():
            self.guests.end(id)
        return answer

    def _ec2_StartInstances(self, request: Request) -> Answer:
        """Start only stopped instances; cloud-init runs user data only once on a root volume."""
        for id in request.listed("InstanceId"):
            instance = self.instance(id)
            if instance is None:
                return refuse("InvalidInstanceID.NotFound", f"The instance ID '{id}' is unknown")
            if instance._state.name != "stopped":
                said = f"The instance '{id}' is not in a state from which it can be started."
                return refuse("IncorrectInstanceState", said)
        answer = forward(self.moto, request)
        for id in request.listed("InstanceId") if answer.ok else ():
            self._boot(id)
        return answer

    def _ec2_ModifyInstanceAttribute(self, request: Request) -> Answer:
        instance = self.instance(request.form["InstanceId"])
        if (data := request.form.get("UserData.Value")) is not None:
            if instance._state.name != "stopped":
                said = f"The instance '{instance.id}' is not in the 'stopped' state."
                return refuse("IncorrectInstanceState", said)
            base64.b64decode(data, validate=True)
            instance.user_data = data
        elif groups := request.listed("GroupId"):
            known = [self.backend(request.region).get_security_group_from_id(id) for id in groups]
            if None in known:
                return refuse("InvalidGroup.NotFound", "The security group does not exist")
            instance.security_groups = known
            for interface in instance.nics.values():
                interface._group_set = list(known)
        elif behaviour := request.form.get("InstanceInitiatedShutdownBehavior.Value"):
            instance.instance_initiated_shutdown_behavior = behaviour
        else:
            return forward(self.moto, request)
        return xml("ModifyInstanceAttribute", "<return>true</return>")

    # -- root volumes ------------------------------------------------------------------------

    def _ec2_CreateReplaceRootVolumeTask(self, request: Request) -> Answer:
        form = request.form
        if form.get("DryRun") == "true":
            return refuse("DryRunOperation", "Request would have succeeded")
        id, image = form["InstanceId"], form["ImageId"]
        instance, backend = self.instance(id), self.backend(request.region)
        if instance is None:
            return refuse("InvalidInstanceID.NotFound", f"The instance ID '{id}' does not exist")
        if image not in backend.amis:
            return refuse("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        if instance._state.name != "running":
            return refuse("IncorrectInstanceState", f"The instance '{id}' is not running")
        for task in self._tasks.values():
            if task["token"] == form["ClientToken"]:
                return self._told("CreateReplaceRootVolumeTask", "", [task])
            if task["instanceId"] == id and task["taskState"] in {"pending", "in-progress"}:
                return refuse("IncorrectState", f"a root volume replacement of {id} is under way")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        task = {
            "replaceRootVolumeTaskId": f"replacevol-{secrets.token_hex(8)}",
            "instanceId": id,
            "taskState": "pending",
            "startTime": now,
            "imageId": image,
            "deleteReplacedRootVolume": form.get("DeleteReplacedRootVolume", "false"),
            "token": form["ClientToken"],
        }
        self._tasks[task["replaceRootVolumeTaskId"]] = task
        self.clock.after(self.times.root, lambda: self._replace(task, instance, backend))
        return self._told("CreateReplaceRootVolumeTask", "", [task])

    def _replace(self, task: dict[str, str], instance: Any, backend: Any) -> None:
        """Detach a root volume, attach another, and reboot."""
        with self.lock:
            if instance._state.name != "running" or self.task_state == "failed":
                task["taskState"] = "failed"
                return
            name = instance.root_device_name
            old = backend.volumes[instance.block_device_mapping[name].volume_id]
            self.guests.end(instance.id)
            backend.detach_volume(old.id, instance.id, name)
            if task["deleteReplacedRootVolume"] == "true":
                backend.delete_volume(old.id)
            if self.task_state != "succeeded":
                task["taskState"] = self.task_state
                return
            instance.add_block_device(old.size, name, None, False, True, None, "gp3")
            instance.image_id = task["imageId"]
            self.guests.renew(instance.id, task["imageId"])
            self.guests.boot(instance)
            task["taskState"] = "succeeded"
            tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
            if not self.guests.real and tags.get("pytest-ephemeral.state") == "standby":
                self.shutdown(instance.id)  # as the boot script would

    def _ec2_DescribeReplaceRootVolumeTasks(self, request: Request) -> Answer:
        if request.form.get("DryRun") == "true":
            return refuse("DryRunOperation", "Request would have succeeded")
        ids = request.listed("ReplaceRootVolumeTaskId")
        instances = request.listed("Filter.1.Value")
        found = [
            one
            for id, one in self._tasks.items()
            if (not ids or id in ids) and (not instances or one["instanceId"] in instances)
        ]
        return self._told("DescribeReplaceRootVolumeTasks", "Set", found)

    @staticmethod
    def _told(action: str, many: str, tasks: list[dict[str, str]]) -> Answer:
        texts = [
            "".join(f"<{name}>{text}</{name}>" for name, text in one.items() if name != "token")
            for one in tasks
        ]
        inner = "".join(f"<item>{one}</item>" for one in texts) if many else texts[0]
        return xml(action, f"<replaceRootVolumeTask{many}>{inner}</replaceRootVolumeTask{many}>")
