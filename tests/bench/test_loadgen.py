"""The load generator against a scripted peer: it sends what it says, and counts what it gets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from bench import loadgen

KEY = b"key:0000" + b"0" * 8
RESP_GET = b"*2\r\n$3\r\nGET\r\n$16\r\n" + KEY + b"\r\n"
DIGITS_AT = RESP_GET.index(KEY) + 8
Answer = Callable[[bytes], bytes]


def play(
    answer: Answer,
    template: bytes,
    depth: int,
    keys: int,
    protocol: int,
    chunk: int = 1 << 20,
    **options: int,
) -> tuple[loadgen.Outcome, list[bytes]]:
    """Run one connection through all `keys` in order; the peer answers in pieces of `chunk` bytes."""
    near, far = socket.socketpair()
    requests: list[bytes] = []

    def serve() -> None:
        with far:
            waiting = b""
            while data := far.recv(1 << 16):
                waiting += data
                while len(waiting) >= len(template):
                    requests.append(waiting[: len(template)])
                    waiting = waiting[len(template) :]
                    reply = answer(requests[-1])
                    for at in range(0, len(reply), chunk):
                        far.send(reply[at : at + chunk])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        outcome = loadgen.run(
            [near.fileno()],
            template,
            template.index(KEY) + 8,
            protocol,
            depth,
            keys,
            0.0,
            sequential=True,
            **options,
        )
    finally:
        near.close()
        thread.join()
    return outcome, requests


def test_sequential_run_asks_for_each_key_once_in_order() -> None:
    outcome, requests = play(lambda _: b"$3\r\nabc\r\n", RESP_GET, 5, 20, loadgen.RESP)
    assert [int(request[DIGITS_AT : DIGITS_AT + 8]) for request in requests] == list(range(20))
    assert (outcome.ops, outcome.misses, outcome.errors) == (20, 0, 0)
    assert 0 < outcome.p50_us <= outcome.p99_us


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_resp_replies_are_told_apart_however_they_are_cut(chunk: int) -> None:
    replies = [b"$3\r\nabc\r\n", b"$-1\r\n", b"-ERR no\r\n", b"+OK\r\n", b"$12\r\n+OK\r\n-ERR\r\n\n\r\n"]
    outcome, _ = play(
        lambda request: replies[int(request[DIGITS_AT : DIGITS_AT + 8])], RESP_GET, 5, 5, loadgen.RESP, chunk
    )
    assert (outcome.ops, outcome.misses, outcome.errors) == (5, 1, 1)


def frame_reply(status: int, stamp: int, payload: bytes) -> bytes:
    body = bytes([1, status, 1, 0]) + bytes(8) + stamp.to_bytes(8, "little") + payload
    return len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("chunk", [1, 11, 1 << 20])
def test_frames_carry_the_greatest_stamp_seen_and_errors_are_counted(chunk: int) -> None:
    template = bytes(24) + KEY
    stamps = [70, 90, 80, 85]
    statuses, stamps = [0, 1, 0, 16], [70, 90, 80, 85]

    def answer(request: bytes) -> bytes:
        number = request[-1] - ord("0")
        return frame_reply(statuses[number], stamps[number], b"x" * 40)

    outcome, requests = play(answer, template, 1, 4, loadgen.ANNA, chunk, stamp_at=16)
    assert [int.from_bytes(request[16:24], "little") for request in requests] == [0, 70, 90, 90]
    assert (outcome.ops, outcome.misses, outcome.errors) == (4, 1, 1)


def test_peer_that_closes_is_an_error() -> None:
    near, far = socket.socketpair()
    far.close()
    with near, pytest.raises(ConnectionError, match="closed"):
        loadgen.run([near.fileno()], RESP_GET, DIGITS_AT, loadgen.RESP, 1, 10, 0.01)


def test_bytes_that_are_no_reply_are_an_error() -> None:
    with pytest.raises(ConnectionError, match="not a reply"):
        play(lambda _: b"hello\r\n", RESP_GET, 1, 1, loadgen.RESP)


def test_digits_must_lie_inside_the_request() -> None:
    with pytest.raises(ValueError, match="digits at 40"):
        loadgen.run([0], RESP_GET, 40, loadgen.RESP, 1, 10, 0.01)


def test_percentiles_are_right_within_a_bucket() -> None:
    counts = [0] * 1000
    for index in (10, 10, 10, 200):
        counts[index] += 1
    assert loadgen.percentile_us(counts, 0.5) == loadgen.bucket_floor(10) / 1000 == 0.010
    assert loadgen.percentile_us(counts, 0.99) == loadgen.bucket_floor(200) / 1000
    floors = [loadgen.bucket_floor(index) for index in range(1000)]
    assert floors == sorted(set(floors))


def test_a_connection_draws_from_its_own_pool_only() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"$-1\r\n" * 64)
        pool = b"".join(number.to_bytes(4, "little") for number in (7, 11))
        loadgen.run([near.fileno()], RESP_GET, DIGITS_AT, loadgen.RESP, 64, 100, 0.0, pools=[pool])
        sent = far.recv(1 << 16)
    assert len(sent) == 64 * len(RESP_GET)
    numbers = {sent[at + DIGITS_AT : at + DIGITS_AT + 8] for at in range(0, len(sent), len(RESP_GET))}
    assert numbers == {b"00000007", b"00000011"}


def test_each_connection_needs_a_pool_of_whole_numbers() -> None:
    near, far = socket.socketpair()
    with near, far:
        for pools in ([], [b""], [b"123"]):
            with pytest.raises(ValueError, match="pools"):
                loadgen.run([near.fileno()], RESP_GET, DIGITS_AT, loadgen.RESP, 1, 1, 0.0, pools=pools)
