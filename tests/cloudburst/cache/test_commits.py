"""Transactions through a node's cache, which coordinates them at the owners."""

from __future__ import annotations

import struct

import pytest

from anna.commits import Commit, Verdict, Write
from anna.kvs.worker import Connection
from anna.lattices import Counter, Set
from anna.routing.placement import Placement
from anna.wire import COMMIT, FINISH, PREPARE
from tests.anna.frames import GET, MISSING, OK, TYPE_MISMATCH, Reply, put, register, request
from tests.anna.kvs.test_epochs import epoch_of
from tests.anna.kvs.workers import STALE, view_of
from tests.cloudburst.cache.stores import Store

ID = b"0123456789abcdef"
KEYS = [b"%d" % number for number in range(6)]


def registers(value: bytes, keys: list[bytes] = KEYS) -> list[Write]:
    return [Write(key, 1, register(value)) for key in keys]


def prepare(writes: list[Write], attempt: int = 1, transaction: bytes = ID, **options: int) -> bytes:
    """Return what an executor asks of the cache, the owner of all keys that it knows of."""
    (message,) = Commit(transaction, writes, attempt).begin(lambda key: 1)
    return request(message.op, b"", message.payload, **options)


def outcome(answer: Reply) -> tuple[int, int]:
    """Return (state, stamp) of what an answer says of a transaction."""
    assert answer.status == OK, answer
    state, stamp, _ = struct.unpack("<BQQ", answer.payload)
    return state, stamp


def committed(answer: Reply) -> int:
    state, stamp = outcome(answer)
    assert state == 2
    return stamp


def read(store: Store, key: bytes) -> bytes | None:
    answer = store.read(key)
    return answer.payload[17:] if answer.status == OK else None


def value(answer: Reply) -> bytes | None:
    assert answer.status in (OK, MISSING), answer
    return answer.payload[17:] if answer.status == OK else None


def begun(store: Store) -> Store:
    store.pass_epochs(4)
    store.begin()
    return store


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_writes_of_many_keys_are_committed_at_one_stamp_and_read_from_its_epoch_on(factor: int) -> None:
    store = begun(Store(view_of(3, factor=factor)))
    store.answer(prepare(registers(b"old")))
    stamp = committed(store.answer(prepare(registers(b"new"), transaction=ID[::-1])))
    epoch, view = struct.unpack_from("<QQ", store.pin(least=epoch_of(stamp)).payload)
    assert [value(store.get_at(key, (epoch, view))) for key in KEYS] == [b"new"] * 6
    assert [value(store.get_at(key, (epoch_of(stamp) - 1, view))) for key in KEYS] in ([b"old"] * 6, [None] * 6)
    stamps = {struct.unpack_from("<Q", store.get_at(key, (epoch, view)).payload)[0] for key in KEYS}
    assert stamps == {stamp}
    store.check()


def test_the_client_of_the_cache_needs_no_more_than_the_one_answer() -> None:
    """What the anna clients do with it: it has committed where one owner says so."""
    store = begun(Store(view_of(2, factor=2)))
    commit = Commit(ID, registers(b"v"), 7)
    (message,) = commit.begin(lambda key: 1)
    answer = store.answer(request(message.op, b"", message.payload))
    commit.answered(1, answer.status, answer.payload)
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, committed(answer))
    (ending,) = commit.ending()
    assert ending.op == COMMIT
    assert store.answer(request(ending.op, b"", ending.payload)).status == OK
    assert store.answers == type(store.answers)()
    store.send(request(COMMIT, b"", ending.payload, id=0))
    assert not store.answers
    store.check()


def test_a_transaction_that_is_tried_again_has_one_effect() -> None:
    store = begun(Store(view_of(2, factor=2)))
    writes = [Write(b"n", Counter.NUMBER, Counter(+1).encode()), Write(b"s", Set.NUMBER, Set([1]).encode())]
    stamps = {committed(store.answer(prepare(writes, attempt))) for attempt in (1, 1, 2, 3)}
    store.begin_cache()
    stamps.add(committed(store.answer(prepare(writes, 9))))
    assert len(stamps) == 1
    store.pass_epochs(5)
    assert Counter.decode(store.read(b"n").payload).value == 1
    store.check()


def test_what_an_owner_refuses_is_refused_and_nothing_is_written() -> None:
    store = begun(Store(view_of(3)))
    store.write(lambda: request(2, KEYS[0], Set([1]).encode(), type=Set.NUMBER, ack=1))
    answer = store.answer(prepare(registers(b"v")))
    assert answer.status == TYPE_MISMATCH
    store.settle()
    store.pass_epochs(5)
    assert [read(store, key) for key in KEYS[1:]] == [None] * 5
    assert all(worker.status()["prepared"] == 0 for worker in store.workers.values())
    store.check()


def test_who_is_asked_in_the_meantime_is_told_what_becomes_of_it() -> None:
    store = begun(Store(view_of(2)))
    commit = Commit(ID, registers(b"v"), 7)
    (message,) = commit.begin(lambda key: 1)
    store.send(request(message.op, b"", message.payload, id=1))
    (question,) = commit.ask(lambda key: 1)
    store.send(request(question.op, b"", question.payload, id=2))
    store.send(request(message.op, b"", message.payload, id=3))
    store.settle()
    stamps = {committed(answer) for answer in store.answers}
    assert (len(store.answers), len(stamps)) == (3, 1)
    store.check()


def test_an_attempt_that_the_cache_has_never_heard_of_is_refused_and_the_next_tells() -> None:
    """The cache has ended after its owners had prepared: nobody was told anything, and nobody is told two things."""
    store = begun(Store(view_of(2, factor=2)))
    commit = Commit(ID, registers(b"v"), 7)
    (message,) = commit.begin(lambda key: 1)
    store.send(request(message.op, b"", message.payload))
    for ids in store.streams:
        store.reach_worker(ids)
    store.begin_cache()
    commit.missed(1, True)
    assert commit.verdict is Verdict.UNKNOWN
    (question,) = commit.ask(lambda key: 1)
    assert question.op == FINISH
    answer = store.answer(request(question.op, b"", question.payload))
    commit.answered(1, answer.status, answer.payload)
    assert commit.verdict is Verdict.AGAIN
    (message,) = commit.begin(lambda key: 1)
    stamp = committed(store.answer(request(message.op, b"", message.payload), epochs=300))
    store.pass_epochs(5)
    assert [read(store, key) for key in KEYS] == [b"v"] * 6
    assert committed(store.answer(prepare(registers(b"v"), 99))) == stamp
    store.check()


def test_the_stream_to_an_owner_ends_before_its_answer_and_others_find_out() -> None:
    store = begun(Store(view_of(2, factor=2)))
    for turn, reached in enumerate((True, False)):
        transaction = b"%016d" % turn
        store.send(prepare(registers(b"%d" % turn), transaction=transaction))
        if reached:
            store.reach_worker(200)
        store.cut(200)
        for _ in range(300):
            store.settle()
            if store.answers:
                break
            store.pass_epochs()
            assert store.cache is not None
            store.take(store.cache.retry(store.now))
        stamp = committed(store.answers.popleft())
        store.connect(200)
        store.pass_epochs(5)
        assert [read(store, key) for key in KEYS] == [b"%d" % turn] * 6
        assert committed(store.answer(prepare(registers(b"other"), 5, transaction))) == stamp
    store.check()


def test_a_cache_with_an_old_view_goes_by_the_new_one_and_makes_another_attempt() -> None:
    store = begun(Store(view_of(2)))
    store.start(3)
    for _ in range(120):
        store.pass_epochs()
    assert store.cache is not None
    assert store.cache.owner_view.version < store.workers[100].view.version
    store.connect(300)
    committed(store.answer(prepare(registers(b"v", [b"%d" % n for n in range(40)])), epochs=100))
    assert store.cache.owner_view.version == store.workers[100].view.version
    store.pass_epochs(5)
    assert [read(store, key) for key in KEYS] == [b"v"] * 6
    store.check()


def test_all_that_had_prepared_have_died_and_another_attempt_is_made() -> None:
    """Whoever comes in their places was never asked, and can say nothing."""
    store = begun(Store(view_of(2)))
    key = next(key for key in KEYS if place_of(store, key) == 0)
    store.send(prepare(registers(b"v", [key])))
    store.reach_worker(100)
    store.stop(100)
    store.cut(100)
    again = store.replace(100)
    for _ in range(20):
        store.pass_epochs()
    assert store.cache is not None
    store.cache.adopt_owners(store.workers[200].view)
    store.connect(again)
    for _ in range(100):
        store.take(store.cache.retry(store.now))
        store.settle()
        if store.answers:
            break
        store.pass_epochs()
    committed(store.answers.popleft())
    store.pass_epochs(5)
    assert read(store, key) == b"v"
    store.check()


def place_of(store: Store, key: bytes) -> int:
    return Placement(store.view).index_of(key)


def test_no_owner_can_be_reached_and_the_executor_is_told_in_time() -> None:
    store = begun(Store(view_of(1)))
    store.cut(100)
    assert store.answer(prepare(registers(b"v")), epochs=1_100).status == STALE
    store.check()


def test_a_write_of_a_transaction_is_read_from_the_cache_as_others_are() -> None:
    store = begun(Store(view_of(2, factor=2)))
    assert store.answer(request(GET, KEYS[0])).status == MISSING
    committed(store.answer(prepare(registers(b"v"))))
    store.settle()
    store.pass_epochs(2)
    store.settle()
    assert value(store.answer(request(GET, KEYS[0]))) == b"v"
    assert store.cache is not None
    assert store.cache.status()["transactions"] == 1
    store.check()


def test_what_is_no_prepare_is_refused_before_anybody_is_asked() -> None:
    store = begun(Store(view_of(1)))
    whole = prepare(registers(b"v"))
    body = whole[24:]
    for payload in (b"", body[:10], body[:30], body[:-1], body + b"x"):
        store.send(request(PREPARE, b"", payload))
        assert store.answers.popleft().status == 21
    store.workers[100].receive(Connection(), put(b"k", b"v"), store.now)
    assert store.to_worker[100] == type(store.to_worker[100])()
    store.check()
