"""The broker's launches, leases and removals, with a backend that only records calls."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from pytest_ephemeral.broker.broker import Broker
from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.broker.queue import PARALLEL
from pytest_ephemeral.errors import EnvironmentDiedError, LaunchError
from support.recording_backend import RecordingBackend, function, session
from support.waiting import eventually


@pytest.fixture
def notes():
    return RecordingBackend()


@pytest.fixture
def broker(notes):
    broker = Broker(notes)
    yield broker
    notes.gate.set()
    broker.close()


def test_a_repeated_plan_changes_nothing(broker, notes):
    """A repeated plan launches nothing, even if some tests have finished."""
    needs = {session("a"): ["t1", "t2"]}
    broker.plan(needs)
    first = broker.lease(session("a"), "gw0")()
    broker.finish_test("t1")
    broker.plan(needs)
    assert broker.lease(session("a"), "gw1")() == first
    broker.finish_test("t2")
    broker.release(session("a"), "gw0")
    assert notes.ended == []
    broker.release(session("a"), "gw1")
    assert eventually(lambda: notes.ended == [first.id], 30)
    assert notes.launched == ["a"]


def test_the_launch_limit_never_delays_a_waiting_test(broker, notes):
    """An environment that a test waits for is launched even at the limit."""
    notes.gate.clear()
    broker.plan({session(f"s{number}"): ["t"] for number in range(PARALLEL + 3)})
    assert eventually(lambda: len(notes.launched) == PARALLEL, 30)
    last = session(f"s{PARALLEL + 2}")
    waiting = threading.Thread(target=broker.lease(last, "main"), daemon=True)
    waiting.start()
    assert eventually(lambda: last.template in notes.launched, 30)
    notes.gate.set()
    waiting.join(5)
    assert not waiting.is_alive()
    assert eventually(lambda: len(notes.launched) == PARALLEL + 3, 30)


def test_as_many_environments_are_launched_ahead_as_workers(broker, notes):
    """The next environment is launched when a test leases one of them."""
    broker.look_ahead(2)
    broker.plan({function(number): [f"t{number}"] for number in range(5)})
    assert eventually(lambda: len(notes.launched) == 2, 30)
    broker.lease(function(0), "main")()
    assert eventually(lambda: len(notes.launched) == 3, 30)
    broker.release(function(0), "main")
    broker.finish_test("t0")
    assert eventually(lambda: notes.ended == ["f-1"], 30)
    assert len(notes.launched) == 3


def test_spares_are_launched_ahead_with_any_number_of_workers(broker, notes):
    """All spares launch at once, in addition to the environments of other templates."""
    notes.spare["f"] = PARALLEL + 2
    notes.gate.clear()
    needs = {function(number): [f"t{number}"] for number in range(PARALLEL + 5)}
    broker.plan({**needs, Key("g", "module", "1"): ["t"], Key("g", "module", "2"): ["t"]})
    assert eventually(lambda: len(notes.launched) == PARALLEL + 2, 30)
    notes.gate.set()
    assert eventually(lambda: notes.launched[-1] == "g1", 30)
    broker.lease(function(0), "main")()
    assert eventually(lambda: notes.launched[-1] == f"f/{PARALLEL + 2}", 30)
    assert len(notes.launched) == PARALLEL + 4


def test_an_unused_environment_ends_after_its_tests(broker, notes):
    """Tests that are skipped or fail early never lease their environment."""
    broker.plan({session("a"): ["t"]})
    broker.finish_test("t")
    assert eventually(lambda: notes.ended == ["a-1"], 30)


def test_an_unplanned_environment_stays_to_the_end(broker, notes):
    """A later test may request it; a function environment ends at its release."""
    broker.lease(session("a"), "main")()
    broker.release(session("a"), "main")
    broker.lease(function(1), "main")()
    broker.release(function(1), "main")
    assert eventually(lambda: notes.ended == ["f-2"], 30)
    broker.close()
    assert notes.ended == ["f-2", "a-1"]


def test_a_failed_template_is_reported_once_and_not_launched_again(broker, notes):
    """Leases of all scopes of the template refer to the first failure."""
    notes.failing["a"] = LaunchError("it exited\nwith these last lines")
    broker.plan({session("a"): ["t1"], Key("a", "module", "m"): ["t2"]})
    with pytest.raises(LaunchError, match="last lines"):
        broker.lease(session("a"), "main")()
    for key in (session("a"), Key("a", "module", "m"), Key("a", "function", "x")):
        with pytest.raises(LaunchError, match=r"^it exited \(details at the first failure"):
            broker.lease(key, "main")()
    assert notes.launched.count("a") <= 2


def test_an_unexpected_error_reaches_the_waiting_tests(broker, notes):
    """The tests get a ``LaunchError`` that reports an internal error."""
    notes.failing["a"] = ZeroDivisionError("division by zero")
    with pytest.raises(LaunchError, match=r"(?s)internal error.*division by zero"):
        broker.lease(session("a"), "main")()


@contextmanager
def no_more_threads():
    """Make every start of a thread fail, as at the limit of a user or a container."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_a_launch_without_a_thread_fails_at_once(broker, notes):
    """The error names the reason, and a later launch can succeed."""
    with no_more_threads():
        broker.plan({session("a"): ["t"]})
        with pytest.raises(LaunchError, match="no more threads can be started here"):
            broker.lease(session("a"), "main")()
    assert broker.lease(session("b"), "main")().template == "b"


def test_an_environment_that_no_thread_could_remove_is_leaked(broker, notes):
    """The run does not wait for the removal, which happens after pytest has ended."""
    broker.lease(session("a"), "main")()
    with no_more_threads():
        broker.close()
    (entry,) = broker.entries
    assert (entry.state, notes.ended) == ("leaked", [])
    assert "no more threads can be started here" in entry.detail


def test_a_template_that_came_up_is_tried_again_after_a_failure(broker, notes):
    """A failure after an earlier launch may be temporary."""
    broker.lease(session("f"), "main")()
    notes.failing["f"] = LaunchError("no capacity")
    with pytest.raises(LaunchError, match="no capacity"):
        broker.lease(function(1), "main")()
    del notes.failing["f"]
    assert broker.lease(function(2), "main")().id == "f-3"


def test_a_crash_is_reported_in_full_once(broker, notes):
    """The first check or lease gets the log; later ones refer to the first failure."""
    environment = broker.lease(session("a"), "main")()
    assert broker.look(session("a")).problem == ""
    assert broker.look(session("a")).mark == "mark of a-1"
    notes.dead[environment.id] = "a-1 has stopped\nlast lines"
    assert "last lines" in broker.look(session("a")).problem
    assert "last lines" not in broker.look(session("a")).problem
    with pytest.raises(EnvironmentDiedError, match="details at the first failure"):
        broker.lease(session("a"), "gw1")()


def test_a_disconnected_worker_has_no_leases(broker, notes):
    """The leases of the worker end, even if it leased an environment several times."""
    broker.plan({session("a"): ["t"]})
    broker.lease(session("a"), "gw0")()
    broker.lease(session("a"), "gw0")()
    broker.crash_test("t")
    assert notes.ended == []
    broker.drop("gw0")
    assert eventually(lambda: notes.ended == ["a-1"], 30)
    assert broker.entries[0].failed


def test_closing_does_not_wait_for_launches(notes):
    """An environment that is ready after closing is destroyed."""
    broker = Broker(notes)
    notes.gate.clear()
    broker.plan({session("a"): ["t"]})
    assert eventually(lambda: notes.launched == ["a"], 30)
    broker.close()
    assert notes.cancelled
    assert eventually(lambda: notes.ended == ["a-1"], 30)
    with pytest.raises(LaunchError, match="the run is ending"):
        broker.lease(session("b"), "main")()


def test_close_leaves_accepted_removals_to_the_owner(broker, notes):
    """A slow removal is left to the owner process, and is not recorded as done."""
    environment = broker.lease(session("a"), "main")()
    notes.ending.clear()
    broker.close(leave=True)
    assert notes.left == [environment.id]
    assert broker.entries[0].state == "destroying"
    notes.ending.set()
    broker.settle()
    assert broker.entries[0].state == "destroyed"


def test_a_crash_is_recorded_before_the_removal_is_accepted(broker, notes):
    """A run that ends when the removal is accepted must still report the crash."""
    environment = broker.lease(session("a"), "main")()
    notes.dead[environment.id] = "a-1 has stopped"
    notes.ending.clear()
    broker.close(leave=True)
    assert broker.entries[0].is_unnoticed()
    notes.ending.set()


@pytest.mark.parametrize("leave", [True, False])
def test_close_waits_for_removals_not_yet_accepted(broker, notes, leave):
    """The provider may still refuse the removal, which must be reported."""
    broker.lease(session("a"), "main")()
    notes.accepting = not leave  # without leave, an accepted removal is waited for, too
    notes.ending.clear()
    closing = threading.Thread(target=broker.close, kwargs={"leave": leave})
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    notes.ending.set()
    closing.join(10)
    assert broker.entries[0].state == "destroyed"
    assert notes.left == []


def test_an_interrupt_ends_leased_environments(broker, notes):
    """The removal does not wait until the leases are released."""
    environment = broker.lease(session("a"), "gw0")()
    broker.end_all()
    assert eventually(lambda: notes.ended == [environment.id], 30)
    with pytest.raises(LaunchError, match="the run is ending"):
        broker.lease(session("b"), "gw0")()


def test_an_unneeded_early_environment_stays_to_the_end(broker, notes):
    """A test may still request it at runtime, for example by ``getfixturevalue``."""
    broker.start_early({"a": False})
    broker.plan({session("b"): ["t"]})
    assert broker.lease(session("a"), "main")().id == "a-1"
    broker.release(session("a"), "main")
    broker.finish_test("t")
    assert eventually(lambda: notes.ended == ["b-2"], 30)
    broker.close()
    assert notes.ended == ["b-2", "a-1"]


def test_an_early_environment_ends_with_its_last_test(broker, notes):
    """An early environment ends like a planned one, but not while it is leased."""
    broker.start_early({"a": False})
    broker.lease(session("a"), "conftest.py")()
    broker.plan({session("a"): ["t"]})
    broker.finish_test("t")
    assert notes.ended == []
    broker.drop("conftest.py")
    assert eventually(lambda: notes.ended == ["a-1"], 30)
