"""What a node knows of others: found, mirrored, lost, and found again, and no place in its page given twice."""

from __future__ import annotations

import mmap

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudburst import config
from cloudburst.messages import Lose, Meet, Mirror, Part, Reflect, Vacate
from cloudburst.neighbours import ExecutorRow, Neighbours, NodeRecord
from cloudburst.page import EMPTY, LOST, READY, Page, page_bytes

SECOND = 1_000_000
SILENCE = int(config.NODE_SILENCE_S * 1e6)


def record(id: int, host: str = "here") -> NodeRecord:
    return NodeRecord(id, host, f"/run/{id}", (f"ipc:///run/{id}/control.sock", f"tcp://10.0.0.{id}:7000"), reach="h")


def row(slot: int, life: int = 1, state: int = READY, waiting: int = 0, port: int = 0) -> ExecutorRow:
    return ExecutorRow(slot, life, 4000 + slot, state, 0, waiting, 0, 0, port, f"e{slot}-{life}.sock")


def test_node_that_is_found_is_met_once() -> None:
    one = Neighbours(1, "here", 4, 8)
    assert one.found([record(1), record(2)], 0) == [Meet(2, "ipc:///run/2/control.sock")]
    assert one.found([record(2)], SECOND) == []


def test_node_of_another_host_is_met_and_its_executors_are_reached_by_tcp() -> None:
    one = Neighbours(1, "here", 4, 8)
    assert one.found([record(2, "there")], 0) == [Meet(2, "tcp://10.0.0.2:7000")]
    done = one.told(2, [row(0, port=9001), row(1, port=0)], 0)
    assert done == [Mirror(4, 1, 4000, 2, 0, 1, "tcp:h:9001"), Reflect(4, READY, 0, 0, 0, 0)], "one has no port"


def test_executors_of_a_neighbour_are_shown_and_taken_back() -> None:
    one = Neighbours(1, "here", 4, 8)
    one.found([record(2)], 0)
    assert one.told(2, [row(0), row(3, waiting=2)], 0) == [
        Mirror(4, 1, 4000, 2, 0, 1, "unix:/run/2/e0-1.sock"), Reflect(4, READY, 0, 0, 0, 0),
        Mirror(5, 2, 4003, 2, 3, 1, "unix:/run/2/e3-1.sock"), Reflect(5, READY, 0, 2, 0, 0),
    ]  # fmt: skip
    done = one.told(2, [row(0, life=7)], SECOND)
    assert done[:2] == [Vacate(4), Vacate(5)]
    assert list(one.executors.values()) == [3], "what was in a slot is not taken for what is there now"
    one.check()


def test_silent_node_is_lost_and_its_places_are_given_again_later() -> None:
    one = Neighbours(1, "here", 4, 5)
    one.found([record(2), record(3)], 0)
    one.told(2, [row(0)], 0)
    one.told(3, [row(0)], SECOND)
    assert one.tick(SILENCE - 1) == []
    assert one.tick(SILENCE) == [Lose(4), Part(2)]
    assert [type(each) for each in one.told(3, [row(0)], SILENCE)] == [], "its place still shows that it is lost"
    assert Vacate(4) in one.tick(2 * SILENCE - 1)
    assert Mirror(4, 2, 4000, 3, 0, 1, "unix:/run/3/e0-1.sock") in one.told(3, [row(0)], 2 * SILENCE)


def test_node_that_said_it_ends_is_not_met_again_for_a_while() -> None:
    one = Neighbours(1, "here", 4, 8)
    one.found([record(2)], 0)
    assert one.parted(2, SECOND) == [Part(2)]
    assert one.found([record(2)], SECOND) == [], "its record is still in the store"


def test_page_shows_executors_of_others_after_its_own() -> None:
    buffer = mmap.mmap(-1, page_bytes(4))
    Page.format(buffer, 4, 99, 0x030B, 2)
    page = Page(buffer)
    page.occupy(0, 1)
    page.set_pid(0, 17)
    page.mirror(3, 31, 18, 77, 9, 5, "unix:/run/77/e9-5.sock")
    page.reflect(3, READY, 1, 2, 123, 456)
    assert (page.own, page.slots, page.foreign()) == (2, 4, 1)
    assert page.ready() == {0: 1, 3: 31}
    assert [page.home(0), page.home(3)] == [(99, 0, 1, ""), (77, 9, 5, "unix:/run/77/e9-5.sock")]
    assert [page.locate(77, 9, 5), page.locate(99, 0, 1)] == [3, 0]
    assert page.locate(77, 9, 6) == page.locate(99, 0, 2) == page.locate(99, 3, 5) == -1
    assert page.find(123, 456) == 3
    page.lose(3)
    assert page.state(3)[0] == LOST
    assert page.ready() == {0: 1}
    page.vacate(3)
    assert page.state(3)[0] == EMPTY
    assert page.locate(77, 9, 5) == -1
    page.check()


class Around(RuleBasedStateMachine):
    """Nodes that come, speak, fall silent and part, in any order, with more executors than there are places."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.core = Neighbours(1, "here", 10, 16)
        self.shown: dict[int, str] = {}
        self.names: set[int] = set()

    def obey(self, done: list[object]) -> None:
        for one in done:
            if isinstance(one, Mirror):
                assert one.slot not in self.shown, "a place that somebody has was given again"
                self.shown[one.slot] = "shown"
                assert one.incarnation not in self.names
                self.names.add(one.incarnation)
            elif isinstance(one, Reflect):
                assert self.shown[one.slot] == "shown"
            elif isinstance(one, Lose):
                self.shown[one.slot] = "lost"
            elif isinstance(one, Vacate):
                del self.shown[one.slot]

    @rule(id=st.integers(1, 4))
    def find(self, id: int) -> None:
        self.obey(list(self.core.found([record(id)], self.now)))

    @rule(id=st.integers(2, 4), rows=st.dictionaries(st.integers(0, 4), st.integers(1, 2)))
    def speak(self, id: int, rows: dict[int, int]) -> None:
        self.obey(list(self.core.told(id, [row(slot, life) for slot, life in rows.items()], self.now)))

    @rule(id=st.integers(2, 4))
    def part(self, id: int) -> None:
        self.obey(list(self.core.parted(id, self.now)))

    @rule(us=st.integers(0, 2 * SILENCE))
    def wait(self, us: int) -> None:
        self.now += us
        due = self.core.next_tick_us
        self.obey(list(self.core.tick(self.now)))
        if due is not None and due <= self.now:
            assert self.core.next_tick_us is None or self.core.next_tick_us > self.now, "nothing due is left"

    @invariant()
    def sound(self) -> None:
        self.core.check()
        assert {slot for slot, how in self.shown.items() if how == "shown"} == set(self.core.executors)


TestAround = Around.TestCase
TestAround.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
