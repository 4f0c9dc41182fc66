"""What docs/failures.md shows is what its scripts print (table C)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudburst.errors import BY_NAME
from tests.cloudburst import terminal

PAGE = Path(__file__).parents[2] / "docs" / "failures.md"
SCRIPTS = {found["name"]: found for found in terminal.scripts(PAGE.read_text())}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prints_what_the_page_shows(name: str) -> None:
    printed = terminal.run(name, SCRIPTS[name]["code"])
    assert terminal.alike(printed) == terminal.alike(SCRIPTS[name]["shown"])


def test_every_script_of_the_page_is_run() -> None:
    """One whose output block is missing would not be."""
    assert len(SCRIPTS) == PAGE.read_text().count("```python\n") > 12


def test_the_page_tells_of_every_error_that_a_caller_may_get() -> None:
    groups = {"RequestError", "UnavailableError"}
    assert {name for name in BY_NAME if f"`{name}`" not in PAGE.read_text()} == groups


def test_what_differs_from_run_to_run_counts_as_equal_and_nothing_else() -> None:
    one, other = "executor 0 (pid 71) ended by exit(7) in 0.3 s", "executor 1 (pid 8) ended by exit(7) in 12.25 s"
    assert terminal.alike(one) == terminal.alike(other) != terminal.alike(other.replace("exit(7)", "exit(8)"))


def test_frames_of_the_library_are_left_out_and_the_readers_own_stay() -> None:
    own = '  File "own.py", line 3, in work\n    call()\n'
    library = f'  File "{terminal.ROOT}/cloudburst/client.py", line 9, in call\n    return 1\n           ^\n'
    assert terminal.LIBRARY.sub("", own + library + own) == own + own
