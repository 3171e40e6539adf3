"""The cloudformation provider: each environment is a stack."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from pytest_ephemeral import aws, aws_retries
from pytest_ephemeral.errors import (
    ConfigurationError,
    EnvironmentGoneError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation import (
    events,
    instances,
    launch,
    log_groups,
    stacks,
    upload,
)
from pytest_ephemeral.providers.cloudformation.launch import BUCKET, REGION, STACK
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2 import console, identity
from pytest_ephemeral.providers.ec2.doctor import checks
from pytest_ephemeral.providers.ec2.environments import Instances, read_console_log, status_of
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.regions import Known, RegionalProvider
from pytest_ephemeral.providers.ec2.removal_steps import AT_ONCE
from pytest_ephemeral.providers.ec2.tags import format_expiry, tags_of
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Recipe, Template


class CloudFormationProvider(Instances, RegionalProvider):
    """See ``Provider``.

    Commands run on the stack's first instance. An environment's log is the output of its
    instances (without instances, the stack's events), and its CloudWatch log groups.
    """

    name: ClassVar[str] = "cloudformation"
    template_type: ClassVar[type[Template]] = StackTemplate
    recipe_type: ClassVar[type[Recipe] | None] = None
    forwards_ports: ClassVar[bool] = False
    unreachable: ClassVar[str] = (
        "check that the outputs in its URL are right, that its server has started, and that "
        "its security groups admit this machine"
    )

    def doctor(self) -> Sequence[Check]:
        """Check that boto3 is installed and that the credentials are valid."""
        return checks()

    def check_permissions(
        self,
        templates: Sequence[Template],
        recipes: Sequence[Recipe],  # noqa: ARG002
        root: Path,
    ) -> Sequence[Check]:
        """See ``SupportsPermissionChecks``; CloudFormation only checks files: it has no DryRun."""
        return [
            upload.check_template(one, root) for one in templates if isinstance(one, StackTemplate)
        ]

    def preflight(
        self,
        template: Template,
        recipes: Sequence[Recipe],  # noqa: ARG002
        root: Path,
        lifetime: float | None,  # noqa: ARG002
    ) -> None:
        """Check the credentials, the region, the template and the files that it names."""
        if not isinstance(template, StackTemplate):
            raise ConfigurationError(f"template {template.name!r} is not a CloudFormation template")
        upload.check(template, root)
        aws.identity(aws.client("cloudformation", template.region).meta.region_name)

    def launch(self, order: Order) -> Environment:
        """Create the stack; its outputs give the endpoints."""
        what = f"{order.environment.id} could not be launched"
        with translate_errors(what, LaunchError), aws_retries.tell_of_retries(order.tell):
            return launch.launch(order)

    def status(self, environment: Environment) -> Status:
        """The state of the stack's instances; without any, of the stack."""
        with translate_errors(f"{environment.id} can't be inspected", EphemeralError):
            found = stacks.look(_client(environment), _stack_name(environment))
            if found is None or found["StackStatus"] == "DELETE_IN_PROGRESS":
                return Status("gone", "its stack is gone")
            its = instances.find(environment)
        if not its:
            return Status("running", f"stack {found['StackStatus']}")
        return status_of(environment, its)

    def _log(self, environment: Environment, *, now: bool = False) -> console.ConsoleLog:
        with translate_errors(f"{environment.id} can't be inspected", EphemeralError):
            client, stack = _client(environment), _stack_name(environment)
            if stacks.look(client, stack) is None:
                raise EnvironmentGoneError(f"the stack of {environment.id} is gone")
            region = environment.handle.get(REGION)
            # A failed test waits for its log: don't retry for long if a service throttles.
            client = aws.client("cloudformation", region, polls=not now)
            if instances.find(environment):
                log = read_console_log(environment, now=now)
            else:
                log = console.ConsoleLog([events.history(client, stack)], own=False, name="stack")
            found = log_groups.read(client, stack, environment.created_at, region, now=now)
            for name, text in found.items():
                log.add(name, text)
            return log

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the stack's first instance; fail if it has none."""
        if not environment.handle.get(instances.WITHOUT_INSTANCES):
            return super().run(environment, argv, timeout=timeout)
        raise EphemeralError(f"{environment.id} has no instances: no command can be run in it")

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Change the expiry tag of the instances, which guests may read, and of the stack."""
        with translate_errors(f"{environment.id} could not be extended", EphemeralError):
            client = _client(environment)
            found = _find_stack(environment, client)
            if found is None:
                raise EnvironmentGoneError(f"the stack of {environment.id} is gone")
            tags = {EXPIRES: format_expiry(expires_at)}
            instances.retag(environment, tags)
            stacks.retag(client, found, tags)
            if expires_at is None or tags_of(found).get(EXPIRES) == NEVER:
                _protect(client, str(found["StackId"]), on=expires_at is None)

    def keep(self, environment: Environment) -> None:
        """Check that the stack exists: nothing else is needed to keep it."""
        if self.status(environment).state == "gone":
            raise EnvironmentGoneError(f"the stack of {environment.id} is gone")

    def destroy(self, environment: Environment) -> None:
        """Delete the stack."""
        self.destroy_in_stages(environment, lambda: None)

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """See ``SupportsStagedDestroy``; a stack that may retain resources is never accepted."""

        def remove_files() -> None:  # CloudFormation does not read them any more
            if bucket := environment.handle.get(BUCKET):
                upload.remove(bucket, environment.id)
            if not environment.handle.get(stacks.MAY_RETAIN):
                accepted()

        with translate_errors(f"{environment.id} could not be destroyed"):
            client = _client(environment)
            found = _find_stack(environment, client)
            if found is None:
                remove_files()
            else:
                # By its id: the events of a deleted stack can't be read by its name.
                stack = str(found["StackId"])
                if environment.production is None and tags_of(found).get(EXPIRES) == NEVER:
                    _protect(client, stack, on=False)
                stacks.delete(client, stack, environment.id, remove_files)

    def list_owned_in(self, region: str) -> Sequence[Owned]:
        """All stacks in a region that have our tags and names."""
        with translate_errors(f"the resources in {region} can't be listed"):
            return stacks.list_owned(aws.client("cloudformation", region))

    def _regions_of(self, one: Known) -> Sequence[str | None]:
        match one:
            case StackTemplate():
                return [one.region]
            case Environment(provider=self.name):
                return [one.handle.get(REGION)]
        return []

    def sweep_all(
        self, owned: Sequence[Owned], still: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """See ``SupportsBulkSweep``; several stacks at once."""
        outcome: dict[str, EphemeralError | None] = {}

        def sweep(one: Owned) -> None:
            try:
                with translate_errors(f"{one.id} remains"):
                    client = aws.client("cloudformation", one.region or None)
                    if stacks.sweep(client, one, still):
                        outcome[one.id] = None
            except EphemeralError as error:
                outcome[one.id] = error

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(sweep, owned))
        return outcome


def _protect(client: Any, stack: str, *, on: bool) -> None:
    client.update_termination_protection(StackName=stack, EnableTerminationProtection=on)


def _client(environment: Environment) -> Any:
    """A client of an environment's region, after a check of the account."""
    region = environment.handle.get(REGION)
    identity.check_account(environment, region)
    return aws.client("cloudformation", region)


def _find_stack(environment: Environment, client: Any) -> Mapping[str, Any] | None:
    """The environment's stack as it is now, after a check of its name and tags."""
    found = stacks.look(client, _stack_name(environment), older=0.0)
    if found is not None:
        identity.check_stack(environment, found, stacks.name_of(environment.id))
    return found


def _stack_name(environment: Environment) -> str:
    return environment.handle.get(STACK) or stacks.name_of(environment.id)
