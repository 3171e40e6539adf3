"""Who needs what, and when: the broker, with a backend that only takes notes."""

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
    """Also when some tests are over by then."""
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
    """What a test waits for is brought up whatever else is coming up."""
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
    """As many ahead as there are workers; the next when one of them is taken."""
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
    """All of them at once; besides those of other templates, which come as they always do."""
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
    """They were skipped, or failed before."""
    broker.plan({session("a"): ["t"]})
    broker.finish_test("t")
    assert eventually(lambda: notes.ended == ["a-1"], 30)


def test_an_unplanned_environment_stays_to_the_end(broker, notes):
    """But for a function's own."""
    broker.lease(session("a"), "main")()
    broker.release(session("a"), "main")
    broker.lease(function(1), "main")()
    broker.release(function(1), "main")
    assert eventually(lambda: notes.ended == ["f-2"], 30)
    broker.close()
    assert notes.ended == ["f-2", "a-1"]


def test_a_failed_template_is_reported_once_and_not_launched_again(broker, notes):
    """Also not for another scope of the same template."""
    notes.failing["a"] = LaunchError("it exited\nwith these last lines")
    broker.plan({session("a"): ["t1"], Key("a", "module", "m"): ["t2"]})
    with pytest.raises(LaunchError, match="last lines"):
        broker.lease(session("a"), "main")()
    for key in (session("a"), Key("a", "module", "m"), Key("a", "function", "x")):
        with pytest.raises(LaunchError, match=r"^it exited \(details at the first failure"):
            broker.lease(key, "main")()
    assert notes.launched.count("a") <= 2


def test_an_unexpected_error_reaches_the_waiting_tests(broker, notes):
    """It is told as what it is."""
    notes.failing["a"] = ZeroDivisionError("division by zero")
    with pytest.raises(LaunchError, match=r"(?s)internal error.*division by zero"):
        broker.lease(session("a"), "main")()


@contextmanager
def no_more_threads():
    """As at the limit of a user or a container."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_a_launch_without_a_thread_fails_at_once(broker, notes):
    """What can't be brought up is told, and the next one may have a thread again."""
    with no_more_threads():
        broker.plan({session("a"): ["t"]})
        with pytest.raises(LaunchError, match="no more threads can be started here"):
            broker.lease(session("a"), "main")()
    assert broker.lease(session("b"), "main")().template == "b"


def test_an_environment_that_no_thread_could_remove_is_leaked(broker, notes):
    """The end of the run does not wait for it: it is removed when pytest has ended."""
    broker.lease(session("a"), "main")()
    with no_more_threads():
        broker.close()
    (entry,) = broker.entries
    assert (entry.state, notes.ended) == ("leaked", [])
    assert "no more threads can be started here" in entry.detail


def test_a_template_that_came_up_is_tried_again_after_a_failure(broker, notes):
    """A template that has come up before is tried again."""
    broker.lease(session("f"), "main")()
    notes.failing["f"] = LaunchError("no capacity")
    with pytest.raises(LaunchError, match="no capacity"):
        broker.lease(function(1), "main")()
    del notes.failing["f"]
    assert broker.lease(function(2), "main")().id == "f-3"


def test_a_crash_is_reported_in_full_once(broker, notes):
    """To whoever asks first: the next test, or the next to lease it."""
    environment = broker.lease(session("a"), "main")()
    assert broker.look(session("a")).problem == ""
    assert broker.look(session("a")).mark == "mark of a-1"
    notes.dead[environment.id] = "a-1 has stopped\nlast lines"
    assert "last lines" in broker.look(session("a")).problem
    assert "last lines" not in broker.look(session("a")).problem
    with pytest.raises(EnvironmentDiedError, match="details at the first failure"):
        broker.lease(session("a"), "gw1")()


def test_a_disconnected_worker_has_no_leases(broker, notes):
    """However often it had leased it."""
    broker.plan({session("a"): ["t"]})
    broker.lease(session("a"), "gw0")()
    broker.lease(session("a"), "gw0")()
    broker.crash_test("t")
    assert notes.ended == []
    broker.drop("gw0")
    assert eventually(lambda: notes.ended == ["a-1"], 30)
    assert broker.entries[0].failed


def test_closing_does_not_wait_for_launches(notes):
    """And what comes up too late is ended."""
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
    """What takes its time is left to the owner process, and is not called done."""
    environment = broker.lease(session("a"), "main")()
    notes.ending.clear()
    broker.close(leave=True)
    assert notes.left == [environment.id]
    assert broker.entries[0].state == "destroying"
    notes.ending.set()
    broker.settle()
    assert broker.entries[0].state == "destroyed"


def test_a_crash_is_recorded_before_the_removal_is_accepted(broker, notes):
    """So that a run which ends then does not miss that its environment had crashed."""
    environment = broker.lease(session("a"), "main")()
    notes.dead[environment.id] = "a-1 has stopped"
    notes.ending.clear()
    broker.close(leave=True)
    assert broker.entries[0].is_unnoticed()
    notes.ending.set()


@pytest.mark.parametrize("leave", [True, False])
def test_close_waits_for_removals_not_yet_accepted(broker, notes, leave):
    """It may yet be refused, and then somebody has to be told."""
    broker.lease(session("a"), "main")()
    notes.accepting = not leave  # where nothing may be left, accepted is not enough either
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
    """Nobody waits for those who hold it."""
    environment = broker.lease(session("a"), "gw0")()
    broker.end_all()
    assert eventually(lambda: notes.ended == [environment.id], 30)
    with pytest.raises(LaunchError, match="the run is ending"):
        broker.lease(session("b"), "gw0")()


def test_an_unneeded_early_environment_stays_to_the_end(broker, notes):
    """Nobody knows yet who will ask for it: a fixture by its name, say."""
    broker.start_early({"a": False})
    broker.plan({session("b"): ["t"]})
    assert broker.lease(session("a"), "main")().id == "a-1"
    broker.release(session("a"), "main")
    broker.finish_test("t")
    assert eventually(lambda: notes.ended == ["b-2"], 30)
    broker.close()
    assert notes.ended == ["b-2", "a-1"]


def test_an_early_environment_ends_with_its_last_test(broker, notes):
    """Like any other environment, and beside what else there is to do; not while it is lent."""
    broker.start_early({"a": False})
    broker.lease(session("a"), "conftest.py")()
    broker.plan({session("a"): ["t"]})
    broker.finish_test("t")
    assert notes.ended == []
    broker.drop("conftest.py")
    assert eventually(lambda: notes.ended == ["a-1"], 30)
