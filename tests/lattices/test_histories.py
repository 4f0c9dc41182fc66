"""Random histories over replicas, compared with specifications of a few lines.

Replicas write, forget the key and get it back, and receive single deltas and whole states of each other, in any order,
some twice, some never. A specification looks only at which events a replica knows, not at any lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from anna.lattices import Causal, Counter, Lattice, ORSet

REPLICAS = 3
Event = int


@dataclass
class Replica:
    """A worker's object for the key, the events that went into it, and its own writes to the object `own_of`."""

    writer: int
    state: Any
    known: frozenset[Event] = frozenset()
    own: frozenset[Event] = frozenset()
    own_of: Any = None


Message = tuple[bytes, frozenset[Event]]


@dataclass
class World:
    """Replicas, all that was ever sent as bytes, and of each event what it means and which events it came after."""

    kind: Any
    replicas: list[Replica] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)
    meaning: list[Any] = field(default_factory=list)
    after: list[frozenset[Event]] = field(default_factory=list)
    clock: int = 0

    def __post_init__(self) -> None:
        self.replicas = [Replica(writer, self.kind()) for writer in range(1, REPLICAS + 1)]

    def run(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 25))):
            self.step(data)
            self.check()
        for replica in self.replicas * 2:
            for other in self.replicas:
                self.receive(replica, self.whole(other))
        self.check()
        assert len({replica.state.encode() for replica in self.replicas}) == 1, "who knows the same is the same"

    def step(self, data: st.DataObject) -> None:
        replica = self.replicas[data.draw(st.integers(0, REPLICAS - 1))]
        other = self.replicas[data.draw(st.integers(0, REPLICAS - 1))]
        what = data.draw(st.sampled_from(["write", "write", "receive", "sync", "hand over"]))
        if what == "write":
            self.draw_write(data, replica)
        elif what == "receive" and self.sent:
            self.receive(replica, self.sent[data.draw(st.integers(0, len(self.sent) - 1))])
        elif what == "sync":
            self.receive(replica, self.whole(other))
        elif what == "hand over" and other is not replica:
            self.receive(other, self.whole(replica))
            replica.state, replica.known = self.kind(), frozenset()

    def whole(self, replica: Replica) -> Message:
        return replica.state.encode(), replica.known

    def receive(self, replica: Replica, message: Message) -> None:
        replica.state.merge(self.kind.decode(message[0]))
        replica.known |= message[1]

    def write(self, replica: Replica, request: Lattice, meaning: Any, after: frozenset[Event]) -> None:
        """Accept `request` at `replica`, as a worker does; its delta and the whole state may be sent later."""
        self.clock += 1000
        delta = request.assign(replica.state, self.clock, replica.writer)
        event = len(self.meaning)
        self.meaning.append(meaning)
        self.after.append(after)
        self.sent.append((delta.encode(), self.told_by(event)))
        self.receive(replica, self.sent[-1])
        self.sent.append(self.whole(replica))

    def check(self) -> None:
        for replica in self.replicas:
            assert self.shown(replica.state) == self.expected(replica.known)
            assert self.kind.decode(replica.state.encode()) == replica.state

    def draw_write(self, data: st.DataObject, replica: Replica) -> None:
        raise NotImplementedError

    def expected(self, known: frozenset[Event]) -> Any:
        """The specification: what a replica shows that knows these events."""
        raise NotImplementedError

    def told_by(self, event: Event) -> frozenset[Event]:
        """Which events are known to whom the delta of `event` is known."""
        return frozenset({event})

    def shown(self, state: Any) -> Any:
        return state.value


class ORSetWorld(World):
    """x is in the set iff some known add of x was not replaced or removed by a known event, whose author saw it."""

    def draw_write(self, data: st.DataObject, replica: Replica) -> None:
        element = data.draw(st.sampled_from("xyz"))
        seen = frozenset(event for event in self.standing(replica.known) if self.meaning[event] == element)
        how = data.draw(st.sampled_from(["add", "remove", "remove what was read"]))
        if how == "add":
            self.write(replica, ORSet(add={element}), element, seen)
        elif how == "remove":
            self.write(replica, ORSet(remove={element}), None, seen)
        else:
            self.write(replica, replica.state.remove(element), None, seen)

    def standing(self, known: frozenset[Event]) -> frozenset[Event]:
        return known.difference(*(self.after[event] for event in known))

    def expected(self, known: frozenset[Event]) -> set[str]:
        return {self.meaning[event] for event in self.standing(known)} - {None}


class CausalWorld(World):
    """Shown are the values of the known writes that no known write came after."""

    reads: list[Message]

    def draw_write(self, data: st.DataObject, replica: Replica) -> None:
        self.reads = [*getattr(self, "reads", [(b"", frozenset())]), self.whole(replica)]
        read, known = self.reads[data.draw(st.integers(0, len(self.reads) - 1))]
        value = f"value {len(self.meaning)}"
        after = known.union(*(self.after[event] for event in known))
        self.write(replica, Causal(value, after=Causal.decode(read)), value, after)

    def expected(self, known: frozenset[Event]) -> list[str]:
        return sorted(self.meaning[event] for event in known.difference(*(self.after[event] for event in known)))

    def shown(self, state: Any) -> list[str]:
        return sorted(state.value)


class CounterWorld(World):
    """The sum of the known amounts. A delta tells the earlier ones of its writer that the writer still knew."""

    def draw_write(self, data: st.DataObject, replica: Replica) -> None:
        amount = data.draw(st.integers(-3, 3).filter(bool))
        own = replica.own if replica.own_of is replica.state else frozenset()
        self.write(replica, Counter(amount), amount, own)
        replica.own_of, replica.own = replica.state, own | {len(self.meaning) - 1}

    def told_by(self, event: Event) -> frozenset[Event]:
        return self.after[event] | {event}

    def expected(self, known: frozenset[Event]) -> int:
        return sum(self.meaning[event] for event in known)


many = settings(max_examples=200, deadline=None)


@many
@given(st.data())
def test_orset_history_is_that_of_its_specification(data: st.DataObject) -> None:
    ORSetWorld(ORSet).run(data)


@many
@given(st.data())
def test_causal_history_is_that_of_its_specification(data: st.DataObject) -> None:
    CausalWorld(Causal).run(data)


@many
@given(st.data())
def test_counter_history_is_that_of_its_specification(data: st.DataObject) -> None:
    CounterWorld(Counter).run(data)
