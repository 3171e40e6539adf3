"""Mistakes that a type checker must reject."""

from __future__ import annotations

from pytest_ephemeral import Environment, environment_fixture

wrong_scope = environment_fixture("staging", scope="modul")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
wrong_template = environment_fixture(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
right = environment_fixture("staging")
right.url  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018


def test_invalid_uses_are_type_errors(ephemeral_env: Environment) -> None:
    """Unknown attributes and arguments of wrong types are rejected."""
    ephemeral_env.adress  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018
    ephemeral_env.run("ls -l", timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ephemeral_env.url_for(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
