"""Replicas of a key: who is sent what, what an acknowledgement waits for, how epochs close."""

from __future__ import annotations

import struct

import pytest

from anna import Counter, ORSet, Set
from anna.errors import LatticeTypeMismatch
from anna.kvs.worker import Connection
from tests.anna import frames
from tests.anna.frames import joined, multi_put, put, register, replies, request
from tests.anna.kvs.workers import STALE, Workers, view_of

MEMORY = 1
DISK = 255
STRICT = 2


def owner_of(workers: Workers, key: bytes) -> int:
    """Return the id of the key's primary owner."""
    for ids, worker in workers.workers.items():
        if worker.receive(Connection(), request(frames.GET, key), workers.now)[5] != frames.WRONG_WORKER:
            return ids
    raise AssertionError(key)


def add(key: bytes, *elements: str, ack: int = MEMORY) -> bytes:
    return request(frames.PUT, key, Set(set(elements)).encode(), type=Set.NUMBER, ack=ack)


def state_of(workers: Workers, ids: int, key: bytes) -> object:
    state = workers.workers[ids].store.read(key)
    return None if state is None else state.value


def test_a_write_is_acknowledged_when_as_many_copies_as_asked_for_hold_it() -> None:
    """D12: a write was acknowledged by one replica, whose crash lost up to ten seconds of them."""
    workers = Workers(view_of(2, factor=2))
    assert workers.ask(100, put(b"k", b"v", ack=2)) == []
    assert workers.released(100) == []
    workers.deliver()
    (answer,) = workers.released(100)
    assert (answer.status, answer.type + 1) == (frames.OK, 2)
    assert state_of(workers, 200, b"k") == state_of(workers, 100, b"k")


def test_the_usual_acknowledgement_outlives_one_process_and_memory_means_one_copy() -> None:
    workers = Workers(view_of(2, factor=2))
    assert workers.ask(100, put(b"a", b"v")) == []
    (answer,) = workers.ask(200, put(b"b", b"v", ack=MEMORY))
    assert (answer.status, answer.type) == (frames.OK, 0)


def test_a_copy_at_another_worker_of_the_same_node_is_not_waited_for_where_another_node_may_have_one() -> None:
    """P1: a node dies as a whole."""
    workers = Workers(view_of(2, factor=4, workers=2))
    workers.lose = lambda source, target, frame: source // 100 != target // 100
    assert workers.ask(100, put(b"k", b"v")) == []
    workers.pass_epochs(3)
    assert state_of(workers, 101, b"k") == state_of(workers, 100, b"k") is not None
    assert workers.released(100) == []
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(30)
    assert [(answer.status, answer.type + 1) for answer in workers.released(100)] == [(frames.OK, 2)]
    alone = Workers(view_of(1, factor=2, workers=2))
    assert alone.ask(100, put(b"k", b"v")) == []
    alone.deliver()
    assert [answer.type + 1 for answer in alone.released(100)] == [2]


def test_an_answer_that_waited_for_an_owner_that_is_gone_says_that_there_is_one_copy() -> None:
    """P1: `replicas` is what the write has, not what it was to have."""
    workers = Workers(view_of(2, factor=2))
    workers.stop(200)
    batch = multi_put((b"m", 1, register(b"v")))
    assert workers.ask(100, put(b"k", b"v"), put(b"l", b"v"), request(frames.GET, b"k"), batch) == []
    workers.pass_epochs(400)
    first, second, read, both = workers.released(100)
    assert [(answer.status, answer.type + 1) for answer in (first, second, both)] == [(frames.OK, 1)] * 3
    assert (read.status, read.type) == (frames.OK, 1)


def test_a_delete_that_finds_nothing_waits_for_its_copies_all_the_same() -> None:
    """Another owner may hold what this one has not heard of: the delete counts there, and so does its ack."""
    workers = Workers(view_of(2, factor=2))
    workers.lose = lambda source, target, frame: source == 200
    workers.ask(200, put(b"k", b"v", ack=MEMORY))
    assert workers.ask(100, request(frames.DELETE, b"k", ack=2)) == []
    assert workers.released(100) == []
    workers.pass_epochs(3)
    assert workers.released(100) == []
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(30)
    (answer,) = workers.released(100)
    assert (answer.status, answer.type + 1) == (frames.MISSING, 2)
    assert [state_of(workers, ids, b"k") for ids in (100, 200)] == [None, None]


def test_subscribers_are_pushed_what_other_owners_take() -> None:
    """A watcher at one owner saw what was written at another only when it asked again."""
    workers = Workers(view_of(2, factor=2))
    listener = Connection()
    workers.ask(100, request(frames.SUBSCRIBE, b"k"), connection=listener)
    workers.ask(200, put(b"k", b"v", ack=MEMORY))
    workers.pass_epochs(2)
    ((ids, connection, data),) = workers.pushed
    assert (ids, connection is listener) == (100, True)
    (push,) = replies(data)
    assert (push.status, push.flags, push.payload[:3]) == (frames.OK, frames.PUSH, b"\x01\x00k")


def test_who_is_not_told_what_a_key_holds_is_not_subscribed_to_it() -> None:
    workers = Workers(view_of(2, factor=2))
    listener = Connection()
    (written,) = workers.ask(200, put(b"k", b"v", ack=MEMORY))
    strict = {"flags": STRICT, "stamp": written.stamp}
    (answer,) = workers.ask(100, request(frames.SUBSCRIBE, b"k", **strict), connection=listener)
    assert (answer.status, listener.subscriptions) == (STALE, set())
    workers.pass_epochs(8)
    assert workers.pushed == []
    (answer,) = workers.ask(100, request(frames.SUBSCRIBE, b"k", **strict), connection=listener)
    assert (answer.status, listener.subscriptions) == (frames.OK, {b"k"})
    workers.check()


def test_answers_behind_one_that_waits_keep_their_order_and_those_before_it_do_not_wait() -> None:
    workers = Workers(view_of(2, factor=2))
    first = put(b"k", b"1", ack=MEMORY, id=1) + put(b"k", b"2", ack=2, id=2) + request(frames.GET, b"k", id=3)
    assert [a.request for a in workers.ask(100, first)] == [1]
    assert workers.ask(100, request(frames.GET, b"k", id=4)) == []
    workers.deliver()
    assert [a.request for a in workers.released(100)] == [2, 3, 4]


def test_more_copies_than_there_are_owners_are_refused_before_anything_is_written() -> None:
    workers = Workers(view_of(3, factor=2))
    ids = owner_of(workers, b"k")
    (answer,) = workers.ask(ids, put(b"k", b"v", ack=3))
    assert answer.status == 23
    assert answer.payload == b"ack=3 asks for 3 copies; the key has 2 owners now"
    assert state_of(workers, ids, b"k") is None


def test_a_durable_write_without_a_log_is_refused() -> None:
    workers = Workers(view_of(1))
    (answer,) = workers.ask(100, put(b"k", b"v", ack=255))
    assert answer.status == frames.NOT_SUPPORTED


def test_durable_writes_are_answered_with_their_batch_of_the_log_and_not_before() -> None:
    """P2: of writes that arrive together, and while a batch is on its way to the disk."""
    workers = Workers(view_of(1))
    worker = workers.workers[100]
    worker.open_log(1)
    first = [put(b"a", b"1", ack=DISK, id=1), put(b"b", b"2", ack=DISK, id=2), request(frames.GET, b"a", id=3)]
    assert workers.ask(100, *first) == []
    ((batch, _),) = worker.log_out()
    assert workers.ask(100, put(b"c", b"3", ack=DISK, id=4), put(b"a", b"4", ack=DISK, id=5)) == []
    assert worker.log_out() == []
    worker.logged(batch, workers.now)
    assert [answer.request for answer in workers.released(100)] == [1, 2, 3]
    ((batch, _),) = worker.log_out()
    worker.logged(batch, workers.now)
    assert [answer.request for answer in workers.released(100)] == [4, 5]
    workers.check()


def test_a_lost_delta_is_sent_again_until_it_is_confirmed() -> None:
    """D13: gossip was sent once, and forgotten."""
    workers = Workers(view_of(2, factor=2))
    workers.lose = lambda source, target, frame: True
    workers.ask(100, put(b"k", b"v", ack=MEMORY))
    workers.pass_epochs(5)
    assert state_of(workers, 200, b"k") is None
    assert workers.workers[100].replication.closed < workers.workers[200].replication.closed
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(30)
    assert state_of(workers, 200, b"k") is not None
    workers.check()


def test_a_large_set_that_grows_by_one_sends_one_element() -> None:
    """D29: the whole set was sent again each round."""
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, add(b"s", *(f"element-{n}" for n in range(100_000))))
    workers.pass_epochs(3)
    sizes: list[int] = []

    def note(source: int, target: int, frame: bytes) -> bool:
        sizes.append(len(frame))
        return False

    workers.lose = note
    workers.ask(100, add(b"s", "one more"))
    workers.pass_epochs(2)
    assert state_of(workers, 200, b"s") == state_of(workers, 100, b"s")
    assert sum(sizes) < 1000


def test_a_hot_key_costs_as_many_messages_as_a_cold_one() -> None:
    workers = Workers(view_of(2, factor=2))
    sent = []
    for updates in (1, 2000):
        before = workers.workers[100].replication.deltas_sent
        for number in range(updates):
            workers.ask(100, put(b"hot", b"%d" % number, ack=MEMORY), add(b"hot set", str(number)))
        workers.pass_epochs(1)
        sent.append(workers.workers[100].replication.deltas_sent - before)
    assert sent == [2, 2]
    assert workers.workers[200].store.read(b"hot").value == b"1999"
    assert len(state_of(workers, 200, b"hot set")) == 2000


def test_every_owner_takes_writes_and_all_come_to_the_same() -> None:
    workers = Workers(view_of(3, factor=3), skew_us=20_000)
    for round_number in range(20):
        for ids in workers.workers:
            workers.ask(ids, add(b"s", f"{ids}-{round_number}"))
            workers.ask(ids, put(b"r", b"%d-%d" % (ids, round_number), ack=MEMORY))
            increment = Counter(+1).encode()
            workers.ask(ids, request(frames.PUT, b"c", increment, type=Counter.NUMBER, ack=MEMORY))
            cart = ORSet(add={str(round_number)}, remove={str(round_number - 1)}).encode()
            workers.ask(ids, request(frames.PUT, b"o", cart, type=ORSet.NUMBER, ack=MEMORY))
        workers.pass_epochs(1)
    workers.pass_epochs(4)
    for key in (b"s", b"r", b"c", b"o"):
        assert len({worker.store.read(key).encode() for worker in workers.workers.values()}) == 1, key
    assert state_of(workers, 100, b"c") == 60
    workers.check()


def test_the_stable_epoch_follows_two_or_three_epochs_behind_and_stops_with_a_worker_that_is_silent() -> None:
    workers = Workers(view_of(3, factor=2))
    workers.ask(100, put(b"k", b"v", ack=MEMORY))
    workers.pass_epochs(4)
    for worker in workers.workers.values():
        assert 1 <= worker.replication.epoch - worker.replication.stable <= 3
    stable = workers.workers[100].replication.stable
    workers.lose = lambda source, target, frame: source == 300
    workers.ask(100, put(b"k", b"w", ack=MEMORY))
    workers.pass_epochs(10)
    assert workers.workers[100].replication.stable <= stable + 1


def test_closings_are_announced_while_there_is_work_and_then_no_more() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, put(b"k", b"v", ack=MEMORY))
    workers.pass_epochs(20)
    frames_before = workers.frames
    workers.pass_epochs(100)
    assert workers.frames - frames_before <= 2 * 3, "more than a heartbeat each half second"
    assert not any(worker.pushes_due for worker in workers.workers.values())


def test_a_deleted_key_does_not_come_back_from_a_replica_that_had_it() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, put(b"r", b"v", ack=MEMORY), add(b"s", "a"))
    workers.pass_epochs(3)
    workers.ask(200, request(frames.DELETE, b"r", ack=MEMORY), request(frames.DELETE, b"s", ack=MEMORY))
    workers.pass_epochs(3)
    for ids in workers.workers:
        assert [a.status for a in workers.ask(ids, request(frames.GET, b"r"), request(frames.GET, b"s"))] == [1, 1]


def test_a_write_after_a_delete_survives_it_also_where_the_delete_arrives_late() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, add(b"s", "old"), put(b"r", b"old", ack=MEMORY))
    workers.pass_epochs(3)
    workers.lose = lambda source, target, frame: True
    gone = workers.ask(100, request(frames.DELETE, b"s", ack=MEMORY), request(frames.DELETE, b"r", ack=MEMORY))
    seen = gone[1].stamp
    workers.pass_epochs(1)
    later = request(frames.PUT, b"s", Set({"new"}).encode(), type=Set.NUMBER, ack=MEMORY, stamp=seen)
    workers.ask(200, later, put(b"r", b"new", ack=MEMORY, stamp=seen))
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(40)
    for ids in workers.workers:
        assert state_of(workers, ids, b"s") == {"new"}
        assert state_of(workers, ids, b"r") == b"new"


def test_two_types_of_one_key_end_with_the_lesser_number_everywhere_and_the_other_is_kept_aside() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.lose = lambda source, target, frame: True
    workers.ask(100, put(b"k", b"register", ack=MEMORY))
    workers.ask(200, add(b"k", "element"))
    workers.pass_epochs(2)
    workers.lose = lambda source, target, frame: False
    workers.pass_epochs(40)
    for worker in workers.workers.values():
        assert worker.store.read(b"k").value == b"register"
    assert workers.workers[200].store.quarantine[b"k"].value == {"element"}
    with pytest.raises(LatticeTypeMismatch):
        workers.workers[100].store.write(b"k", Set({"x"}))
    workers.check()


def test_a_strict_read_waits_until_the_replica_has_all_that_its_client_saw() -> None:
    workers = Workers(view_of(2, factor=2))
    (answer,) = workers.ask(100, put(b"k", b"v", ack=MEMORY))
    strict = request(frames.GET, b"k", flags=2, stamp=answer.stamp)
    batch = request(frames.MGET, b"", struct.pack("<IH", 1, 1) + b"k", flags=2, stamp=answer.stamp)
    assert [a.status for a in workers.ask(200, strict, batch)] == [25, 25]
    workers.pass_epochs(4)
    assert workers.ask(200, strict)[0].payload == register(b"v", answer.stamp, 100)


@pytest.mark.parametrize("piece", [999, 32_768, 40_000, 65_536, 1 << 20])
def test_a_long_delta_is_taken_whatever_pieces_its_frame_comes_in(piece: int) -> None:
    workers = Workers(view_of(2, factor=2))
    for number in range(400):
        workers.ask(100, put(b"%d" % number, bytes(300) + b"%d" % number, ack=MEMORY))
    workers.now += 10_000_000
    workers.workers[100].tick(workers.now)
    sent = b"".join(joined(parts) for _, parts in workers.workers[100].outgoing())
    connection = Connection()
    for begin in range(0, len(sent), piece):
        assert workers.workers[200].receive(connection, sent[begin : begin + piece], workers.now) == b""
    assert connection.failure is None
    for number in range(400):
        held = workers.workers[200].store.read(b"%d" % number)
        assert held is not None
        assert held.value == bytes(300) + b"%d" % number
    workers.pass_epochs()
    workers.check()


def test_messages_to_another_incarnation_are_not_taken() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.ask(100, put(b"k", b"v", ack=MEMORY))
    workers.now += 10_000_000
    workers.workers[100].tick(workers.now)
    ((_, frame),) = [(t, f) for t, f in workers.workers[100].outgoing() if len(f) > 90]
    other = frame[:32] + struct.pack("<Q", 999) + frame[40:]
    assert replies(workers.workers[200].receive(Connection(), other, workers.now)) == []
    assert state_of(workers, 200, b"k") is None


def test_a_register_with_a_time_to_live_goes_at_every_replica_and_a_later_write_stays() -> None:
    workers = Workers(view_of(2, factor=2))
    for key in (b"short", b"renewed"):
        body = struct.pack("<Q", 50_000) + register(b"v")
        workers.ask(100, request(frames.PUT, key, body, type=1, flags=8, ack=MEMORY))
    workers.pass_epochs(3)
    assert state_of(workers, 200, b"short") == b"v"
    workers.ask(200, put(b"renewed", b"w", ack=MEMORY))
    workers.pass_epochs(8)
    for ids in workers.workers:
        answers = workers.ask(ids, request(frames.GET, b"short"), request(frames.GET, b"renewed"))
        assert [a.status for a in answers] == [1, 0]
    workers.check()


def test_what_ends_in_an_idle_worker_is_given_back_and_told_to_its_watchers() -> None:
    """A worker that was alone had no reason to look: what had ended stayed in memory, and its watchers in the dark."""
    workers = Workers(view_of(1))
    worker = workers.workers[100]
    watching = Connection()
    workers.ask(100, request(frames.SUBSCRIBE, b"short"), connection=watching)
    body = struct.pack("<Q", 700_000) + register(b"v")
    workers.ask(100, request(frames.PUT, b"short", body, type=1, flags=8, ack=MEMORY))
    workers.pass_epochs(20)
    assert not worker.pushes_due
    workers.pushed.clear()
    assert workers.now < worker.next_due() <= workers.now + 500_000_000
    workers.now = worker.next_due()
    ((connection, _),) = worker.tick(workers.now)
    assert connection is watching
    assert len(worker.store) == 0
    worker.check()


def test_a_large_put_without_a_time_to_live_outlives_one_with_it() -> None:
    """Large registers take a way of their own into the store, on which the earlier write's time went on running."""
    workers = Workers(view_of(1))
    body = struct.pack("<Q", 50_000) + register(b"v")
    workers.ask(100, request(frames.PUT, b"k", body, type=1, flags=8))
    large = put(b"k", b"x" * 100_000)
    workers.workers[100].receive(workers.connections[100], large[:40_000], workers.now)
    workers.workers[100].receive(workers.connections[100], large[40_000:], workers.now)
    workers.now += 60_000_000
    assert workers.ask(100, request(frames.GET, b"k"))[0].status == frames.OK
    workers.pass_epochs(2)
    assert workers.ask(100, request(frames.GET, b"k"))[0].status == frames.OK


def test_a_put_that_compares_is_refused_when_somebody_wrote_meanwhile() -> None:
    workers = Workers(view_of(1))

    def put_if(expected: int, value: bytes) -> bytes:
        return request(frames.PUT, b"k", struct.pack("<Q", expected) + register(value), type=1, flags=4)

    (first,) = workers.ask(100, put_if(0, b"1"))
    again = put_if(first.stamp, b"2"), put_if(first.stamp, b"3")
    second, third, got = workers.ask(100, *again, request(frames.GET, b"k"))
    assert [a.status for a in (first, second, third)] == [0, 0, 26]
    assert got.payload == register(b"2", second.stamp, 100)


def test_a_scan_gives_keys_in_order_a_page_at_a_time() -> None:
    import msgpack

    workers = Workers(view_of(1))
    workers.ask(100, *(put(b"user:%03d" % n, b"v") for n in range(25)), put(b"other", b"v"))
    found, cursor = [], b""
    while True:
        (page,) = workers.ask(100, request(frames.SCAN, b"user:", struct.pack("<I", 10) + cursor))
        keys, more = msgpack.unpackb(page.payload)
        found += keys
        if not more:
            break
        cursor = keys[-1]
    assert found == [b"user:%03d" % n for n in range(25)]
