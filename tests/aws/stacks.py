"""CloudFormation's delays, failures, retained resources and errors, which moto lacks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from aws.wire import Answer, Request, forward, refuse_query, xml

ACCOUNT = "123456789012"
FINAL = {"CREATE_COMPLETE", "CREATE_FAILED", "ROLLBACK_COMPLETE", "UPDATE_COMPLETE"}


class Stacks:
    """The part of ``Strict`` for stacks."""

    moto: Any
    times: Any
    clock: Any
    lock: Any
    instance: Callable[[str], Any]
    _boot: Callable[[str], None]
    _end: Callable[..., None]

    def __init__(self) -> None:
        self.protected: dict[str, bool] = {}
        #: The reasons for which resources can't be created, by logical name.
        self.failing: dict[str, str] = {}
        self._asked: dict[str, Answer] = {}

    def _cloudformation_CreateStack(self, request: Request) -> Answer:
        token = request.form.get("ClientRequestToken", "")
        if token and token in self._asked:  # without a token, each call is a new one
            return self._asked[token]
        if said := _refusal(request):
            return refuse_query(*said)
        answer = forward(self.moto, request)
        for name in answer.found("StackId"):
            self._asked[token] = answer
            stack = self._stack(name)
            stack.verify_readiness = lambda: None  # in moto, this completes the stack at once
            stack.status = "CREATE_IN_PROGRESS"
            stack.timeout_in_minutes = int(request.form.get("TimeoutInMinutes", 0))
            rollback = request.form.get("OnFailure", "ROLLBACK") == "ROLLBACK"
            for instance in self._instances_of_stack(name):
                instance.add_tags(self._stack_tags(request))
                self._boot(instance.id)
            self._later(partial(self._made, stack, rollback=rollback))
        return answer

    def _made(self, stack: Any, *, rollback: bool) -> None:
        if not self._fail(stack):
            stack.status = "CREATE_COMPLETE"
            return
        stack.status = "ROLLBACK_COMPLETE" if rollback else "CREATE_FAILED"

    def _fail(self, stack: Any) -> bool:
        """Fail the chosen resources of a stack and its nested stacks; return whether any failed."""
        reasons = {name: self.failing[name] for name in _resources(stack) if name in self.failing}
        for name, nested in _nested(stack).items():
            if self._fail(nested):
                reasons[name] = f"Embedded stack {nested.stack_id} was not successfully created"
        for name, reason in reasons.items():
            _event(stack, name, "CREATE_FAILED", reason)
        for name in _resources(stack) if reasons else ():
            if name not in reasons:
                _event(stack, name, "CREATE_FAILED", "Resource creation cancelled")
        return bool(reasons)

    def _cloudformation_GetTemplateSummary(self, request: Request) -> Answer:
        """Check the size, and add the required capabilities, which moto leaves out."""
        body = template_of(request)
        if said := _size_refusal(request, body):
            return refuse_query(*said)
        answer = forward(self.moto, request)
        named = "".join(f"<member>{one}</member>" for one in _capabilities(body))
        end = b"</GetTemplateSummaryResult>"
        more = f"<Capabilities>{named}</Capabilities>".encode()
        answer.body = answer.body.replace(end, more + end)
        return answer

    def _cloudformation_UpdateTerminationProtection(self, request: Request) -> Answer:
        name = self._stack(request.form["StackName"]).stack_id
        self.protected[name] = request.form["EnableTerminationProtection"] == "true"
        inner = f"<StackId>{name}</StackId>"
        return xml(
            "UpdateTerminationProtection",
            f"<UpdateTerminationProtectionResult>{inner}</UpdateTerminationProtectionResult>",
        )

    def _cloudformation_UpdateStack(self, request: Request) -> Answer:
        """Update the tags alone, which moto takes for no change."""
        name, tags = request.form["StackName"], self._stack_tags(request)
        stack = self._stack(name)
        if stack.status not in FINAL:
            said = f"Stack:{name} is in {stack.status} state and can not be updated."
            return refuse_query("ValidationError", said)
        if tags == stack.tags:
            return refuse_query("ValidationError", "No updates are to be performed.")
        stack.status = "UPDATE_IN_PROGRESS"

        def changed() -> None:
            stack.tags, stack.status = tags, "UPDATE_COMPLETE"
            for instance in self._instances_of_stack(name):
                instance.add_tags(tags)

        self._later(changed)
        inner = f"<StackId>{name}</StackId>"
        return xml("UpdateStack", f"<UpdateStackResult>{inner}</UpdateStackResult>")

    def _cloudformation_DeleteStack(self, request: Request) -> Answer:
        stack = self._stack(request.form["StackName"])
        if stack is not None and self.protected.get(stack.stack_id):
            said = f"Stack [{stack.name}] cannot be deleted while TerminationProtection is enabled"
            return refuse_query("ValidationError", said)
        if stack is not None and stack.status.startswith("UPDATE_IN"):
            said = f"Stack [{stack.stack_id}] cannot be deleted while in status {stack.status}"
            return refuse_query("ValidationError", said)
        if stack is not None and stack.status != "DELETE_COMPLETE":
            stack.status = "DELETE_IN_PROGRESS"
            self._later(lambda: self._deleted(stack))
        return xml("DeleteStack", "")

    def _deleted(self, stack: Any) -> None:
        """Delete a stack, unless an export is in use or a bucket is not empty."""
        full = list(_full_buckets(stack))
        if stack.status != "DELETE_IN_PROGRESS":
            return  # a second request: already done
        if used := self.failing.get("Outputs"):
            stack.status, stack.stack_status_reason = "CREATE_COMPLETE", used
            return
        for name in full:
            reason = "The bucket you tried to delete is not empty (Service: S3, Status Code: 409)"
            _event(stack, name, "DELETE_FAILED", reason)
        if full:
            stack.status = "DELETE_FAILED"
            return
        for one in [stack, *_nested(stack).values()]:
            for name, resource in one.template_dict["Resources"].items():
                kept = resource.get("DeletionPolicy") == "Retain"
                _event(one, name, "DELETE_SKIPPED" if kept else "DELETE_COMPLETE", "")
        before = self._instances_of_stack(stack.stack_id)
        _backend("cloudformation", stack.region_name).delete_stack(stack.stack_id)
        for instance in before:
            if instance._state.name == "terminated":
                self._end(instance, "Client.UserInitiatedShutdown", after=0)

    def _later(self, action: Callable[[], None]) -> None:
        def act() -> None:
            with self.lock:
                action()

        self.clock.after(self.times.stack, act)

    @staticmethod
    def _stack_tags(request: Request) -> dict[str, str]:
        """Return the tags of a stack, which its resources get, too."""
        form = request.form
        return {
            text: form[name.removesuffix("Key") + "Value"]
            for name, text in form.items()
            if name.startswith("Tags.member.") and name.endswith(".Key")
        }

    @staticmethod
    def _stack(name: str) -> Any:
        from moto.backends import get_backend

        for backend in get_backend("cloudformation")[ACCOUNT].values():
            for one in [*backend.stacks.values(), *backend.deleted_stacks.values()]:
                if name == one.stack_id or (name == one.name and one.status != "DELETE_COMPLETE"):
                    return one
        return None

    def _instances_of_stack(self, name: str) -> list[Any]:
        stack = self._stack(name)
        ids = [] if stack is None else [one.physical_resource_id for one in stack.stack_resources]
        found = [self.instance(id) for id in ids if str(id).startswith("i-")]
        return [one for one in found if one is not None]


def _backend(service: str, region: str) -> Any:
    from moto.backends import get_backend

    return get_backend(service)[ACCOUNT][region]


def _refusal(request: Request) -> tuple[str, str] | None:
    """Return the error with which CloudFormation would refuse this stack, or None."""
    from moto.cloudformation.parsing import get_model_map

    body = template_of(request)
    if said := _size_refusal(request, body):
        return said
    kinds = _kinds(body)
    if unknown := sorted(kinds - set(get_model_map())):
        return "ValidationError", f"Template format error: Unrecognized resource types: {unknown}"
    given = {value for key, value in request.form.items() if key.startswith("Capabilities.")}
    if missing := [one for one in _capabilities(body) if one not in given]:
        return "InsufficientCapabilitiesException", f"Requires capabilities : {missing}"
    for key, value in Stacks._stack_tags(request).items():
        if not 1 <= len(value) <= 256:
            return "ValidationError", f"Tag {key} has a value of {len(value)} characters"
    return None


def template_of(request: Request) -> str:
    """Return the template that a request contains, or whose URL it contains."""
    from moto.cloudformation import models

    if "TemplateURL" not in request.form:
        return request.form["TemplateBody"]
    url = request.form["TemplateURL"]
    return str(models.get_stack_from_s3_url(url, account_id=ACCOUNT, partition="aws"))


def _size_refusal(request: Request, body: str) -> tuple[str, str] | None:
    largest = 1_048_576 if "TemplateURL" in request.form else 51200
    if len(body.encode()) > largest:
        return "ValidationError", f"Member must have length less than or equal to {largest}"
    return None


def _kinds(body: str) -> set[str]:
    """Return the types of a template's resources."""
    from moto.cloudformation.models import Stack

    template = json.loads(body) if body.lstrip().startswith("{") else Stack.parse_template(body)
    return {resource["Type"] for resource in template["Resources"].values()}


def _capabilities(body: str) -> list[str]:
    """List the capabilities that a template requires."""
    is_iam = any(kind.startswith("AWS::IAM::") for kind in _kinds(body))
    needed = {
        "CAPABILITY_IAM": is_iam,
        "CAPABILITY_AUTO_EXPAND": bool(re.search(r"\bTransform\b", body)),
    }
    return [name for name, is_needed in needed.items() if is_needed]


def read_urls_of_this_machine() -> None:
    """Make moto read templates from URLs with this machine's address, not only its name."""
    from moto.cloudformation import models, responses, utils

    original = utils.get_stack_from_s3_url

    def read(template_url: str, **where: str) -> str:
        return original(template_url.replace("//127.0.0.1:", "//localhost:"), **where)

    models.get_stack_from_s3_url = responses.get_stack_from_s3_url = read


def _nested(stack: Any) -> dict[str, Any]:
    """Return the nested stacks of a stack, by their names in its template."""
    kinds = {name: one["Type"] for name, one in stack.template_dict["Resources"].items()}
    made = stack.resource_map._parsed_resources
    return {
        name: made[name]
        for name, kind in kinds.items()
        if kind == "AWS::CloudFormation::Stack" and name in made
    }


def _resources(stack: Any) -> list[str]:
    return list(stack.template_dict["Resources"])


def _full_buckets(stack: Any) -> Iterator[str]:
    """Return the buckets of a stack that are not empty."""
    buckets = _backend("s3", "aws").buckets
    for name, resource in stack.template_dict["Resources"].items():
        if resource["Type"] == "AWS::S3::Bucket" and resource.get("DeletionPolicy") != "Retain":
            bucket = buckets.get(_physical(stack, name))
            if bucket is not None and list(bucket.keys.values()):
                yield name


def _physical(stack: Any, name: str) -> str:
    if name in (nested := _nested(stack)):
        return str(nested[name].stack_id)
    made = stack.resource_map._parsed_resources.get(name)
    return str(getattr(made, "physical_resource_id", f"{stack.name}-{name}"))


def _event(stack: Any, name: str, status: str, reason: str) -> None:
    from moto.cloudformation.models import Event

    stack.events.append(
        Event(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=name,
            physical_resource_id=_physical(stack, name),
            resource_type=stack.template_dict["Resources"][name]["Type"],
            resource_status=status,
            resource_status_reason=reason,
            resource_properties=None,
        )
    )
