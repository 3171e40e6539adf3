"""A compose command that can't read its standard input, as 2.30.0 can't."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import Opened, compose, left, up
from pytest_ephemeral.providers.compose.command import Compose
from support import compose_versions, engine_images
from support.lacks import skip_without

#: It takes ``-`` for a file of the project's folder: https://github.com/docker/compose/issues/12248.
#: No package of it is to be had, so that it is Compose 2 of this machine with the same fault.
AS_2_30_0 = """\
#!/bin/sh
for word; do
  case "$before$word" in
    --file-|-f-|--file=-) echo "open $PWD/-: no such file or directory" >&2; exit 14 ;;
  esac
  before=$word
done
exec {plugin} "$@"
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Compose]:
    """The machine's Compose 2, made to fail as 2.30.0 does."""
    plugin = compose_versions.v2()
    if plugin is None:
        skip_without("Compose 2", ".ci/compose fetches it")
    wrapper = tmp_path / "as-2.30.0"
    wrapper.write_text(AS_2_30_0.format(plugin=plugin))
    wrapper.chmod(0o755)
    with compose_versions.with_plugin(wrapper):
        yield Compose.find()


def test_standard_input_is_not_used(command: Compose, opened: Opened, tmp_path: Path) -> None:
    """What is to be brought up reaches it all the same."""
    text = f"services: {{web: {{image: '{engine_images.busybox()}', command: httpd -f -p 8080}}}}\n"
    argv = [*command.argv, "-f", "-", "config"]
    refused = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    assert "/-: no such file or directory" in refused.stderr
    (tmp_path / "compose.yaml").write_text(text)
    lifecycle = opened(compose("web"))
    environment = up(lifecycle, "odd")
    lifecycle.destroy(environment)
    assert left(environment.id) == []
