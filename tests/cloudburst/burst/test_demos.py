"""The demonstrations run unchanged on hosts by SSH."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from demos.wordcount import texts
from demos.wordcount.__main__ import alone
from tests.cloudburst.burst.sshd import SshLab, ssh_lab, why_not


@pytest.fixture(scope="module")
def two() -> Iterator[SshLab]:
    """Two hosts, and one for the client."""
    if (reason := why_not()) is not None:
        pytest.skip(f"NO SSH HOSTS HERE: {reason}")
    with ssh_lab(2) as made:
        yield made


def demo(lab: SshLab, name: str, *words: str) -> Any:
    """Run a demonstration in miniature on the hosts; return its figures."""
    where = ["--on", f"ssh:{lab.file}", "--executors", "1"]
    code = (
        f"import sys; from demos.{name}.__main__ import main; sys.exit(main({['--quick', '--json', *where, *words]}))"
    )
    program: subprocess.Popen[str] = lab.program(code)
    out, err = program.communicate(timeout=100)
    assert program.returncode == 0, err
    return json.loads(out)


def test_words_are_counted_there_as_here(two: SshLab) -> None:
    figures = demo(two, "wordcount")
    expected = alone(list(texts.pieces(texts.reference())), 15)
    assert figures["checksum"] == f"{expected.checksum:064x}"
    assert figures["top"] == [list(entry) for entry in expected.top]


def test_the_clone_of_twitter_runs_there(two: SshLab) -> None:
    figures = demo(two, "retwis", "--texts", "sample", "--posts", "50", "--out", str(two.place / "out"))
    [row] = figures["rows"]
    assert row["name"] == "ours-functions"
    assert row["repeats"][0]["operations_per_second"] > 0
    assert row["bytes_per_key"] is None
    assert (two.place / "out" / "retwis.html").is_file()
