"""Run the commands of a bake: install in a container that is committed; verify in new ones.

The files that the script needs are in a folder that is removed before the commit. So neither the
artifact nor the values of ``pass-env`` get into the image.
"""

from __future__ import annotations

import codecs
import io
import json
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers import install_files, install_script
from pytest_ephemeral.providers.bake_log import PACKAGE_SOURCES, BakeLog, passed_variables
from pytest_ephemeral.providers.docker import (
    containers,
    errors,
    identity,
    image_store,
    quarantine,
    resources,
)
from pytest_ephemeral.providers.docker.engine import (
    TAR_TYPE,
    Engine,
    EngineError,
    NoEngineError,
    frames,
)
from pytest_ephemeral.providers.protocol import BakeJob

if TYPE_CHECKING:
    import tarfile

#: The folder with the script and its files, in the container of the bake.
FOLDER: Final = "/pytest-ephemeral-bake"

#: The number of the install command that failed.
_FAILED: Final = f"{FOLDER}/failed"

_SHELL: Final = ["/bin/sh"]


def prefix_of(name: str) -> str:
    """``$PREFIX`` in an image of that name."""
    return f"/opt/{name}"


def install(
    engine: Engine,
    job: BakeJob,
    base: Mapping[str, Any],
    image_labels: Mapping[str, str],
    log: BakeLog,
) -> str:
    """Run the install script in a container of the base, and commit it, or raise BakeError.

    Args:
        engine: The engine to use.
        job: The bake.
        base: The engine's description of the image to install into.
        image_labels: The labels of the new image.
        log: Receives the output.

    Returns:
        The new image's id.
    """
    prefix = prefix_of(job.recipe.name)
    body = {
        "Image": base["Id"],
        "Entrypoint": _SHELL,
        "Cmd": [f"{FOLDER}/run"],
        "User": "0",
        "Env": [f"PREFIX={prefix}"],
    }
    with _container(engine, job, body) as id:
        path, query = f"/containers/{id}/archive", {"path": "/"}
        with engine.stream("PUT", path, query=query, body=_tar(job), headers=TAR_TYPE):
            pass
        status = _run(engine, id, log)
        if status != 0:
            reason = f"{_failed_command(engine, job, id)} {_exit_reason(engine, id, status)}"
            raise errors.bake_failure(log, f"its install script failed: {reason}")
        job.say("committing it")
        # A commit copies the container's labels, so they get empty values in the image.
        image_labels = {**dict.fromkeys(_container_labels(job), ""), **image_labels}
        return _commit(engine, job, id, _config(base["Config"], prefix, image_labels))


def _failed_command(engine: Engine, job: BakeJob, container: str) -> str:
    """The command of an `install` list that failed, quoted; "it" if that is unknown."""
    import tarfile

    commands = job.recipe.install
    if commands is None or isinstance(commands, str):
        return "it"
    path = f"/containers/{container}/archive"
    try:
        with engine.stream("GET", path, query={"path": _FAILED}) as answer:
            content = io.BytesIO(answer.read())
        with tarfile.open(fileobj=content) as tar:
            file = tar.extractfile(Path(_FAILED).name)
            return f"`{commands[int(file.read())]}`" if file else "it"
    except (EphemeralError, tarfile.TarError, KeyError, ValueError, IndexError):
        return "it"


def _commit(engine: Engine, job: BakeJob, container: str, config: Mapping[str, Any]) -> str:
    """Commit a container under the bake's quarantine name; return the image's id."""
    repository, _, tag = quarantine.name_of(job).rpartition(":")
    query = {"container": container, "pause": False, "repo": repository, "tag": tag}
    if identity.is_podman(engine):
        query["changes"] = _changes(config)  # Podman ignores the configuration in the body
    return str(engine.call("POST", "/commit", query=query, body=config)["Id"])


def verify(engine: Engine, job: BakeJob, image: Image, command: str, log: BakeLog) -> None:
    """Run a ``verify`` command in a new container of an image.

    Raises:
        BakeError: The command failed.
    """
    body = {
        "Image": image_store.id_on(engine, image),
        "Entrypoint": _SHELL,
        "Cmd": ["-ec", command],
    }
    with _container(engine, job, body) as id:
        try:
            status = _run(engine, id, log)
        except (EngineError, NoEngineError) as error:
            reason = errors.message_of(error)
            raise errors.bake_failure(log, f"verifying failed: `{command}`: {reason}") from error
        if status != 0:
            raise errors.bake_failure(
                log, f"verifying failed: `{command}` {_exit_reason(engine, id, status)}"
            )


@contextmanager
def _container(engine: Engine, job: BakeJob, body: Mapping[str, Any]) -> Iterator[str]:
    """Create a container, and remove it at the end; by its labels, ``reap`` finds it, too."""
    name = resources.name_of(f"{quarantine.id_of(job)}-{secrets.token_hex(3)}")
    labelled = {**body, "Labels": _container_labels(job)}
    made = engine.call("POST", "/containers/create", query={"name": name}, body=labelled)
    try:
        yield made["Id"]
    finally:
        resources.remove_container(engine, made["Id"])


def _container_labels(job: BakeJob) -> dict[str, str]:
    owner = machine.this_owner("bake")
    expires = datetime.now(UTC) + quarantine.LONGEST
    return {
        quarantine.BAKE: job.key,
        resources.PROVIDER: "docker",
        resources.PROCESS: machine.process_of(owner),
        labels.ID: quarantine.id_of(job),
        labels.OWNER: str(owner),
        labels.EXPIRES: expires.isoformat(timespec="seconds"),
    }


def _run(engine: Engine, id: str, log: BakeLog) -> int:
    """Start a container, log its output, and return its exit status."""
    engine.call("POST", f"/containers/{id}/start")
    query = {"stdout": True, "stderr": True, "follow": True}
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    with engine.stream("GET", f"/containers/{id}/logs", query=query, timeout=None) as answer:
        for _, data in frames(answer):
            log.write(decode(data))
    return int(engine.call("POST", f"/containers/{id}/wait", timeout=None)["StatusCode"])


def _exit_reason(engine: Engine, id: str, status: int) -> str:
    try:
        found = containers.inspect(engine, id)
    except EphemeralError:
        return f"exited with status {status}"
    notes = containers.describe_architecture(engine, found) + errors.describe_full_disk(engine)
    return containers.exit_reason(found["State"]) + notes


def _config(
    base: Mapping[str, Any], prefix: str, image_labels: Mapping[str, str]
) -> dict[str, Any]:
    """The new image's configuration: the base's, with the new labels and ``$PREFIX``.

    A commit takes missing values from the container, so an empty entrypoint must be given, too.
    """
    kept = [one for one in base.get("Env") or () if not one.startswith("PREFIX=")]
    return {
        **base,
        "Entrypoint": base.get("Entrypoint") or [],
        "Cmd": base.get("Cmd") or _SHELL,
        "User": base.get("User") or "0",
        "Env": [*kept, f"PREFIX={prefix}"],
        "Labels": {**(base.get("Labels") or {}), **image_labels},
    }


def _changes(config: Mapping[str, Any]) -> str:
    """A configuration as instructions of a Dockerfile."""
    lists = [f"{word.upper()} {json.dumps(config[word])}" for word in ("Entrypoint", "Cmd")]
    pairs = [one.partition("=")[::2] for one in config["Env"]]
    variables = [f"ENV {name}={json.dumps(value)}" for name, value in pairs]
    labelling = [f"LABEL {name}={json.dumps(value)}" for name, value in config["Labels"].items()]
    return "\n".join([*lists, f"USER {config['User']}", *variables, *labelling])


def _tar(job: BakeJob) -> bytes:
    """The folder as a tar: the script, the artifact, and ``run``, which uses both."""
    import tarfile

    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        _add_folder(tar, FOLDER)
        _add_folder(tar, f"{FOLDER}/here")
        if job.artifact is not None:
            tar.add(job.artifact, f"{FOLDER}/{job.artifact.name}", filter=_roots)
        for file in install_files.find(job.recipe.files, job.root, job.recipe.name):
            tar.add(file, f"{FOLDER}/here/{file.relative_to(job.root)}", filter=_roots)
        if isinstance(job.recipe.install, str):
            tar.add(job.root / job.recipe.install, f"{FOLDER}/install", filter=_roots)
        script = tarfile.TarInfo(f"{FOLDER}/run")
        text = _script(job).encode()
        script.size, script.mode = len(text), 0o700
        tar.addfile(script, io.BytesIO(text))
    return target.getvalue()


def _add_folder(tar: tarfile.TarFile, name: str) -> None:
    import tarfile

    folder = tarfile.TarInfo(name)
    folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o700, int(time.time())
    tar.addfile(folder)


def _roots(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member


def _script(job: BakeJob) -> str:
    """The shell script of a bake: the install commands in order, then the folder's removal.

    It creates the folder ``$PREFIX``, as every provider does.
    """
    lines = [f"export {name}={shlex.quote(value)}" for name, value in _variables(job).items()]
    prefix = prefix_of(job.recipe.name)
    lines += [f"mkdir -p {prefix}", f"cd {FOLDER}/here", "status=0"]
    if job.recipe.python is not None:
        lines += install_script.python_commands(job.recipe.python, f"{FOLDER}/bin", job.recipe.name)
    if isinstance(job.recipe.install, str):
        content = (job.root / job.recipe.install).read_bytes()
        commands = [shlex.join(install_script.command(content, f"{FOLDER}/install"))]
    else:
        commands = [f"/bin/sh -ec {shlex.quote(text)}" for text in job.recipe.install or ()]
    # Run a command only if all commands before it have succeeded.
    lines += [
        f"[ $status -ne 0 ] || {command} || {{ status=$?; echo {number} >{_FAILED}; }}"
        for number, command in enumerate(commands)
    ]
    lines += ["[ $status -eq 0 ] || exit $status"]
    # Remove the prefix if it is empty.
    lines += [f"cd / && rm -rf {FOLDER}; rmdir {prefix} 2>/dev/null", "exit 0"]
    return "\n".join(lines) + "\n"


def _variables(job: BakeJob) -> dict[str, str]:
    """The variables of the install commands, besides those of the base."""
    artifact = {} if job.artifact is None else {"ARTIFACT": f"{FOLDER}/{job.artifact.name}"}
    return {**passed_variables(job.recipe, PACKAGE_SOURCES), **artifact}
