"""What a session sees of every type: its epoch, its client's commits above it, its own writes; and what it commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna.errors import LatticeTypeMismatch
from anna.lattices import (
    LWW,
    REGISTRY,
    Bool,
    Causal,
    Counter,
    Lattice,
    Map,
    Max,
    Min,
    OrderedSet,
    ORSet,
    Priority,
    Set,
    VectorClock,
)  # fmt: skip
from cloudburst.consistency import travel
from cloudburst.consistency.levels import CAUSAL, EVENTUAL, READ_ATOMIC, REPEATABLE, level_of
from cloudburst.consistency.own import WRITERS_MIN
from cloudburst.consistency.session import (
    Past,
    Session,
    Snapshot,
    end_of,
    epoch_of,
    joined_branches,
    writer_in_store,
    writer_of,
)
from cloudburst.consistency.token import Token, token_of
from cloudburst.errors import CloudburstError, ProtocolError, RequestError

WORKER, STAMP, NAME = 7, 1 << 20, b'a transaction id'
letters = st.sampled_from("abc")
sets = st.sets(letters, max_size=2)
plain: dict[int, st.SearchStrategy[Callable[[Any], Lattice]]] = {
    1: st.builds(lambda value: lambda seen: LWW.of(value), st.integers(0, 9)),
    2: st.builds(lambda value: lambda seen: Max(value), st.integers(0, 9)),
    3: st.builds(lambda value: lambda seen: Min(value), st.integers(0, 9)),
    4: st.builds(lambda value: lambda seen: Bool(value), st.booleans()),
    5: st.builds(lambda value: lambda seen: Counter(value), st.integers(-5, 5)),
    6: st.builds(lambda value: lambda seen: Set(value), sets),
    7: st.one_of(
        st.builds(lambda add, gone: lambda seen: ORSet(add=add, remove=gone), sets, sets),
        st.builds(lambda gone: lambda seen: (seen or ORSet()).remove(gone), letters),
    ),
    8: st.builds(lambda value: lambda seen: OrderedSet(value), st.lists(letters, max_size=3)),
    10: st.builds(lambda priority, value: lambda seen: Priority(priority, value), st.integers(0, 3), letters),
    11: st.builds(
        lambda counts: lambda seen: VectorClock(counts), st.dictionaries(st.integers(1, 3), st.integers(1, 9))
    ),
    12: st.builds(
        lambda value, knows: lambda seen: seen.set(value) if seen is not None and knows else Causal(value),
        letters, st.booleans(),
    ),
}  # fmt: skip
plain[9] = st.one_of(
    [
        st.builds(lambda key, make, number=number: lambda seen: Map({f"{key}{number}": make(None)}), letters, write)
        for number, write in plain.items()
    ]
)


def settled(state: Lattice | None, request: Lattice, stamp: int, writer: int = WORKER) -> Lattice:
    """What a worker holds after it has accepted a write."""
    delta = request.assign(state, stamp, writer)
    return delta if state is None else state.join(delta)


def histories(number: int) -> st.SearchStrategy[list[Callable[[Any], Lattice]]]:
    return st.lists(plain[number], max_size=3)


def stored(writes: list[Callable[[Any], Lattice]], state: Lattice | None = None) -> Lattice | None:
    for index, make in enumerate(writes):
        state = settled(state, make(state), STAMP + 1024 * index)
    return state


def session(level: Any = CAUSAL, low: int = 1, **fields: Any) -> Session:
    return Session(level, writer_of(9, low), Snapshot(100, 5), begun=True, **fields)


def write(one: Session, make: Callable[[Any], Lattice], base: Lattice | None) -> None:
    one.put(b"k", make(one.value(b"k", base)), base)
    one.check()


def accepted(one: Session, base: Lattice | None, stamp: int) -> Lattice | None:
    """What a worker holds after it has committed the session's transaction."""
    if b"k" not in one.buffered:
        return base
    delta = one.buffered[b"k"].requests()[1].as_prepared(base, writer_in_store(NAME))
    delta = delta.assign(None, stamp, writer_in_store(NAME))
    return delta if base is None else base.join(delta)


def commit(one: Session, base: Lattice | None) -> Lattice | None:
    """What a worker holds after it has accepted what a session commits."""
    if b"k" not in one.buffered:
        return base
    gone, request = one.buffered[b"k"].requests()
    base = None if gone else base
    return base if request is None else settled(base, request, 1 << 59)


def shown(state: Lattice | None) -> Any:
    """What a reader sees; of siblings that are alike, one."""
    return None if state is None else without_order(state.value)


def without_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_order(item) for key, item in value.items()}
    return set(value) if isinstance(value, tuple) and value and isinstance(value[0], str) else value


def test_every_registered_type_is_tried_here() -> None:
    assert sorted(plain) == sorted(number for number in REGISTRY if number < 128)


@pytest.mark.parametrize("number", sorted(plain), ids=lambda number: REGISTRY[number].__name__)
def test_what_a_session_shows_is_what_it_commits(number: int) -> None:
    """Its own writes are read back as the store will have them, whatever the type, and travelling changes nothing."""

    @settings(max_examples=150, deadline=None)
    @given(histories(number), histories(number), st.booleans())
    def check(before: list[Any], writes: list[Any], delete: bool) -> None:
        base, one = stored(before), session()
        for index, make in enumerate(writes):
            if delete and index == 1:
                one.delete(b"k")
            write(one, make, base)
            one = travel.unpack(travel.pack(one), writer_of(9, index + 2))
        assert shown(commit(one, base)) == shown(one.value(b"k", base))
        request = one.buffered[b"k"].requests()[1] if one.buffered else None
        assert str(WRITERS_MIN >> 32)[:6] not in repr(getattr(request, "dots", ""))

    check()


@pytest.mark.parametrize("number", sorted(plain), ids=lambda number: REGISTRY[number].__name__)
def test_branches_agree_on_what_they_wrote_in_whatever_way_they_are_joined(number: int) -> None:
    @settings(max_examples=100, deadline=None)
    @given(histories(number), histories(number), histories(number), histories(number))
    def check(before: list[Any], first: list[Any], left: list[Any], right: list[Any]) -> None:
        base, source = stored(before), session()
        for make in first:
            write(source, make, base)
        branches = [travel.unpack(travel.pack(source), writer_of(9, low)) for low in (2, 3)]
        for branch, writes in zip(branches, (left, right), strict=True):
            for make in writes:
                write(branch, make, base)
        packed = [travel.pack(branch) for branch in branches]
        one = joined_branches(travel.unpack(data, writer_of(9, 4)) for data in packed)
        again = joined_branches(travel.unpack(data, writer_of(9, 4)) for data in packed)
        assert travel.pack(one) == travel.pack(again)
        one.absorb(travel.unpack(packed[1], writer_of(9, 5)))
        assert shown(one.value(b"k", base)) == shown(again.value(b"k", base))
        assert shown(commit(one, base)) == shown(one.value(b"k", base))

    check()


def test_a_session_reads_its_own_writes_over_those_of_the_epoch() -> None:
    one = session()
    late = LWW("theirs", stamp=STAMP, writer=1 << 62)
    one.put(b"k", LWW.of("mine"), late)
    assert one.value(b"k", late).value == "mine"
    one.delete(b"k")
    assert one.value(b"k", late) is None
    assert one.hides(b"k")
    one.put(b"k", LWW.of("again"))
    assert one.value(b"k", None).value == one.value(b"k", late).value == "again"
    assert one.value(b"other", late) is late
    assert not one.owns(b"other")


def test_increments_count_once_and_are_committed_once() -> None:
    base = settled(None, Counter(10), STAMP)
    one = session()
    for _ in range(3):
        one.put(b"k", Counter(+2), base)
    branch = travel.unpack(travel.pack(one), writer_of(9, 2))
    branch.put(b"k", Counter(+1), base)
    one.absorb(branch)
    one.absorb(branch)
    assert one.value(b"k", base).value == 17
    assert one.buffered[b"k"].requests()[1] == Counter(+7)


def test_a_removal_removes_what_the_session_sees_and_not_what_came_later() -> None:
    base = settled(None, ORSet({"old"}), STAMP)
    one = session()
    one.put(b"k", ORSet({"mine"}), base)
    one.put(b"k", ORSet(remove={"old", "mine"}), base)
    assert one.value(b"k", base).value == set()
    later = settled(base, ORSet({"old", "mine"}), STAMP + 1024, 8)
    gone, request = one.buffered[b"k"].requests()
    assert not gone
    assert settled(later, request, 1 << 59).value == {"old", "mine"}


def test_another_type_than_the_key_has_is_refused_and_changes_nothing() -> None:
    one = session()
    with pytest.raises(LatticeTypeMismatch):
        one.put(b"k", Set(set("a")), LWW("register", stamp=STAMP, writer=1))
    assert one.buffered == {}
    one.put(b"k", Set(set("a")))
    with pytest.raises(LatticeTypeMismatch):
        one.put(b"k", LWW.of(1))
    assert one.value(b"k", None) == Set(set("a"))


def test_a_branch_that_deletes_is_later_than_what_came_before_the_fork() -> None:
    source = session()
    source.put(b"k", Set(set("a")))
    left, right = (travel.unpack(travel.pack(source), writer_of(9, low)) for low in (2, 3))
    left.delete(b"k")
    for pair in ((left, right), (right, left)):
        both = joined_branches(travel.unpack(travel.pack(one), writer_of(9, 4)) for one in pair)
        assert both.value(b"k", Set(set("b"))) is None
    right.put(b"k", Set(set("c")))
    right.put(b"k", Set(set("d")))
    assert joined_branches((left, right)).value(b"k", Set(set("b"))) == Set(set("acd"))


def test_of_two_branches_that_write_one_register_the_later_edge_wins_a_tie() -> None:
    left, right = session(low=2), session(low=3)
    left.put(b"k", LWW.of("left"))
    right.put(b"k", LWW.of("right"))
    packed = [travel.pack(one) for one in (left, right)]
    for order in (packed, packed[::-1]):
        both = joined_branches(travel.unpack(data, writer_of(9, 4)) for data in order)
        assert both.value(b"k", None).value == ("right" if order is packed else "left")


def test_branches_at_two_epochs_are_an_error() -> None:
    with pytest.raises(ProtocolError, match=r"at epoch 100 .* at 101"):
        session().absorb(Session(CAUSAL, writer_of(9, 2), Snapshot(101, 5), begun=True))


# -- from session to session


def after_(one: Session) -> Session:
    past = Past()
    past.learn(one)
    return past.next(CAUSAL, writer_of(9, 2))


def test_the_next_session_sees_what_the_last_one_committed_until_its_epoch_has_it() -> None:
    one = session()
    one.put(b"k", LWW.of("mine"))
    stamp = end_of(102)
    one.committed(stamp, writer_in_store(NAME))
    after = after_(one)
    after.check()
    assert after.snapshot == Snapshot(100, 5), "it need not wait: it has its own writes with it"
    after.begin(Snapshot(101, 5))
    assert after.value(b"k", LWW("old", stamp=STAMP, writer=1)).value == "mine"
    assert after.after == stamp
    after.put(b"k", LWW.of("mine too"))
    assert after.value(b"k", None).value == "mine too"
    after.begin(Snapshot(102, 5))
    assert after.carried == []


@pytest.mark.parametrize("number", sorted(plain), ids=lambda number: REGISTRY[number].__name__)
def test_a_later_session_sees_what_was_committed_and_goes_on_from_there(number: int) -> None:
    """Whatever the type: its next writes come to the same at the owners as where it had waited for its epoch."""

    @settings(max_examples=100, deadline=None)
    @given(histories(number), histories(number), histories(number))
    def check(before: list[Any], first: list[Any], second: list[Any]) -> None:
        base, one = stored(before), session()
        for make in first:
            write(one, make, base)
        later = accepted(one, base, end_of(102))
        one.committed(end_of(102), writer_in_store(NAME))
        after = travel.unpack(travel.pack(after_(one)), writer_of(9, 2))
        after.begin(Snapshot(101, 5))
        after.check()
        assert shown(after.value(b"k", base)) == shown(later)
        for make in second:
            write(after, make, base)
        assert shown(commit(after, later)) == shown(after.value(b"k", base))

    check()


def test_increments_of_earlier_sessions_are_seen_and_not_committed_again() -> None:
    one = session()
    one.put(b"k", Counter(+2))
    one.committed(end_of(102), writer_in_store(NAME))
    after = after_(one)
    after.put(b"k", Counter(+3))
    assert after.value(b"k", settled(None, Counter(10), STAMP)).value == 15
    assert after.buffered[b"k"].requests()[1] == Counter(+3)


def test_sessions_that_end_beside_each_other_are_both_seen_by_the_next() -> None:
    past = Past()
    sessions = [past.next(CAUSAL, writer_of(9, low)) for low in (1, 2, 3)]
    for epoch, one in zip((100, 101, 99), sessions, strict=True):
        one.begin(Snapshot(epoch, 5))
        one.put(b"%d" % epoch, LWW.of(1))
    for stamp, one in zip((end_of(104), end_of(103), end_of(101)), sessions, strict=True):
        one.committed(stamp, writer_in_store(NAME))
        past.learn(one)
    after = past.next(CAUSAL, writer_of(9, 4))
    after.check()
    assert after.snapshot == Snapshot(101, 5)
    assert after.last == end_of(104)
    assert [stamp for stamp, _ in after.carried] == [end_of(103), end_of(104)]


def test_a_write_outside_of_sessions_is_in_the_epoch_of_the_next() -> None:
    past = Past()
    past.wrote(end_of(102))
    after = past.next(CAUSAL, writer_of(9, 1))
    assert (after.snapshot.epoch, after.last, after.begun) == (102, end_of(102), False)
    assert past.next(READ_ATOMIC, writer_of(9, 1)) == Session(READ_ATOMIC, writer_of(9, 1))


def test_who_has_only_a_token_begins_where_its_last_commit_is() -> None:
    past = Token(Snapshot(100, 5), end_of(102)).past()
    assert past.next(CAUSAL, writer_of(9, 1)).snapshot == Snapshot(102, 5)


def test_more_than_a_call_should_bring_along_is_waited_for() -> None:
    one = session()
    one.put(b"k", LWW.of(bytes(100_000)))
    one.committed(end_of(102), writer_in_store(NAME))
    assert (one.carried, one.snapshot) == ([], Snapshot(102, 5))


# -- as bytes


def test_a_context_has_25_bytes_beside_what_the_session_has_written() -> None:
    assert len(travel.pack(session(last=end_of(101), closes=True))) == travel.METADATA_BYTES == 25


keys = st.binary(min_size=1, max_size=6)


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    one = session(draw(st.sampled_from([EVENTUAL, REPEATABLE, READ_ATOMIC, CAUSAL])))
    one.closes, one.recorded = draw(st.booleans()), draw(st.booleans())
    one.parts = tuple(draw(st.lists(st.integers(0, 2**64 - 1), max_size=3))) if one.recorded else ()
    for _ in range(draw(st.integers(0, 3))):
        for key, number in draw(st.dictionaries(keys, st.sampled_from(sorted(plain)), max_size=3)).items():
            if not one.owns(key + bytes([number])):
                one.put(key + bytes([number]), draw(plain[number])(None))
        if draw(st.booleans()):
            one.delete(draw(keys) + b"gone")
        if draw(st.booleans()):
            one.committed(max(one.last, end_of(100)) + draw(st.integers(1, 9)), draw(st.sampled_from([0, 5, 6])))
    return one


@given(sessions())
def test_a_session_travels_whole(one: Session) -> None:
    one.check()
    found = travel.unpack(travel.pack(one), one.writer)
    found.check()
    clock = max([0, *(own.stamp for _, writes in one.carried for own in writes.values())])
    clock = max([clock, *(own.stamp for own in one.buffered.values())])
    assert found.clock in (clock, one.clock) or not clock
    found.clock = one.clock
    assert found == one


@given(sessions(), st.data())
def test_what_is_no_context_is_refused(one: Session, data: st.DataObject) -> None:
    packed = bytearray(travel.pack(one))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(0, len(packed) - 1)) :]
    else:
        packed[data.draw(st.integers(24, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = travel.unpack(bytes(packed), one.writer)
    except ProtocolError:
        return
    found.check()  # some other session, but one


@pytest.mark.parametrize("size", range(travel.METADATA_BYTES))
def test_a_context_that_was_cut_off_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        travel.unpack(travel.pack(session())[:size], WRITERS_MIN)


# -- levels, tokens, clocks


def test_a_level_that_is_not_there_is_refused_and_one_that_cannot_be_as_well() -> None:
    assert level_of("eventual") is EVENTUAL
    assert level_of("repeatable") is REPEATABLE
    with pytest.raises(RequestError, match="the levels are 'eventual', 'repeatable', 'read-atomic', 'causal'"):
        level_of("serializable")


@given(*[st.integers(0, 2**64 - 1)] * 3)
def test_a_token_is_text_and_one_that_was_changed_is_refused(epoch: int, view: int, last: int) -> None:
    token = Token(Snapshot(epoch, view), last)
    text = token.text()
    assert token_of(text) == token
    assert text.isprintable()
    changed = text[:7] + "0123456789abcdef"[int(text[7], 16) - 1] + text[8:]
    for wrong in (text[:-1], text + "0", "x" + text, "", "z" * len(text), changed):
        with pytest.raises(RequestError):
            token_of(wrong)


@given(st.integers(1, 2**40))
def test_the_end_of_an_epoch_is_its_last_stamp(epoch: int) -> None:
    assert epoch_of(end_of(epoch)) == epoch
    assert epoch_of(end_of(epoch) + 1) == epoch + 1


def test_writers_of_sessions_differ_and_are_no_workers() -> None:
    writers = {writer_of(high, low) for high in range(1, 60) for low in range(60)}
    assert len(writers) == 59 * 60
    assert min(writers) >= WRITERS_MIN
    assert issubclass(RequestError, CloudburstError)
