"""The progress that is printed while an environment is launched."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.fixture
def slow(project):
    """A project whose application needs a second to start."""
    project.reconfigure('command = "exec', 'command = "sleep 1; exec')
    project.write(test_it="def test_a(ephemeral_env): pass\ndef test_b(ephemeral_env): pass")
    return project


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_long_phase_is_one_line_in_a_log(slow, run, arguments):
    """The phase is printed once, then the URL, without carriage returns."""
    result = run(*arguments)
    result.assert_outcomes(passed=2)
    output = result.stdout.str()
    assert output.count("waiting until it is ready") == 1
    assert "\r" not in output
    ready, up = (output.index(text) for text in ("waiting until", " is up at "))
    assert ready < up < output.index("ephemeral environments =")


def test_output_of_the_install_script_is_shown_live(project, run):
    """Each line of the output is printed as it appears, after the line of the bake."""
    project.reconfigure(
        'reference = "image"',
        f'install = ["cp {project.folder}/image/app.py $PREFIX", "echo halfway", "echo done"]',
    )
    project.write(test_it="def test_a(ephemeral_env): pass")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["ephemeral: baking app*", "ephemeral: app | * s  halfway", "ephemeral: app | * s  done"]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")
def test_one_line_is_updated_on_a_terminal(slow):
    """The line is rewritten as time passes, and removed when the environment is up."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "pytest", "--ephemeral-env", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        command, cwd=slow.folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            output += os.read(ours, 65536)
        except OSError:  # on Linux, the other end is closed
            break
    os.close(ours)
    assert process.wait(30) == 0, output
    moving = output.count(b"\rephemeral: " + slow.one.encode())
    assert moving >= 2
    assert b"\r" + b" " * 79 in output
    assert output.index(b" is up at ") > output.rindex(b"waiting until")
