"""A process that runs tests: pytest itself, or one of pytest-xdist's workers.

While tests run they may have replaced the functions of ``os``, ``time`` and ``socket``. What is
called then uses none of them; see ``broker.connection``.
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

#: What a worker of xdist finds in its ``workerinput`` about the owner process.
WORKER_INPUT: Final = "pytest_ephemeral"

#: Reports carry the ids of the environments that their test used, also from worker to controller.
REPORT_ATTRIBUTE: Final = "ephemeral_environments"

#: They carry, too, what their test has waited for: pieces of ``timeline.Wait``.
WAITS_ATTRIBUTE: Final = "ephemeral_waits"

#: Options of pytest with which no fixture is set up.
IDLE_OPTIONS: Final = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test")

_TOLD = pytest.StashKey[bool]()


class EnvironmentUnavailable(Failed):
    """A test can't have the environment it asks for: a plain message, without a traceback."""

    __module__ = "builtins"  # as pytest's own does, so that summaries show the message alone


class Worker:
    """Plans what the selected tests need, lends it to their fixtures, and tells how it went.

    Args:
        config: Of this process.
        settings: What this run was told to do.
        client: Asks the owner process.
        opened: Gives what there is, once it is known.
        process: Gives what the owner takes over from this process.
        refuse: Told why the tests can't be run as they are written.
        waiting: Called every now and then while a test waits; and a last time, with True.
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
        self._now = time.time  # kept here, where no test replaces it
        self._exemptions = Exemptions(os.environ)
        worker = getattr(config, "workerinput", {}).get("workerid", "")
        self._rollbacks = Rollbacks(worker)
        self._failed = False
        config.stash[LENDER] = self
        config.add_cleanup(self._take_back)

    # -- before the first test -----------------------------------------------------------------

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let the marker of a single parameter choose its template."""
        markers.choose(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Say what the selected tests need, or why they can't be run."""
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
        # Loaded now, while the environments come up: a test may patch what its modules import.
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
            raise EnvironmentUnavailable(needs.NO_TEMPLATE, pytrace=False)
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
            with suppress(EphemeralError):  # its owner is gone, and so is the environment
                self._client.release(key)

    def lend_early(self, template: str | None) -> Environment:
        try:
            opened = self._opened()
            name = template or opened.default
            if name is None:
                raise pytest.UsageError(f"early_environment: {needs.NO_TEMPLATE}")
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
        """Have the clients in tests reach an environment as its probes did: without a proxy."""
        for endpoint in environment.endpoints.values():
            self._exemptions.add(endpoint.host)

    def _take_back(self) -> None:
        """Let providers act on environments again that this run was lent."""
        self._exemptions.restore()
        if self._lent:
            from pytest_ephemeral import models

            for environment in self._lent.values():
                models.actors.pop(environment.id, None)

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
        except EnvironmentUnavailable:
            fixturedef.finish(request)
            raise

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Look whether what the test is going to use still runs, and where its log ends."""
        item.stash[_TOLD] = False
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
        """Put an environment back to its baseline before a test has it, if that is due."""
        if self._rollbacks.is_due(item, key):
            self._client.roll_back(key, self._waiting)
            self._rollbacks.put_back(key)

    def _look(self, item: pytest.Item, key: Key) -> None:
        started = self._now()
        try:
            self._put_back(item, key)
            look = self._client.look(key)
        except EphemeralError as error:
            item.stash[_TOLD] = True
            # Without the error itself, which pytest would print above the same words.
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        finally:
            self._settle()
        if key.rollback:
            self._waits.append((self._lent[key].id, started, self._now()))
        self._marks[key] = look.mark
        if look.problem:
            item.stash[_TOLD] = True
            pytest.fail(look.problem, pytrace=False)

    def _forget_template(self, item: pytest.Item) -> None:
        """Have ``request.getfixturevalue`` ask anew which template is this test's.

        Otherwise it would be given the one of the tests before, which its marker does not name.
        """
        manager = item.session._fixturemanager  # noqa: SLF001 - pytest has no other way to ask
        for definition in manager.getfixturedefs(markers.TEMPLATE_FIXTURE, item) or ():
            definition.finish(item._request)  # type: ignore[attr-defined]  # noqa: SLF001

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell what a test used, and if it failed, what that has to say."""
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
        # As expected is failed, too: it was left in the middle.
        self._failed = (
            self._failed or report.failed or (report.skipped and hasattr(report, "wasxfail"))
        )
        if report.when == "teardown":
            self._rollbacks.finish(item, used, failed=self._failed)
        if report.failed and not item.stash.get(_TOLD, False):
            item.stash[_TOLD] = True
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
