"""The workload's count finds every loss that is planted, and nothing where nothing is wrong."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.anna.local.processes import serving
from tests.lab.programs import start_here
from tests.lab.setfull import OK, REFUSED, UNKNOWN, Add, Clients, History, Read, judge, read_all


def healthy(seed: int, adds: int = 400) -> tuple[History, dict[str, frozenset[int]]]:
    """Return what well-behaved sets would give: each read holds all that ended before it began."""
    chance = random.Random(seed)
    written: list[Add] = []
    reads: list[Read] = []
    for element in range(adds):
        key = f"set-{element % 3}"
        outcome = chance.choices((OK, UNKNOWN, REFUSED), (90, 5, 5))[0]
        written.append(Add(key, element, float(element), element + 0.5, outcome))
        if element % 10 == 0:
            held = (add.element for add in written if add.key == key and add.outcome == OK)
            reads.append(Read(key, element + 0.6, element + 0.7, tuple(held)))
    kept = {add for add in written if add.outcome == OK or (add.outcome == UNKNOWN and chance.random() < 0.5)}
    final = {f"set-{n}": frozenset(add.element for add in kept if add.key == f"set-{n}") for n in range(3)}
    return History(tuple(written), tuple(reads)), final


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_history_has_nothing_to_report(seed: int) -> None:
    history, final = healthy(seed)
    verdict = judge(history, final)
    assert (verdict.lost, verdict.vanished, verdict.made_up) == ((), (), ())
    assert (verdict.attempted, verdict.acknowledged) == (400, len(history.acknowledged()))
    assert verdict.visible_within_s(1.0) == 0.0
    unknown = {add.element for add in history.adds if add.outcome == UNKNOWN}
    assert set(verdict.never_read) == unknown - frozenset().union(*final.values())


@pytest.mark.parametrize("seed", range(20))
def test_every_planted_loss_is_found_and_no_other(seed: int) -> None:
    history, final = healthy(seed)
    planted = random.Random(seed).sample([add.element for add in history.acknowledged()], 1 + seed)
    verdict = judge(history, {key: elements - set(planted) for key, elements in final.items()})
    assert verdict.lost == tuple(sorted(planted))
    assert verdict.made_up == ()


def test_a_whole_set_that_is_gone_is_lost() -> None:
    history, final = healthy(1)
    del final["set-2"]
    assert judge(history, final).lost == tuple(a.element for a in history.acknowledged() if a.key == "set-2")


def test_an_element_in_a_set_that_it_was_not_added_to_is_made_up_and_lost_where_it_was() -> None:
    history = History((Add("a", 1, 0, 1, OK), Add("b", 2, 0, 1, OK)))
    verdict = judge(history, {"a": frozenset({1, 2}), "b": frozenset()})
    assert (verdict.lost, verdict.made_up) == ((2,), (2,))


def test_what_was_refused_or_never_tried_must_not_be_seen_even_if_it_goes_again() -> None:
    history = History(
        (Add("a", 1, 0, 1, OK), Add("a", 2, 1, 2, REFUSED), Add("a", 3, 2, 3, UNKNOWN)),
        (Read("a", 4, 5, (1, 2, 3, 99)),),
    )
    verdict = judge(history, {"a": frozenset({1})})
    assert (verdict.made_up, verdict.vanished, verdict.never_read, verdict.lost) == ((2, 99), (2, 3), (), ())


def test_visibility_is_the_time_from_the_acknowledgement_to_the_last_read_without_the_element() -> None:
    reads = (Read("a", 9, 10, ()), Read("a", 12, 13, (7,)), Read("a", 14, 15, ()), Read("a", 17, 18, (7,)))
    verdict = judge(History((Add("a", 7, 9, 10, OK),), reads), {"a": frozenset({7})})
    assert verdict.visible_after_s == (4,)  # it was there, then not, then there: the read at 14 is the last without it
    early = History((Add("a", 7, 9, 10, OK),), (Read("a", 9.5, 20, ()),))
    assert judge(early, {"a": frozenset({7})}).visible_after_s == (0,)  # a read that began before need not have it


def test_gaps_and_call_lengths_are_those_of_the_writes() -> None:
    history = History(
        (Add("a", 1, 0, 1, OK), Add("a", 2, 3, 8, UNKNOWN), Add("a", 3, 8.5, 9, OK), Add("b", 4, 2, 2.5, OK))
    )
    assert history.longest_gap_s("a", 0, 10) == 8
    assert history.longest_gap_s("b", 0, 4) == 2.5
    assert history.longest_call_s() == 5
    assert [add.element for add in history.since(2.5).adds] == [2, 3]


def test_the_program_runs_against_a_real_node_and_a_planted_loss_shows(directory: Path) -> None:
    with serving("--workers", "2", "--listen", "tcp://127.0.0.1:0") as (_, started):
        addresses = [worker[-1] for worker in started["workers"]]
        first = Clients(start_here, addresses, keys=3, clients=2, rate=2000, reads=5)
        second = Clients(start_here, addresses, keys=3, clients=2, rate=2000, reads=5, first=1_000_000)
        history = second.stop() + first.stop()
        final = read_all(addresses, 3)
    verdict = judge(history, final)
    assert (verdict.lost, verdict.vanished, verdict.made_up, verdict.never_read) == ((), (), (), ())
    assert verdict.acknowledged == verdict.attempted == sum(map(len, final.values())) >= 2
    assert history.failed_reads == ()
    planted = min(final["set-0"])
    lacking = dataclasses.replace(history, reads=())
    assert judge(lacking, final | {"set-0": final["set-0"] - {planted}}).lost == (planted,)
