"""Transactions at their owners: together or not at all, whoever dies, and whatever comes twice."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from random import Random

import pytest

from anna.commits import HEAD, Commit, Message, Verdict, Write
from anna.config import EPOCH_US, TRANSACTION_KEPT_US, TRANSACTION_KEYS_MAX, TRANSACTION_SILENT_US
from anna.kvs.transactions import writer_of
from anna.kvs.worker import Connection
from anna.lattices import LWW, Causal, Counter, Map, ORSet, Set
from anna.routing.placement import Placement
from tests.anna.frames import (
    GET,
    MALFORMED,
    MISSING,
    NOT_SUPPORTED,
    OK,
    TOO_LARGE,
    TYPE_MISMATCH,
    WRONG_WORKER,
    Reply,
    put,
    replies,
    request,
)
from tests.anna.kvs.test_epochs import begun, get_at, pin
from tests.anna.kvs.workers import Workers, view_of

PREPARE, COMMIT, FINISH = 19, 20, 21
SILENT_EPOCHS = TRANSACTION_SILENT_US // EPOCH_US + 5
ID = b"a transaction's "


def lww(value: bytes) -> bytes:
    return bytes(16) + b"\x06" + value


class Coordinator:
    """Drives a `Commit` over the workers of a test: each of its steps is one message that arrives, or does not."""

    def __init__(self, workers: Workers, writes: Iterable[Write], transaction: bytes = ID, nonce: int = 1) -> None:
        self.workers = workers
        self.commit = Commit(transaction, writes, nonce)
        self.connections: dict[int, Connection] = {}
        self.letters: dict[Connection, list[tuple[int, Reply]]] = {}

    def owner(self, key: bytes) -> int:
        view = next(iter(self.workers.workers.values())).view
        return int(view.workers[Placement(view).index_of(key)].worker_id)

    def send(self, messages: list[Message], ack: int = 0) -> None:
        """Send messages, and take what is answered before anything else happens, or once copies have confirmed."""
        for message in messages:
            connection = self.connections.setdefault(message.worker_id, Connection())
            if message.worker_id not in self.workers.workers:
                self.commit.missed(message.worker_id, False)
                continue
            frame = request(message.op, b"", message.payload, ack=ack)
            for answer in self.workers.ask(message.worker_id, frame, connection=connection):
                self.commit.answered(message.worker_id, answer.status, answer.payload)
        self.workers.deliver()
        self.collect()

    def collect(self) -> None:
        """Take the answers that were held back and are given now; those of other coordinators wait for them."""
        for ids, worker in self.workers.workers.items():
            for connection, data in worker.take_released():
                self.letters.setdefault(connection, []).extend((ids, answer) for answer in replies(data))
        for connection in self.connections.values():
            for ids, answer in self.letters.pop(connection, ()):
                self.commit.answered(ids, answer.status, answer.payload)

    def prepare(self, ack: int = 0) -> list[Message]:
        messages = self.commit.begin(self.owner)
        self.send(messages, ack)
        return messages

    def run(self, ack: int = 0) -> Verdict:
        self.prepare(ack)
        self.send(self.commit.ending())
        return self.commit.verdict


def value(workers: Workers, key: bytes) -> bytes | None:
    answer = workers.read(key)
    return None if answer.status == MISSING else answer.payload[17:]


def prepared(workers: Workers) -> list[int]:
    return [worker.status()["prepared"] for worker in workers.workers.values()]


def spread_keys(workers: Workers) -> tuple[bytes, bytes]:
    """Return two keys with different first owners."""
    owner = Coordinator(workers, [Write(b"k", 1, lww(b""))]).owner
    first = b"0"
    return first, next(key for key in (b"%d" % n for n in range(1, 99)) if owner(key) != owner(first))


def two(workers: Workers, text: bytes = b"v") -> list[Write]:
    return [Write(key, 1, lww(text)) for key in spread_keys(workers)]


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
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(30)
    assert prepared(workers) == [1, 1]
    answers = [answer for ids in workers.workers for answer in workers.released(ids)]
    assert [(answer.status, answer.type) for answer in answers] == [(OK, 1)]


def test_a_prepare_or_a_commit_that_comes_again_is_answered_with_what_was() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, [Write(b"c", Counter.NUMBER, Counter(+3).encode()), *two(workers)])
    messages = coordinator.prepare()
    stamp = coordinator.commit.stamp
    for _ in range(2):
        answers = [workers.ask(m.worker_id, request(m.op, b"", m.payload, ack=1))[0].payload for m in messages]
        assert max(struct.unpack("<BQQ", answer)[:2] for answer in answers) == (1, stamp)
    for _ in range(2):
        coordinator.send(coordinator.commit.ending())
        workers.pass_epochs(3)
        answers = [workers.ask(m.worker_id, request(m.op, b"", m.payload, ack=1))[0].payload for m in messages]
        assert {struct.unpack("<BQQ", answer) for answer in answers} == {(2, stamp, 1)}
    assert Counter.decode(workers.read(b"c").payload).value == 3
    workers.check()


def test_a_retry_by_another_coordinator_has_no_second_effect() -> None:
    workers = Workers(view_of(3, factor=2))
    writes = [Write(b"c", Counter.NUMBER, Counter(+3).encode()), *two(workers)]
    first = Coordinator(workers, writes)
    assert first.run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    for key in spread_keys(workers):
        workers.write(lambda key=key: put(key, b"later", ack=1))  # type: ignore[misc]
    again = Coordinator(workers, writes, nonce=99)
    assert again.run() is Verdict.COMMITTED
    assert again.commit.stamp == first.commit.stamp
    workers.pass_epochs(3)
    assert Counter.decode(workers.read(b"c").payload).value == 3
    assert {value(workers, key) for key in spread_keys(workers)} == {b"later"}
    assert prepared(workers) == [0, 0, 0]


def test_a_retry_at_owners_that_know_nothing_of_it_counts_nothing_twice() -> None:
    """Dots and counts depend on the transaction alone; two attempts that both were committed come to the same."""
    states = {
        b"c": Counter(+3),
        b"o": ORSet({"x"}),
        b"v": Causal("once"),
        b"m": Map({"n": Counter(+2), "s": ORSet({"y"}), "r": LWW("last")}),
        b"s": Set({1}),
    }
    found = []
    for commits in (1, 2):
        workers = Workers(view_of(1))
        for nonce in range(commits):
            writes = [Write(key, state.NUMBER, state.encode()) for key, state in states.items()]
            assert Coordinator(workers, writes, nonce=nonce).run() is Verdict.COMMITTED
            workers.pass_epochs(TRANSACTION_KEPT_US // EPOCH_US + 10)
            assert workers.workers[100].status()["commits"] == nonce + 1
        found.append({key: kind_of(state).decode(workers.read(key).payload).value for key, state in states.items()})
    assert found[0] == found[1]
    assert found[0][b"m"] == {"n": 2, "s": {"y"}, "r": "last"}


def kind_of(state: object) -> type:
    return type(state)


def test_a_removal_takes_what_the_owner_has_seen() -> None:
    workers = Workers(view_of(2, factor=2))
    for add in ({"a", "b"}, {"c"}):
        workers.write(lambda add=add: request(2, b"o", ORSet(add).encode(), type=ORSet.NUMBER, ack=1))  # type: ignore[misc]
    workers.pass_epochs(3)
    removal = [Write(b"o", ORSet.NUMBER, ORSet(add={"d"}, remove={"a", "c"}).encode())]
    assert Coordinator(workers, removal).run() is Verdict.COMMITTED
    workers.pass_epochs(3)
    assert {frozenset(worker.store.read(b"o").value) for worker in workers.workers.values()} == {frozenset("bd")}


def test_an_owner_that_hears_no_more_finds_out_that_all_have_prepared() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    states = [w.store.read(write.key) for w in workers.workers.values() for write in coordinator.commit.writes]
    assert {state.stamp for state in states if state is not None} == {coordinator.commit.stamp}
    coordinator.send(coordinator.commit.ending())
    workers.check()


def test_an_owner_that_was_never_asked_refuses_from_then_on_and_all_drop_it() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    coordinator.send([second])
    assert coordinator.commit.verdict is Verdict.AGAIN
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {None}
    assert coordinator.run() is Verdict.COMMITTED
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


def test_a_coordinator_that_lost_an_answer_asks_and_is_told() -> None:
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.ask(second.worker_id, request(second.op, b"", second.payload, ack=1), connection=Connection())
    coordinator.commit.missed(second.worker_id, True)
    assert coordinator.commit.verdict is Verdict.UNKNOWN
    workers.deliver()
    coordinator.send(coordinator.commit.ask(coordinator.owner))
    workers.pass_epochs(2)
    coordinator.send(coordinator.commit.ask(coordinator.owner))
    assert coordinator.commit.verdict is Verdict.COMMITTED
    workers.pass_epochs(2)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


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


def test_two_attempts_at_once_end_with_one() -> None:
    workers = Workers(view_of(3, factor=2))
    one, other = Coordinator(workers, two(workers)), Coordinator(workers, two(workers), nonce=50)
    first, _ = one.commit.begin(one.owner)
    one.send([first])
    other.prepare()
    assert other.commit.verdict is Verdict.AGAIN
    workers.pass_epochs(2)
    other.send(other.commit.ending())
    assert other.run() is Verdict.COMMITTED
    workers.pass_epochs(2)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in other.commit.writes} == {b"v"}


@pytest.mark.parametrize("committed_at_one", [False, True])
def test_a_participant_dies_and_the_other_owners_of_its_keys_finish(committed_at_one: bool) -> None:
    workers = begun(Workers(view_of(4, factor=2)))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    dead = coordinator.commit.ending()[0].worker_id
    workers.stop(dead)
    if committed_at_one:
        coordinator.send(coordinator.commit.ending()[1:])
    workers.pass_epochs(600)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    stamps = [w.store.read(x.key) for w in workers.workers.values() for x in coordinator.commit.writes]
    assert {state.stamp for state in stamps if state is not None} == {coordinator.commit.stamp}
    assert all(worker.is_complete for worker in workers.workers.values())
    workers.check()


def test_a_participant_that_dies_before_anybody_else_has_its_part_takes_the_transaction_with_it() -> None:
    workers = Workers(view_of(4, factor=2))
    coordinator = Coordinator(workers, two(workers))
    first, second = coordinator.commit.begin(coordinator.owner)
    coordinator.send([first])
    workers.lose = lambda source, target, frame: source == second.worker_id
    coordinator.send([second])
    workers.stop(second.worker_id)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(600)
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {None}
    assert {worker.is_complete for worker in workers.workers.values()} == {True}
    workers.check()


def test_what_both_sides_of_a_partition_have_set_aside_is_committed_when_they_are_one_again() -> None:
    """Each takes the other for dead; the coordinator has heard from both, and its caller was told."""
    workers = begun(Workers(view_of(2, factor=1)))
    coordinator = Coordinator(workers, two(workers))
    workers.lose = lambda source, target, frame: True
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    runs = coordinator.commit.stamp // (EPOCH_US << 10)
    workers.pass_epochs(800)
    assert prepared(workers) == [0, 0]
    assert min(worker.status()["stable"] for worker in workers.workers.values()) > runs
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(400)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}
    keys = [write.key for write in coordinator.commit.writes]
    states = [worker.store.read(key) for worker in workers.workers.values() for key in keys]
    assert {state.stamp for state in states if state is not None} == {coordinator.commit.stamp}
    found = [get_at(workers, ids, key, runs) for ids in workers.workers for key in keys]
    assert {answer.status for answer in found} <= {WRONG_WORKER, 28}
    workers.check()


def test_keys_that_move_take_what_is_prepared_with_them() -> None:
    workers = Workers(view_of(2, factor=1))
    writes = [Write(b"%d" % n, 1, lww(b"v")) for n in range(40)]
    coordinator = Coordinator(workers, writes)
    coordinator.prepare()
    assert coordinator.commit.verdict is Verdict.COMMITTED
    ids = workers.start(3)
    workers.pass_epochs(60)
    assert coordinator.commit.verdict is Verdict.COMMITTED
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(300)
    assert len(workers.workers[ids].store) > 3
    assert prepared(workers) == [0, 0, 0]
    assert {value(workers, write.key) for write in writes} == {b"v"}
    workers.check()


def test_an_owner_that_leaves_waits_until_what_it_has_prepared_is_decided() -> None:
    workers = Workers(view_of(3, factor=1))
    coordinator = Coordinator(workers, two(workers))
    coordinator.prepare()
    leaving = coordinator.commit.ending()[0].worker_id
    workers.workers[leaving].depart()
    workers.pass_epochs(SILENT_EPOCHS // 2)
    assert not workers.workers[leaving].has_left
    coordinator.send(coordinator.commit.ending())
    workers.pass_epochs(300)
    assert workers.workers[leaving].has_left
    workers.stop(leaving)
    assert {value(workers, write.key) for write in coordinator.commit.writes} == {b"v"}


def test_what_it_came_to_is_remembered_for_a_while_and_then_forgotten() -> None:
    workers = Workers(view_of(1))
    coordinator = Coordinator(workers, [Write(b"k", 1, lww(b"v"))])
    assert coordinator.run() is Verdict.COMMITTED
    finish = request(FINISH, b"", HEAD.pack(ID, 1) + struct.pack("<QI", 100, 0))
    workers.pass_epochs(100)
    assert workers.ask(100, finish)[0].payload[:1] == b"\x02"
    workers.now += TRANSACTION_KEPT_US * 1000
    workers.pass_epochs(3)
    assert workers.ask(100, finish)[0].payload[:1] == b"\x00"


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


def test_a_worker_that_was_taken_for_its_predecessor_prepares_nothing() -> None:
    """Who sits where another sat has its address, and is asked by those who have not heard of it."""
    workers = Workers(view_of(2))
    first, _ = spread_keys(workers)
    coordinator = Coordinator(workers, [Write(first, 1, lww(b"v"))])
    (message,) = coordinator.commit.begin(lambda key: 4711)
    (answer,) = workers.ask(coordinator.owner(first), request(PREPARE, b"", message.payload))
    coordinator.commit.answered(4711, answer.status, answer.payload)
    assert (answer.status, coordinator.commit.verdict) == (WRONG_WORKER, Verdict.AGAIN)
    assert coordinator.run() is Verdict.COMMITTED
    assert prepared(workers) == [0, 0]


def test_who_holds_a_part_as_a_copy_is_not_taken_for_the_one_that_was_to_prepare_another() -> None:
    """The predecessor in its seat died unasked; it has the other part of the transaction from a co-owner."""
    workers = Workers(view_of(3, factor=2))
    coordinator = Coordinator(workers, two(workers))
    gone, asked = (coordinator.owner(write.key) for write in coordinator.commit.writes)
    messages = coordinator.commit.begin(coordinator.owner)
    coordinator.send([message for message in messages if message.worker_id == asked])
    coordinator.commit.missed(gone, True)
    assert coordinator.commit.verdict is Verdict.UNKNOWN
    holder = next(ids for ids, count in zip(workers.workers, prepared(workers)) if count and ids not in (gone, asked))
    (question, _) = coordinator.commit.ask(coordinator.owner)
    (answer,) = workers.ask(holder, request(FINISH, b"", question.payload))
    coordinator.commit.answered(gone, answer.status, answer.payload)
    coordinator.commit.missed(asked, True)
    assert coordinator.commit.verdict is not Verdict.COMMITTED
    workers.pass_epochs(SILENT_EPOCHS)
    assert prepared(workers) == [0, 0, 0]
    assert [value(workers, write.key) for write in coordinator.commit.writes] == [None, None]


def test_the_writer_of_a_transaction_is_none_of_a_session() -> None:
    """A session takes writers from 2⁶³ on for its own, and commits no removal of what such a one added."""
    draw = Random(1)
    assert all(0 < writer_of(draw.randbytes(24)) < 1 << 63 for _ in range(100))


def test_who_has_the_address_of_a_worker_that_was_asked_says_so() -> None:
    workers = Workers(view_of(1))
    commit = Commit(ID, two_keys(), 1)
    mine, another = commit.begin({b"a": 100, b"b": 99}.__getitem__)
    (answer,) = workers.ask(100, request(PREPARE, b"", mine.payload))
    assert (answer.status, answer.payload[0]) == (OK, 1)
    (answer,) = workers.ask(100, request(PREPARE, b"", another.payload))
    assert answer.status == WRONG_WORKER
    answers = [workers.ask(100, request(FINISH, b"", message.payload))[0] for message in commit.ask(lambda key: 100)]
    assert [answer.payload[0] for answer in answers] == [1, 0]


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


def test_what_is_on_disk_is_prepared_still_after_a_restart() -> None:
    """What a log has of a transaction comes back with it: what is prepared, and what was committed."""
    workers = Workers(view_of(1))
    workers.workers[100].open_log(1)
    held = Coordinator(workers, two_keys())
    done = Coordinator(workers, [Write(b"d", 1, lww(b"v"))], b"another id's 16b")
    held.prepare()
    ((number, cells),) = workers.workers[100].log_out()
    workers.workers[100].logged(number, workers.now)
    assert done.run() is Verdict.COMMITTED
    ((_, more),) = workers.workers[100].log_out()
    for source in ([cells, more], [b"".join(cell for _, cell in workers.workers[100].cells())]):
        again = Workers(view_of(1))
        for part in source:
            again.workers[100].recover(part)
        again.workers[100].open_log(1)
        assert prepared(again) == [1]
        assert value(again, b"d") == b"v"
        assert Coordinator(again, done.commit.writes, b"another id's 16b", nonce=9).run() is Verdict.COMMITTED
        again.pass_epochs(3)
        assert prepared(again) == [0]
        assert [value(again, write.key) for write in held.commit.writes] == [b"v", b"v"]
        assert again.workers[100].store.read(b"d").stamp == done.commit.stamp
        again.check()


def test_a_log_with_two_attempts_at_one_transaction_comes_back_with_both() -> None:
    logged = []
    for nonce in (1, 2):
        workers = Workers(view_of(1))
        workers.workers[100].open_log(1)
        Coordinator(workers, two_keys(), nonce=nonce).prepare()
        ((_, cells),) = workers.workers[100].log_out()
        logged.append(cells)
    again = Workers(view_of(1))
    for cells in (*logged, logged[0]):
        again.workers[100].recover(cells)
    assert prepared(again) == [2]
    again.pass_epochs(3)
    assert prepared(again) == [0]
    assert [value(again, write.key) for write in two_keys()] == [b"v", b"v"]
    again.check()


def two_keys() -> list[Write]:
    return [Write(key, 1, lww(b"v")) for key in (b"a", b"b")]


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


@pytest.mark.parametrize("seed", range(12))
def test_all_owners_come_to_the_same_whatever_is_lost_and_whoever_falls_silent(seed: int) -> None:
    """Random transactions whose coordinators stop at a random step, a fifth of the workers' frames lost."""
    draw = Random(seed)
    workers = begun(Workers(view_of(4, factor=draw.choice((2, 3))), skew_us=draw.choice((0, 400))))
    workers.lose = lambda source, target, frame: draw.random() < 0.2
    keys = [b"%d" % n for n in range(8)]
    ended, letters = [], {}
    for number in range(40):
        writes = [Write(key, 1, lww(b"%d" % number)) for key in draw.sample(keys, draw.randint(1, 4))]
        coordinator = Coordinator(workers, writes, b"%16d" % number)
        coordinator.letters = letters
        messages = coordinator.commit.begin(coordinator.owner)
        coordinator.send(messages if draw.random() < 0.7 else draw.sample(messages, draw.randint(0, len(messages))))
        workers.pass_epochs(draw.randint(0, 2))
        coordinator.collect()
        ending = coordinator.commit.ending()
        coordinator.send(ending if draw.random() < 0.5 else ending[: draw.randint(0, len(ending))])
        ended.append(coordinator.commit)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(SILENT_EPOCHS + 100)
    assert prepared(workers) == [0] * 4
    committed = {}
    for commit in ended:
        name = (commit.transaction, commit.attempt)
        outcomes = {w.state_of_transaction(*name) for w in workers.workers.values()} - {(0, 0)}
        assert len(outcomes) <= 1, commit.transaction
        if commit.verdict is Verdict.COMMITTED:
            assert outcomes == {(2, commit.stamp)}
        if outcomes and next(iter(outcomes))[0] == 2:
            committed[commit.transaction] = next(iter(outcomes))[1]
    for key in keys:
        writers = [(committed[c.transaction], writer_of(c.transaction)) for c in ended
                   if c.transaction in committed and key in [write.key for write in c.writes]]  # fmt: skip
        held = {(state.stamp, state.writer) for w in workers.workers.values() if (state := w.store.read(key))}
        assert held == ({max(writers)} if writers else set())
    assert len(committed) > 10
    workers.check()
