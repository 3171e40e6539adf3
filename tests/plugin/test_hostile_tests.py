"""Environments work even if tests replace parts of their own process.

freezegun and pyfakefs replace the whole clock and the whole file system.
"""

from __future__ import annotations

import pytest


def test_environments_work_with_a_frozen_clock(project, run):
    """The environment of the next module comes up while the clock stands still."""
    project.write(
        test_a="""
import freezegun, subprocess
def test_none():
    with freezegun.freeze_time("2020-01-01"):
        subprocess.run(["sleep", "1.5"])
""",
        test_b="""
def test_module(ephemeral_env_module): assert get(ephemeral_env_module.url) == "plain"
def test_url(ephemeral_url): assert get(ephemeral_url) == "plain"
""",
    )
    run().assert_outcomes(passed=3)


def test_a_clock_frozen_in_the_first_conftest(project, run):
    """The clock is frozen before most of the plugin is imported; environments have real times."""
    project.write(
        conftest="""
import freezegun
freezegun.freeze_time("2020-01-01").start()
""",
        test_it="""
def test_a(ephemeral_env, ephemeral_env_function):
    assert get(ephemeral_env.url) == "plain"
    assert ephemeral_env.created_at.year > 2020
def test_b(ephemeral_env_function): assert False
""",
    )
    output = project.run_tests(status=1)
    assert "1 failed, 1 passed" in output
    assert "its log during this test" in output or "printed nothing" in output
    assert "INTERNALERROR" not in output


def test_environments_work_with_a_fake_file_system(project, run):
    """The file system is replaced during launch, use and destroy of an environment."""
    project.use_plugins("fakefs")
    project.write(
        test_it="""
def test_a(fs, ephemeral_env_function):
    assert get(ephemeral_env_function.url) == "plain"
    assert "asked for" in ephemeral_env_function.logs()
    assert ephemeral_env_function.run(["echo", "hello"]).stdout == "hello\\n"
def test_b(fs, ephemeral_env_function): assert get(ephemeral_env_function.url) == "plain"
"""
    )
    run("-p", "pyfakefs").assert_outcomes(passed=2)


REPLACES_EVERYTHING = """
import builtins, datetime, os, pathlib, select, signal, socket, subprocess, threading, time

class Boom(BaseException): pass

def boom(*args, **kwargs): raise Boom("a test has replaced this")

# All but what pytest itself calls while a test runs.
NAMES = {
    time: "time monotonic sleep localtime gmtime time_ns monotonic_ns",
    os: "read write close open getpid getppid fork kill pipe listdir scandir unlink mkdir rename"
        " replace waitpid execv getuid fdopen popen system",
    socket: "socket socketpair create_connection create_server getaddrinfo gethostbyname",
    socket.socket: "connect bind listen accept close sendall recv settimeout makefile",
    subprocess: "Popen run call check_call check_output TimeoutExpired CompletedProcess",
    signal: "signal getsignal raise_signal pthread_kill sigwait",
    select: "select poll epoll",
    datetime: "datetime date timedelta timezone",
    threading: "Thread Lock RLock Event Timer",
}
PATHS = "open read_text read_bytes write_text write_bytes iterdir mkdir unlink touch"

@pytest.fixture
def nothing_works():
    with pytest.MonkeyPatch.context() as patch:
        for module, names in NAMES.items():
            for name in names.split():
                patch.setattr(module, name, boom)
        for name in PATHS.split():
            patch.setattr(pathlib.Path, name, boom)
        yield
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_environments_work_with_replaced_standard_modules(project, arguments):
    """Functions of time, os, socket, subprocess, signal, threading and others raise errors."""
    project.write(
        test_one=REPLACES_EVERYTHING
        + """
@pytest.mark.parametrize("n", range(3))
def test_a(nothing_works, ephemeral_env_function, n): assert ephemeral_env_function.url
def test_b(nothing_works, ephemeral_env_module): assert ephemeral_env_module.url
def test_c(nothing_works, ephemeral_env): assert ephemeral_env.id
""",
        test_two=REPLACES_EVERYTHING
        + """
def test_d(ephemeral_env_module, nothing_works): assert ephemeral_env_module.url
def test_e(ephemeral_env_module): assert get(ephemeral_env_module.url) == "plain"
""",
    )
    assert "7 passed" in project.run_tests(*arguments)


def test_environments_survive_changed_signals_and_variables(project):
    """Tests may catch signals, clear all variables and change the folder."""
    project.write(
        test_it="""
def test_catches(ephemeral_env):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
def test_clears(ephemeral_env, monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
def test_still_there(ephemeral_env, ephemeral_env_function):
    assert get(ephemeral_env.url) == get(ephemeral_env_function.url) == "plain"
"""
    )
    assert "3 passed" in project.run_tests()


FORKS = """
import multiprocessing
def child(queue, environment):
    queue.put(get(environment.url))
def test_multiprocessing(ephemeral_env):
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue, ephemeral_env))
        process.start()
        assert queue.get(timeout=20) == "plain"
        process.join()
def test_fork_asks_for_itself(ephemeral_env, request):
    reading, writing = os.pipe()
    if not os.fork():
        try:
            os.write(writing, request.getfixturevalue("ephemeral_env_function").url.encode())
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1000).startswith(b"http://")
    assert get(ephemeral_env.url) == "plain"
"""


def test_environments_work_in_forks_and_child_processes(project):
    """A child process makes its own requests, and its exit ends nothing of its parent."""
    project.write(test_it=FORKS)
    assert "2 passed" in project.run_tests("-W", "ignore")


NESTED = """
import threading
statuses = []
def run():
    statuses.append(pytest.main(["--ephemeral-env", "-q", "-p", "no:cacheprovider", "inner.py"]))
"""


@pytest.mark.parametrize(
    "body",
    [
        "run(); run()",
        "thread = threading.Thread(target=run); thread.start(); thread.join()",
    ],
    ids=["twice", "in a thread"],
)
def test_environments_work_with_pytest_inside_a_test(project, body):
    """The inner pytest is a run with its own owner process."""
    project.write(
        inner="def test_inner(ephemeral_env): assert get(ephemeral_env.url) == 'plain'",
        test_it=f"{NESTED}\ndef test_outer(ephemeral_env):\n    {body}\n"
        "    assert get(ephemeral_env.url) == 'plain' and set(statuses) == {0}\n",
    )
    assert "1 passed" in project.run_tests("-W", "ignore")
