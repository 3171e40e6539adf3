"""Errors before the first test: a clear message, exit status 4, and no launch."""

import pytest

UNITTEST = """
import unittest
@pytest.mark.usefixtures("ephemeral_env")
@pytest.mark.ephemeral_env(TWO)
class TestOld(unittest.TestCase):
    def test_it(self): pass
"""

DECLARED = """
from pytest_ephemeral import environment_fixture
shop = environment_fixture("nowhere")
def test_it(shop): pass
"""

MARKERS = [
    (
        "@pytest.mark.ephemeral_env('stagin')\ndef test_it(ephemeral_env): pass",
        "no template 'stagin'",
    ),
    ("@pytest.mark.ephemeral_env()\ndef test_it(ephemeral_env): pass", "name a template"),
    ("@pytest.mark.ephemeral_env(ONE, ONE)\ndef test_it(ephemeral_env): pass", "twice"),
    ("@pytest.mark.ephemeral_env(7)\ndef test_it(ephemeral_env): pass", "is a str, not 7"),
    ("@pytest.mark.ephemeral_env(name=ONE)\ndef test_it(ephemeral_env): pass", "keyword argument"),
    (UNITTEST, "environment_fixture"),
    (DECLARED, "no template 'nowhere'"),
]


def refused(result, text):
    """Check that pytest refused to run with this message, without a traceback."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str()
    message = result.stderr.str() + result.stdout.str()
    assert text in message
    assert "Traceback" not in message
    assert "INTERNALERROR" not in message
    assert " is up at " not in message


@pytest.mark.parametrize(("module", "text"), MARKERS, ids=[text for _, text in MARKERS])
def test_invalid_markers_are_refused(project, run, module, text):
    """Unknown templates, invalid arguments, and tests that pytest can't parametrize."""
    project.write(test_it=module)
    refused(run(), text)


def test_invalid_markers_are_refused_once_under_xdist(project, run):
    """Workers find the error; the controller reports it once, and no worker crashes."""
    project.write(test_it=MARKERS[0][0])
    result = run("-n", "2")
    refused(result, "no template 'stagin'")
    result.stdout.no_fnmatch_line("*crashed*")


def test_an_unknown_template_is_reported_with_a_suggestion(project, run):
    """The suggestion is the most similar name."""
    project.write(
        test_it=f"@pytest.mark.ephemeral_env({project.one[:-1]!r})\ndef test(ephemeral_env): pass"
    )
    refused(run(), f"@pytest.mark.ephemeral_env: no template {project.one[:-1]!r}. Did you mean ")
    project.write(
        conftest="from pytest_ephemeral import environment_fixture\n"
        f"shop = environment_fixture({project.one[:-1]!r})",
        test_it="def test(shop): pass",
    )
    refused(run(), f"the fixture 'shop': no template {project.one[:-1]!r}. Did you mean ")


def test_a_missing_default_template_stops_only_its_tests(project, run):
    """A marker, or ``--ephemeral-template``, replaces the default template."""
    project.reconfigure(f'default-template = "{project.one}"', "")
    project.write(test_it="def test_it(ephemeral_env): pass")
    refused(run(), "names no template")
    project.write(test_it="@pytest.mark.ephemeral_env(TWO)\ndef test_it(ephemeral_env): pass")
    run().assert_outcomes(passed=1)
    project.write(test_it="def test_it(ephemeral_env): assert ephemeral_env.template == TWO")
    run("--ephemeral-template", project.two).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("configuration", "text"),
    [
        ("this is = = not TOML", "not valid TOML"),
        ("[templates.x]\nimage = 'nowhere'\nport = 1\ncommand = 'x'", "no image 'nowhere'"),
        ("[templates.x]\nprovider = 'locl'", "Did you mean 'local'?"),
        ("", "there are no templates: add a [templates.NAME] table"),
    ],
)
def test_invalid_configurations_are_refused(project, run, configuration, text):
    """The message names the invalid part of the file."""
    project.configure(configuration)
    project.write(test_it="def test_it(ephemeral_env): pass")
    refused(run(), text)


def test_a_missing_configuration_is_a_usage_error(project, run):
    """The message names the command that creates a configuration."""
    (project.folder / "ephemeral.toml").unlink()
    project.write(test_it="def test_it(ephemeral_env): pass")
    refused(run(), "pytest-ephemeral init")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ephemeral-config", "nowhere.toml"], "nowhere.toml"),
        (["--ephemeral-template", "nowhere"], "no template 'nowhere'"),
        (["--ephemeral-attach", "staging-gone"], "no environment 'staging-gone'"),
        (["--ephemeral-attach", "localhost:5000"], "a URL begins with its scheme"),
        (["--ephemeral-attach", "http://127.0.0.1:1/"], "nothing answers there"),
        (["--ephemeral-attach", "http://x/", "--ephemeral-approval", "9"], "can't be combined"),
        (["--ephemeral-stage", "a/b"], "--ephemeral-stage"),
        (["--ephemeral-report", "."], "--ephemeral-report: "),
        (["--ephemeral-logs", "ephemeral.toml"], "ephemeral.toml is a file: name a folder"),
        (["--ephemeral-logs", "ephemeral.toml/logs"], "ephemeral.toml is a file: name a folder"),
        (["-o", "ephemeral_report=."], "is a folder: name a file in it"),
        (["--ephemeral-bake", "perhaps"], "perhaps"),
        (["-o", "ephemeral_keep=perhaps"], "perhaps"),
    ],
)
def test_invalid_options_are_refused(project, run, arguments, text):
    """Unknown names, unreachable URLs and invalid values are usage errors."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    refused(run(*arguments), text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--collect-only"],
        ["--setup-plan"],
        ["--fixtures"],
        ["--fixtures-per-test"],
        ["-k", "nothing"],
    ],
)
def test_runs_without_used_environments_launch_nothing(project, run, arguments):
    """No image is baked, and the catalog stays empty."""
    project.write(test_it="def test_it(ephemeral_env, ephemeral_env_module): pass")
    result = run(*arguments)
    assert result.ret in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    assert not list((project.folder / ".ephemeral").glob("catalog/*"))


def test_skipped_tests_launch_nothing(project, run):
    """Skip marks are known before the first test."""
    project.write(
        test_it="""
@pytest.mark.skip
def test_a(ephemeral_env): pass
@pytest.mark.skipif(True, reason="always")
def test_b(ephemeral_env_module): pass
@pytest.mark.skipif("os.sep == '/'", reason="text")
def test_c(ephemeral_env_module): pass
@pytest.mark.xfail(run=False)
def test_d(ephemeral_env_function): pass
"""
    )
    run().assert_outcomes(skipped=3, xfailed=1)
    assert not list((project.folder / ".ephemeral").glob("catalog/*"))


def test_workers_on_other_machines_are_refused(project, run):
    """Workers on other machines could not reach the environments."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    refused(run("-d", "--tx", "socket=127.0.0.1:1"), "use workers of this machine")
