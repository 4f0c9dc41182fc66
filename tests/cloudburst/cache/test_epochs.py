"""What a node's cache answers at an epoch is what the owners answer there, and nothing else."""

from __future__ import annotations

import struct

from anna.config import EPOCH_TRIES_MAX
from anna.kvs.worker import Connection
from anna.lattices import Set
from tests.anna.frames import MISSING, OK, PUT, Reply, items, put, request
from tests.anna.kvs.test_epochs import epoch_of
from tests.anna.kvs.workers import STALE, view_of
from tests.cloudburst.cache.stores import EXPIRED, GET_AT, MGET_AT, PIN, Store


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


def test_bytes_that_are_no_read_at_an_epoch_are_refused_before_anybody_is_asked() -> None:
    store = Store(view_of(1))
    epoch, view = store.begin()
    cut = request(MGET_AT, b"", struct.pack("<QQIH", epoch, view, 2, 1) + b"k")
    for frame in (request(GET_AT, b"k", b"short"), request(MGET_AT, b"", b"short"), request(PIN, b"", b"short"), cut):
        store.send(frame)
        assert store.answers.popleft().status == 21
    store.workers[100].receive(Connection(), put(b"k", b"v"), store.now)
    store.check()
