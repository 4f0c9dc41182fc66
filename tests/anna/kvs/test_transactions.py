"""Transactions at their owners: what is prepared and what is committed, and what is none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from anna.commits import HEAD, Verdict, Write
from anna.config import EPOCH_US, TRANSACTION_KEYS_MAX
from anna.kvs.transactions import writer_of
from anna.kvs.worker import Connection
from anna.lattices import ORSet, Set
from tests.anna.frames import (
    GET,
    MALFORMED,
    MISSING,
    NOT_SUPPORTED,
    OK,
    TOO_LARGE,
    TYPE_MISMATCH,
    request,
)
from tests.anna.kvs.coordinators import (
    COMMIT,
    ID,
    PREPARE,
    Coordinator,
    lww,
    prepared,
    spread_keys,
    two,
    two_keys,
    value,
)
from tests.anna.kvs.test_epochs import begun, get_at, pin
from tests.anna.kvs.workers import Workers, view_of


def test_what_is_committed_is_everywhere_and_at_one_stamp() -> None:
    workers = Workers(view_of(3, factor=2), skew_us=300)
    coordinator = Coordinator(workers, two(workers))
    assert coordinator.run() is Verdict.COMMITTED
    workers.pass_epochs(5)
    for write in coordinator.commit.writes:
        states = [worker.store.read(write.key) for worker in workers.workers.values()]
        held = [state for state in states if state is not None]
        assert [(state.stamp, state.writer) for state in held] == [(coordinator.commit.stamp, writer_of(ID))] * 2
    assert prepared(workers) == [0, 0, 0]
    workers.check()


def test_what_is_prepared_is_nobodys_to_read_and_holds_its_epoch_open() -> None:
    workers = begun(Workers(view_of(2, factor=2)))
    coordinator = Coordinator(workers, [Write(b"k", 1, lww(b"v"))])
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    runs = coordinator.commit.stamp // (EPOCH_US << 10)
    workers.pass_epochs(20)
    for ids in workers.workers:
        assert pin(workers, ids)[0] == runs - 1
        assert workers.ask(ids, request(GET, b"k"), connection=Connection())[0].status == MISSING
        assert get_at(workers, ids, b"k", runs - 1).status == MISSING
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(5)
    for ids in workers.workers:
        assert get_at(workers, ids, b"k", runs - 1).status == MISSING
        assert get_at(workers, ids, b"k", runs).payload[17:] == b"v"
    workers.check()


def test_a_prepare_is_answered_when_the_other_owner_has_it_too() -> None:
    workers = Workers(view_of(2, factor=2))
    coordinator = Coordinator(workers, [Write(b"k", 1, lww(b"v"))])
    workers.lose = lambda source, target, frame: True
    coordinator.prepare(ack=2)
    assert coordinator.commit.verdict is Verdict.OPEN
    for _ in range(5):
        workers.pass_epochs(1)
        assert not [answer for ids in workers.workers for answer in workers.released(ids)], "nobody else has it yet"
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(30)
    assert prepared(workers) == [1, 1]
    answers = [answer for ids in workers.workers for answer in workers.released(ids)]
    assert [(answer.status, answer.type) for answer in answers] == [(OK, 1)]


def test_a_removal_takes_what_the_owner_has_seen() -> None:
    workers = Workers(view_of(2, factor=2))
    for add in ({"a", "b"}, {"c"}):
        workers.write(lambda add=add: request(2, b"o", ORSet(add).encode(), type=ORSet.NUMBER, ack=1))  # type: ignore[misc]
    workers.pass_epochs(3)
    removal = [Write(b"o", ORSet.NUMBER, ORSet(add={"d"}, remove={"a", "c"}).encode())]
    assert Coordinator(workers, removal).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    assert {frozenset(worker.store.read(b"o").value) for worker in workers.workers.values()} == {frozenset("bd")}


def test_one_refusal_drops_all_of_it() -> None:
    workers = Workers(view_of(3, factor=2))
    first, second = spread_keys(workers)
    workers.write(lambda: request(2, second, Set({1}).encode(), type=Set.NUMBER, ack=1))
    workers.pass_epochs(2)
    coordinator = Coordinator(workers, two(workers))
    assert coordinator.run() is Verdict.REFUSED
    assert coordinator.commit.refusal == (TYPE_MISMATCH, f"'{second.decode()}' holds a Set, got a LWW")
    workers.pass_epochs(1)
    assert prepared(workers) == [0, 0, 0]
    assert value(workers, first) is None


def refusals() -> list[tuple[str, Callable[[int], bytes], int]]:
    head = HEAD.pack(ID, 1) + struct.pack("<Q", 100)
    place = struct.pack("<I", 1) + struct.pack("<QQ", 0xC31919DDBE3C1FAF, 100)

    def write(key: bytes, type: int, state: bytes, flags: int = 0) -> bytes:
        return struct.pack("<IHBBI", 1, len(key), type, flags, len(state)) + key + state

    many = TRANSACTION_KEYS_MAX + 1
    return [
        ("short", lambda _: b"short", MALFORMED),
        ("no places", lambda _: head, MALFORMED),
        ("too many keys", lambda _: head + struct.pack("<I", many) + bytes(16 * many), TOO_LARGE),
        ("another's write", lambda own: own_place(head, own) + write(b"other", 1, lww(b"v")), MALFORMED),
        ("no writes", lambda own: own_place(head, own), MALFORMED),
        ("cut short", lambda _: head + place + write(b"k", 1, lww(b"v"))[:-1], MALFORMED),
        ("more behind it", lambda _: head + place + write(b"k", 1, lww(b"v")) + b"x", MALFORMED),
        ("a condition", lambda own: own_place(head, own) + write(b"k", 1, lww(b"v"), flags=4), NOT_SUPPORTED),
        ("a stamp", lambda own: own_place(head, own) + write(b"k", 1, struct.pack("<QQ", 5, 5) + b"\0"), NOT_SUPPORTED),
        ("an unknown type", lambda own: own_place(head, own) + write(b"k", 99, b""), NOT_SUPPORTED),
    ]


def own_place(head: bytes, own: int) -> bytes:
    return head + struct.pack("<I", 1) + struct.pack("<QQ", own, 100)


@pytest.mark.parametrize(("name", "payload", "status"), refusals(), ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_no_prepare_is_refused_and_nothing_is_held(
    name: str, payload: Callable[[int], bytes], status: int
) -> None:
    from xxhash import xxh64_intdigest as hash64

    workers = Workers(view_of(1))
    (answer,) = workers.ask(100, request(PREPARE, b"", payload(hash64(b"k"))))
    assert (answer.status, prepared(workers)) == (status, [0]), answer


def test_a_worker_that_is_no_owner_says_whose_the_key_is() -> None:
    workers = Workers(view_of(2, factor=1))
    coordinator = Coordinator(workers, two(workers))
    view = next(iter(workers.workers.values())).view
    others = {write.key: 300 - coordinator.owner(write.key) for write in coordinator.commit.writes}
    coordinator.send(coordinator.commit.begin(others.__getitem__))
    assert coordinator.commit.verdict is Verdict.AGAIN
    assert coordinator.commit.view is not None
    assert coordinator.run() is Verdict.COMMITTED
    assert len(view.workers) == 2


def test_the_writer_of_a_transaction_is_none_of_a_session() -> None:
    """A session takes writers from 2⁶³ on for its own, and commits no removal of what such a one added."""
    draw = Random(1)
    assert all(0 < writer_of(draw.randbytes(24)) < 1 << 63 for _ in range(100))


def test_a_commit_below_what_was_proposed_is_refused_and_the_transaction_goes_on() -> None:
    workers = Workers(view_of(1))
    coordinator = Coordinator(workers, [Write(b"k", 1, lww(b"v"))])
    coordinator.prepare()
    (message,) = coordinator.commit.ending()
    low = message.payload[:24] + struct.pack("<Q", coordinator.commit.stamp - 1)
    assert workers.ask(100, request(COMMIT, b"", low))[0].status == MALFORMED
    assert prepared(workers) == [1]
    coordinator.send([message])
    assert value(workers, b"k") == b"v"


def test_a_prepare_that_asks_for_the_disk_is_answered_when_it_is_there() -> None:
    workers = Workers(view_of(1))
    worker = workers.workers[100]
    worker.open_log(1)
    coordinator = Coordinator(workers, two_keys())
    coordinator.prepare(ack=255)
    assert coordinator.commit.verdict is Verdict.OPEN
    ((number, _),) = worker.log_out()
    worker.logged(number, workers.now)
    (answer,) = workers.released(100)
    assert (answer.status, answer.flags, answer.payload[0]) == (OK, 1, 1)


def test_subscribers_are_told_of_what_is_committed() -> None:
    workers = Workers(view_of(2, factor=2))
    listeners = {ids: Connection() for ids in workers.workers}
    for ids, connection in listeners.items():
        workers.ask(ids, request(8, b"k"), connection=connection)
    assert Coordinator(workers, [Write(b"k", 1, lww(b"v"))]).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    assert sorted(ids for ids, _, data in workers.pushed if data.endswith(b"v")) == sorted(listeners)
