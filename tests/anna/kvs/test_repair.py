"""Two workers that repair become equal, at the cost of what differs, whatever happens meanwhile."""

from __future__ import annotations

import struct
from collections import Counter, deque
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import config
from anna.errors import ProtocolError
from anna.kvs.digest import Entry, cell_hash
from anna.kvs.repair import CELLS, DIGESTS, DONE, HEADER, KEYS, Repair
from anna.routing.hash import key_hash

SEEDS: Final = st.integers(0, 2**32)
VERSION: Final = struct.Struct("<HQ")
DIGESTS_BYTES: Final = HEADER.size + 256 * 12


class Book:
    """A store of versions under keys; the greater version wins. Scanned in the order in which keys came."""

    def __init__(self, versions: dict[bytes, int]) -> None:
        self.versions = dict(versions)
        self.order = list(versions)

    def write(self, key: bytes, version: int) -> None:
        if key not in self.versions:
            self.order.append(key)
        self.versions[key] = max(version, self.versions.get(key, 0))

    def scan(self, cursor: int, limit: int) -> tuple[list[Entry], int | None]:
        keys = self.order[cursor : cursor + limit]
        entries = [(k, key_hash(k), cell_hash(k, 2, 0, 0, b"%d" % self.versions[k])) for k in keys]
        return entries, cursor + limit if cursor + limit < len(self.order) else None

    def cell(self, key: bytes) -> bytes:
        return VERSION.pack(len(key), self.versions[key]) + key if key in self.versions else b""

    def take(self, cells: bytes) -> None:
        place = 0
        while place < len(cells):
            size, version = VERSION.unpack_from(cells, place)
            place += VERSION.size + size
            self.write(cells[place - size : place], version)


class Pair:
    """Two ends with a book each, and between them two links: in order, nothing lost."""

    def __init__(self, mine: dict[bytes, int], theirs: dict[bytes, int]) -> None:
        self.books = [Book(mine), Book(theirs)]
        self.ends = [Repair(), Repair()]
        self.links: list[deque[bytes]] = [deque(), deque()]
        self.sent: list[Counter[int]] = [Counter(), Counter()]
        self.bytes = 0

    def start(self, *ends: int, version: int = 1, digest: int = 7) -> None:
        for end in ends or (0, 1):
            self.ends[end].start(version, digest, self.books[end].scan, self.books[end].cell)

    def send(self, end: int, budget_bytes: int = 1 << 20, budget_keys: int = 1 << 20) -> list[bytes]:
        """Let one end work; return what it has to send, which is on its way then."""
        bodies = self.ends[end].poll(budget_bytes, budget_keys)
        self.ends[end].check()
        self.links[end].extend(bodies)
        self.sent[end].update(body[0] for body in bodies)
        self.bytes += sum(map(len, bodies))
        return bodies

    def arrive(self, end: int) -> None:
        """Let the next body arrive that this end has sent."""
        self.books[1 - end].take(self.ends[1 - end].hear(self.links[end].popleft()))

    def step(self, dice: Random) -> None:
        """Let one end work a little, and some of what it has sent arrive."""
        end = dice.randint(0, 1)
        self.send(end, dice.randint(1, 500), dice.randint(1, 20))
        for _ in range(dice.randint(0, len(self.links[end]))):
            self.arrive(end)

    def settle(self) -> None:
        """Go on until nothing is left to do, in a bounded number of steps."""
        for _ in range(10_000):
            if not any(end.busy for end in self.ends) and not any(self.links):
                return
            for end in (0, 1):
                self.send(end)
                while self.links[end]:
                    self.arrive(end)
        raise AssertionError("repair does not end")

    def assert_done(self) -> None:
        assert [(end.sent_done, end.heard_done, end.complete) for end in self.ends] == [(True, True, True)] * 2
        assert self.books[0].versions == self.books[1].versions


def books(dice: Random, keys: int, differing: float) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """Two stores of about so many keys, of which a part is on one side only, or older there."""
    mine: dict[bytes, int] = {}
    theirs: dict[bytes, int] = {}
    for number in range(keys):
        key = b"key:%d" % number
        mine[key] = theirs[key] = 5
        if dice.random() < differing:
            lack = dice.choice(("here", "there", "older", "newer"))
            if lack == "here":
                del mine[key]
            elif lack == "there":
                del theirs[key]
            else:
                mine[key] = 3 if lack == "older" else 9
    return mine, theirs


def differences(mine: dict[bytes, int], theirs: dict[bytes, int]) -> list[int]:
    """How many keys each has that the other lacks or has otherwise."""
    return [
        sum(other.get(key) != version for key, version in one.items())
        for one, other in ((mine, theirs), (theirs, mine))
    ]


@given(SEEDS, st.integers(0, 400), st.sampled_from([0.0, 0.01, 0.2, 1.0]), st.sampled_from([1, 20, 10**6]))
def test_two_stores_become_equal_and_no_other_key_is_sent(seed: int, keys: int, differing: float, held: int) -> None:
    dice = Random(seed)
    pair = Pair(*books(dice, keys, differing))
    expected = differences(pair.books[0].versions, pair.books[1].versions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "REPAIR_KEYS_HELD_MAX", held)
        pair.start()
        while not all(end.sent_done and end.heard_done for end in pair.ends):
            pair.step(dice)
    pair.assert_done()
    assert [end.progress.cells_sent for end in pair.ends] == expected


@given(SEEDS, st.integers(1, 100), st.integers(1, 50))
def test_writes_that_go_on_meanwhile_do_no_harm(seed: int, keys: int, held: int) -> None:
    """D11, D13: hand-off runs beside service; what is written meanwhile is told by deltas, late or soon."""
    dice = Random(seed)
    pair = Pair(*books(dice, keys, 0.3))
    late: list[tuple[int, bytes, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "REPAIR_KEYS_HELD_MAX", held)
        pair.start()
        while not all(end.sent_done and end.heard_done for end in pair.ends):
            pair.step(dice)
            if dice.random() < 0.3:
                end, key, version = dice.randint(0, 1), b"key:%d" % dice.randint(0, 2 * keys), dice.randint(6, 99)
                pair.books[end].write(key, version)
                late.append((1 - end, key, version))
            if late and dice.random() < 0.2:
                end, key, version = late.pop(dice.randrange(len(late)))
                pair.books[end].write(key, version)
    for end, key, version in late:
        pair.books[end].write(key, version)
    pair.assert_done()


def test_equal_stores_exchange_their_digests_and_nothing_else() -> None:
    versions = {b"key:%d" % number: number for number in range(5000)}
    pair = Pair(versions, dict(reversed(versions.items())))
    pair.start()
    pair.settle()
    pair.assert_done()
    assert pair.sent == [Counter([DIGESTS, DONE])] * 2
    assert pair.bytes == 2 * (DIGESTS_BYTES + HEADER.size) == 6_228


def test_a_hundred_thousand_keys_move_within_the_window() -> None:
    """D10: the published system sends the first 50 keys of a move again and again."""
    versions = {b"key:%d" % number: number for number in range(100_000)}
    pair = Pair(versions, {})
    pair.start()
    window, slices = 256 * 1024, 0
    while not pair.ends[1].heard_done:
        bodies = pair.send(0, window, 5000)
        assert sum(map(len, bodies)) <= window + config.REPAIR_BODY_BYTES
        slices += 1
        while pair.links[0]:
            pair.arrive(0)
        pair.send(1)
        while pair.links[1]:
            pair.arrive(1)
    pair.assert_done()
    assert pair.sent[0][KEYS] == pair.sent[1][KEYS] == pair.sent[1][CELLS] == 0
    assert pair.ends[0].progress.cells_sent == 100_000
    assert slices < 100


def test_both_directions_move_at_once_and_only_common_buckets_are_listed() -> None:
    pair = Pair({b"a": 1, b"k": 1, b"both": 1}, {b"greeting": 2, b"both": 2})
    pair.start()
    pair.settle()
    pair.assert_done()
    assert pair.sent[0] == pair.sent[1] == Counter({DIGESTS: 1, CELLS: 2, KEYS: 1, DONE: 1})


def test_done_is_not_said_before_the_last_cell_is_sent() -> None:
    pair = Pair({b"%d" % number: 1 for number in range(1000)}, {})
    pair.start()
    pair.send(1)
    pair.arrive(1)
    while not pair.ends[0].sent_done:
        last = pair.send(0, budget_bytes=1, budget_keys=10)
    kinds = [body[0] for body in pair.links[0]]
    assert kinds[0] == DIGESTS
    assert set(kinds[1:-1]) == {CELLS}
    assert kinds[-1] == last[-1][0] == DONE
    while pair.links[0]:
        assert not pair.ends[1].heard_done
        pair.arrive(0)
    assert pair.ends[1].complete


def test_lists_are_held_for_a_bounded_number_of_keys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "REPAIR_KEYS_HELD_MAX", 100)
    pair = Pair(*books(Random(1), 3000, 0.5))
    pair.start()
    most = 0
    while not all(end.sent_done and end.heard_done for end in pair.ends):
        for end in (0, 1):
            pair.send(end, 2000, 500)
            while pair.links[end]:
                pair.arrive(end)
            comparison = pair.ends[end]._comparison
            most = max(most, sum(map(len, comparison.held.values())))
            assert len(comparison.lists) <= 30
    pair.assert_done()
    assert 50 < most <= 100


@given(SEEDS)
def test_a_newer_view_starts_over_and_is_not_called_complete_before(seed: int) -> None:
    dice = Random(seed)
    pair = Pair(*books(dice, 60, 0.5))
    views = [1, 1]
    pair.start()
    for _ in range(dice.randint(0, 60)):
        pair.step(dice)
        if dice.random() < 0.1:
            end = dice.randint(0, 1)
            views[end] += 1
            pair.start(end, version=views[end])
            assert not pair.ends[end].complete
        for end in (0, 1):
            assert not (pair.ends[end].complete and views[0] != views[1] and views[end] == max(views))
    for end in (0, 1):
        if views[end] < max(views):
            pair.start(end, version=max(views))
    pair.settle()
    pair.assert_done()


def test_views_of_one_version_that_differ_are_not_taken_for_each_other() -> None:
    pair = Pair({b"a": 1}, {b"b": 1})
    pair.start(0, digest=7)
    pair.start(1, digest=8)
    pair.settle()
    assert not pair.ends[0].complete
    assert not pair.ends[1].complete
    assert pair.sent == [Counter([DIGESTS])] * 2
    pair.start(0, version=2, digest=9)
    pair.start(1, version=2, digest=9)
    pair.settle()
    pair.assert_done()


def test_what_a_faster_peer_says_of_the_next_view_is_kept() -> None:
    pair = Pair({b"a": 1}, {b"b": 2})
    pair.start(version=1)
    pair.settle()
    pair.start(1, version=2)
    pair.settle()
    pair.start(0, version=2)
    pair.settle()
    pair.assert_done()
    assert pair.sent[1][DIGESTS] == 2


def test_a_peer_that_is_two_views_ahead_is_caught_up_with_one_by_one() -> None:
    pair = Pair({b"a": 1}, {b"b": 2})
    pair.start(version=1)
    pair.start(1, version=3)
    pair.settle()
    pair.start(0, version=2)
    pair.settle()
    pair.start(0, version=3)
    pair.settle()
    pair.assert_done()


def test_further_rounds_find_what_was_lost_and_completeness_stays() -> None:
    """D13: what slipped through every other net is found by comparing."""
    pair = Pair({b"%d" % number: 1 for number in range(500)}, {b"%d" % number: 1 for number in range(500)})
    pair.start()
    pair.settle()
    del pair.books[0].versions[b"7"], pair.books[0].order[7]
    pair.ends[1].again()
    assert pair.ends[1].complete
    pair.settle()
    pair.assert_done()
    assert pair.ends[1].progress.cells_sent == 1
    assert [end.round.number for end in pair.ends] == [2, 2]


def test_both_may_begin_a_further_round_at_once() -> None:
    pair = Pair({b"a": 1}, {})
    pair.start()
    pair.settle()
    for end in pair.ends:
        end.again()
    pair.settle()
    pair.assert_done()
    assert [end.round.number for end in pair.ends] == [2, 2]
    assert pair.sent[0][CELLS] == 1


@given(SEEDS)
def test_an_end_that_is_forgotten_at_any_time_begins_anew_with_its_peer(seed: int) -> None:
    dice = Random(seed)
    pair = Pair(*books(dice, 60, 0.5))
    pair.start()
    for _ in range(dice.randint(0, 40)):
        pair.step(dice)
    end = dice.randint(0, 1)
    pair.ends[end] = Repair()
    pair.start(end)
    # The link is renewed with it. Its peer's end is broken, unless nothing was confirmed: then all is sent again.
    pair.links[end].clear()
    if len(pair.links[1 - end]) < sum(pair.sent[1 - end].values()):
        pair.links[1 - end].clear()
        pair.ends[1 - end].again()
    pair.settle()
    pair.assert_done()


def test_a_key_that_is_gone_by_its_turn_is_not_sent() -> None:
    pair = Pair({b"a": 1, b"b": 1}, {})
    pair.start()
    pair.send(1)
    pair.arrive(1)
    pair.send(0, budget_keys=4)
    del pair.books[0].versions[b"a"]
    pair.books[0].order.remove(b"a")
    pair.settle()
    pair.assert_done()
    assert pair.books[1].versions == {b"b": 1}


def test_what_a_peer_holds_and_should_not_is_counted_and_not_sent() -> None:
    """D10: who gave keys away counts them until it drops them; else the next view would move all of them again."""
    versions = {b"%d" % number: 1 for number in range(1000)}
    pair = Pair(versions, {**versions, b"new": 1})
    pair.books[1].cell = lambda key: b""  # type: ignore[method-assign]
    pair.start()
    pair.settle()
    assert [end.complete for end in pair.ends] == [True, True]
    assert [end.progress.cells_sent for end in pair.ends] == [0, 0]
    assert b"new" not in pair.books[0].versions


def test_nothing_is_sent_before_the_first_view() -> None:
    repair = Repair()
    assert not repair.busy
    assert repair.poll(1000, 1000) == []
    repair.check()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "at least 21 bytes"),
        (HEADER.pack(9, 1, 7, 1), "unknown kind 9"),
        (HEADER.pack(DIGESTS, 1, 7, 1) + bytes(10), "digests have 3,072 bytes"),
        (HEADER.pack(KEYS, 1, 7, 1) + bytes(4), "at least 5 bytes"),
    ],
)
def test_what_no_peer_sends_is_a_protocol_error(body: bytes, why: str) -> None:
    pair = Pair({}, {})
    pair.start()
    with pytest.raises(ProtocolError, match=why):
        pair.ends[0].hear(body)


def test_lists_that_nobody_asked_for_are_not_kept() -> None:
    pair = Pair({}, {})
    pair.start()
    assert pair.ends[0].hear(HEADER.pack(KEYS, 1, 7, 1) + struct.pack("<BI", 3, 0)) == b""
    pair.settle()
    pair.assert_done()
