"""The side of a process that runs tests: pytest itself, or one of pytest-xdist's workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from _pytest.outcomes import Failed  # pytest.fail.Exception, as a class for type checkers

from pytest_ephemeral.errors import EphemeralError, UnavailableError
from pytest_ephemeral.pytest_plugin import base_url, links, markers, needs
from pytest_ephemeral.pytest_plugin.evidence import section
from pytest_ephemeral.pytest_plugin.fixtures import LENDER, Spec
from pytest_ephemeral.pytest_plugin.lending import Evidence, Look
from pytest_ephemeral.pytest_plugin.needs import Key
from pytest_ephemeral.pytest_plugin.settings import Settings

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

#: What a worker finds in its ``workerinput`` about the controller's broker.
WORKER_INPUT = "pytest_ephemeral"

#: Reports carry the ids of the environments that their test used, also from worker to controller.
REPORT_ATTRIBUTE = "ephemeral_environments"

#: Options of pytest with which no fixture is set up.
IDLE_OPTIONS = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test")

_TOLD = pytest.StashKey[bool]()


class NotLent(Failed):
    """A test can't have the environment it asks for: a plain message, without a traceback."""

    __module__ = "builtins"  # as pytest's own does, so that summaries show the message alone


class Desk(Protocol):
    """Where environments are borrowed: the broker of this process, or that of the controller."""

    def plan(self, needs: Mapping[Key, Sequence[str]]) -> None:
        """See ``Broker.plan``."""

    def refuse(self, problem: str) -> None:
        """The tests can't be run as they are written."""

    def lease(self, key: Key) -> Environment:
        """See ``Broker.lease``."""

    def release(self, key: Key) -> None:
        """See ``Broker.release``."""

    def look(self, key: Key) -> Look:
        """See ``Broker.look``."""

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """See ``Broker.evidence``."""


def borrow(
    config: pytest.Config,
    settings: Settings,
    desk: Desk,
    *,
    known: Sequence[str],
    default: str | None,
) -> None:
    """Let the tests of this process borrow at a desk.

    Args:
        config: Of this process.
        settings: What this run was told to do.
        desk: Where environments are to be had.
        known: The templates there are; empty when anything goes.
        default: The template of tests that name none; None when that can't be told.
    """
    borrower = Borrower(config, settings, desk, known=known, default=default)
    config.pluginmanager.register(borrower, "ephemeral-borrower")
    if default is not None and base_url.applies(config):
        config.pluginmanager.register(base_url, "ephemeral-base-url")


class Borrower:
    """Plans what the selected tests need, lends it to their fixtures, and tells how it went."""

    def __init__(
        self,
        config: pytest.Config,
        settings: Settings,
        desk: Desk,
        *,
        known: Sequence[str],
        default: str | None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._desk = desk
        self._known = known
        self._default = default
        self._keys: dict[str, list[Key]] = {}
        self._held: Counter[Key] = Counter()
        self._lent: dict[Key, Environment] = {}
        self._marks: dict[Key, str] = {}
        config.stash[LENDER] = self

    # -- before the first test -----------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say what the selected tests need, or why they can't be run."""
        problems = [
            *self._config.stash.get(markers.PROBLEMS, []),
            *(needs.problem(item, self._known, self._default) for item in session.items),
        ]
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if found:
            session.items.clear()
            self._desk.refuse("\n".join(found))
            return
        planned: dict[Key, list[str]] = {}
        for item in session.items:
            self._keys[item.nodeid] = needs.keys(needs.wishes(item), self._default)
            if not needs.is_skipped(item):
                for key in self._keys[item.nodeid]:
                    planned.setdefault(key, []).append(item.nodeid)
        if not planned or not self._will_run(session):
            return
        try:
            self._desk.plan(planned)
        except UnavailableError as error:
            session.items.clear()
            self._desk.refuse(str(error))

    def _will_run(self, session: pytest.Session) -> bool:
        option = self._config.option
        if any(getattr(option, name, False) for name in IDLE_OPTIONS):
            return False
        return not session.testsfailed or option.continue_on_collection_errors

    # -- fixtures ------------------------------------------------------------------------------

    def template_for(self, request: pytest.FixtureRequest) -> str | None:
        """See ``Lender.template_for``."""
        template: str | None = getattr(request, "param", None)
        if needs.asks_in_vain(request._pyfuncitem):  # noqa: SLF001 - it has no other way to ask
            raise NotLent(needs.UNREACHED, pytrace=False)
        if template is None and self._default is None:
            raise NotLent(needs.NO_TEMPLATE, pytrace=False)
        return template or self._default

    def lend(self, request: pytest.FixtureRequest, spec: Spec, template: str) -> Iterator[Any]:
        """See ``Lender.lend``."""
        instance = "" if spec.scope == "session" else request.node.nodeid
        key = Key(template, spec.scope, instance)
        try:
            environment = self._desk.lease(key)
            self._marks[key] = self._desk.look(key).mark
        except EphemeralError as error:
            raise NotLent(str(error), pytrace=False) from None
        self._lent[key] = environment
        self._held[key] += 1
        try:
            yield environment
        finally:
            self._held[key] -= 1
            with suppress(EphemeralError):  # its owner is gone, and so is the environment
                self._desk.release(key)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Forget that an environment was not lent.

        Pytest remembers how a fixture failed and repeats it, in full, for every test that uses
        it. Asked again, the broker tells it in one line, and another test's marker may be right.
        """
        try:
            return (yield)
        except NotLent:
            fixturedef.finish(request)
            raise

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Look whether what the test is going to use still runs, and where its log ends."""
        item.stash[_TOLD] = False
        for key in self._keys.get(item.nodeid, ()):
            if self._held[key] > 0:
                look = self._desk.look(key)
                self._marks[key] = look.mark
                if look.problem:
                    item.stash[_TOLD] = True
                    pytest.fail(look.problem, pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell what a test used, and if it failed, what that has to say."""
        report = yield
        late = needs.late_wishes(item)
        if report.when == "call" and report.passed and late and needs.asks_in_vain(item):
            report.outcome, report.longrepr = "failed", needs.UNREACHED
        keys = dict.fromkeys([*self._keys.get(item.nodeid, ()), *needs.keys(late, self._default)])
        skipped = report.when == "setup" and report.skipped and not getattr(item, "funcargs", None)
        used = [] if skipped else [key for key in keys if key in self._lent]
        if used:
            setattr(report, REPORT_ATTRIBUTE, [self._lent[key].id for key in used])
            links.add(item, report, [self._lent[key] for key in used])
        if report.failed and not item.stash.get(_TOLD, False):
            item.stash[_TOLD] = True
            report.sections += self._sections(item, used)
        return report

    def _sections(self, item: pytest.Item, used: Sequence[Key]) -> Iterator[tuple[str, str]]:
        for key in used:
            try:
                evidence = self._desk.evidence(key, self._marks.get(key))
            except EphemeralError as error:
                yield "ephemeral environment", str(error)
                continue
            if evidence is not None:
                yield section(evidence, item.nodeid, self._config, self._settings)
