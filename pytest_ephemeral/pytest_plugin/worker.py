"""A process that runs tests: pytest itself, or one of pytest-xdist's workers.

Tests may replace functions of ``os``, ``time`` and ``socket``, so code that runs beside tests does
not use them; see ``broker.connection``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest.outcomes import Failed  # pytest.fail.Exception, as a class for type checkers

from pytest_ephemeral.broker.client import BrokerClient
from pytest_ephemeral.broker.protocol import ClientProcess, Key, Opened, Settings
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.proxies import Exemptions
from pytest_ephemeral.pytest_plugin import markers, needs, reports
from pytest_ephemeral.pytest_plugin.fixtures import LENDER, Declaration
from pytest_ephemeral.pytest_plugin.reports import Evidencer
from pytest_ephemeral.pytest_plugin.rollbacks import Rollbacks

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

#: The key in a worker's ``workerinput`` with the address of the owner process.
WORKER_INPUT: Final = "pytest_ephemeral"

#: The attribute of reports with the ids of the environments that the test used.
REPORT_ATTRIBUTE: Final = "ephemeral_environments"

#: The attribute of reports with the test's waits: the fields of ``timeline.Wait``.
WAITS_ATTRIBUTE: Final = "ephemeral_waits"

#: Options of pytest with which no fixtures are set up.
IDLE_OPTIONS: Final = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test")

_REPORTED = pytest.StashKey[bool]()


class EnvironmentUnavailable(Failed):
    """A test can't get its environment; pytest shows the message without a traceback."""

    __module__ = "builtins"  # as pytest's own, so that summaries show only the message


class Worker:
    """Plans the environments of the selected tests, lends them to fixtures, and adds reports.

    Args:
        config: pytest's configuration.
        settings: The settings of this run.
        client: The connection to the owner process.
        opened: Waits for the opened run, and returns it.
        process: Returns the facts about this process that the owner needs.
        refuse: Called with the reason if the tests can't be run as they are written.
        waiting: Called now and then while a test waits.
        settle: Called when a test's wait has ended.
    """

    def __init__(
        self,
        config: pytest.Config,
        settings: Settings,
        client: BrokerClient,
        *,
        opened: Callable[[], Opened],
        process: Callable[[], ClientProcess],
        refuse: Callable[[str], None],
        waiting: Callable[[], None] | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._client = client
        self._opened = opened
        self._process = process
        self._refuse = refuse
        self._waiting = waiting
        self._settle = settle
        self._evidence = Evidencer(config, settings)
        self._keys: dict[str, list[Key]] = {}
        self._held: Counter[Key] = Counter()
        self._lent: dict[Key, Environment] = {}
        self._marks: dict[Key, str] = {}
        self._waits: list[tuple[str, float, float]] = []
        self._now = time.time  # kept here, as tests may replace the function
        self._exemptions = Exemptions(os.environ)
        worker = getattr(config, "workerinput", {}).get("workerid", "")
        self._rollbacks = Rollbacks(worker)
        self._failed = False
        config.stash[LENDER] = self
        config.add_cleanup(self._undo)

    # -- before the first test -----------------------------------------------------------------

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Set the template of a test by the marker of its parameter."""
        markers.choose(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Send the plan of the selected tests to the owner, or refuse to run them."""
        try:
            opened = self._opened()
        except EphemeralError as error:
            raise pytest.UsageError(str(error)) from None
        problems = [
            *self._config.stash.get(markers.PROBLEMS, []),
            *(needs.problem(item, opened.templates, opened.default) for item in session.items),
        ]
        found = list(dict.fromkeys(problem for problem in problems if problem))
        if found:
            session.items.clear()
            self._refuse("\n".join(found))
            return
        planned: dict[Key, list[str]] = {}
        found_keys = {
            item.nodeid: needs.keys(needs.needs_of(item), opened.default) for item in session.items
        }
        asked_late = [Key(opened.default, "session", "")] if opened.default else []
        self._rollbacks.plan(
            session.items,
            lambda item: found_keys[item.nodeid] or (asked_late if needs.asks_late(item) else ()),
            opened.rollbacks,
        )
        for item in session.items:
            keys = found_keys[item.nodeid]
            self._keys[item.nodeid] = [self._rollbacks.mark(key) for key in keys]
            if self._keys[item.nodeid] and not needs.cannot_run(item):
                for key in self._keys[item.nodeid]:
                    planned.setdefault(key, []).append(item.nodeid)
        if planned and self._will_run(session):
            self._plan(session, planned)

    def _plan(self, session: pytest.Session, planned: dict[Key, list[str]]) -> None:
        try:
            self._client.plan(planned, self._process())
        except EphemeralError as error:
            session.items.clear()
            self._refuse(str(error))
        # Import it now: later, a test may have replaced functions of the modules that it imports.
        from pytest_ephemeral import models  # noqa: F401

    def _will_run(self, session: pytest.Session) -> bool:
        option = self._config.option
        if any(getattr(option, name, False) for name in IDLE_OPTIONS):
            return False
        return not session.testsfailed or option.continue_on_collection_errors

    # -- fixtures ------------------------------------------------------------------------------

    def template_for(self, request: pytest.FixtureRequest) -> str | None:
        template: str | None = getattr(request, "param", None)
        item = request._pyfuncitem  # noqa: SLF001 - it has no other way to ask
        if template is None and (reason := needs.marker_unreachable(item)):
            raise EnvironmentUnavailable(reason, pytrace=False)
        default = self._opened().default
        if template is None and default is None:
            raise EnvironmentUnavailable(needs.NO_DEFAULT, pytrace=False)
        return template or default

    def lend(
        self, request: pytest.FixtureRequest, declaration: Declaration, template: str
    ) -> Iterator[Any]:
        instance = "" if declaration.scope == "session" else request.node.nodeid
        key = self._rollbacks.mark(Key(template, declaration.scope, instance))
        environment = self._lease(key, request._pyfuncitem)  # noqa: SLF001 - as above
        self._held[key] += 1
        try:
            yield environment
        finally:
            self._held[key] -= 1
            with suppress(EphemeralError):  # the owner is gone, and so is the environment
                self._client.release(key)

    def lend_early(self, template: str | None) -> Environment:
        try:
            opened = self._opened()
            name = template or opened.default
            if name is None:
                raise pytest.UsageError(f"early_environment: {needs.NO_DEFAULT}")
            key = Key(name, "session", "", name in opened.rollbacks)
            environment = self._client.lease(key, self._waiting)
        except EphemeralError as error:
            raise pytest.UsageError(str(error)) from None
        finally:
            self._settle()
        self._exempt(environment)
        return environment

    def _lease(self, key: Key, item: pytest.Item) -> Environment:
        started, subject = self._now(), key.template
        try:
            environment = self._client.lease(key, self._waiting)
            subject = environment.id
            self._put_back(item, key)
            self._marks[key] = self._client.look(key).mark
        except EphemeralError as error:
            raise EnvironmentUnavailable(str(error), pytrace=False) from None
        except Failed as error:
            if "Timeout" not in str(error):
                raise
            raise EnvironmentUnavailable(
                _TIMED_OUT.format(error, key.template), pytrace=False
            ) from None
        finally:
            self._settle()
            self._waits.append((subject, started, self._now()))
        self._lent[key] = environment
        self._exempt(environment)
        from pytest_ephemeral import models

        models.actors[environment.id] = self._client
        return environment

    def _exempt(self, environment: Environment) -> None:
        """Make HTTP clients in tests connect to an environment without a proxy, as probes do."""
        for endpoint in environment.endpoints.values():
            self._exemptions.add(endpoint.host)

    def _undo(self) -> None:
        """Undo the changes to this process: proxy exemptions and lent environments."""
        self._exemptions.restore()
        if self._lent:
            from pytest_ephemeral import models

            for environment in self._lent.values():
                models.actors.pop(environment.id, None)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Clear pytest's cached failure of a fixture that could not lend an environment.

        pytest would repeat the whole failure for every test that uses the fixture. A new request
        gives a message of one line, and may succeed with another test's marker.
        """
        __tracebackhide__ = True  # the error of a user's fixture passes through this frame
        try:
            return (yield)
        except EnvironmentUnavailable:
            fixturedef.finish(request)
            raise

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Check that the test's environments still run, and mark the ends of their logs."""
        item.stash[_REPORTED] = False
        self._failed = False
        keys = self._keys.get(item.nodeid, ())
        late = [key for key in self._held if self._rollbacks.is_due(item, key)]
        for key in dict.fromkeys([*keys, *late]) if late and needs.asks_late(item) else keys:
            if self._held[key] > 0:
                self._look(item, key)
        if not self._keys.get(item.nodeid) and (reason := needs.marker_unreachable(item)):
            if needs.asks_late(item):
                pytest.fail(reason, pytrace=False)
            self._forget_template(item)

    def _put_back(self, item: pytest.Item, key: Key) -> None:
        """Roll back an environment before a test uses it, if that is due."""
        if self._rollbacks.is_due(item, key):
            self._client.roll_back(key, self._waiting)
            self._rollbacks.put_back(key)

    def _look(self, item: pytest.Item, key: Key) -> None:
        started = self._now()
        try:
            self._put_back(item, key)
            look = self._client.look(key)
        except EphemeralError as error:
            item.stash[_REPORTED] = True
            # "from None", as pytest would print the error above the same message.
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        finally:
            self._settle()
        if key.rollback:
            self._waits.append((self._lent[key].id, started, self._now()))
        self._marks[key] = look.mark
        if look.problem:
            item.stash[_REPORTED] = True
            pytest.fail(look.problem, pytrace=False)

    def _forget_template(self, item: pytest.Item) -> None:
        """Clear the internal template fixture, for tests that use ``request.getfixturevalue``.

        If not cleared, such a test would get the template of the tests before it.
        """
        manager = item.session._fixturemanager  # noqa: SLF001 - pytest has no other way to ask
        for definition in manager.getfixturedefs(markers.TEMPLATE_FIXTURE, item) or ():
            definition.finish(item._request)  # type: ignore[attr-defined]  # noqa: SLF001

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the test's environments to its report; if it failed, their logs, too."""
        report = yield
        if self._waits:
            setattr(report, WAITS_ATTRIBUTE, self._waits[:])
            self._waits.clear()
        late = needs.late_needs(item)
        keys = dict.fromkeys([*self._keys.get(item.nodeid, ()), *self._late_keys(late)])
        skipped = report.when == "setup" and report.skipped and not getattr(item, "funcargs", None)
        used = [] if skipped else [key for key in keys if key in self._lent]
        if used:
            setattr(report, REPORT_ATTRIBUTE, [self._lent[key].id for key in used])
            reports.add_environments(item, report, [self._lent[key] for key in used])
        # An expected failure counts, too: the test did not run to its end.
        self._failed = (
            self._failed or report.failed or (report.skipped and hasattr(report, "wasxfail"))
        )
        if report.when == "teardown":
            self._rollbacks.finish(item, used, failed=self._failed)
        if report.failed and not item.stash.get(_REPORTED, False):
            item.stash[_REPORTED] = True
            report.sections += self._sections(item, used)
        return report

    def _late_keys(self, late: Sequence[needs.Need]) -> list[Key]:
        found = needs.keys(late, self._opened().default) if late else []
        return [self._rollbacks.mark(key) for key in found]

    def _sections(self, item: pytest.Item, used: Sequence[Key]) -> Iterator[tuple[str, str]]:
        for key in used:
            try:
                evidence = self._client.evidence(key, self._marks.get(key) or None)
            except EphemeralError as error:
                yield "ephemeral environment", str(error)
                continue
            if evidence is not None:
                yield self._evidence.section(evidence, item.nodeid)


_TIMED_OUT: Final = (
    "{0}\npytest-timeout's limit ran out while an environment of template {1!r} came up, which "
    "counts as part of the first test that uses it. Set timeout_func_only = true, a longer "
    "timeout, or ephemeral_early = {1} in pytest's configuration file."
)
