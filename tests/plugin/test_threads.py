"""Races between threads; each order of events is forced."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pluggy
import pytest

from pytest_ephemeral import hookspecs
from pytest_ephemeral.broker import __main__ as program
from pytest_ephemeral.broker import broker as broker_module
from pytest_ephemeral.broker import server as server_module
from pytest_ephemeral.broker.broker import Broker
from pytest_ephemeral.broker.protocol import ClientProcess, Key, Opened, Settings
from pytest_ephemeral.broker.relay import Relay
from pytest_ephemeral.broker.run import Run
from pytest_ephemeral.broker.server import ClientSession, Server
from pytest_ephemeral.errors import EnvironmentDiedError, EphemeralError, OwnerLostError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.pytest_plugin.controller import Controller
from pytest_ephemeral.pytest_plugin.timeline import TimelineRecorder
from support.recording_backend import PATIENCE, RecordingBackend, session
from support.waiting import eventually

KEY = Key("a", "session", "", rollback=True)


@pytest.fixture
def notes() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def broker(notes: RecordingBackend) -> Broker:
    return Broker(notes)


class SlowRollback(RecordingBackend):
    """A backend whose rollback waits for the test, and changes the environment's URL."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.ended_at: list[str] = []

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return msgspec.structs.replace(environment, url="put back"), 0.1

    def end(self, environment: Environment, **how: Any) -> Any:
        self.ended_at.append(environment.url)
        return super().end(environment, **how)


def test_a_removal_waits_for_a_rollback() -> None:
    """During a rollback, a check by the old handle would report a crash."""
    notes = SlowRollback()
    broker = Broker(notes)
    broker.lease(KEY, "main")()
    with ThreadPoolExecutor() as pool:
        put_back = pool.submit(broker.roll_back, KEY)
        assert notes.begun.wait(PATIENCE)
        broker.end_all()
        notes.go_on.set()
        put_back.result()
    broker.close()
    assert notes.ended_at == ["put back"]


def test_no_rollback_during_a_removal() -> None:
    """The test gets an error, and the provider is not called."""
    notes = SlowRollback()
    broker = Broker(notes)
    broker.lease(KEY, "main")()
    notes.ending.clear()
    broker.end_all()
    with pytest.raises(EnvironmentDiedError, match="the run is ending"):
        broker.roll_back(KEY)
    assert not notes.begun.is_set()
    notes.ending.set()
    broker.close()


def test_a_removal_during_a_check_is_no_crash() -> None:
    """The environment is gone because the run removed it."""
    looking, go_on = threading.Event(), threading.Event()

    class SlowLook(RecordingBackend):
        def exit_reason(self, environment: Environment) -> str:
            if looking.is_set():
                return ""
            looking.set()
            assert go_on.wait(PATIENCE)
            return "it is gone"

    broker = Broker(SlowLook())
    with ThreadPoolExecutor() as pool:
        leased = pool.submit(broker.lease(session("a"), "main"))
        assert looking.wait(PATIENCE)
        broker.close()
        go_on.set()
        leased.result()
    assert broker.entries[0].problem == ""


def test_a_released_lease_leaves_its_crash_unnoticed(
    broker: Broker, notes: RecordingBackend
) -> None:
    """No test reports the crash, so the run must fail."""
    notes.gate.clear()
    wait = broker.lease(session("a"), "main")
    broker.release(session("a"), "main")  # an interrupt, or a test's time-out
    notes.dead["a-1"] = "a-1 has stopped"
    notes.gate.set()
    with pytest.raises(EphemeralError):
        wait()
    broker.close()
    [entry] = broker.entries
    assert entry.is_unnoticed()
    assert not entry.used


def make_run(broker: Broker, notes: RecordingBackend) -> Run:
    """A run of a broker, with only those parts of a project that the end of a run needs."""
    project: Any = SimpleNamespace(store=SimpleNamespace(url="file:///store"))
    backend: Any = notes
    return Run("r", Settings(), Relay(), project, None, backend, broker, None)


def test_an_environment_that_comes_up_last_is_left_to_finish(
    broker: Broker, notes: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner process does not exit, but becomes the program that finishes the removal."""
    monkeypatch.setattr(broker_module, "GRACE", 0.01)
    monkeypatch.setattr(notes, "cancel", lambda: None)  # it is baking
    started: list[list[str]] = []
    monkeypatch.setattr(program.os, "execv", lambda _, command: started.append(command))
    settle = broker.settle

    def settle_and_more() -> None:
        settle()
        notes.ending.clear()
        notes.gate.set()
        assert eventually(lambda: broker.entries[0].state == "destroying", PATIENCE)

    monkeypatch.setattr(broker, "settle", settle_and_more)
    notes.gate.clear()
    broker.plan({session("a"): ["t"]})
    program.finish(make_run(broker, notes))
    notes.ending.set()
    [command] = started
    assert command[command.index("finish") :][1:3] == ["file:///store", "r"]


def test_closing_waits_for_a_run_that_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the run may exit while early environments are launched."""
    opening, go_on = threading.Event(), threading.Event()
    made: Any = SimpleNamespace(begin=lambda: None)

    def open_slowly(*_: object) -> Any:
        opening.set()
        assert go_on.wait(PATIENCE)
        return made

    monkeypatch.setattr(server_module, "open_project", lambda *_: None)
    monkeypatch.setattr(Run, "open", open_slowly)
    nothing: Any = None
    server = Server(nothing, b"")
    asked = ClientSession(server, nothing)
    with ThreadPoolExecutor() as pool:
        pool.submit(asked.open, Settings(), ClientProcess({}, ()), listens=False)
        assert opening.wait(PATIENCE)
        closing = pool.submit(server.close)
        go_on.set()
        assert closing.result() is made


class Listener:
    """A client that records its messages."""

    def __init__(self, **hooks: list[str]) -> None:
        self.hooks: dict[str, Any] = dict(hooks)
        self.told: list[str] = []
        self.asked: list[Any] = []

    def tell(self, kind: str, content: object) -> None:
        self.told.append(kind)

    def ask(self, kind: str, content: Any = None) -> None:
        self.asked.append((kind, content and content[1]))


def connect_relay(*listeners: Any) -> Relay:
    relay = Relay()
    for listener in listeners:
        relay.add(listener)
    return relay


READY = "pytest_ephemeral_environment_ready"


def test_hooks_may_be_added_during_a_call() -> None:
    """A conftest.py may be collected while an early environment is launched."""

    class Plugin(str):
        """The name of a plugin; its lookup adds more hooks."""

        def __hash__(self) -> int:
            relay.update({"another conftest.py": [READY]})
            return super().__hash__()

    relay = Relay()
    first: Any = Listener(conftest=[READY])
    relay.add(first)
    first.hooks = {Plugin("conftest.py"): [READY]}
    relay.call(READY)
    assert first.asked == [("call", ())]


def test_a_template_hook_of_two_workers_is_registered_once() -> None:
    """Both workers register the hook at the same time."""
    together = threading.Barrier(2)

    class Manager(pluggy.PluginManager):
        def has_plugin(self, name: str) -> bool:
            found = super().has_plugin(name)
            with suppress(threading.BrokenBarrierError):
                together.wait(0.2)
            return found

    manager = Manager("pytest")
    manager.add_hookspecs(hookspecs)
    workers: list[Any] = [Listener(below=["pytest_ephemeral_modify_template"]) for _ in range(2)]
    relay = connect_relay(Listener())
    relay.connect(manager)
    with ThreadPoolExecutor() as pool:
        list(pool.map(relay.add, workers))
    assert manager.hook.pytest_ephemeral_modify_template.get_hookimpls()


def test_a_listener_added_after_dismissal_is_dismissed() -> None:
    """Listeners that were added before got this message when the relay was dismissed."""
    late = Listener()
    relay = connect_relay(Listener())
    relay.dismiss()
    added: Any = late
    relay.add(added)
    assert "over" in late.told


def test_a_worker_never_takes_the_place_of_the_controller() -> None:
    """Hooks of the root conftest.py are called only in the controller."""
    first, worker = Listener(root=[READY]), Listener(below=[READY])
    relay = connect_relay(first, worker)
    gone: Any = first
    relay.remove(gone)
    relay.call(READY)
    assert worker.asked == [("call", ["below"])]


class LostOwner:
    """An owner process that was killed before it destroyed any environment."""

    pid = 1

    def __init__(self) -> None:
        self.client = self
        self.replaced: list[tuple[str, str]] = []

    def finish(self, waiting: object) -> None:
        raise OwnerLostError("it is gone")

    def replace(self, store: str, run: str) -> Any:
        self.replaced.append((store, run))
        return SimpleNamespace(wait=lambda _: 0)


@pytest.mark.parametrize("noticed", ["last", "before it is open"])
def test_a_lost_owner_is_replaced_once(pytestconfig: pytest.Config, noticed: str) -> None:
    """The end of the run waits for the replacement, even if the loss is noticed late."""
    owner: Any = LostOwner()
    controller: Any = Controller(pytestconfig, Settings(), owner)
    controller._reporter = SimpleNamespace(warn=lambda _: None, wait=None, settle=lambda: None)
    controller._opening = lambda: Opened("r", (), None, None, "file:///store")
    if noticed != "last":
        controller.on_owner_lost()
    controller.close()
    controller.on_owner_lost()
    assert owner.replaced == [("file:///store", "r")]
    assert len(controller._complaints) == 2
    assert controller._complaints[-1] == "all of them were destroyed"


def test_the_timeline_is_collected_while_events_arrive() -> None:
    """A removal that was left to the owner process ends during the collection."""

    class Growing(list[tuple[str, float]]):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            self.append(("destroyed", 3.0))
            return found

    recorder = TimelineRecorder(Path("unused.svg"))
    recorder._moments["a-1"] = Growing([("up", 1.0), ("destroy", 2.0)])
    [row] = recorder.collect().environments
    assert [span.kind for span in row.spans] == ["up", "destroy"]
