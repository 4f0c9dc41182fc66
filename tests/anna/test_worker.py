"""The worker's core, from bytes to bytes."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anna import LWW, Set, config
from anna.codec import encode_value
from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.lattices import REGISTRY
from anna.messages import NodeInfo, View, WorkerInfo
from tests.anna import frames
from tests.anna.frames import Reply, items, multi_get, multi_put, put, register, replies, request

NOW = 5_000_000_000
WALL_US = 1_000_000_000


def view_of(count: int, version: int = 1) -> View:
    workers = tuple(WorkerInfo(100 + seat, (f"unix:/run/{seat}.sock",), seat) for seat in range(count))
    return View(version, (NodeInfo(1, workers),))


@pytest.fixture
def worker() -> Worker:
    return Worker(view_of(1), 0, Clock(WALL_US, NOW // 1000))


def ask(worker: Worker, *requests: bytes, connection: Connection | None = None, now: int = NOW) -> list[Reply]:
    answers = replies(worker.receive(connection or Connection(), b"".join(requests), now))
    worker.check()
    return answers


STAMP = WALL_US << 10


def test_put_is_stamped_by_the_worker_and_got_back(worker: Worker) -> None:
    assert ask(worker, put(b"k", b"hello", id=1), request(frames.GET, b"k", id=2)) == [
        Reply(frames.OK, 0, 0, 1, STAMP, b""),
        Reply(frames.OK, 1, 0, 2, STAMP, register(b"hello", STAMP, 100)),
    ]


def test_get_of_nothing_is_missing_and_of_empty_bytes_is_not(worker: Worker) -> None:
    answers = ask(worker, request(frames.GET, b"k"), put(b"k", b""), request(frames.GET, b"k"))
    assert [a.status for a in answers] == [frames.MISSING, frames.OK, frames.OK]
    assert answers[2].payload == register(b"", STAMP, 100)


def test_writes_of_one_moment_have_rising_stamps(worker: Worker) -> None:
    answers = ask(worker, *(put(b"k", b"%d" % i) for i in range(2000)))
    stamps = [a.stamp for a in answers]
    assert stamps == sorted(set(stamps))
    assert stamps[0] == STAMP


def test_the_write_is_stamped_past_what_its_client_has_seen(worker: Worker) -> None:
    seen = (WALL_US + 30_000_000) << 10 | 17
    assert [a.stamp for a in ask(worker, put(b"k", b"v", stamp=seen))] == [seen + 1]


def test_a_stamp_more_than_a_minute_ahead_is_refused_and_moves_nothing(worker: Worker) -> None:
    seen = (WALL_US + config.STAMP_AHEAD_MAX_US + 1) << 10
    answers = ask(worker, put(b"k", b"v", stamp=seen), request(frames.GET, b"k"))
    assert [a.status for a in answers] == [frames.STAMP_AHEAD, frames.MISSING]
    assert answers[1].stamp < seen


def test_a_read_is_answered_also_to_a_client_that_has_seen_the_far_future(worker: Worker) -> None:
    """A node that lost its memory, and whose wall clock was set back an hour meanwhile, refused its clients' reads."""
    seen = (WALL_US + 3_600_000_000) << 10
    ask(worker, put(b"k", b"v"))
    plain, strict = (request(frames.GET, b"k", stamp=seen, flags=flags) for flags in (0, 2))
    assert [a.status for a in ask(worker, plain, strict)] == [frames.OK, frames.OK]


def test_a_register_stamped_ahead_is_refused_too(worker: Worker) -> None:
    ahead = register(b"v", (WALL_US + config.STAMP_AHEAD_MAX_US + 1) << 10, 9)
    answers = ask(worker, request(frames.PUT, b"k", ahead, type=1), request(frames.GET, b"k"))
    assert [a.status for a in answers] == [frames.STAMP_AHEAD, frames.MISSING]


def test_a_clock_that_was_pulled_ahead_runs_on_from_there(worker: Worker) -> None:
    ahead_us = WALL_US + 40_000_000
    ask(worker, put(b"k", b"v", stamp=ahead_us << 10))
    (answer,) = ask(worker, put(b"k", b"w"), now=NOW + 5_000_000)
    assert answer.stamp >> 10 == ahead_us + 5_000


def test_an_older_stamped_register_loses_and_the_type_decides_nothing_by_arrival(worker: Worker) -> None:
    new, old = register(b"new", STAMP, 2), register(b"old", STAMP, 1)
    for first, second in ((new, old), (old, new)):
        key = first[-3:]
        ask(worker, request(frames.PUT, key, first, type=1), request(frames.PUT, key, second, type=1))
        assert ask(worker, request(frames.GET, key))[0].payload == new


def test_bytes_that_somebody_holds_are_not_written_over(worker: Worker) -> None:
    ask(worker, put(b"k", b"before"))
    held = worker.store.read(b"k").payload
    ask(worker, put(b"k", b"after!"))
    assert held == encode_value(b"before")
    assert worker.store.read(b"k").payload == encode_value(b"after!")


def test_a_copy_of_a_register_stays_what_it_was(worker: Worker) -> None:
    ask(worker, put(b"k", b"before"))
    copied = worker.store.read(b"k").copy()
    ask(worker, put(b"k", b"after!"))
    assert copied.value == b"before"


def test_bytes_that_were_written_over_do_not_keep_the_hash_of_what_they_were(worker: Worker) -> None:
    ask(worker, put(b"k", b"before"))
    assert hash(worker.store.read(b"k").payload) == hash(encode_value(b"before"))
    ask(worker, put(b"k", b"after!"))
    assert {worker.store.read(b"k").payload} == {encode_value(b"after!")}


@pytest.mark.parametrize("sizes", [(0, 0), (1, 1), (2, 2), (300, 300), (300, 2), (2, 300), (0, 5), (5, 0)])
def test_the_later_of_two_writes_is_what_is_read_whatever_their_lengths(worker: Worker, sizes: tuple[int, int]) -> None:
    before, after = (bytes([mark]) * size for mark, size in zip(b"ba", sizes, strict=True))
    ask(worker, put(b"k", before), put(b"other", before), put(b"k", after))
    assert worker.store.read(b"k").value == after
    assert worker.store.read(b"other").value == before


def test_write_of_another_type_is_refused_and_changes_nothing(worker: Worker) -> None:
    """D07: a put of another type was acknowledged and lost."""
    other = next(kind for number, kind in REGISTRY.items() if number != LWW.NUMBER)
    answers = ask(
        worker,
        put(b"k", b"v"),
        request(frames.PUT, b"k", other.bottom().encode(), type=other.NUMBER),
        request(frames.GET, b"k"),
    )
    assert [a.status for a in answers] == [frames.OK, frames.TYPE_MISMATCH, frames.OK]
    assert answers[1].payload.decode() == f"'k' holds a LWW, got a {other.__name__}"
    assert answers[2].payload == register(b"v", STAMP, 100)


def test_every_registered_type_is_stored_and_joined(worker: Worker) -> None:
    for number, kind in sorted(REGISTRY.items()):
        state = kind.bottom().encode()
        key = b"type-%d" % number
        answers = ask(worker, *[request(frames.PUT, key, state, type=number)] * 2, request(frames.GET, key))
        assert [(a.status, a.type) for a in answers] == [(frames.OK, 0), (frames.OK, 0), (frames.OK, number)]


def test_unknown_type_and_unknown_operation_are_not_supported_and_the_connection_stays(worker: Worker) -> None:
    connection = Connection()
    answers = ask(worker, request(frames.PUT, b"k", b"", type=99), request(77, id=3), connection=connection)
    assert [(a.status, a.request) for a in answers] == [(frames.NOT_SUPPORTED, 7), (frames.NOT_SUPPORTED, 3)]
    assert connection.failure is None


def test_bad_keys_are_refused(worker: Worker) -> None:
    """D19, D30: an empty key crashed the server; the reserved namespace was writable."""
    long = b"x" * (config.KEY_BYTES_MAX + 1)
    for op in (frames.GET, frames.PUT, frames.DELETE):
        answers = ask(worker, *(request(op, key, register(b"v"), type=1) for key in (b"", long, b"\0system")))
        assert [a.status for a in answers] == [frames.BAD_KEY] * 3
    assert len(worker.store) == 0
    assert (
        ask(worker, put(b"\0system", b"v", flags=1), request(frames.GET, b"\0system", flags=1))[1].status == frames.OK
    )


def test_longest_key_is_taken(worker: Worker) -> None:
    key = b"x" * config.KEY_BYTES_MAX
    assert [a.status for a in ask(worker, put(key, b"v"), request(frames.GET, key))] == [frames.OK, frames.OK]


def test_delete_says_whether_there_was_anything_and_frees_the_type(worker: Worker) -> None:
    answers = ask(worker, put(b"k", b"v"), request(frames.DELETE, b"k"), request(frames.DELETE, b"k"))
    assert [a.status for a in answers] == [frames.OK, frames.OK, frames.MISSING]
    assert worker.store.size_bytes == 0


def test_multi_get_answers_in_order(worker: Worker) -> None:
    (_, answer) = ask(worker, put(b"a", b"1"), multi_get(b"missing", b"a", b"a"))
    state = register(b"1", STAMP, 100)
    assert items(answer.payload) == [(frames.MISSING, 0, b""), (frames.OK, 1, state), (frames.OK, 1, state)]


def test_multi_put_writes_what_it_can_and_names_the_rest(worker: Worker) -> None:
    answer, got = ask(
        worker,
        multi_put((b"a", 1, register(b"1")), (b"", 1, register(b"2")), (b"c", 1, b"short"), (b"d", 1, register(b"4"))),
        multi_get(b"a", b"c", b"d"),
    )
    assert answer.status == frames.PARTIAL
    assert [(index, status) for index, status, _ in msgpack.unpackb(answer.payload)] == [
        (1, frames.BAD_KEY),
        (2, frames.MALFORMED),
    ]
    assert [status for status, _, _ in items(got.payload)] == [frames.OK, frames.MISSING, frames.OK]


def test_malformed_batch_has_no_effect(worker: Worker) -> None:
    whole = multi_put((b"a", 1, register(b"1")), (b"b", 1, register(b"2")))
    body = whole[frames.HEADER.size :]
    for cut in range(len(body)):
        (answer,) = ask(worker, request(frames.MPUT, b"", body[:cut]))
        assert answer.status == frames.MALFORMED, cut
    assert len(worker.store) == 0


def test_batch_beyond_the_limit_is_refused_by_its_count(worker: Worker) -> None:
    body = struct.pack("<I", config.BATCH_KEYS_MAX + 1)
    answers = ask(worker, request(frames.MGET, b"", body), request(frames.MPUT, b"", body))
    assert [a.status for a in answers] == [frames.TOO_LARGE, frames.TOO_LARGE]


def test_any_split_of_the_bytes_gives_the_same_answers(worker: Worker) -> None:
    stream = b"".join(
        [put(b"a", b"x" * 50), multi_put((b"b", 1, register(b"2"))), multi_get(b"a", b"b"), request(frames.GET, b"a")]
    )
    whole = replies(worker.receive(Connection(), stream, NOW))
    for step in (1, 2, 3, 7, 23, 24, 25, 100):
        twin, connection = Worker(view_of(1), 0, Clock(WALL_US, NOW // 1000)), Connection()
        pieces = [twin.receive(connection, stream[i : i + step], NOW) for i in range(0, len(stream), step)]
        assert replies(b"".join(p if isinstance(p, bytes) else b"".join(p) for p in pieces)) == whole
        twin.check()


@pytest.mark.parametrize("step", [1000, 33_000, 70_001, 10**9])
def test_large_registers_survive_any_split(worker: Worker, step: int) -> None:
    value = bytes(range(256)) * 1024
    stream = put(b"big", value, id=1) + request(frames.GET, b"big", id=2) + put(b"big", value[::-1], id=3)
    connection = Connection()
    pieces = [worker.receive(connection, stream[i : i + step], NOW) for i in range(0, len(stream), step)]
    answers = replies(b"".join(p if isinstance(p, bytes) else b"".join(p) for p in pieces))
    assert [(a.request, a.status) for a in answers] == [(1, frames.OK), (2, frames.OK), (3, frames.OK)]
    assert answers[1].payload[16:] == b"\x06" + value
    worker.check()


def test_large_register_to_a_bad_key_is_refused_and_the_connection_stays(worker: Worker) -> None:
    connection = Connection()
    frame = put(b"\0big", b"x" * 100_000)
    assert worker.receive(connection, frame[:50_000], NOW) == b""
    (answer, after) = ask(worker, frame[50_000:], request(frames.GET, b"k"), connection=connection)
    assert (answer.status, after.status) == (frames.BAD_KEY, frames.MISSING)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<I", 2**32 - 1) + b"x" * 40,
        struct.pack("<I", 0) + b"x" * 40,
        struct.pack("<I", 19) + b"x" * 40,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b" " * 40,
        frames.HEADER.pack(20, 2, 1, 0, 0, 1, 0, 0, 0),
        frames.HEADER.pack(20, 1, 1, 0, 0, 1, 9, 0, 0),
    ],
    ids=["huge", "zero", "short", "http", "version", "key beyond the frame"],
)
def test_bytes_of_no_protocol_end_their_connection_and_harm_no_other(worker: Worker, frame: bytes) -> None:
    good, bad = Connection(), Connection()
    ask(worker, put(b"k", b"v"), connection=good)
    (answer,) = ask(worker, frame, connection=bad)
    assert answer.status == frames.MALFORMED
    assert bad.failure == answer.payload.decode()
    assert worker.receive(bad, put(b"k", b"evil"), NOW) == b""
    assert ask(worker, request(frames.GET, b"k"), connection=good)[0].payload == register(b"v", STAMP, 100)
    assert worker.malformed == 1


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_crash_a_worker(data: st.DataObject) -> None:
    """Frames with any part changed: an answer or a closed connection, and an intact store."""
    worker = Worker(view_of(2), 0, Clock(WALL_US, NOW // 1000))
    connection = Connection()
    for _ in range(data.draw(st.integers(1, 6))):
        frame = bytearray(
            data.draw(
                st.one_of(
                    st.builds(put, st.binary(max_size=6), st.binary(max_size=6)),
                    st.builds(
                        request,
                        st.integers(0, 12),
                        st.binary(max_size=6),
                        st.binary(max_size=40),
                        type=st.integers(0, 14),
                    ),
                    st.builds(lambda ks: multi_get(*ks), st.lists(st.binary(max_size=4), max_size=4)),
                    st.builds(
                        lambda xs: multi_put(*xs),
                        st.lists(
                            st.tuples(st.binary(max_size=4), st.integers(0, 14), st.binary(max_size=30)), max_size=4
                        ),
                    ),
                )
            )
        )
        for _ in range(data.draw(st.integers(0, 3))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        replies(worker.receive(connection, bytes(frame), NOW))
        worker.check()


def test_every_answer_tells_the_mark_of_the_view(worker: Worker) -> None:
    def marks() -> set[int]:
        asked = put(b"k", b"v"), request(frames.GET, b"k"), request(frames.GET, b"-"), multi_get(b"k"), request(99)
        return {worker.receive(Connection(), frame, NOW)[7] >> 1 for frame in asked}

    first = worker.view
    assert marks() == {first.mark}
    worker.adopt(view_of(2, version=5))
    assert marks() == {worker.view.mark} != {first.mark}


def test_put_to_wrong_worker_is_answered_with_the_view() -> None:
    view = view_of(2)
    workers = [Worker(view, place, Clock(WALL_US, NOW // 1000)) for place in range(2)]
    statuses = {tuple(ask(w, put(b"k", b"v"))[0].status for w in workers)}
    assert statuses <= {(frames.OK, frames.WRONG_WORKER), (frames.WRONG_WORKER, frames.OK)}
    (wrong,) = [w for w in workers if len(w.store) == 0]
    (answer,) = ask(wrong, request(frames.GET, b"k"))
    assert (answer.status, View.from_wire(msgpack.unpackb(answer.payload))) == (frames.WRONG_WORKER, view)
    (batch,) = ask(wrong, multi_get(b"k"))
    assert items(batch.payload) == [(frames.WRONG_WORKER, 0, b"")]
    (batch,) = ask(wrong, multi_put((b"k", 1, register(b"v"))))
    assert msgpack.unpackb(batch.payload) == [[0, frames.WRONG_WORKER, ""]]


def test_adopted_view_is_given_to_newcomers(worker: Worker) -> None:
    newer = view_of(1, version=5)
    worker.adopt(newer)
    (answer,) = ask(worker, request(frames.VIEW))
    assert View.from_wire(msgpack.unpackb(answer.payload)) == newer


def test_subscribers_are_pushed_what_changed_once_a_tick(worker: Worker) -> None:
    listener, other = Connection(), Connection()
    ask(worker, request(frames.SUBSCRIBE, b"a"), request(frames.SUBSCRIBE, b"b"), connection=listener)
    ask(worker, put(b"a", b"1"), put(b"a", b"2"), put(b"c", b"3"), connection=other)
    assert worker.pushes_due
    ((connection, data),) = worker.tick(NOW)
    assert connection is listener
    state = register(b"2", STAMP + 1, 100)
    assert replies(data) == [Reply(frames.OK, 1, frames.PUSH, 0, worker.clock.last, b"\x01\x00a" + state)]
    assert worker.tick(NOW) == []
    assert worker.tick(NOW) == []


def test_a_deleted_key_is_pushed_as_missing_and_a_left_subscriber_gets_nothing(worker: Worker) -> None:
    listener, left = Connection(), Connection()
    for connection in (listener, left):
        ask(worker, put(b"a", b"1"), request(frames.SUBSCRIBE, b"a"), connection=connection)
    worker.tick(NOW)
    worker.leave(left)
    ask(worker, request(frames.DELETE, b"a"))
    ((connection, data),) = worker.tick(NOW)
    assert connection is listener
    assert [(r.status, r.payload) for r in replies(data)] == [(frames.MISSING, b"\x01\x00a")]


def test_status_counts(worker: Worker) -> None:
    ask(worker, put(b"a", b"1"), request(frames.GET, b"a"), request(frames.DELETE, b"a"), put(b"b", b"2"))
    (answer,) = ask(worker, request(frames.STATUS))
    figures = msgpack.unpackb(answer.payload)
    assert {k: figures[k] for k in ("keys", "gets", "puts", "deletes", "malformed", "refused", "worker_id")} == {
        "keys": 1,
        "gets": 1,
        "puts": 2,
        "deletes": 1,
        "malformed": 0,
        "refused": 0,
        "worker_id": 100,
    }
    assert figures["bytes"] == len(b"b") + len(register(b"2"))


@pytest.mark.parametrize("flag", [4, 8])
def test_a_batch_or_a_delete_that_would_compare_or_expire_is_refused_and_changes_nothing(
    worker: Worker, flag: int
) -> None:
    """The flags were ignored: what was to live for a second lived for ever."""
    batch = bytearray(multi_put((b"a", 1, register(b"1")), (b"b", 1, register(b"2"))))
    batch[7] = flag
    ask(worker, put(b"k", b"v"))
    answers = ask(worker, bytes(batch), request(frames.DELETE, b"k", flags=flag))
    assert [answer.status for answer in answers] == [frames.NOT_SUPPORTED] * 2
    assert list(worker.store.states) == [b"k"]


def test_a_key_of_a_batch_with_flags_of_its_own_is_refused_with_all_others(worker: Worker) -> None:
    batch = bytearray(multi_put((b"a", 1, register(b"1")), (b"b", 1, register(b"2"))))
    batch[batch.index(b"b") - 5] = 8
    (answer,) = ask(worker, bytes(batch))
    assert (answer.status, answer.payload) == (
        frames.NOT_SUPPORTED,
        b"key 1 of a multi-put has the flags 8; a key has none of its own",
    )
    assert len(worker.store) == 0


def test_a_subscription_to_a_state_that_is_too_large_is_none(worker: Worker) -> None:
    """No client's write makes one; what several owners took apart may be one."""
    listener = Connection()
    elements = [b"%04d" % n * 250_000 for n in range(config.VALUE_BYTES_MAX // 1_000_000 + 1)]
    for half in (elements[::2], elements[1::2]):
        worker.store.write(b"s", Set(half))
    (answer,) = ask(worker, request(frames.SUBSCRIBE, b"s"), connection=listener)
    assert (answer.status, listener.subscriptions) == (frames.TOO_LARGE, set())
