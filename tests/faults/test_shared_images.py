"""One user of a machine runs an image that another user has baked, by its digest.

Nothing that the baker can still change is used. The tests check as both users, and over HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pytest_ephemeral
from pytest_ephemeral.providers.local import mounts
from support import processes, web
from support.lacks import skip_without

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="of Linux"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

#: Uids of this test process only, as their folders are in one place on each machine.
ANNA, BERT = (50000 + 2 * (os.getpid() % 5000) + number for number in (0, 1))

CONFIGURATION = """
[images.site]
provider = "local"
artifact = "index.html"
install = [
    'cp "$ARTIFACT" "$PREFIX"',
    'printf "#!/bin/sh\\ncat $PREFIX/index.html\\n" > "$PREFIX/show"; chmod +x "$PREFIX/show"',
]
verify = ['"$PREFIX/show" | grep -q Welcome']

[templates.staging]
image = "site"
command = 'exec python3 -m http.server --directory "$PREFIX" --bind $HOST $PORT'
port = 8080
ready = { http = "/" }
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def roots(user: int) -> list[Path]:
    """The image root and the state folder of a user without a home."""
    return [Path(f"/var/tmp/pytest-ephemeral{part}-{user}") for part in ("", "-state")]


def remove(*folders: Path) -> None:
    """Remove folders, including read-only ones."""
    for one in folders:
        subprocess.run(["chmod", "-R", "u+w", one], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(one, ignore_errors=True)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """A function that runs the command line as a user, in that user's project."""
    top = Path(f"/var/tmp/two-users-{os.getpid()}")
    remove(*roots(ANNA), *roots(BERT))
    for user in (ANNA, BERT):
        (top / str(user)).mkdir(parents=True)
        for name, text in {"ephemeral.toml": CONFIGURATION, "index.html": "Welcome"}.items():
            (top / str(user) / name).write_text(text)
        shutil.chown(top / str(user), user, user)
    code = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); "
    code += "from pytest_ephemeral.cli import main; sys.exit(main())"
    paths = [Path(pytest_ephemeral.__file__).parents[1], Path(pytest.__file__).parents[1]]

    def run(user: int, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        python = ["/usr/bin/python3", "-B", "-c", code, ":".join(map(str, paths))]
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, paths))}
        folder = top / str(user)
        return processes.run(
            *python, *arguments, folder=folder, environ=environ, user=user, status=status
        )

    version = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if subprocess.run(["/usr/bin/python3", "-c", version], check=False).returncode:
        skip_without("a Python that every user may run", "Debian's is another version")
    if mounts.refusal():
        skip_without("mount namespaces", mounts.refusal())
    try:
        yield run
    finally:
        remove(top, *roots(ANNA), *roots(BERT))


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    """Anna's image, exported to a file that everyone can read."""
    run(ANNA, "bake")
    run(ANNA, "images", "export", "site", "site.image")
    return next(Path("/var/tmp").glob(f"two-users-{os.getpid()}/{ANNA}/site.image"))


def test_an_image_of_another_user_is_shared_by_digest(run: Run, bundle: Path) -> None:
    """It is not baked again, its paths are valid, and its baker can't change the content."""
    remove(roots(BERT)[0])
    run(BERT, "images", "import", bundle)
    hers, his = (
        json.loads(run(one, "images", "show", "site", "--json").stdout) for one in (ANNA, BERT)
    )
    assert hers["image"]["digest"] == his["image"]["digest"]
    tree = Path(hers["image"]["reference"])
    assert tree.parent == roots(ANNA)[0]
    # Anna owns this tree: she changes it before the launch, and replaces it afterwards.
    for one in (tree, *tree.iterdir()):
        one.chmod(0o755)
    (tree / "index.html").write_text("Evil")
    up = run(BERT, "up", "staging", "--json")
    environment = json.loads(up.stdout)["environment"]
    try:
        assert "fetching site" in up.stderr
        assert "baking" not in up.stderr
        aside = tree.parent.with_name(f"aside-{ANNA}")
        subprocess.run(["mv", tree.parent, aside], user=ANNA, group=ANNA, check=True)
        assert web.get(f"{environment['url']}index.html") == "Welcome"
        shutil.copytree(aside / tree.name, tree)
        assert web.get(f"{environment['url']}index.html") == "Welcome"
        assert run(BERT, "run", environment["id"], "--", tree / "show").stdout == "Welcome"
        (copy,) = (one for one in roots(BERT)[0].iterdir() if one.is_dir())
        assert {one.stat().st_uid for one in (copy, *copy.iterdir())} == {BERT}
        written = run(BERT, "run", environment["id"], "--", "sh", "-c", f"id > {tree}/x; echo $?")
        assert written.stdout != "0\n"
    finally:
        run(BERT, "down", environment["id"])
        remove(tree.parent)
        aside.rename(tree.parent)
    assert not (tree / "x").exists()


def test_an_image_without_the_folder_of_its_baker_runs(run: Run, bundle: Path) -> None:
    """As on another machine, its path exists only in the environment's mount namespace."""
    run(BERT, "images", "import", bundle)
    aside = roots(ANNA)[0].with_name(f"aside-{ANNA}")
    roots(ANNA)[0].rename(aside)
    try:
        assert "baking" not in run(BERT, "with", "staging", "--", "true").stderr
        assert not roots(ANNA)[0].exists()
    finally:
        aside.rename(roots(ANNA)[0])


def test_an_image_with_changed_content_is_refused(run: Run, bundle: Path) -> None:
    """The import compares the archive with the record."""
    folder = bundle.parent.parent / str(BERT)
    with tarfile.open(bundle) as tar:
        tar.extractall(folder, filter="data")
    with (folder / "content").open("ab") as content:
        content.write(b"more")
    with tarfile.open(folder / "forged.image", "w") as tar:
        for name in ("image.json", "content"):
            tar.add(folder / name, name)
    said = run(BERT, "images", "import", "forged.image", status=1).stderr
    assert "was damaged or changed" in said
