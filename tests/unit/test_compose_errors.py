"""The quote of a failed compose command: the reason, without the progress."""

import pytest

from pytest_ephemeral.providers.compose.errors import quote

REASON = "dependency failed to start: container shop-db-1 is unhealthy"
JOB = 'service "db" didn\'t complete successfully: exit 4'

#: The output of Compose 2 without a terminal: the reason may come before the last progress lines.
PROGRESS = [f" Container shop-worker-{number}  Created" for number in range(30)]
TAIL = [
    " Container shop-db-1  Error",
    " Container shop-web-1  Waiting",
    " Network shop_back  Removed",
]


@pytest.mark.parametrize("reason", [REASON, JOB])
@pytest.mark.parametrize(
    "before",
    [[*PROGRESS, *TAIL], PROGRESS, []],
    ids=["last", "in the middle", "first"],
)
def test_the_failed_dependency_is_quoted_without_progress(before: list[str], reason: str) -> None:
    """The reason is found at any position, and in either wording."""
    lines = [*before, reason, *(TAIL if len(before) < 33 else [])]
    assert quote("\n".join(lines), {}) == reason


ID = "60d1b1f3fd1a" + "0" * 52


def test_container_ids_are_replaced_by_service_names() -> None:
    """docker-compose 1.29 prints the id instead of the name, and each reason twice."""
    said = (
        'Creating network "shop_default" with the default driver\n'
        "Creating shop_db_1 ... \nCreating shop_db_1 ... done\n"
        'ERROR: for shop_web_1  Container "60d1b1f3fd1a" is unhealthy.\n'
        'ERROR: for web  Container "60d1b1f3fd1a" is unhealthy.\n'
        "Encountered errors while bringing up the project.\n"
    )
    assert quote(said, {ID: "db"}) == 'web: Container "db" is unhealthy.'


def test_a_multiline_reason_is_quoted_completely() -> None:
    """The position in the file is in a line without the word "error"."""
    said = "yaml.parser.ParserError: while parsing\nexpected a node\n  in compose.yaml, line 2"
    assert quote(f"WARNING: old\n{said}", {}).endswith("expected a node; in compose.yaml, line 2")


def test_progress_is_quoted_if_there_is_no_reason() -> None:
    """Without a reason, nothing better is available."""
    assert "Network shop_back  Removed" in quote("\n".join(TAIL), {})
    assert quote("", {}) == "it printed no error"
