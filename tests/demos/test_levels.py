"""The clone at two levels, on three nodes, in miniature; and what counts as an orphan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from demos.retwis import levels
from demos.retwis.page import thread
from demos.retwis.workload import is_orphan

ROOT = Path(__file__).parents[2]


def shown(parent: dict[str, Any] | None, answers: int = 0) -> dict[str, Any]:
    """An entry of a timeline that answers `parent`."""
    reply = {"id": "b", "author": 2, "text": "yes", "stamp": 2, "parent": "a", "likes": 0, "reply_to": parent}
    return reply | ({"answers": answers} if answers else {})


def test_an_orphan_lacks_the_post_that_it_answers_or_the_edition_of_it() -> None:
    post = {"id": "a", "author": 1, "text": "no?", "stamp": 1, "parent": "", "likes": 0}
    assert is_orphan(shown(None))
    assert is_orphan(shown(post, answers=1))
    assert not is_orphan(shown(post | {"edition": 1}, answers=1))
    assert not is_orphan(shown(post | {"edition": 2}, answers=1))
    assert not is_orphan(shown(post) | {"parent": ""})
    assert levels.orphans([shown(None), shown(post), shown(post, answers=3)]) == 2
    assert 'class="orphan"' in thread(shown(post, answers=1), 2)
    assert 'class="orphan"' not in thread(shown(post), 2)


def test_causal_readers_see_no_orphans_on_three_nodes(tmp_path: Path) -> None:
    """And in eventual, beside it, some do: it has turns until one is seen, and fails if there is none in twenty."""
    options = ["--quick", "--seconds", "1", "--posts", "60", "--clients", "2", "--turns", "20"]
    command = [sys.executable, "-m", "demos.retwis.levels", *options, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row["repeats"] for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert rows.keys() == {"eventual", "causal"}
    assert sum(one["counts"]["orphans"] for one in rows["eventual"]) > 0
    (causal,) = rows["causal"]
    assert causal["counts"]["orphans"] == 0
    assert causal["counts"]["replies"] > 0
    assert "pairs" in (tmp_path / "levels.html").read_text()
