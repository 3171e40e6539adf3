"""Install scripts: their interpreter, their errors, and the Python that they use."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_ephemeral.errors import BakeError, ConfigurationError, UnavailableError
from pytest_ephemeral.providers import install_script
from pytest_ephemeral.providers.local import python
from support.machines import Machine


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"echo", ["/bin/sh", "-e", "f"]),
        (b"#!/bin/bash\n", ["/bin/bash", "-e", "f"]),
        (b"#!/bin/sh -x\n", ["/bin/sh", "-x", "-e", "f"]),
        (b"#! /usr/bin/env bash\n", ["/usr/bin/env", "bash", "-e", "f"]),
        (b"#!/usr/bin/env -S bash -u\n", ["/usr/bin/env", "bash", "-u", "-e", "f"]),
        (b"#!/bin/bash +e\n", ["/bin/bash", "+e", "f"]),
        (b"#!/usr/bin/env python3\n", ["/usr/bin/env", "python3", "f"]),
        (b"#!/usr/bin/python3 -I\n", ["/usr/bin/python3", "-I", "f"]),
        (b"#!\n", ["/bin/sh", "-e", "f"]),
        (b"\x7fELF\x02", ["f"]),
        (b"", ["/bin/sh", "-e", "f"]),
    ],
)
def test_the_first_line_selects_the_interpreter(content: bytes, command: list[str]) -> None:
    """The executable bit does not matter, and a shell stops at the first error."""
    assert install_script.command(content, "f") == command


def test_windows_line_endings_are_reported() -> None:
    """Otherwise the error would be a command that is not found."""
    with pytest.raises(ConfigurationError, match="CRLF"):
        install_script.command(b"#!/bin/sh\r\necho\r\n", "install.sh")


@pytest.mark.parametrize("executable", [False, True])
def test_a_failing_line_fails_the_bake(here: Machine, executable: bool) -> None:
    """A successful last line must not hide an earlier error."""
    script = here.folder / "install.sh"
    script.write_text('#!/bin/sh\necho a > "$PREFIX/a"\npip-typo install flask\necho done\n')
    script.chmod(0o755 if executable else 0o644)
    with pytest.raises(BakeError, match="exited with 127"):
        here.obtain(install="install.sh")
    assert here.images.catalog.entries() == []
    script.write_text('#!/bin/sh\nset +e\nfalse\necho a > "$PREFIX/a"\n')
    assert here.obtain(install="install.sh")


def test_the_python_version_is_part_of_the_key(
    here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment of another Python is another image."""
    install = ['python3 -c "import sys; print(sys.version)" > "$PREFIX/version"']
    first = here.obtain(install=install)
    assert first.inputs["python"] != "none"
    other = tmp_path / "bin"
    other.mkdir()
    (other / "python3.99").write_text("#!/bin/sh\necho 3.99\n")
    (other / "python3.99").chmod(0o755)
    (other / "python3").symlink_to("python3.99")
    monkeypatch.setenv("PATH", str(other), prepend=":")
    second = here.obtain(install=install)
    assert second.key != first.key
    assert second.inputs["python"] == f"3.99 {other}"


def test_a_recipe_can_select_another_python(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's ``python3`` is this version, also for virtual environments."""
    base = Path(
        subprocess.check_output(
            ["python3", "-c", "import sys; print(sys._base_executable)"], text=True
        ).strip()
    ).resolve()
    version = base.name.removeprefix("python")
    monkeypatch.setenv("PATH", str(base.parent), prepend=":")
    install = ['python3 -m venv --without-pip "$PREFIX/venv"']
    image = here.obtain(install=install, python=version)
    made = Path(image.reference, "venv", "bin", "python3")
    assert made.exists()
    assert made.resolve() == base
    with pytest.raises(UnavailableError, match=r"images.shop.python: there is no python3.98"):
        here.obtain(install=install, python="3.98")


def test_a_python_shim_is_asked_for_its_version(tmp_path: Path) -> None:
    """If ``python3`` is a script, its filename does not tell the version."""
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("python3")} "$@"\n')
    shim.chmod(0o755)
    assert python.describe(shim).startswith("3.")


def test_an_added_verify_command_runs_once(here: Machine) -> None:
    """An existing image that fails the new command is not used."""
    here.obtain()
    image = here.obtain(verify=['test -x "$PREFIX/bin/shop"'])
    assert any("verifying" in line for line in here.messages)
    assert image.verified == ['test -x "$PREFIX/bin/shop"']
    here.obtain(verify=['test -x "$PREFIX/bin/shop"'])
    assert here.messages == []
    for _ in range(2):
        with pytest.raises(BakeError, match="verifying failed"):
            here.obtain(verify=["false"])


def test_an_old_image_is_not_used_after_a_failed_forced_bake(here: Machine) -> None:
    """The old image fails the same verify command."""
    here.obtain()
    with pytest.raises(BakeError):
        here.obtain(mode="always", verify=["false"])
    with pytest.raises(BakeError):
        here.obtain(verify=["false"])


def test_the_default_store_writes_a_gitignore(tmp_path: Path) -> None:
    """pytest's cache does the same; a store at another path gets none."""
    from pytest_ephemeral.store import open_store

    open_store(".ephemeral", tmp_path).create("environments/a.json", b"{}")
    assert (tmp_path / ".ephemeral" / ".gitignore").read_text().endswith("*\n")
    open_store("shared", tmp_path).create("environments/a.json", b"{}")
    assert not (tmp_path / "shared" / ".gitignore").exists()


def test_recipe_files_are_copied_beside_the_install_script(here: Machine) -> None:
    """They keep their paths, in an otherwise empty folder; each is part of the key."""
    (here.folder / "deploy").mkdir()
    (here.folder / "deploy" / "shop.conf").write_text("one")
    (here.folder / "deploy" / "tool").write_text("#!/bin/sh\necho tool\n")
    (here.folder / "deploy" / "tool").chmod(0o755)
    install = [
        'cp deploy/shop.conf "$PREFIX"',
        './deploy/tool > "$PREFIX/said"; ls -A > "$PREFIX/ls"',
    ]
    first = here.obtain(install=install, files=["deploy"])
    assert Path(first.reference, "shop.conf").read_text() == "one"
    assert Path(first.reference, "said").read_text() == "tool\n"
    assert Path(first.reference, "ls").read_text() == "deploy\n"
    (here.folder / "deploy" / "shop.conf").write_text("two")
    assert here.obtain(install=install, files=["deploy"]).key != first.key


@pytest.mark.parametrize(
    ("glob", "said"),
    [("nothing/*", "matches 'nothing/"), ("../x", "leads out"), ("/etc/passwd", "leads out")],
)
def test_invalid_recipe_files_are_reported(here: Machine, glob: str, said: str) -> None:
    """The error is raised before any command runs."""
    with pytest.raises(ConfigurationError, match=f"images.shop.files: .*{said}"):
        here.obtain(files=[glob])
