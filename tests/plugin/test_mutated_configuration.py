"""A run with a mutated configuration ends with a message, and leaves nothing."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Replacements for a value: other types, unknown names, invalid ports and paths.
VALUES = st.sampled_from(
    [
        '"nowhere"',
        '""',
        '"\\u0000"',
        "7",
        "0",
        "99999",
        "-1.5",
        "true",
        "[]",
        '["x"]',
        "{}",
        '{ tcp = true, timeout = "200ms" }',
        '{ http = "/", timeout = "200ms", status = 500 }',
        '{ FLAVOUR = "{env:NOT_THERE}" }',
        '{ FLAVOUR = "{image:nowhere}" }',
        '"exit 3"',
        '"sleep 60"',
        '"docker"',
        '"1ms"',
    ]
)
LINES = st.sampled_from(
    ["seed", "health", "ttl", "ports", "provider", "env", "ready", "image", "colour", "verify"]
)


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, int, str, str]:
    """The kind of the mutation, the number of the line, a key and a value."""
    kind = draw(st.sampled_from(["drop", "replace", "insert", "garble"]))
    return kind, draw(st.integers(0, 60)), draw(LINES), draw(VALUES)


def apply_mutation(text: str, mutation: tuple[str, int, str, str]) -> str:
    """Apply a mutation to the text of a configuration."""
    kind, number, key, value = mutation
    lines = text.replace("20s", "500ms").splitlines()
    at = number % len(lines)
    line = lines[at]
    if kind == "drop":
        del lines[at]
    elif kind == "replace" and "=" in line:
        lines[at] = f"{line.partition('=')[0]}= {value}"
    elif kind == "insert":
        lines.insert(at, f"{key} = {value}")
    else:
        lines[at] = line[::-1]
    return "\n".join(lines)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mutation=mutations())
def test_a_mutated_configuration_is_refused_or_works(project, run, mutation):
    """The run is a usage error, fails or passes, without a traceback or traces."""
    original = (project.folder / "ephemeral.toml").read_text()
    project.write(test_it="def test_it(ephemeral_env): pass")
    try:
        project.configure(apply_mutation(original, mutation))
        result = run("-p", "no:hypothesispytest", "-p", "no:rerunfailures")
    finally:
        project.configure(original)
    output = result.stdout.str() + result.stderr.str()
    assert result.ret in {
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.USAGE_ERROR,
    }, output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
    assert "internal error" not in output
    assert project.clean_within(30), project.traces()
