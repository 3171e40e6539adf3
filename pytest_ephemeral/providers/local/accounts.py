"""The template's ``user``: processes that root starts as other users of this machine.

Such a user can't enter the environment's folder, which belongs to root and may be in root's home.
So each user has a folder beside the installed images, which the environment's folder links to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.prefix import ROOT_VARIABLE, require_trusted_root
from pytest_ephemeral.providers.local.supervisor.files import STATES
from pytest_ephemeral.providers.local.tables import LocalTemplate


class Account(msgspec.Struct, frozen=True):
    """A user of this machine, with the user's groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find(template: LocalTemplate) -> dict[str, Account]:
    """The account of each process, by the process's name; others are started as this user.

    The account of commands that are run inside the environment has the empty name.

    Raises:
        ConfigurationError: There is no such user, or only root could start processes as it.
    """
    if template.user is None:
        return {}
    if isinstance(template.user, str):
        account = _look_up(template.user, template.name)
        return dict.fromkeys(["", *template.processes()], account)
    return {name: _look_up(user, template.name) for name, user in template.user.items()}


def _look_up(user: str, template: str) -> Account:
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        known = [entry.pw_name for entry in pwd.getpwall()]
        raise ConfigurationError(
            f"templates.{template}.user: there is no user {user!r} on this machine."
            f"{closest(user, known)}"
        ) from None
    if os.geteuid() not in {0, found.pw_uid}:
        raise ConfigurationError(
            f"templates.{template}.user: only root can start processes as {user!r}: leave user "
            "out, they run as you"
        )
    groups = tuple(os.getgrouplist(user, found.pw_gid))
    return Account(user, found.pw_uid, found.pw_gid, groups)


def make_states(place: Folder, accounts: Iterable[Account]) -> Mapping[str, Path]:
    """Create a folder for each user, with ``state`` and ``tmp`` in it.

    Args:
        place: The environment's folder, which gets a link to them first.
        accounts: The users' accounts.

    Returns:
        The folders, by the users' names.

    Raises:
        ConfigurationError: A user can't enter the parent folders.
    """
    top = require_trusted_root() / STATES
    whole = top / place.path.name
    (place.path / STATES).symlink_to(whole)
    top.mkdir(mode=0o711, exist_ok=True)
    status = top.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigurationError(f"{top} can be changed by other users: see `ls -ld {top}`")
    whole.mkdir()
    for folder in (top, whole):
        folder.chmod(0o711)  # mkdir applies the umask
    _require_reachable(whole)
    made = {}
    for account in dict.fromkeys(accounts):
        own = made[account.name] = whole / account.name
        for folder in (own, own / "state", own / "tmp"):
            folder.mkdir(mode=0o700)
            os.chown(folder, account.uid, account.gid)
    return made


def _require_reachable(folder: Path) -> None:
    closed = next((one for one in folder.parents if not one.stat().st_mode & stat.S_IXOTH), None)
    if closed is not None:
        raise ConfigurationError(
            f"other users can't enter {closed}, where installed images are: open it to them, or "
            f"set {ROOT_VARIABLE} to a folder that they can enter"
        )


def describe(
    accounts: Mapping[str, Account], states: Mapping[str, Path], given: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The settings for a guard of each process that it starts as another user.

    Args:
        accounts: The accounts, by process.
        states: The users' folders, by the users' names.
        given: The template's own variables, which override all others.
    """
    return {
        process: {
            "uid": account.uid,
            "gid": account.gid,
            "groups": list(account.groups),
            "directory": str(states[account.name] / "state"),
            "variables": {**_variables(account, states[account.name]), **given},
        }
        for process, account in accounts.items()
    }


def _variables(account: Account, folder: Path) -> dict[str, str]:
    state = str(folder / "state")
    names = {"USER": account.name, "LOGNAME": account.name}
    return {"HOME": state, "STATE": state, "TMPDIR": str(folder / "tmp"), **names}
