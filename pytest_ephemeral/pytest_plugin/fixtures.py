"""The fixtures, and ``environment_fixture``, which declares more of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import pytest

if TYPE_CHECKING:
    from _pytest.fixtures import FixtureFunctionDefinition
    from requests import PreparedRequest, Request, Session

    from pytest_ephemeral.broker.protocol import Scope
    from pytest_ephemeral.models import Environment

SCOPES: Final = ("session", "package", "module", "class", "function")

#: The attribute that marks fixture functions of environments.
ATTRIBUTE: Final = "_ephemeral_environment"

OFF: Final = "needs an environment: run pytest with --ephemeral-env"


class Declaration(NamedTuple):
    """The declaration of a fixture.

    Attributes:
        template: The template's name; None for the one of the test's marker, or the default.
        scope: The scope in which one environment is shared.
    """

    template: str | None
    scope: Scope


class Lender(Protocol):
    """Lends environments, in a run with ``--ephemeral-env``."""

    def template_for(self, request: pytest.FixtureRequest) -> str | None:
        """The template of a test: its marker's, or the default; None if there is none."""

    def lend(
        self, request: pytest.FixtureRequest, declaration: Declaration, template: str
    ) -> Iterator[Environment]:
        """Lend an environment until the end of the fixture."""

    def lend_early(self, template: str | None) -> Environment:
        """Lend the session's environment of a template, before tests are collected."""


LENDER: Final = pytest.StashKey[Lender]()


def environment_fixture(
    template: str | None = None, *, scope: Scope = "session", name: str | None = None
) -> FixtureFunctionDefinition:
    """Declare a fixture that returns an environment.

    Args:
        template: A template's name; None for the one that the test's ``ephemeral_env`` marker
            names, or the default one.
        scope: The scope in which one environment is shared. Fixtures with the same template and
            scope share an environment within the same module, class and so on.
        name: The fixture's name; by default the name of the variable it is assigned to.

    Returns:
        The fixture; assign it in a conftest.py or a test module.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no such scope, or the name is not valid.
    """
    _check(template, scope, name)
    declaration = Declaration(template, scope)
    if template is None:

        def environment(
            request: pytest.FixtureRequest, _ephemeral_template: str | None
        ) -> Iterator[Environment]:
            yield from _lend(request, declaration, _ephemeral_template)
    else:

        def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:  # type: ignore[misc]
            yield from _lend(request, declaration, template)

    which = f"template {template!r}" if template else "the test's template"
    environment.__doc__ = f"An ephemeral environment of {which}, one for each {scope}."
    setattr(environment, ATTRIBUTE, declaration)
    return pytest.fixture(scope=scope, name=name)(environment)


def _check(template: object, scope: object, name: object) -> None:
    """Check the arguments at the declaration, not at the first use of the fixture."""
    if not (template is None or isinstance(template, str)):
        raise TypeError(
            f"environment_fixture: template is a str or None, not {template!r}. It is not a "
            'decorator: write shop = environment_fixture("staging")'
        )
    if template == "":
        raise ValueError("environment_fixture: template is empty: name one, or leave it out")
    if scope not in SCOPES:
        raise ValueError(f"environment_fixture: scope is one of {', '.join(SCOPES)}, not {scope!r}")
    if not (name is None or isinstance(name, str)):
        raise TypeError(f"environment_fixture: name is a str or None, not {name!r}")
    if name is not None and not name.isidentifier():
        raise ValueError(f"environment_fixture: {name!r} can't be the name of a fixture")


def _lend(
    request: pytest.FixtureRequest, declaration: Declaration, template: str | None
) -> Iterator[Environment]:
    lender = request.config.stash.get(LENDER, None)
    if lender is None or template is None:
        pytest.skip(OFF)
    yield from lender.lend(request, declaration, template)


@pytest.fixture(scope="session")
def _ephemeral_template(request: pytest.FixtureRequest) -> str | None:
    """The name of the test's template; None in a run without ``--ephemeral-env``."""
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


@pytest.fixture
def ephemeral_http(ephemeral_url: str) -> Iterator[Session]:
    """A session of requests for each test, bound to ``ephemeral_url``: it accepts paths."""
    with _bind_session(ephemeral_url) as session:
        yield session


def early_environment(config: pytest.Config, template: str | None = None) -> Environment | None:
    """The session's environment of a template, for ``pytest_sessionstart`` in a conftest.py.

    It is up before tests are collected. If ``ephemeral_early`` in pytest's configuration file names
    its template, it starts with pytest; if not, it starts when this is called.

    Args:
        config: pytest's configuration, ``session.config``.
        template: A template's name; None for the default one.

    Returns:
        The environment, ready; None in a run without ``--ephemeral-env``.

    Raises:
        pytest.UsageError: It could not be brought up; the message has the reason.
        TypeError: ``config`` is not pytest's configuration, but the session, say.
    """
    if not isinstance(config, pytest.Config):
        raise TypeError(f"early_environment needs session.config, got {config!r}")
    lender = config.stash.get(LENDER, None)
    return None if lender is None else lender.lend_early(template)


def _bind_session(base_url: str) -> Session:
    """A session of requests that accepts paths, too, which are joined to a URL.

    Args:
        base_url: The URL, such as ``http://127.4.9.3:8080/``.
    """
    import requests

    from pytest_ephemeral import urls

    class BoundSession(requests.Session):
        """Joins paths in ``prepare_request``, which all requests use, but redirects do not."""

        def prepare_request(self, request: Request) -> PreparedRequest:
            url = str(request.url)
            if not url.lower().startswith(("http://", "https://")):
                request.url = urls.join(base_url, url)
            return super().prepare_request(request)

    return BoundSession()
