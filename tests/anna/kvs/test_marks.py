"""What a worker tells who listens: what keys hold at each stable epoch, and up to where that is all."""

from __future__ import annotations

import struct

from anna.config import EPOCH_LEASE_US_MAX
from anna.kvs.worker import Connection
from anna.lattices import Set
from anna.wire import MARK, SUBSCRIBE_AT
from tests.anna.frames import DELETE, MISSING, OK, PUT, WRONG_WORKER, Reply, put, register, replies, request
from tests.anna.kvs.test_epochs import begun, epoch_of, get_at
from tests.anna.kvs.workers import STALE, Workers, view_of

EXPIRED = 28


class Listener:
    """A node's cache, as a worker sees it."""

    def __init__(self, workers: Workers, ids: int) -> None:
        self.workers, self.ids = workers, ids
        self.connection = Connection()
        (answer,) = self.ask(b"", struct.pack("<Q", EPOCH_LEASE_US_MAX))
        assert answer.status == OK

    def ask(self, key: bytes, payload: bytes) -> list[Reply]:
        return self.workers.ask(self.ids, request(SUBSCRIBE_AT, key, payload), connection=self.connection)

    def at(self, key: bytes, epoch: int) -> tuple[int, int, int, int, bytes]:
        """Ask for a key at an epoch: return (status, first, last, since, state) of the answer."""
        (answer,) = self.ask(key, struct.pack("<QQ", epoch, self.workers.view.digest))
        if answer.status not in (OK, MISSING):
            return answer.status, 0, 0, 0, b""
        return answer.status, *struct.unpack_from("<QQQ", answer.payload), answer.payload[24:]

    def heard(self) -> list[Reply]:
        """Return what was said unasked since the last call."""
        told = self.workers.workers[self.ids].take_released()
        return replies(b"".join(data for connection, data in told if connection is self.connection))

    def pushes(self) -> list[tuple[bytes, int, bytes]]:
        """Return (key, status, state's end) of the keys that were told of."""
        found = []
        for reply in self.heard():
            if reply.flags == SUBSCRIBE_AT:
                (size,) = struct.unpack_from("<H", reply.payload)
                found.append((reply.payload[2 : 2 + size], reply.status, reply.payload[2 + size + 16 :][17:]))
        return found

    def marks(self) -> list[tuple[int, int]]:
        return [struct.unpack("<QQ", reply.payload) for reply in self.heard() if reply.flags == MARK]


def stable(workers: Workers, ids: int) -> int:
    return int(workers.workers[ids].status()["stable"])


def listening(workers: Workers, ids: int) -> Listener:
    """Return a listener of a worker that has told it a mark."""
    listener = Listener(workers, ids)
    workers.pass_epochs(5)
    assert listener.marks()
    return listener


def test_marks_are_the_stable_epochs_one_after_the_other_each_with_its_view() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = listening(workers, 100)
    for _ in range(5):
        workers.ask(100, put(b"k", b"v", ack=1), connection=Connection())
        workers.pass_epochs()
    marks = listener.marks()
    assert [epoch for epoch, _ in marks] == sorted({epoch for epoch, _ in marks})
    assert marks[-1] == (stable(workers, 100), workers.view.digest)
    workers.check()


def test_what_changed_goes_ahead_of_the_mark_and_nothing_else_is_told() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = listening(workers, 100)
    for key in (b"a", b"b"):
        assert listener.at(key, stable(workers, 100))[0] == MISSING
    workers.ask(200, put(b"a", b"1", ack=1), put(b"c", b"2", ack=1), connection=Connection())
    workers.pass_epochs(4)
    flags = [(reply.flags, reply.status) for reply in listener.heard()]
    assert flags.count((SUBSCRIBE_AT, OK)) == 1
    assert [flag for flag, _ in flags].index(SUBSCRIBE_AT) + 1 < len(flags)
    workers.ask(200, request(DELETE, b"a", ack=1), connection=Connection())
    workers.pass_epochs(4)
    assert listener.pushes() == [(b"a", MISSING, b"")]
    workers.check()


def test_an_answer_says_of_which_epochs_it_is() -> None:
    """From the change before to the one after, or to what is stable: every owner gives the same for all of them."""
    workers = begun(Workers(view_of(2, factor=2)))
    listener = listening(workers, 200)
    changed = []
    for number in range(3):
        (answer,) = workers.ask(100, put(b"k", b"%d" % number, ack=1), connection=Connection())
        changed.append(epoch_of(answer.stamp))
        workers.pass_epochs(3)
    workers.pass_epochs(3)
    now = stable(workers, 200)
    for number, epoch in enumerate(changed):
        status, first, last, since, state = listener.at(b"k", epoch + 1)
        assert (status, first, since, state[17:]) == (OK, epoch, now, b"%d" % number)
        assert last == (changed[number + 1] - 1 if number < 2 else now)
        for other in range(first, min(last, stable(workers, 100)) + 1):
            assert get_at(workers, 100, b"k", other).payload == state
    status, first, last, *_ = listener.at(b"k", changed[0] - 1)
    assert (status, last) == (MISSING, changed[0] - 1)


def test_an_epoch_that_is_not_stable_or_not_kept_begins_no_subscription() -> None:
    workers = Workers(view_of(2, factor=1))
    listener = listening(workers, 100)
    epoch = stable(workers, 100)
    own = next(b"%d" % n for n in range(99) if get_at(workers, 100, b"%d" % n, epoch).status == MISSING)
    foreign = next(b"%d" % n for n in range(99) if get_at(workers, 100, b"%d" % n, epoch).status == WRONG_WORKER)
    assert listener.at(own, epoch + 50)[0] == STALE
    assert listener.at(own, epoch - 100)[0] == EXPIRED
    assert listener.at(foreign, epoch)[0] == WRONG_WORKER
    assert workers.workers[100].status()["listened"] == 0
    assert listener.at(own, epoch)[0] == MISSING
    assert workers.workers[100].status()["listened"] == 1
    assert listener.ask(own, b"")[0].status == OK
    assert workers.workers[100].status()["listened"] == 0
    workers.check()


def test_a_set_that_grows_is_told_whole() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = listening(workers, 100)
    listener.at(b"s", stable(workers, 100))
    for number in range(3):
        state = Set([number])
        frame = request(PUT, b"s", state.encode(), type=state.NUMBER, ack=1)
        workers.ask(200, frame, connection=Connection())
        workers.pass_epochs(4)
    told = [reply for reply in listener.heard() if reply.flags == SUBSCRIBE_AT]
    assert [Set.decode(reply.payload[2 + 1 + 16 :]).value for reply in told] == [{0}, {0, 1}, {0, 1, 2}]


def test_a_key_that_is_given_a_time_to_live_is_told_of_no_more() -> None:
    workers = Workers(view_of(1))
    listener = listening(workers, 100)
    epoch = stable(workers, 100)
    assert listener.at(b"k", epoch)[3] == epoch
    lives = struct.pack("<Q", 1_000_000) + register(b"v")
    workers.ask(100, request(PUT, b"k", lives, type=1, flags=8, ack=1))
    workers.pass_epochs(3)
    (told,) = [reply for reply in listener.heard() if reply.flags == SUBSCRIBE_AT]
    assert (told.status, told.payload) == (EXPIRED, b"\x01\x00k")
    assert workers.workers[100].status()["listened"] == 0
    epoch = stable(workers, 100)
    assert listener.at(b"k", epoch)[1:4] == (epoch, epoch, 0)


def test_a_change_of_the_view_ends_what_was_asked_for() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = listening(workers, 100)
    listener.at(b"k", stable(workers, 100))
    workers.start(3)
    workers.pass_epochs(3)
    assert (0, 0) in listener.marks()
    assert workers.workers[100].status()["listeners"] == 0
    workers.check()


def test_a_lease_that_is_over_ends_it_and_so_does_the_connection() -> None:
    workers = Workers(view_of(1))
    first, second = listening(workers, 100), listening(workers, 100)
    first.at(b"k", stable(workers, 100))
    assert workers.workers[100].status()["listeners"] == 2
    workers.workers[100].leave(second.connection)
    assert workers.workers[100].status()["listeners"] == 1
    workers.now += EPOCH_LEASE_US_MAX * 1000
    workers.pass_epochs(2)
    assert first.marks()[-1] == (0, 0)
    assert workers.workers[100].status()["listeners"] == workers.workers[100].status()["history_from"] == 0
    workers.check()


def test_who_waits_for_an_epoch_has_the_worker_close_epochs_though_nobody_writes() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = listening(workers, 100)
    workers.pass_epochs(30)
    listener.marks()
    before = stable(workers, 100)
    for ids in workers.workers:
        asked = struct.pack("<QQ", EPOCH_LEASE_US_MAX, before + 20)
        workers.ask(ids, request(SUBSCRIBE_AT, b"", asked), connection=Connection())
    workers.pass_epochs(4)
    assert stable(workers, 100) > before


def test_bytes_that_ask_for_nothing_are_refused() -> None:
    workers = Workers(view_of(1))
    for key, payload in ((b"", b""), (b"", b"short"), (b"k", b"short"), (b"", bytes(17))):
        answer = workers.ask(100, request(SUBSCRIBE_AT, key, payload), connection=Connection())[0]
        assert answer.status == 21, (key, payload)
    assert workers.workers[100].status()["listeners"] == 0
    workers.check()
