"""The inputs of a container image: the build context and the base images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.docker import bases, registry
from pytest_ephemeral.providers.docker.build_context import Context
from pytest_ephemeral.providers.docker.tables import DockerRecipe, bytes_of, volume_of


def context(root: Path, ignored: str = "", **contents: str) -> Context:
    """A context with a Dockerfile and some files; ``__`` in a name becomes a slash."""
    for name, text in {"Dockerfile": "FROM scratch\n", **contents}.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / ".dockerignore").write_text(ignored)
    return Context.at(root, "Dockerfile")


FILES = {"a.py": "", "b.md": "", "src__c.py": "", "src__d__e.py": "", "src__d__f.md": "", "z": ""}
ALWAYS = {".dockerignore", "Dockerfile"}


@pytest.mark.parametrize(
    ("ignored", "kept"),
    [
        ("", {"a.py", "b.md", "src", "src/c.py", "src/d", "src/d/e.py", "src/d/f.md", "z"}),
        ("src\n# a.py\n", {"a.py", "b.md", "z"}),
        ("*.md", {"a.py", "src", "src/c.py", "src/d", "src/d/e.py", "src/d/f.md", "z"}),
        ("**/*.md\n?\n", {"a.py", "src", "src/c.py", "src/d", "src/d/e.py"}),
        ("*\n!src/d/*.py\n", {"src/d/e.py"}),
        ("src/**\n!**/f.md\n/[ab].*\n", {"src", "src/d/f.md", "z"}),
        ("**\n", set()),
    ],
)
def test_dockerignore_patterns_select_the_context_files(
    tmp_path: Path, ignored: str, kept: set[str]
) -> None:
    """The last matching pattern decides, but the Dockerfile is always included."""
    assert set(context(tmp_path, ignored, **FILES).paths()) == kept | ALWAYS


@pytest.mark.parametrize(
    ("ignored", "kept"),
    [("", set()), ("!.git\n!src/__pycache__", {".git", ".git/HEAD", "src/__pycache__"})],
)
def test_volatile_files_are_ignored_by_default(
    tmp_path: Path, ignored: str, kept: set[str]
) -> None:
    """They would change the key with every clone and run; patterns can include them."""
    files = (".git__HEAD", ".ephemeral__a", "ephemeral.toml", ".pytest_cache__b", "src__a.py")
    made = context(tmp_path, ignored, **dict.fromkeys(files, ""))
    (tmp_path / "src" / "__pycache__").mkdir()
    assert set(made.paths()) == {"src", "src/a.py", *kept} | ALWAYS


def test_the_context_digest_depends_on_content(tmp_path: Path) -> None:
    """Names, links and the executable bit count; times and ignored files do not."""
    made = context(tmp_path, "b.md", **FILES)
    before = made.digest()
    (tmp_path / "b.md").write_text("changed")
    (tmp_path / "a.py").touch()
    assert made.digest() == before
    (tmp_path / "a.py").chmod(0o755)
    executable = made.digest()
    (tmp_path / "z").unlink()
    (tmp_path / "z").symlink_to("a.py")
    assert len({before, executable, made.digest()}) == 3


def test_the_context_archive_is_owned_by_root(tmp_path: Path) -> None:
    """Without the plain first header, BuildKit would take the archive for a Dockerfile."""
    target = io.BytesIO()
    artifact = tmp_path / "made.whl"
    artifact.write_text("wheel")
    context(tmp_path, "*").write(target, {".artifact/made.whl": artifact})
    target.seek(0)
    with tarfile.open(fileobj=target) as tar:
        members = tar.getmembers()
    assert {member.name for member in members} == {".", *ALWAYS, ".artifact/made.whl"}
    assert all(member.uid == member.gid == 0 for member in members)
    assert target.getvalue()[:3] == b"./\0"


def test_a_missing_dockerfile_is_reported(tmp_path: Path) -> None:
    """The error has the path and the key."""
    with pytest.raises(ConfigurationError, match=r"no Dockerfile .*other.*`dockerfile`"):
        Context.at(tmp_path, "other")


@pytest.mark.parametrize(
    ("dockerfile", "named"),
    [
        ("FROM scratch\n", []),
        ("# FROM no\nFROM --platform=x a:1 AS one\nRUN FROM\nFROM b\nFROM one\n", ["a:1", "b"]),
        ("ARG V=1\nARG W\nFROM a:${V}\nFROM b:$W\nFROM c:${X:-3}\n", ["a:1", "b:2", "c:3"]),
        ("FROM a AS One\nFROM scratch\nCOPY --from=one / /\nCOPY --from=0 / /\n", ["a"]),
        ("FROM a\nCOPY --chown=1 --from=b:2 \\\n  / /\n", ["a", "b:2"]),
    ],
)
def test_list_bases_finds_the_base_images(dockerfile: str, named: list[str]) -> None:
    """Stages and ``scratch`` are no base images; arguments are filled in."""
    assert bases.list_bases(dockerfile, {"W": "2"}, None) == named


def test_list_bases_stops_at_the_target_stage() -> None:
    """Later stages are not built."""
    dockerfile = "FROM a AS one\nFROM b AS two\nFROM c AS three\n"
    assert bases.list_bases(dockerfile, {}, "two") == ["a", "b"]
    with pytest.raises(ConfigurationError, match="no stage 'four'; its stages: one, two, three"):
        bases.list_bases(dockerfile, {}, "four")


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("app", ("app", "latest")),
        ("app:1.4", ("app", "1.4")),
        ("host:5000/app", ("host:5000/app", "latest")),
        ("host:5000/app:1", ("host:5000/app", "1")),
    ],
)
def test_references_split_into_repository_and_tag(reference: str, parts: tuple[str, str]) -> None:
    """A port after the host is not a tag."""
    assert registry.split(reference) == parts


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "its source is missing"),
        ({"context": ".", "base": "a"}, "context and base"),
        ({"base": "a"}, "give install, too"),
        ({"context": ".", "install": "x"}, "remove install"),
    ],
)
def test_contradictory_recipes_are_refused(keys: dict[str, str], said: str) -> None:
    """A recipe has a context, or a base and an install script."""
    with pytest.raises(ValueError, match=said):
        DockerRecipe(name="app", **keys).check()  # type: ignore[arg-type]


def test_only_volumes_of_the_environment_are_accepted() -> None:
    """A volume must be removed with the environment, so host folders are refused."""
    assert volume_of("/data") == ("", "/data")
    assert volume_of("data:/data") == ("data", "/data")
    for wrong in ("./here:/data", "/etc:/data", "data", "data:relative", "-x:/data"):
        with pytest.raises(ValueError, match="expected"):
            volume_of(wrong)


def test_sizes_accept_unit_suffixes() -> None:
    """Units are powers of 1024, in lower or upper case."""
    assert [bytes_of(size) for size in ("512", "1k", "512M", "2g")] == [512, 1024, 2**29, 2**31]


@pytest.mark.parametrize(
    ("line", "needed"),
    [
        ("RUN --mount=type=cache,target=/root/.cache pip install x", True),
        ("  run --network=none true", True),
        ("RUN \\\n    --mount=type=secret,id=a \\\n    true", True),
        ("ARG TARGETARCH", True),
        ("ARG TARGETS", False),
        ("RUN <<EOF", True),
        ("RUN python3 <<-'END'", True),
        ("COPY <<EOF /etc/motd", True),
        ("COPY --chmod=755 a /a", True),
        ("COPY --from=build --link a /a", True),
        ("ADD --checksum=sha256:0 https://far/a /a", True),
        ("FROM --platform=$BUILDPLATFORM golang AS build", True),
        ("FROM --platform=linux/amd64 golang", False),
        ("RUN test $((1 << 3)) = 8", False),
        ("COPY --chown=1:1 --from=build a /a", False),
        ("# RUN --mount=type=cache,target=/x true", False),
        ("RUN echo --mount=type=cache", False),
    ],
)
def test_buildkit_only_syntax_is_detected(line: str, needed: bool) -> None:
    """Only such a Dockerfile requires BuildKit; every engine can build the others."""
    assert bool(bases.find_buildkit(f"FROM x\n{line}\n")) == needed
