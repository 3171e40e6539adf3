"""AWS's refusals and delays that moto lacks.

They concern client tokens, groups in use, names of AMIs that are taken, pending AMIs, instances
that boot and end, shutdown from inside, tags of snapshots, consoles and commands.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aws import acceptance
from aws.clock import Clock, Times
from aws.guests import Guests
from aws.moto_speed import paged
from aws.restarts import Restarts
from aws.stacks import ACCOUNT, Stacks
from aws.wire import WSGI, Answer, Request, as_json, forward, refuse, refuse_json, xml

CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopped": 80}


class Strict(Restarts, Stacks):
    """Handles requests before moto, in the same process."""

    def __init__(self, moto: WSGI, guests: Guests, times: Times) -> None:
        self.moto = moto
        self.guests = guests
        self.times = times
        self.lock = threading.RLock()
        self.clock = Clock()
        self.facts: dict[str, dict[str, float]] = {}
        self._tokens: dict[str, tuple[str, Answer]] = {}
        self._lingering: dict[str, float] = {}
        self._unseen: dict[str, float] = {}
        #: Instance profiles, and how many more launches EC2 refuses because each is new.
        self.profiles: dict[str, int] = {}
        super().__init__()

    def answer(self, request: Request) -> Answer:
        name = f"_{request.service}_{request.action}"
        with self.lock:
            handler: Callable[[Request], Answer] | None = getattr(self, name, None)
            answer = forward(self.moto, request) if handler is None else handler(request)
            if not self.times.token:
                answer.body = re.sub(rb"<clientToken>[^<]*</clientToken>", b"", answer.body)
            return paged(answer, request, self.times.page) if self.times.page else answer

    def backend(self, region: str) -> Any:
        from moto.backends import get_backend

        return get_backend("ec2")[ACCOUNT][region]

    def instance(self, id: str) -> Any:
        from moto.backends import get_backend

        for backend in get_backend("ec2")[ACCOUNT].values():
            for reservation in backend.reservations.values():
                for instance in reservation.instances:
                    if instance.id == id:
                        return instance
        return None

    # -- instances ---------------------------------------------------------------------------

    def _ec2_RunInstances(self, request: Request) -> Answer:
        token = request.form.get("ClientToken", "")
        rest = sorted(pair for pair in request.form.items() if pair[0] != "ClientToken")
        fingerprint = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
        if token in self._tokens:
            return self._again(token, fingerprint)
        backend = self.backend(request.region)
        if said := acceptance.refusal(request, backend, self.profiles):
            return refuse(*said)
        # moto launches the minimum count, AWS as many as it can.
        # moto checks the profile in IAM, which knows it before EC2 does.
        form = {**request.form, "MinCount": request.form["MaxCount"]}
        form.pop("IamInstanceProfile.Name", None)
        request.replace_form(form)
        answer = forward(self.moto, request)
        if answer.ok:
            ids = list(dict.fromkeys(answer.found("instanceId")))
            for id in ids:
                self._unseen[id] = time.monotonic() + self.times.unseen
                acceptance.complete(request, self.instance(id), backend)
                self.instance(id).client_token = token
                self._boot(id)
            if token:
                self._tokens[token] = (fingerprint, answer)
        return answer

    def _again(self, token: str, fingerprint: str) -> Answer:
        known, answer = self._tokens[token]
        if known != fingerprint:
            return refuse("IdempotentParameterMismatch", "the request is another")
        states = [self.instance(id)._state.name for id in set(answer.found("instanceId"))]
        if all(state == "terminated" for state in states):
            return refuse("IdempotentInstanceTerminated", "it has ended")
        return answer

    def _boot(self, id: str) -> None:
        instance = self.instance(id)
        self._set(instance, "pending")
        self.facts[id] = {"pending": time.time()}

        def run() -> None:
            with self.lock:
                if instance._state.name != "pending":
                    return
                self._set(instance, "running")
                self.facts[id]["running"] = time.time()
                acceptance.address(instance)
                self.guests.boot(instance)

        self.clock.after(self.times.boot, run)

    def _ec2_DescribeInstances(self, request: Request) -> Answer:
        """Hide instances that were launched too recently to be visible."""
        hidden = {id for id, at in self._unseen.items() if at > time.monotonic()}
        if asked := hidden.intersection(request.listed("InstanceId")):
            return refuse("InvalidInstanceID.NotFound", f"The instance IDs {asked} do not exist")
        reservations = self.backend(request.region).reservations
        away = {
            id: one
            for id, one in list(reservations.items())
            if hidden.intersection(instance.id for instance in one.instances)
        }
        for id in away:
            del reservations[id]
        try:
            return forward(self.moto, request)
        finally:
            reservations.update(away)

    def _ec2_TerminateInstances(self, request: Request) -> Answer:
        for id in request.listed("InstanceId"):
            if self._unseen.get(id, 0) > time.monotonic():
                return refuse(
                    "InvalidInstanceID.NotFound", f"The instance ID '{id}' does not exist"
                )
        before = {id: self.instance(id) for id in request.listed("InstanceId")}
        states = {id: one._state.name for id, one in before.items() if one is not None}
        answer = forward(self.moto, request)
        if answer.ok:
            for id, state in states.items():
                if state != "terminated":
                    self._end(before[id], "Client.UserInitiatedShutdown")
        return answer

    def _end(self, instance: Any, reason: str, after: float | None = None) -> None:
        from moto.ec2.models.instances import StateReason

        instance.state_reason = StateReason(f"{reason}: {reason.partition('.')[2]}", reason)
        self._set(instance, "shutting-down")
        self._lingering[instance.id] = float("inf")
        self.guests.end(instance.id)

        def done() -> None:
            with self.lock:
                self._set(instance, "terminated")
                self._lingering[instance.id] = time.monotonic() + self.times.linger
                self.facts[instance.id]["terminated"] = time.time()
            self.clock.after(self.times.remembered, lambda: self._forget(instance.id))

        if after == 0:
            done()
        else:
            self.clock.after(self.times.end, done)

    def _forget(self, id: str) -> None:
        from moto.backends import get_backend

        with self.lock:
            for backend in get_backend("ec2")[ACCOUNT].values():
                for reservation in list(backend.reservations.values()):
                    reservation.instances = [one for one in reservation.instances if one.id != id]
                    if not reservation.instances:
                        del backend.reservations[reservation.id]

    def shutdown(self, id: str) -> None:
        """Shut down from inside: an attribute of the instance decides whether it ends or stops."""
        with self.lock:
            instance = self.instance(id)
            if instance._state.name not in {"running", "pending"}:
                return
            if instance.instance_initiated_shutdown_behavior == "terminate":
                instance.terminate()
                self._end(instance, "Client.InstanceInitiatedShutdown")
            else:
                self._set(instance, "stopped")
                self.guests.end(id)

    def reclaim(self, id: str, reason: str) -> None:
        """Terminate an instance for a reason of AWS's own."""
        with self.lock:
            instance = self.instance(id)
            instance.terminate()
            self._end(instance, reason)

    @staticmethod
    def _set(instance: Any, state: str) -> None:
        instance._state.name, instance._state.code = state, CODES[state]

    def _ec2_GetConsoleOutput(self, request: Request) -> Answer:
        id = request.form["InstanceId"]
        guest = self.guests.get(id)
        text = guest.console.read_bytes() if guest is not None else b""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        output = base64.b64encode(text[-65536:]).decode()
        inner = (
            f"<instanceId>{id}</instanceId><timestamp>{now}</timestamp><output>{output}</output>"
        )
        return xml("GetConsoleOutput", inner)

    # -- groups ------------------------------------------------------------------------------

    def _ec2_DeleteSecurityGroup(self, request: Request) -> Answer:
        group = request.form.get("GroupId", "")
        for reservation in self.backend(request.region).reservations.values():
            for instance in reservation.instances:
                if self._uses(instance, group):
                    return refuse("DependencyViolation", f"{group} has a dependent object")
        return forward(self.moto, request)

    def _uses(self, instance: Any, group: str) -> bool:
        interfaces = [one for nic in instance.nics.values() for one in nic.group_set]
        if group not in {one.id for one in [*instance.security_groups, *interfaces]}:
            return False
        if instance._state.name != "terminated":
            return True
        return self._lingering.get(instance.id, 0.0) > time.monotonic()

    # -- images ------------------------------------------------------------------------------

    def _ec2_CreateImage(self, request: Request) -> Answer:
        return self._make_image(request, request.form["InstanceId"])

    def _ec2_CopyImage(self, request: Request) -> Answer:
        token = f"copy {request.form.get('ClientToken')}"
        if token in self._tokens:
            return self._tokens[token][1]
        answer = self._make_image(request, "")
        self._tokens[token] = ("", answer)
        return answer

    def _ec2_RegisterImage(self, request: Request) -> Answer:
        answer = forward(self.moto, request)
        for id in answer.found("imageId"):
            image = self.backend(request.region).amis[id]
            image.architecture = request.form.get("Architecture", "x86_64")
        return answer

    def _make_image(self, request: Request, instance: str) -> Answer:
        backend = self.backend(request.region)
        if any(one.name == request.form["Name"] for one in backend.amis.values()):
            return refuse("InvalidAMIName.Duplicate", f"{request.form['Name']} is taken")
        if instance and self.instance(instance)._state.name == "terminated":
            return refuse("IncorrectState", f"{instance} is terminated")
        source = backend.amis.get(self.instance(instance).image_id) if instance else None
        marks, snapshot_marks = request.tags("image"), request.tags("snapshot")
        rest = {k: v for k, v in request.form.items() if not k.startswith("TagSpecification")}
        request.replace_form(rest)
        answer = forward(self.moto, request)
        if answer.ok:
            (id,) = answer.found("imageId")
            image = backend.amis[id]
            image.add_tags(marks)
            image.ebs_snapshot.add_tags(snapshot_marks)
            image.state = "pending"
            image.kept_volumes = list(getattr(source, "kept_volumes", []))
            self.guests.image(instance, id)
            self.clock.after(self.times.ami, lambda: setattr(image, "state", "available"))
        return answer

    # -- Systems Manager ---------------------------------------------------------------------

    def _ssm_SendCommand(self, request: Request) -> Answer:
        sent = request.json
        (id,) = sent["InstanceIds"]
        instance = self.instance(id)
        if instance is None or instance._state.name != "running" or not self.guests.get(id):
            return refuse_json("InvalidInstanceId", "not in a valid state for account")
        text = "\n".join(sent["Parameters"]["commands"])
        seconds = float(sent["Parameters"]["executionTimeout"][0])
        command = self.guests.send(id, text, seconds)
        return as_json({"Command": {"CommandId": command, "Status": "Pending"}})

    def _ssm_GetCommandInvocation(self, request: Request) -> Answer:
        sent = request.json
        found = self.guests.invocation(sent["InstanceId"], sent["CommandId"])
        if found is None:
            return refuse_json("InvocationDoesNotExist", "no such command")
        return as_json(found)
