"""The fixtures, and ``environment_fixture``, which declares more of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

Scope = Literal["session", "package", "module", "class", "function"]

#: What says of a fixture function that it lends an environment.
ATTRIBUTE: Final = "_ephemeral_environment"

OFF: Final = "needs an environment: run pytest with --ephemeral-env"


class Spec(NamedTuple):
    """What a fixture lends.

    Attributes:
        template: The template's name; None for the one of the test's marker, or the default.
        scope: How long one environment serves.
    """

    template: str | None
    scope: Scope


class Lender(Protocol):
    """Who has environments to lend, in a run that was started with ``--ephemeral-env``."""

    def template_for(self, request: pytest.FixtureRequest) -> str | None:
        """The template of a test, by its marker or else the default one, if there is one."""

    def lend(
        self, request: pytest.FixtureRequest, spec: Spec, template: str
    ) -> Iterator[Environment]:
        """Lend an environment until the fixture is torn down."""


LENDER: Final = pytest.StashKey[Lender]()


def environment_fixture(
    template: str | None = None, *, scope: Scope = "session", name: str | None = None
) -> Any:
    """Declare a fixture that gives an environment.

    Args:
        template: A template's name; None for the one that the test's ``ephemeral_env`` marker
            names, or else the default one.
        scope: How long one environment serves. Fixtures of the same template, scope and instance
            (the same module, say) share one.
        name: The fixture's name; by default that of the variable it is assigned to.

    Returns:
        The fixture; assign it in a conftest.py or a test module.
    """
    spec = Spec(template, scope)
    if template is None:

        def environment(
            request: pytest.FixtureRequest, _ephemeral_template: str | None
        ) -> Iterator[Environment]:
            yield from _lend(request, spec, _ephemeral_template)
    else:

        def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:  # type: ignore[misc]
            yield from _lend(request, spec, template)

    which = f"template {template!r}" if template else "the test's template"
    environment.__doc__ = f"An ephemeral environment of {which}, one for each {scope}."
    setattr(environment, ATTRIBUTE, spec)
    return pytest.fixture(scope=scope, name=name)(environment)


def _lend(
    request: pytest.FixtureRequest, spec: Spec, template: str | None
) -> Iterator[Environment]:
    lender = request.config.stash.get(LENDER, None)
    if lender is None or template is None:
        pytest.skip(OFF)
    yield from lender.lend(request, spec, template)


@pytest.fixture(scope="session")
def _ephemeral_template(request: pytest.FixtureRequest) -> str | None:
    """The template's name; None when nothing is brought up in this run."""
    lender = request.config.stash.get(LENDER, None)
    return None if lender is None else lender.template_for(request)


ephemeral_env = environment_fixture()
ephemeral_env_module = environment_fixture(scope="module")
ephemeral_env_class = environment_fixture(scope="class")
ephemeral_env_function = environment_fixture(scope="function")


@pytest.fixture(scope="session")
def ephemeral_url(ephemeral_env: Environment) -> str:
    """The URL of ``ephemeral_env``."""
    return ephemeral_env.url
