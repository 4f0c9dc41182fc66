"""Sets and siblings: what a read's past has added must be there, and what it has removed must not."""

from __future__ import annotations

import random
from itertools import count

import pytest

from cloudburst.judge import order
from cloudburst.judge.history import HistoryError
from tests.cloudburst.judge.lines import history, judged
from tests.cloudburst.judge.test_anomalies import broken

SETS: dict[str, tuple[tuple[str, ...], str]] = {
    "an element of another session is not there yet": (("a: add s 1", "b: read s {}"), ""),
    "an absent set is an empty one": (("a: add s 1", "b: read s -"), ""),
    "own additions are there": (("a: add s 1, read s {1}", "a: add s 2, read s {1 2}"), ""),
    "own addition unseen": (("a: add s 1, read s {}",), "repeatable read-atomic causal"),
    "own removal unseen": (("a: add s 1", "a: read s {1}, remove s 1, read s {1}"), "repeatable read-atomic causal"),
    "an element that comes between two reads": (
        ("a: add s 1", "b: read s {}, read s {1}"),
        "repeatable read-atomic causal",
    ),
    "an element that nobody added": (("a: add s 1", "b: read s {2}"), "read-atomic causal"),
    "an element of what failed": (("a: add s 1 (failed)", "b: read s {1}"), "read-atomic causal"),
    "half of what one transaction added": (("a: add s 1, add t 1", "b: read s {1}, read t {}"), "read-atomic causal"),
    "half of one set": (("a: add s 1, add s 2", "b: read s {1}"), "read-atomic causal"),
    "a register beside a set": (("a: write x 1, add s 1", "b: read s {1}, read x -"), "read-atomic causal"),
    "a missing element of the past": (("a: add s 1", "b: read s {1}, write x 1", "c: read x 1, read s {}"), "causal"),
    "a missing element of one's own session": (("a: add s 1", "a: read s {}"), "causal"),
    "an element that somebody has removed": (("a: add s 1", "b: read s {1}, remove s 1", "a: read s {}"), ""),
    "an element that was removed only afterwards": (("a: add s 1", "a: read s {}", "a: remove s 1"), "causal"),
    "a removal before the addition": (("a: remove s 1", "a: add s 1", "a: read s {}"), "causal"),
    "a removal that failed": (("a: add s 1", "b: remove s 1 (failed)", "a: read s {}"), "causal"),
    "a removal that may have happened": (
        ("a: add s 1", "b: remove s 1 (unknown)", "a: read s {}", "a: read s {1}"),
        "",
    ),
    "a removed element that is back": (("a: add s 1", "a: remove s 1", "a: read s {1}"), "causal"),
    "a removal that another has not seen": (("a: add s 1", "b: read s {1}, remove s 1", "c: read s {1}"), ""),
    "a set that was deleted": (("a: add s 1", "b: write s -", "a: read s {}"), ""),
    "siblings that are both there": (("a: write x 1", "b: write x 2", "c: read x {1 2}"), ""),
    "a sibling that was replaced": (("a: write x 1", "b: read x {1}, write x 2", "c: read x {2}"), ""),
    "a sibling of the past that is gone": (
        ("a: write x 1", "b: read x {1}, write y 1", "c: write x 2", "d: read y 1, read x {2}"),
        "causal",
    ),
    "an older sibling than its past": (("a: write x 1", "a: write x 2", "b: read x {1}", "a: read x {1}"), "causal"),
    "a sibling beside what is in pieces": (("a: write x 1, write y 1", "b: read y 1, read x {}"), "read-atomic causal"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("cells", [order.CELLS_MAX, 1], ids=["all chains at once", "a chain at a time"])
def test_reads_of_sets_are_judged(name: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CELLS_MAX", cells)
    lines, levels = SETS[name]
    assert broken(judged(*lines)) == levels


def test_a_key_that_is_a_register_here_and_a_set_there_is_refused() -> None:
    with pytest.raises(HistoryError, match=r"line 3, operations\[0\]: 'x' is a register or siblings on one line"):
        judged("a: write x 1", "a: add x 2")


def merged(seed: int, forget: float) -> tuple[str, ...]:
    """Return the lines of three replicas of two add-wins sets that merge now and then; a session stays at its own.

    Each replica has a state that only grows, so what a session sees is causal. With `forget`, reads leave out an
    element that they should have, so often.
    """
    random_ = random.Random(seed)
    replicas: list[tuple[set[tuple[str, str]], set[tuple[str, str]]]] = [(set(), set()) for _ in range(3)]
    names, lines = count(), []
    for _ in range(25):
        here = random_.randrange(3)
        added, removed = replicas[here]
        said = []
        for _ in range(random_.randint(1, 3)):
            key = random_.choice("st")
            live = sorted(atom for k, atom in added - removed if k == key)
            kind = random_.random()
            if kind < 0.4:
                atom = f"v{next(names)}"
                added.add((key, atom))
                said.append(f"add {key} {atom}")
            elif kind < 0.5 and live:
                removed.add((key, live[0]))
                said.append(f"remove {key} {live[0]}")
            else:
                if live and random_.random() < forget:
                    live.pop(random_.randrange(len(live)))
                said.append(f"read {key} {{{' '.join(live)}}}")
        lines.append(f"{here}: {', '.join(said)}")
        one, other = random_.sample(replicas, 2)
        if random_.random() < 0.5:
            one[0].update(other[0])
            one[1].update(other[1])
    return tuple(lines)


@pytest.mark.parametrize("seed", range(100))
def test_sets_that_merge_are_never_called_wrong(seed: int) -> None:
    assert broken(judged(*merged(seed, 0.0))) == ""


def test_most_reads_that_forget_an_element_are_found() -> None:
    """Not all: an element may be missing that a session elsewhere removes at about that time."""
    found = sum(broken(judged(*merged(seed, 0.2))) != "" for seed in range(100))
    assert found > 80


def test_a_history_of_sets_may_have_any_number_of_sessions() -> None:
    lines = [f"s{n}: add s {n}, read s {{{' '.join(map(str, range(n + 1)))}}}" for n in range(60)]
    assert judged(*lines).held("causal")
    assert not judged(*lines, "last: read s {59}").held("causal")
    assert len(history(*lines).transactions) == 60
