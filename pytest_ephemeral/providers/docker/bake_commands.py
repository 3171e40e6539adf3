"""Commands of a bake: an install script in a container that is committed, verify in fresh ones.

What the script needs stands in a folder that it removes before the commit, so that nothing of it
gets into the image: not the artifact, nor the values of ``pass-env``.
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
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers import install_files, install_script
from pytest_ephemeral.providers.bake_log import PACKAGE_SOURCES, BakeLog, passed_variables
from pytest_ephemeral.providers.docker import (
    containers,
    errors,
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

#: What is there besides the artifact, in the container that is baked in.
FOLDER: Final = "/pytest-ephemeral-bake"

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
    """Run the install script in a container of the base, and commit it.

    Args:
        engine: Where.
        job: What is baked.
        base: The image to install into, as the engine describes it.
        image_labels: The labels of the new image.
        log: Takes what is printed.

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
        files = _tar(job)
        with engine.stream(
            "PUT", f"/containers/{id}/archive", query={"path": "/"}, body=files, headers=TAR_TYPE
        ):
            pass
        status = _run(engine, id, log)
        if status != 0:
            raise errors.bake_failure(log, f"its install script {_exit_reason(engine, id, status)}")
        job.say("committing it")
        all_labels = {**_empty_container_labels(job), **image_labels}
        return _commit(engine, job, id, _config(base["Config"], prefix, all_labels))


def _commit(engine: Engine, job: BakeJob, container: str, config: Mapping[str, Any]) -> str:
    """Make an image of a container, with its quarantine name; its id."""
    repository, _, tag = quarantine.name_of(job).rpartition(":")
    query = {"container": container, "pause": False, "repo": repository, "tag": tag}
    if is_podman(engine):
        query["changes"] = _changes(config)  # it does not read the configuration
    return str(engine.call("POST", "/commit", query=query, body=config)["Id"])


def verify(engine: Engine, job: BakeJob, image: Image, command: str, log: BakeLog) -> None:
    """Run a command in a fresh container.

    Raises:
        BakeError: It failed.
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
            said = errors.message_of(error)
            raise errors.bake_failure(log, f"verifying failed: `{command}`: {said}") from error
        if status != 0:
            raise errors.bake_failure(
                log, f"verifying failed: `{command}` {_exit_reason(engine, id, status)}"
            )


@contextmanager
def _container(engine: Engine, job: BakeJob, body: Mapping[str, Any]) -> Iterator[str]:
    """A container that is there for a while, and labelled so that it is found if it stays."""
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


def _empty_container_labels(job: BakeJob) -> dict[str, str]:
    """A commit takes the container's labels over, which say what no image is: they are emptied."""
    return dict.fromkeys(_container_labels(job), "")


def _run(engine: Engine, id: str, log: BakeLog) -> int:
    """Start it, take what it prints, and return its exit status."""
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
    """The new image's configuration: the base's, but for what was only for the script.

    What is not given is taken from the container, so that an entrypoint has to be given as empty.
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


def is_podman(engine: Engine) -> bool:
    """Whether an engine is Podman, whose builder is another than Docker's."""
    parts = engine.call("GET", "/version").get("Components") or ()
    return any("podman" in part["Name"].lower() for part in parts)


def _changes(config: Mapping[str, Any]) -> str:
    """What a configuration says, as lines of a Dockerfile."""
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
    """What runs: the user's commands, one after the other, and the folder's removal.

    ``$PREFIX`` is a folder that is there, as it is for every other provider.
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
    # Each only after the one before it has succeeded.
    lines += [f"[ $status -ne 0 ] || {command} || status=$?" for command in commands]
    # A prefix that was not used is no part of the image.
    lines += [f"cd / && rm -rf {FOLDER}; rmdir {prefix} 2>/dev/null", "exit $status"]
    return "\n".join(lines) + "\n"


def _variables(job: BakeJob) -> dict[str, str]:
    """What the commands see besides what the base sets."""
    artifact = {} if job.artifact is None else {"ARTIFACT": f"{FOLDER}/{job.artifact.name}"}
    return {**passed_variables(job.recipe, PACKAGE_SOURCES), **artifact}
