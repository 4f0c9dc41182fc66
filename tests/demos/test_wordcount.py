"""Words are counted alike however the text is divided, whoever counts a piece twice, and wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloudburst as cb
from demos.wordcount import texts
from demos.wordcount.__main__ import PREFIX, alone, run
from demos.wordcount.functions import Tally, tally_of, words_of

TEXTS = ["The cat's hat.\nA cat, a HAT!", "no-one's cats\n" * 3, "", "…\n"]


@pytest.fixture(scope="module")
def client() -> Iterator[cb.Client]:
    """Of two nodes that are a test's own."""
    with cb.up(2, executors=1) as cluster:
        yield cluster.client


def test_word_is_letters_with_an_apostrophe_inside() -> None:
    assert words_of("The cat's hat. A cat, 'tis a HAT! x9") == {
        "the": 1, "cat's": 1, "hat": 2, "a": 2, "cat": 1, "tis": 1, "x": 1,
    }  # fmt: skip


@given(st.dictionaries(st.text("abc", min_size=1, max_size=5), st.integers(1, 9)), st.integers(1, 5), st.integers(1, 4))
def test_tally_of_buckets_is_that_of_all_words(counts: dict[str, int], buckets: int, top: int) -> None:
    whole = Tally()
    for bucket in range(buckets):
        whole = whole.plus(tally_of([one for one in counts.items() if len(one[0]) % buckets == bucket], top), top)
    assert whole == tally_of(counts.items(), top)


@settings(max_examples=30)
@given(st.lists(st.text("ab'\n ", max_size=60), max_size=5), st.integers(1, 9))
def test_pieces_have_the_words_of_the_texts(found: list[str], count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PIECE_CHARACTERS_MIN", 8)
        pieces = list(texts.pieces(found, count))
    whole = sum((words_of(text) for text in found), start=words_of(""))
    assert sum((words_of(piece) for piece in pieces), start=words_of("")) == whole
    assert len(pieces) <= count + 1


def test_functions_count_what_one_process_counts(client: cb.Client) -> None:
    pieces = list(texts.pieces(texts.reference()))
    assert len(pieces) > 5
    counted = run(client, pieces, 9)
    assert counted == alone(pieces, 9)
    assert counted.words > 50_000
    assert run(client, [], 9) == alone([], 9)


def test_piece_that_is_counted_twice_counts_once(client: cb.Client) -> None:
    run(client, TEXTS, 3)
    sessions = client.options(session="causal")
    for piece in (0, 1, 0, 1, 1):
        sessions.call(PREFIX + "count", "twice", 1, piece, TEXTS[piece])
    assert sessions.call(PREFIX + "tally", "twice", 0, 3) == alone(TEXTS[:2], 3)


def demo(*words: str) -> tuple[int, Any, str]:
    """Run the demo where nobody else's node is seen; return its exit code, figures and complaints."""
    with tempfile.TemporaryDirectory(prefix="wc-") as place:
        environment = os.environ | {
            "ANNA_DIR": f"{place}/a", "CLOUDBURST_DIR": f"{place}/c", "XDG_RUNTIME_DIR": place,
        }  # fmt: skip
        command = [sys.executable, "-m", "demos.wordcount", "--json", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_it_is_the_same_on_the_local_cluster_and_on_machines(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(TEXTS))]
    for file, text in zip(files, TEXTS):
        file.write_text(text)
    [here, there] = [demo(*map(str, files), *on) for on in ((), ("--on", "local", "--executors", "1"))]
    assert (here[0], there[0]) == (0, 0), (here, there)
    for name in ("checksum", "top", "words", "different"):
        assert here[1][name] == there[1][name]
    assert there[1]["top"][:2] == [["cats", 3], ["no", 3]]


def test_it_says_why_it_cannot(tmp_path: Path) -> None:
    assert demo(str(tmp_path / "none"))[0] == 1
    code, _, said = demo("--quick", "--on", "nowhere")
    assert (code, "nodes cannot be started on 'nowhere'" in said) == (1, True)
