"""The local provider: processes of this machine under a guard, from a read-only image."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import (
    EnvironmentGoneError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.local import accounts, client, guard, logs, network, signals
from pytest_ephemeral.providers.local.baking import LocalBaker
from pytest_ephemeral.providers.local.doctor import checks
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.guarded import GuardedEnvironments
from pytest_ephemeral.providers.local.guarded import held as guards
from pytest_ephemeral.providers.local.prefix import Prefix, share
from pytest_ephemeral.providers.local.reference import AS_IT_IS, content_of
from pytest_ephemeral.providers.local.rollback import LocalRollback
from pytest_ephemeral.providers.local.spec import make_spec
from pytest_ephemeral.providers.local.supervisor.processes import descendants
from pytest_ephemeral.providers.local.tables import LocalRecipe, LocalTemplate
from pytest_ephemeral.providers.protocol import Check, Order, Status
from pytest_ephemeral.tables import Recipe, Template

_MOVE: Final = f"set {machine.STATE_VARIABLE} to a folder that has room and can be written"
#: What helps against an error of the operating system, by its number.
_REMEDIES: Final = {
    errno.ENOSPC: f"make room, or {_MOVE}",
    errno.EDQUOT: f"make room, or {_MOVE}",
    errno.EROFS: _MOVE,
    errno.EACCES: _MOVE,
    errno.EMFILE: "raise the limit on open files: ulimit -n 1024",
    errno.EAGAIN: "raise the limit on processes: ulimit -u, or the container's --pids-limit",
}


class LocalProvider(GuardedEnvironments, LocalRollback, LocalBaker):
    """Runs environments as processes of this machine; see ``Provider``."""

    name: ClassVar[str] = "local"
    template_type: ClassVar[type[Template]] = LocalTemplate
    recipe_type: ClassVar[type[Recipe] | None] = LocalRecipe
    forwards_ports: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        """Run the checks; a failed one means fewer guarantees, as on systems other than Linux."""
        return checks()

    def launch(self, order: Order) -> Environment:
        """Create the folder, claim an address, and start the guard, without waiting for it."""
        environment = order.environment
        place = Folder.of(environment.id)
        assert isinstance(order.template, LocalTemplate)
        users = accounts.find(order.template)
        with ExitStack() as held:
            try:
                lock = place.make(environment.labels)
                held.callback(os.close, lock)
                states = accounts.make_states(place, users.values()) if users else {}
                image = _hold(order.image, held)
                claim = _claim(order.template)
                held.callback(claim.close)
                spec = make_spec(order, place, claim, [lock, *image, *claim.descriptors])
                known = accounts.describe(users, states, order.variables)
                spec = msgspec.structs.replace(spec, accounts=known)
                guards[environment.id] = guard.start(spec)
            except OSError as error:
                why = f"{environment.id} could not be started: {_describe(error, place.path)}"
                raise LaunchError(why) from error
            except ValueError as error:
                raise LaunchError(f"{environment.id} could not be started: {error}") from error
        endpoints = make_endpoints(claim.host, claim.ports, order.template.scheme)
        return msgspec.structs.replace(
            environment,
            endpoints=endpoints,
            url=next((endpoint.url for endpoint in endpoints.values()), ""),
            handle={
                "folder": str(place.path),
                "supervisor": str(guards[environment.id].pid),
                "host": claim.host,
                **signals.describe(order.template.grace, order.template.stop_signal),
            },
        )

    def status(self, environment: Environment) -> Status:
        """The state of its processes, from its guard."""
        try:
            found = client.status(Folder.of_environment(environment).control)
        except EnvironmentGoneError as error:
            return Status("gone", str(error))
        except EphemeralError as error:  # a guard that does not answer has failed
            return Status("exited", str(error))
        ended = [
            signals.describe_exit(process) for process in found["processes"] if process["ended_at"]
        ]
        return Status("exited", "; ".join(ended)) if ended else Status("running")

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """The processes' output; with several, each line has its process's name.

        ``tail`` limits the lines of each process.
        """
        place = _flush_logs(environment)
        first, last = _offsets(since), _offsets(until)
        names = logs.processes(place)
        shown: list[str] = []
        for name in names:
            end = None if until is None else last.get(name, 0)
            data = logs.read(place, name, first.get(name, 0), end)
            lines = data.decode(errors="replace").splitlines(keepends=True)
            lines = lines if tail is None else lines[-tail:] if tail > 0 else []
            shown += lines if len(names) == 1 else [f"{name} | {_end_line(line)}" for line in lines]
        return "".join(shown)

    def log_mark(self, environment: Environment) -> str:
        """The offset of the end of each process's log, as JSON."""
        place = _flush_logs(environment)
        return json.dumps({name: logs.end(place, name) for name in logs.processes(place)})

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """Each process's log, without segments that were rotated away."""
        place = _flush_logs(environment)
        return {
            name: logs.read(place, name).decode(errors="replace") for name in logs.processes(place)
        }

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command by the guard, with the variables, folder and mounts of its processes."""
        return client.run(Folder.of_environment(environment).control, argv, timeout)

    def hint(self, environment: Environment) -> str:
        """Where its processes listen, if not on the template's ports."""
        try:
            pid = client.status(Folder.of_environment(environment).control)["pid"]
        except EphemeralError:
            return ""
        found = network.listeners(descendants(pid))
        due = {endpoint.port: endpoint.host for endpoint in environment.endpoints.values()}
        everywhere = network.EVERY_ADDRESS
        right = [
            one for one in found if one.port in due and one.host in {due[one.port], *everywhere}
        ]
        missing = due.keys() - {one.port for one in right}
        if not missing:
            return ""
        port = min(missing)
        if strays := [one for one in found if one not in right]:
            return (
                f"{strays[0]}; the template says {due[port]}:{port}: "
                f"let its command listen on $HOST and $PORT"
            )
        return f"none of its processes listens on {due[port]}:{port}"

    def foreign_listener(self, environment: Environment) -> str:
        """Another process that accepts connections at its addresses, as far as this user sees."""
        status = client.status(Folder.of_environment(environment).control)
        addresses = {(one.host, one.port) for one in environment.endpoints.values()}
        named = [process["pid"] for process in status["processes"]]
        # Usually one of the named processes listens; then its children need not be listed.
        if not network.foreign_listener(addresses, named):
            return ""
        return network.foreign_listener(addresses, [*named, *descendants(status["pid"])])

    def shared_listener(self, environment: Environment) -> str:
        """A process of it that listens on every address, on a port that others may have, too."""

        def find_pids() -> Sequence[int]:
            return descendants(client.status(Folder.of_environment(environment).control)["pid"])

        ports = {endpoint.port for endpoint in environment.endpoints.values()}
        found = network.shared_listener(ports, find_pids)
        return f"{found}, not on its own address alone: {network.EVERYWHERE_CURE}" if found else ""


def _claim(template: Template) -> network.AddressClaim:
    free_port = isinstance(template, LocalTemplate) and template.free_port
    return network.claim(template.endpoints(), free_port=free_port)


def _hold(image: Image | None, held: ExitStack) -> list[int]:
    """Lock an image's tree, so that it is neither replaced nor removed; return the descriptors."""
    if image is None:
        return []
    content = content_of(image)
    if AS_IT_IS in image.handle:
        is_there, descriptors = content.is_dir(), []
    else:
        prefix = Prefix(content)
        descriptors = [share(prefix)]
        held.callback(os.close, descriptors[0])
        seal = prefix.read_seal()  # after locking, so it can't change any more
        is_there = seal is not None and seal.digest == image.digest
    if not is_there:
        raise LaunchError(
            f"the image {image.name!r} is not at {content} any more, or was baked again meanwhile. "
            f"Bake it again with: pytest-ephemeral bake {image.name}"
        )
    return descriptors


def _flush_logs(environment: Environment) -> Path:
    """The folder of an environment's logs, after the guard has written all output so far.

    Raises:
        EnvironmentGoneError: The logs were removed with the environment.
    """
    place = Folder.of_environment(environment)
    with suppress(EphemeralError):
        client.status(place.control)  # the guard writes all output before it answers
    if not place.logs.is_dir():
        raise EnvironmentGoneError(
            f"the logs of {environment.id} are gone with it: it was destroyed, or has expired. "
            f"To save logs: pytest --ephemeral-logs DIR"
        )
    return place.logs


def _offsets(mark: str | None) -> dict[str, int]:
    """The offset in each process's log, from a mark."""
    return {} if mark is None else json.loads(mark)


def _end_line(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n"


def _describe(error: OSError, folder: Path) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.errno not in {errno.EMFILE, errno.EAGAIN}:
        reason = f"{error.filename or folder}: {reason}"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{reason}; {remedy}" if remedy else reason
