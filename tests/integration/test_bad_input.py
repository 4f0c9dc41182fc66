"""Bytes that are not of the protocol, sent to a real worker: they end their own connection and harm nobody else.

The table of bad inputs is reliability.md C; the frames that a worker must answer are in tests/anna/test_worker.py.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest

from anna.config import BATCH_KEYS_MAX, FRAME_BYTES_MAX, FRAME_BYTES_PER_S_MIN, FRAME_DEADLINE_S
from tests.anna import frames
from tests.anna.local.processes import children_of, serving

SEED = 20
"""Of everything random here."""

GRACE_S = 2.5
"""How much later than its deadline a connection may end: the pause between sweeps, and a busy machine."""

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Victim:
    """A served node of one worker."""

    address: tuple[str, int]
    supervisor_pid: int
    worker_pid: int

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def resident_bytes(self) -> int:
        """Return how much memory the worker really has."""
        return int(Path(f"/proc/{self.worker_pid}/statm").read_text().split()[1]) * 4096

    def frames(self) -> int:
        """Return how many frames the worker has looked at."""
        with self.connect() as peer:
            count: int = msgpack.unpackb(answer_to(peer, frames.request(frames.STATUS)).payload)["frames"]
        return count

    def assert_unharmed(self) -> None:
        """The worker is the one that was started, and answers."""
        assert children_of(self.supervisor_pid) == [self.worker_pid]
        with self.connect() as peer:
            assert answer_to(peer, frames.request(frames.STATUS)).status == frames.OK


@pytest.fixture
def victim(directory: Path) -> Iterator[Victim]:
    with serving("--workers", "1", "--listen", "tcp://127.0.0.1:0") as (process, started):
        host, port = started["workers"][0][1].removeprefix("tcp://").rsplit(":", 1)
        (worker,) = children_of(process.pid)
        yield Victim((host, int(port)), process.pid, worker)


def receive(peer: socket.socket, size: int) -> bytes:
    """Return exactly so many bytes, or fewer at the end of the stream."""
    data = b""
    while len(data) < size and (part := peer.recv(size - len(data))):
        data += part
    return data


def answer_to(peer: socket.socket, frame: bytes) -> frames.Reply:
    peer.sendall(frame)
    head = receive(peer, 4)
    assert head, "the connection ended instead of an answer"
    return frames.replies(head + receive(peer, struct.unpack("<I", head)[0]))[0]


def last_words(peer: socket.socket) -> bytes:
    """Return what still comes until the other side closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while part := peer.recv(65536):
            said += part
    return said


WELL_FORMED = frames.request(frames.GET, b"k")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff" * 4 + WELL_FORMED[4:], id="a length of 2**32 - 1"),
        pytest.param(bytes(4) + WELL_FORMED[4:], id="a length of 0"),
        pytest.param(struct.pack("<I", 19) + WELL_FORMED[4:], id="a length shorter than the header"),
        pytest.param(struct.pack("<I", FRAME_BYTES_MAX + 1) + WELL_FORMED[4:], id="a length beyond the limit"),
        pytest.param(WELL_FORMED[:4] + b"\x63" + WELL_FORMED[5:], id="another version"),
        pytest.param(WELL_FORMED[:12] + b"\xff\xff" + WELL_FORMED[14:], id="a key longer than its frame"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="another protocol"),
        pytest.param(random.Random(SEED).randbytes(100_000), id="random bytes"),
    ],
)
def test_malformed_bytes_end_their_own_connection_at_once_and_no_other(victim: Victim, data: bytes) -> None:
    """D19, D22: every message is validated, and what is not of the protocol is never guessed at."""
    with victim.connect() as bystander, victim.connect() as peer:
        assert answer_to(bystander, frames.put(b"k", b"v")).status == frames.OK
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(data)
        said = last_words(peer)
        assert time.monotonic() - begun < GRACE_S
        assert said == b"" or frames.replies(said)[0].status == frames.MALFORMED
        assert answer_to(bystander, frames.request(frames.GET, b"k")).payload.endswith(b"v")
    victim.assert_unharmed()


def test_an_unknown_operation_is_refused_by_its_id_and_the_connection_stays(victim: Victim) -> None:
    with victim.connect() as peer:
        assert answer_to(peer, frames.request(200, b"k", id=99))[:4:3] == (frames.NOT_SUPPORTED, 99)
        assert answer_to(peer, frames.request(frames.GET, b"k")).status == frames.MISSING


def test_a_frame_that_is_not_finished_in_time_ends_its_connection_and_a_slow_one_that_moves_does_not(
    victim: Victim,
) -> None:
    """Silence in the middle of a frame has an end; silence between frames has none, nor a long frame that moves."""
    large = frames.put(b"large", bytes(3 * MIB))
    assert FRAME_DEADLINE_S + len(large) // FRAME_BYTES_PER_S_MIN == 8
    with contextlib.ExitStack() as stack:
        names = ("half a length", "half a header", "half a payload", "half a large payload", "a byte a second")
        silent = {name: stack.enter_context(victim.connect()) for name in names}
        idle, slow = stack.enter_context(victim.connect()), stack.enter_context(victim.connect())
        silent["half a length"].sendall(WELL_FORMED[:2])
        silent["half a header"].sendall(WELL_FORMED[:12])
        silent["half a payload"].sendall(frames.put(b"k", bytes(200))[:100])
        silent["half a large payload"].sendall(frames.put(b"k", bytes(MIB // 2))[: MIB // 4])
        assert answer_to(idle, WELL_FORMED).status == frames.MISSING
        begun = time.monotonic()
        ended = {}
        drip = iter(frames.put(b"k", bytes(200)))
        stream = iter([large[n : n + MIB // 2] for n in range(0, len(large), MIB // 2)])
        for second in range(1, FRAME_DEADLINE_S + 3):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                silent["a byte a second"].sendall(bytes([next(drip)]))
            slow.sendall(next(stream, b""))
            while (left := begun + second - time.monotonic()) > 0:
                open_still = [peer for name, peer in silent.items() if name not in ended]
                for peer in select.select(open_still, [], [], left)[0]:
                    name = next(name for name, other in silent.items() if other is peer)
                    ended[name] = time.monotonic() - begun
                    assert b"was not whole" in last_words(peer)
        assert sorted(ended) == sorted(names)
        assert all(FRAME_DEADLINE_S - 0.1 <= after <= FRAME_DEADLINE_S + GRACE_S for after in ended.values()), ended
        assert answer_to(slow, b"".join(stream)).status == frames.OK
        assert answer_to(idle, frames.request(frames.GET, b"large"))[0] == frames.OK
    victim.assert_unharmed()


def test_a_length_that_is_only_announced_takes_no_memory(victim: Victim) -> None:
    count, sent = 40, 65536
    before = victim.resident_bytes()
    with contextlib.ExitStack() as stack:
        head = frames.HEADER.pack(FRAME_BYTES_MAX, 1, frames.PUT, 1, 0, 7, 1, 0, 0) + b"k"
        for _ in range(count):
            stack.enter_context(victim.connect()).sendall(head + bytes(sent - len(head)))
        victim.assert_unharmed()
        assert victim.resident_bytes() - before < FRAME_BYTES_MAX / 2, "forty frames announced, half of one taken"
    victim.assert_unharmed()


def mutated(chance: random.Random) -> bytes:
    """Return a frame that was well-formed before some of its bytes were changed, dropped or repeated."""
    key = b"f%d" % chance.randrange(64)
    payload = chance.randbytes(chance.choice((0, 1, 8, 40, 300)))
    operation = chance.randrange(24)
    frame = bytearray(
        chance.choice(
            (
                lambda: frames.request(operation, key, payload, type=chance.randrange(16), flags=chance.randrange(4)),
                lambda: frames.put(key, payload),
                lambda: frames.multi_get(key, b"other", b""),
                lambda: frames.multi_put((key, chance.randrange(16), payload), (b"n", 2, b"")),
                lambda: frames.request(frames.MGET, b"", struct.pack("<I", chance.choice((0, 1, BATCH_KEYS_MAX + 1)))),
                lambda: frames.request(frames.SUBSCRIBE, key),
            )
        )()
    )
    for _ in range(chance.choice((0, 0, 1, 1, 2, 8))):
        # Seldom the length or the version: behind a wrong one nothing else of the connection is looked at.
        first = 0 if chance.random() < 0.02 else 5
        place = chance.choice((chance.randrange(first, 24), chance.randrange(first, len(frame))))
        frame[place] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    if chance.random() < 0.01:
        del frame[chance.randrange(len(frame)) :]
    return bytes(frame)


def fuzz(victim: Victim, seed: int, connections: int) -> int:
    """Send 40 frames on each of so many connections; return how many frames the worker looked at."""
    chance, before = random.Random(seed), victim.frames()
    for _ in range(connections):
        batch = [mutated(chance) for _ in range(40)]
        with victim.connect() as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(b"".join(batch))
            peer.shutdown(socket.SHUT_WR)
            last_words(peer)
    return victim.frames() - before


def test_mutated_frames_neither_crash_the_worker_nor_cost_it_memory(victim: Victim) -> None:
    """The same frames sent again find their keys there already, so that then memory must not grow. Prints its seed."""
    print(f"seed {SEED}")
    with victim.connect() as bystander:
        for _ in range(2):
            fuzz(victim, SEED, 600)
        before = victim.resident_bytes()
        for _ in range(3):
            assert fuzz(victim, SEED, 600) > 5_000
        assert victim.resident_bytes() - before < 2 * MIB
        assert answer_to(bystander, frames.request(frames.GET, b"never")).status == frames.MISSING
    victim.assert_unharmed()
