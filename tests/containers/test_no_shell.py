"""An image that contains only its application: no shell, no tools."""

from __future__ import annotations

import pytest

from containers.project import Opened, refusal, up
from pytest_ephemeral.errors import BakeError, ReadinessError

DOCKERFILE = """
FROM {base} AS tools
FROM scratch
COPY --from=tools /bin/busybox /httpd
COPY --from=tools /www /www
EXPOSE 8080 9000
CMD ["/httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def test_an_environment_without_a_shell_works(opened: Opened) -> None:
    """It launches and is destroyed; a command that the image lacks exits with status 127."""
    lifecycle = opened(dockerfile=DOCKERFILE)
    environment = up(lifecycle)
    done = environment.run(["cat", "/www/index.html"])
    assert done.returncode == 127
    assert '"cat": executable file not found' in done.stderr
    lifecycle.destroy(environment)


def test_a_timeout_without_a_shell_does_not_guess_ports(opened: Opened) -> None:
    """Without a shell, the ports inside the container are unknown."""
    more = '[templates.odd]\nimage = "web"\nport = 9000\nready = { tcp = true, timeout = "1s" }\n'
    error = refusal(opened(more, DOCKERFILE), "odd")
    assert isinstance(error, ReadinessError)
    assert "inside it" not in str(error)


@pytest.mark.parametrize("way", ["verify", "install", "command"])
def test_settings_that_need_a_shell_are_explained(opened: Opened, way: str) -> None:
    """The error names the missing shell, and says how to do without one."""
    first = opened(dockerfile=DOCKERFILE)
    base = first.image("web").reference
    keys = {
        "verify": f'reference = "{base}"\nverify = ["true"]',
        "install": f'base = "{base}"\ninstall = ["true"]',
        "command": f'reference = "{base}"',
    }
    more = (
        f'[images.bare]\nprovider = "docker"\n{keys[way]}\n'
        '[templates.odd]\nimage = "bare"\nport = 8080\ncommand = "httpd"\n'
    )
    error = refusal(opened(more, DOCKERFILE), "odd")
    assert isinstance(error, BakeError) == (way != "command")
    assert '"/bin/sh"' in str(error)
    assert "no such file or directory" in str(error)
    assert "a list starts a program without one" in str(error)
    assert "runc" not in str(error)
