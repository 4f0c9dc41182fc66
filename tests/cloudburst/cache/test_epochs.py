"""What a node's cache answers at an epoch is what the owners answer there, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from anna import wire
from anna.config import EPOCH_LEASE_US_MAX, EPOCH_TRIES_MAX
from anna.kvs.faults import PLANTED
from anna.kvs.worker import Connection
from anna.lattices import Set
from anna.routing.placement import Placement
from tests.anna.frames import DELETE, GET, MISSING, OK, PUT, Reply, items, put, register, request
from tests.anna.kvs.test_epochs import epoch_of, get_at
from tests.anna.kvs.workers import STALE, view_of
from tests.cloudburst.cache.stores import EXPIRED, GET_AT, MGET_AT, PIN, SUBSCRIBE_AT, Store


def write(store: Store, key: bytes, value: bytes) -> Reply:
    return store.write(lambda: put(key, value, ack=1))


def value(answer: Reply) -> bytes | None:
    assert answer.status in (OK, MISSING), answer
    return answer.payload[17:] if answer.status == OK else None


def test_a_session_that_begins_at_the_cache_waits_once_for_the_history_and_reads_what_was_there() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"v")
    at = store.begin()
    assert value(store.get_at(b"k", at)) == b"v"
    assert value(store.get_at(b"none", at)) is None
    write(store, b"k", b"w")
    store.pass_epochs(3)
    assert value(store.get_at(b"k", at)) == b"v"
    assert value(store.get_at(b"k", store.begin())) == b"w"
    store.check()


def test_a_session_begins_at_the_least_stable_epoch_of_all_owners() -> None:
    store = Store(view_of(2))
    store.begin()
    lost = True
    store.lose = lambda source, target, frame: lost and target == 200
    store.pass_epochs(5)
    stable = [store.workers[ids].status()["stable"] for ids in (100, 200)]
    assert stable[0] > stable[1]
    epoch, view = store.begin()
    assert (epoch, view) == (stable[1], store.view.digest)
    lost = False
    store.check()


def test_several_keys_are_read_at_one_epoch() -> None:
    store = Store(view_of(2, workers=2))
    keys = [b"%d" % number for number in range(8)]
    for key in keys:
        write(store, key, b"before")
    store.pass_epochs(5)
    at = store.begin()
    for key in keys[::2]:
        write(store, key, b"after")
    store.pass_epochs(3)
    answer = store.multi_get_at([*keys, b"none"], at)
    assert [state[17:] for _, _, state in items(answer.payload)] == [b"before"] * 8 + [b""]
    assert items(answer.payload)[8][0] == MISSING
    assert store.multi_get_at([], at).payload == b"\0\0\0\0"
    store.check()


def test_a_set_is_read_at_an_epoch_as_a_register_is() -> None:
    store = Store(view_of(2, factor=2))
    state = Set([1, 2])
    store.write(lambda: request(PUT, b"s", state.encode(), type=state.NUMBER, ack=1))
    store.pass_epochs(4)
    answer = store.get_at(b"s", store.begin())
    assert (answer.type, Set.decode(answer.payload).value) == (state.NUMBER, frozenset({1, 2}))


def test_a_session_that_has_seen_a_later_epoch_waits_for_it() -> None:
    store = Store(view_of(2, factor=2))
    store.begin()
    least = epoch_of(write(store, b"k", b"mine").stamp)
    assert store.begin()[0] < least
    answer = store.pin(least=least)
    epoch, view = struct.unpack_from("<QQ", answer.payload)
    assert epoch >= least
    assert value(store.get_at(b"k", (epoch, view))) == b"mine"
    store.check()


def test_an_epoch_that_does_not_become_stable_is_said_to_be_stale_in_the_end() -> None:
    store = Store(view_of(1))
    epoch, view = store.begin()
    answer = store.answer(request(GET_AT, b"k", struct.pack("<QQ", epoch + 10**6, view)), EPOCH_TRIES_MAX + 5)
    assert answer.status == STALE
    store.check()


def test_what_is_not_kept_any_more_and_what_was_under_another_view_is_refused() -> None:
    store = Store(view_of(2, factor=2))
    epoch, view = store.begin()
    assert store.get_at(b"k", (epoch - 100, view)).status == EXPIRED
    assert store.get_at(b"k", (epoch, view + 1)).status == EXPIRED
    assert store.multi_get_at([b"j", b"k"], (epoch - 100, view)).status == EXPIRED
    assert store.pin(epoch - 100).status == EXPIRED
    store.check()


def test_an_epoch_that_was_pinned_through_the_cache_is_read_when_it_is_long_past() -> None:
    store = Store(view_of(2, workers=2))
    for number in range(8):
        write(store, b"%d" % number, b"before")
    store.pass_epochs(4)
    epoch, view = store.begin()
    assert store.pin(epoch).status == OK
    for _ in range(60):
        for number in range(8):
            write(store, b"%d" % number, b"after")
        store.pass_epochs()
    assert {value(store.get_at(b"%d" % number, (epoch, view))) for number in range(8)} == {b"before"}
    assert store.get_at(b"1", (epoch + 1, view)).status == EXPIRED
    store.check()


def test_reads_go_on_at_another_owner_when_the_stream_to_one_ends() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    at = store.begin()
    store.send(request(GET_AT, b"k", struct.pack("<QQ", *at)))
    (first,) = [ids for ids in store.streams if store.to_worker[ids]]
    store.cut(first)
    store.settle()
    assert value(store.answers.popleft()) == b"v"
    assert store.begin()[0] >= at[0]
    store.connect(first)
    assert value(store.get_at(b"k", at)) == b"v"
    store.check()


def test_a_session_that_begins_while_no_owner_is_connected_is_told_to_try_again() -> None:
    store = Store(view_of(1))
    store.cut(100)
    store.send(request(PIN, b"", struct.pack("<QQ", 0, EPOCH_LEASE_US_MAX)))
    assert store.answers.popleft().status == wire.UNAVAILABLE
    store.check()


def test_bytes_that_are_no_read_at_an_epoch_are_refused_before_anybody_is_asked() -> None:
    store = Store(view_of(1))
    epoch, view = store.begin()
    cut = request(MGET_AT, b"", struct.pack("<QQIH", epoch, view, 2, 1) + b"k")
    for frame in (request(GET_AT, b"k", b"short"), request(MGET_AT, b"", b"short"), request(PIN, b"", b"short"), cut):
        store.send(frame)
        assert store.answers.popleft().status == 21
    store.workers[100].receive(Connection(), put(b"k", b"v"), store.now)
    store.check()


def asked_of_workers(store: Store) -> list[int]:
    """Return the operations that are under way to workers."""
    data, operations = b"".join(part for parts in store.to_worker.values() for part in parts), []
    while data:
        (length,) = struct.unpack_from("<I", data)
        operations.append(data[5])
        data = data[4 + length :]
    return operations


def local(store: Store, frame: bytes) -> Reply:
    """Ask the cache what it must answer at once, and without a message."""
    store.settle()
    store.send(frame)
    assert asked_of_workers(store) == []
    return store.answers.popleft()


def at_of(store: Store) -> tuple[int, int]:
    """Begin a session, which costs no message."""
    epoch, view = struct.unpack_from("<QQ", local(store, request(PIN, b"", struct.pack("<QQ", 0, 30_000_000))).payload)
    return epoch, view


def read_local(store: Store, key: bytes, at: tuple[int, int]) -> bytes | None:
    return value(local(store, request(GET_AT, key, struct.pack("<QQ", *at))))


def test_what_was_read_once_is_read_at_later_epochs_without_a_message() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    at = store.begin()
    assert (value(store.get_at(b"k", at)), value(store.get_at(b"none", at))) == (b"v", None)
    for number in range(40):
        write(store, b"k", b"%d" % number)
        store.pass_epochs(3)
        store.flush()
        store.settle()
        at = at_of(store)
        assert (read_local(store, b"k", at), read_local(store, b"none", at)) == (b"%d" % number, None)
    names = b"".join(struct.pack("<H", len(key)) + key for key in (b"k", b"none"))
    answer = local(store, request(MGET_AT, b"", struct.pack("<QQI", *at, 2) + names))
    assert [(status, state[17:]) for status, _, state in items(answer.payload)] == [(OK, b"39"), (MISSING, b"")]
    store.check()


def test_a_key_that_comes_and_goes_is_seen_to_do_so_epoch_by_epoch() -> None:
    store = Store(view_of(1))
    store.begin()
    assert value(store.get_at(b"k", at_of(store))) is None
    seen = []
    for turn in range(12):
        if turn % 4 == 1:
            write(store, b"k", b"%d" % turn)
        elif turn % 4 == 3:
            store.write(lambda: request(DELETE, b"k", ack=1))
        store.pass_epochs()
        store.settle()
        seen.append((at_of(store), turn))
    found = [(read_local(store, b"k", at), turn) for at, turn in seen]
    changes = [held for held, turn in found if turn % 2 == 0]
    assert changes == [None, b"1", None, b"5", None, b"9"]
    store.check()


def test_versions_of_the_past_are_kept_while_a_session_may_read_them_and_no_longer() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"first")
    store.pass_epochs(4)
    pinned, recent = store.begin(), None
    assert value(store.get_at(b"k", pinned)) == b"first"
    assert store.pin(pinned[0], lease_us=2_000_000).status == OK
    for number in range(100):
        write(store, b"k", b"%d" % number)
        store.pass_epochs()
        store.settle()
        recent = at_of(store) if number % 2 else recent
    assert read_local(store, b"k", pinned) == b"first"
    assert store.cache is not None
    assert 3 <= store.cache.status()["versions"] <= 20
    write(store, b"k", b"last")
    for _ in range(220):
        store.pass_epochs()
        store.settle()
    assert at_of(store) > recent  # type: ignore[operator]
    assert store.cache.status()["versions"] == 1
    assert store.get_at(b"k", pinned).status == EXPIRED
    store.check()


def test_an_epoch_between_two_pushes_in_which_the_key_changed_is_asked_of_the_owner() -> None:
    """What was at an end of a gap is not what was in it."""
    store = Store(view_of(2, factor=1))
    keys = [b"%d" % number for number in range(9)]
    key = next(k for k in keys if store.ask(100, put(k, b"0", ack=1), connection=Connection())[0].status == OK)
    store.pass_epochs(4)
    at = store.begin()
    assert value(store.get_at(key, at)) == b"0"
    store.lose = lambda source, target, frame: target == 100
    written = []
    for number in (1, 2, 3):
        (answer,) = store.ask(100, put(key, b"%d" % number, ack=1), connection=Connection())
        written.append(epoch_of(answer.stamp))
        store.pass_epochs()
    store.lose = lambda source, target, frame: False
    store.pass_epochs(3)
    store.settle()
    assert value(store.get_at(key, (written[1], at[1]))) == b"2"
    assert value(store.get_at(key, (written[0], at[1]))) == b"1"
    assert read_local(store, key, (written[2], at[1])) == b"3"
    store.check()


def test_what_is_known_stays_known_when_the_owner_is_gone_and_what_comes_later_is_asked_of_another() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    at = store.begin()
    assert value(store.get_at(b"k", at)) == b"v"
    assert store.cache is not None
    owner = store.cache.dated[b"k"].mark.owner
    store.cut(owner)
    write(store, b"k", b"w")
    store.pass_epochs(4)
    store.settle()
    assert read_local(store, b"k", at) == b"v"
    later = at_of(store)
    assert value(store.get_at(b"k", later)) == b"w"
    assert store.cache.dated[b"k"].mark.owner != owner
    assert read_local(store, b"k", later) == b"w"
    assert value(store.get_at(b"k", at)) == b"v"
    store.check()


def test_a_session_can_begin_when_the_owners_agree_on_a_view_again() -> None:
    store = Store(view_of(3, factor=2))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    before = store.begin()
    assert value(store.get_at(b"k", before)) == b"v"
    store.stop(300)
    store.cut(300)
    for _ in range(400):
        store.pass_epochs()
        store.settle()
    after = at_of(store)
    assert after[1] != before[1]
    assert store.cache is not None
    assert store.cache.owner_view.digest == after[1]
    assert value(store.get_at(b"k", after)) == b"v"
    assert read_local(store, b"k", after) == b"v"
    store.check()


def test_a_session_goes_on_when_an_owner_that_begins_anew_does_not_know_its_epoch() -> None:
    """Of two owners one has ended, and sits there again without a past: the other knows."""
    store = Store(view_of(2, factor=2))
    keys = [b"%d" % number for number in range(10)]
    for key in keys:
        write(store, key, b"v")
    store.pass_epochs(4)
    at = store.begin()
    assert store.pin(at[0]).status == OK
    store.stop(200)
    store.cut(200)
    store.workers[210] = store.workers[store.replace(200)]
    for _ in range(400):
        store.pass_epochs()
    store.connect(210)
    for _ in range(5):
        store.settle()
        store.pass_epochs()
    later = store.begin()
    assert later[1] != at[1]
    assert store.cache is not None
    first = [Placement(store.cache.owner_view).owner_of(key).worker_id for key in keys]
    assert 210 in first
    assert {get_at(store, 210, key, *at).status for key in keys} == {EXPIRED}
    assert [value(store.get_at(key, at)) for key in keys] == [b"v"] * 10
    assert [value(store.get_at(key, later)) for key in keys] == [b"v"] * 10
    assert store.pin(at[0]).status == OK
    assert store.pin(at[0] - 100).status == EXPIRED
    assert store.cache.status()["pins"] == 1
    store.check()


def test_a_key_with_a_time_to_live_is_asked_of_its_owner_each_time() -> None:
    store = Store(view_of(2, factor=2))
    lives = struct.pack("<Q", 200_000) + register(b"v")
    store.write(lambda: request(PUT, b"k", lives, type=1, flags=8, ack=1))
    store.pass_epochs(4)
    at = store.begin()
    assert value(store.get_at(b"k", at)) == b"v"
    store.send(request(GET_AT, b"k", struct.pack("<QQ", *at)))
    assert asked_of_workers(store) == [SUBSCRIBE_AT]
    store.settle()
    assert value(store.answers.popleft()) == b"v"
    store.pass_epochs(30)
    store.settle()
    assert value(store.get_at(b"k", at_of(store))) is None
    store.check()


def test_nobody_is_told_anything_when_nobody_has_read_at_epochs_for_long() -> None:
    store = Store(view_of(1))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    assert value(store.get_at(b"k", store.begin())) == b"v"
    assert store.workers[100].status()["listeners"] == 1
    store.now += 31_000_000_000
    for _ in range(3):
        store.pass_epochs()
        store.settle()
    for worker in store.workers.values():
        assert (worker.status()["listeners"], worker.status()["listened"], worker.status()["history_from"]) == (0, 0, 0)
    assert store.cache is not None
    assert store.cache.status()["dated"] == 0
    write(store, b"k", b"w")
    store.pass_epochs(4)
    assert value(store.get_at(b"k", store.begin())) == b"w"
    store.check()


def test_keys_at_epochs_are_given_up_when_they_are_more_bytes_than_the_cache_may_have() -> None:
    store = Store(view_of(1), bytes_max=5_000)
    for number in range(20):
        write(store, b"%d" % number, b"x" * 400)
    store.pass_epochs(4)
    at = store.begin()
    for number in range(20):
        assert value(store.get_at(b"%d" % number, at)) == b"x" * 400
        assert value(store.get_at(b"0", at)) == b"x" * 400
    assert store.cache is not None
    store.settle()
    assert store.cache.status()["bytes_at"] <= 5_000
    assert read_local(store, b"0", at) == b"x" * 400
    assert store.workers[100].status()["listened"] == store.cache.status()["dated"] < 8
    store.check()


def test_newest_states_and_those_at_epochs_share_the_bytes() -> None:
    store = Store(view_of(1), bytes_max=8_000)
    for number in range(20):
        write(store, b"%d" % number, b"x" * 400)
    store.pass_epochs(4)
    at = store.begin()
    for number in range(20):
        store.get_at(b"%d" % number, at)
        store.answer(request(GET, b"%d" % (19 - number)))
        store.check()
    assert store.cache is not None
    figures = store.cache.status()
    assert figures["bytes"] + figures["bytes_at"] <= 8_000
    assert min(figures["bytes"], figures["bytes_at"]) > 2_000


def test_ages_of_what_sessions_read_are_counted() -> None:
    store = Store(view_of(2, factor=2))
    store.begin()
    for _ in range(100):
        write(store, b"k", b"v")
        store.pass_epochs()
        store.settle()
        at_of(store)
    assert store.cache is not None
    figures = store.cache.status()
    assert figures["sessions"] > 100
    assert 1 <= figures["session_age_p50"] <= figures["session_age_p99"] <= 4


def test_no_session_begins_at_an_epoch_of_which_an_owner_may_lack_something() -> None:
    """The owner has closed it itself; what its co-owner wrote in it is under way."""
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"old")
    store.pass_epochs(4)
    store.get_at(b"k", store.begin())
    store.cut(200)
    store.get_at(b"k", at_of(store))
    store.lose = lambda source, target, frame: source == 200
    (answer,) = store.ask(200, put(b"k", b"new", ack=1), connection=Connection())
    store.pass_epochs(3)
    store.settle()
    before = at_of(store)
    told = value(store.get_at(b"k", before))
    store.lose = lambda source, target, frame: False
    store.pass_epochs(60)
    store.settle()
    assert told == (b"new" if before[0] >= epoch_of(answer.stamp) else b"old")
    assert value(store.get_at(b"k", at_of(store))) == b"new"
    store.check()


def test_what_an_owner_has_not_marked_is_asked_of_it() -> None:
    """A session that began elsewhere brings a later epoch than this cache was told of."""
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"old")
    store.pass_epochs(4)
    at = store.begin()
    store.get_at(b"k", at)
    later = epoch_of(write(store, b"k", b"new").stamp)
    store.pass_epochs(4)
    assert store.get_at(b"k", (later, at[1])).payload[17:] == b"new"
    store.check()


def test_that_a_key_has_gone_is_told_and_remembered() -> None:
    store = Store(view_of(2, factor=2))
    write(store, b"k", b"v")
    store.pass_epochs(4)
    assert value(store.get_at(b"k", store.begin())) == b"v"
    store.write(lambda: request(DELETE, b"k", ack=1))
    store.pass_epochs(4)
    store.settle()
    assert read_local(store, b"k", at_of(store)) is None
    store.check()


@pytest.mark.parametrize(
    ("fault", "scenario"),
    [
        ("own-closing-marks", test_no_session_begins_at_an_epoch_of_which_an_owner_may_lack_something),
        ("above-mark", test_what_an_owner_has_not_marked_is_asked_of_it),
        ("forget-absent", test_that_a_key_has_gone_is_told_and_remembered),
    ],
)
def test_a_rule_that_is_removed_is_noticed(fault: str, scenario: Callable[[], None]) -> None:
    PLANTED.add(fault)
    try:
        with pytest.raises(AssertionError):
            scenario()
    finally:
        PLANTED.clear()
