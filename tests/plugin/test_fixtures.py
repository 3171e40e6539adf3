"""Fixtures, scopes and the marker, with real environments."""

import pytest

from pytest_ephemeral import environment_fixture


def test_session_fixture_and_url_share_one_environment(project, run):
    """All tests of both fixtures use one environment, which is destroyed at the end."""
    project.write(
        test_it="""
def test_a(ephemeral_env): assert get(ephemeral_env.url) == "plain"
def test_b(ephemeral_url, ephemeral_env): assert ephemeral_url == ephemeral_env.url
def test_c(ephemeral_env): assert ephemeral_env.run(["true"]).returncode == 0
"""
    )
    result = run()
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            f"ephemeral: ephemeral.toml, template {project.one}, bake missing",
            f"ephemeral: {project.one}-* is up at http://*",
            "*= ephemeral environments =*",
            f"{project.one}-*({project.one}, image app *)*bake*launch*ready*destroy*destroyed",
        ]
    )
    assert sum(" is up at " in line for line in result.outlines) == 1


def test_each_scope_has_an_environment_for_each_instance(project, run):
    """Tests in one module or class share its environment; each function has its own."""
    modules = """
def test_m(ephemeral_env_module): seen("module", ephemeral_env_module)
class TestX:
    def test_1(self, ephemeral_env_class, ephemeral_env_module):
        seen("class", ephemeral_env_class); seen("module", ephemeral_env_module)
    def test_2(self, ephemeral_env_class): seen("class", ephemeral_env_class)
def test_f1(ephemeral_env_function): seen("function", ephemeral_env_function)
def test_f2(ephemeral_env_function): seen("function", ephemeral_env_function)
def seen(scope, environment):
    get(environment.url)
    with open("seen.txt", "a") as file:
        print(__name__, scope, environment.id, file=file)
"""
    project.write(test_one=modules, test_two=modules)
    run().assert_outcomes(passed=10)
    seen = [line.split() for line in (project.folder / "seen.txt").read_text().splitlines()]

    def ids(module, scope):
        return {id for where, what, id in seen if (where, what) == (module, scope)}

    for module in ("test_one", "test_two"):
        assert [len(ids(module, scope)) for scope in ("module", "class", "function")] == [1, 1, 2]
    assert len({id for _, _, id in seen}) == 8


def test_the_nearest_marker_wins(project, run):
    """A marker of a function comes before that of its class, then that of its module."""
    project.write(
        test_it="""
pytestmark = pytest.mark.ephemeral_env(TWO)
def test_module(ephemeral_env): assert ephemeral_env.template == TWO
class TestX:
    pytestmark = pytest.mark.ephemeral_env(ONE)
    def test_class(self, ephemeral_env): assert ephemeral_env.template == ONE
    @pytest.mark.ephemeral_env(TWO)
    def test_function(self, ephemeral_env): assert get(ephemeral_env.url) == "two"
def test_unrelated(): pass
"""
    )
    run().assert_outcomes(passed=4)


def test_several_templates_parametrize_the_test(project, run):
    """The test runs once for each template, and keeps its other parameters."""
    project.write(
        test_it="""
@pytest.mark.ephemeral_env(ONE, TWO)
@pytest.mark.parametrize("number", [1, 2])
def test_it(ephemeral_env, number, request):
    assert ephemeral_env.template in request.node.name
"""
    )
    result = run("-v")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"*{project.two}*PASSED*"])


def test_environment_fixture_declares_and_shares_fixtures(project, run):
    """The name is the variable or ``name``; equal declarations share an environment."""
    project.write(
        conftest="""
from pytest_ephemeral import environment_fixture
shop = environment_fixture(TWO, scope="module")
other = environment_fixture(TWO, scope="module", name="same_shop")
default = environment_fixture()
""",
        test_it="""
def test_a(shop, same_shop, default, ephemeral_env):
    assert shop.id == same_shop.id != default.id
    assert default.id == ephemeral_env.id
    assert shop.template == TWO
@pytest.mark.ephemeral_env(TWO)
def test_b(default, shop): assert default.template == TWO and default.id != shop.id
""",
    )
    run().assert_outcomes(passed=2)


def test_an_overridden_fixture_can_use_the_original(project, run):
    """A conftest.py may wrap ``ephemeral_env``; a replaced fixture launches nothing."""
    project.write(
        conftest="""
@pytest.fixture(scope="session")
def ephemeral_env(ephemeral_env): return ephemeral_env.id
@pytest.fixture(scope="session")
def ephemeral_env_module(): return "mine"
""",
        test_it="""
def test_a(ephemeral_env): assert ephemeral_env.startswith(ONE)
def test_b(ephemeral_env_module): assert ephemeral_env_module == "mine"
""",
    )
    result = run()
    result.assert_outcomes(passed=2)
    assert sum(line.startswith(f"{project.one}-") for line in result.outlines) == 1


def test_a_fixture_requested_by_getfixturevalue(project, run):
    """``request.getfixturevalue`` returns an environment of the default template."""
    project.write(
        test_it="""
def test_a(request): assert request.getfixturevalue("ephemeral_env").template == ONE
def test_b(request): assert get(request.getfixturevalue("ephemeral_env_function").url)
"""
    )
    run().assert_outcomes(passed=2)


def test_the_marker_of_a_class_comes_before_that_of_its_base(project, run):
    """pytest's own ``get_closest_marker`` returns the marker of the base class."""
    project.write(
        test_it="""
@pytest.mark.ephemeral_env(ONE)
class Base:
    def test_it(self, ephemeral_env): assert ephemeral_env.template == self.due
@pytest.mark.ephemeral_env(TWO)
class TestOwn(Base):
    due = TWO
class TestInherited(Base):
    due = ONE
class TestDeep(TestOwn):
    due = TWO
"""
    )
    run().assert_outcomes(passed=3)


def test_a_single_parameter_can_choose_its_template(project, run):
    """The marker of a parameter comes first; other parameters use the function's marker."""
    project.write(
        test_it="""
@pytest.mark.ephemeral_env(ONE)
@pytest.mark.parametrize("due", [ONE, pytest.param(TWO, marks=pytest.mark.ephemeral_env(TWO))])
def test_marked(ephemeral_env, due): assert ephemeral_env.template == due
@pytest.mark.parametrize("due", [ONE, pytest.param(TWO, marks=pytest.mark.ephemeral_env(TWO))])
def test_unmarked(ephemeral_env, due): assert ephemeral_env.template == due
"""
    )
    run().assert_outcomes(passed=4)


@pytest.mark.parametrize(
    "module",
    [
        """
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.ephemeral_env(ONE, TWO))])
def test_it(ephemeral_env, n): pass
""",
        """
def test_late(ephemeral_env): pass
""",
    ],
    ids=["several on a parameter", "put on later"],
)
def test_a_marker_added_too_late_is_refused(project, run, module):
    """A usage error names the reason, before any launch."""
    project.write(
        conftest="""
def pytest_collection_modifyitems(items):
    for item in items:
        if item.name == "test_late":
            item.add_marker(pytest.mark.ephemeral_env(TWO))
""",
        test_it=module,
    )
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "its ephemeral_env marker was put on after" in result.stderr.str()


@pytest.mark.parametrize("first", ["", "def test_0(ephemeral_env): pass"])
def test_an_unreachable_marker_never_gives_the_wrong_template(project, run, first):
    """The test is an error before its body, whether or not the default environment is up."""
    project.write(
        test_it=first
        + """
@pytest.mark.ephemeral_env(TWO)
def test_late(request):
    open("body", "w").close()
    request.getfixturevalue("ephemeral_env")
def test_z(request): assert request.getfixturevalue("ephemeral_env").template == ONE
"""
    )
    result = run()
    result.assert_outcomes(passed=2 if first else 1, errors=1)
    result.stdout.fnmatch_lines(["*environment_fixture*"])
    assert not (project.folder / "body").exists()


def test_a_late_request_with_a_computed_name_is_refused(project, run):
    """The name is not in the code, so the request fails, though an environment is up."""
    project.write(
        test_it="""
def test_0(ephemeral_env): pass
@pytest.mark.ephemeral_env(TWO)
def test_late(request):
    request.getfixturevalue("_".join(["ephemeral", "env"]))
    open("wiped", "w").close()
def test_z(ephemeral_env): assert ephemeral_env.template == ONE
"""
    )
    run().assert_outcomes(passed=2, failed=1)
    assert not (project.folder / "wiped").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((7,), TypeError),
        (("",), ValueError),
        ((None, "modul"), ValueError),
        ((None, "module", 7), TypeError),
        ((None, "module", "my shop"), ValueError),
    ],
)
def test_environment_fixture_rejects_invalid_arguments(arguments, error):
    """The error is raised at the declaration, not when a test uses the fixture."""
    names = ("template", "scope", "name")
    with pytest.raises(error, match="environment_fixture: "):
        environment_fixture(**dict(zip(names, arguments, strict=False)))


def test_base_url_is_the_url_of_the_environment(project, run):
    """Only tests that use ``base_url`` get an environment."""
    project.use_plugins("base_url")
    project.write(
        test_it="""
def test_a(base_url): assert get(base_url) == "plain"
"""
    )
    result = run()
    result.assert_outcomes(passed=1)
    project.write(test_it="def test_b(): pass")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*ephemeral environments*")


def test_a_base_url_set_by_the_user_is_kept(project, run):
    """The option ``--base-url`` comes before the environment's URL."""
    project.use_plugins("base_url")
    project.write(test_it='def test_a(base_url): assert base_url == "http://set.example"')
    run("--base-url", "http://set.example").assert_outcomes(passed=1)


def test_reruns_get_a_fresh_function_environment(project, run):
    """A rerun uses a new function environment, and the same module environment."""
    project.use_plugins("rerunfailures")
    project.write(
        test_it="""
ids = []
@pytest.mark.flaky(reruns=1)
def test_a(ephemeral_env_function, ephemeral_env_module):
    ids.append((ephemeral_env_function.id, ephemeral_env_module.id))
    assert len(ids) == 2
    assert ids[0][0] != ids[1][0] and ids[0][1] == ids[1][1]
"""
    )
    run().assert_outcomes(passed=1)


def test_spares_are_launched_before_their_tests(project, run):
    """While the first test runs, the environments of four other tests are launched."""
    file = project.folder / "ephemeral.toml"
    file.write_text(file.read_text().replace("port = 8080\n", "port = 8080\nspares = 4\n", 1))
    project.write(
        test_it="""
import pathlib, time

@pytest.mark.parametrize("number", range(6))
def test_a(ephemeral_env_function, number):
    deadline = time.monotonic() + 30
    while number == 0 and len(list(pathlib.Path(".ephemeral/environments").glob("*.json"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert get(ephemeral_env_function.url) == "plain"
"""
    )
    run().assert_outcomes(passed=6)
