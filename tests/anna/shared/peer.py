"""The client's side of shared memory as docs/protocol.md describes it, without anything of `anna`'s; it may lie."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from pathlib import Path
from types import TracebackType

from tests.anna import frames

RINGS = 14
PAGE = 4096
REQUESTS_TAIL, REPLIES_HEAD, REQUESTS_HEAD, REPLIES_TAIL, CLIENT_SLEEPS, WORKER_SLEEPS = 64, 128, 192, 256, 320, 384
PATIENCE_S = 60.0


def mappings(pid: int) -> int:
    """Return how many memories a process has mapped that were made to be shared so."""
    return Path(f"/proc/{pid}/maps").read_text().count("anna-rings")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Refused(Exception):
    """The worker gave no memory; the argument is its answer."""


class Peer:
    """A connection to the worker at the Unix socket `address` that goes on through shared memory."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(address.removeprefix("unix:"))
        self.socket.sendall(frames.request(RINGS, id=1))
        data, fds, _, _ = socket.recv_fds(self.socket, 65536, 2)
        (answer,) = frames.replies(data)
        if answer.status != frames.OK:
            self.socket.close()
            raise Refused(answer)
        self.version, self.size = struct.unpack("<II", answer.payload)
        self.bell = fds[1]
        self.memory = mmap.mmap(fds[0], PAGE + 2 * self.size)
        os.close(fds[0])
        self.tail = self.head = 0

    def index(self, place: int) -> int:
        return int(struct.unpack_from("<I", self.memory, place)[0])

    def set_index(self, place: int, value: int) -> None:
        struct.pack_into("<I", self.memory, place, value % 2**32)

    def ring(self) -> None:
        """Ring the bell; there is no fence in Python, so it is always rung."""
        self.set_index(WORKER_SLEEPS, 0)
        os.eventfd_write(self.bell, 1)

    def room(self) -> int:
        return self.size - (self.tail - self.index(REQUESTS_HEAD)) % 2**32

    def put(self, data: bytes) -> int:
        """Put what there is room for; return how much that was."""
        data = data[: self.room()]
        at = PAGE + self.tail % self.size
        first = data[: PAGE + self.size - at]
        self.memory[at : at + len(first)] = first
        self.memory[PAGE : PAGE + len(data) - len(first)] = data[len(first) :]
        self.tail = (self.tail + len(data)) % 2**32
        self.set_index(REQUESTS_TAIL, self.tail)
        self.ring()
        return len(data)

    def send(self, data: bytes) -> None:
        """Put all of `data`, waiting for room."""
        end = time.monotonic() + PATIENCE_S
        while data := data[self.put(data) :]:
            assert time.monotonic() < end, "there is no room"
            self.look()

    def take(self) -> bytes:
        """Return what has come."""
        count = (self.index(REPLIES_TAIL) - self.head) % 2**32
        at = PAGE + self.size + self.head % self.size
        first = self.memory[at : min(at + count, PAGE + 2 * self.size)]
        data = first + self.memory[PAGE + self.size : PAGE + self.size + count - len(first)]
        self.head = (self.head + count) % 2**32
        self.set_index(REPLIES_HEAD, self.head)
        if count:
            self.ring()
        return data

    def receive(self, count: int) -> list[frames.Reply]:
        """Return the next `count` answers."""
        data, found, ended = b"", list[frames.Reply](), False
        end = time.monotonic() + PATIENCE_S
        while len(found) < count:
            data += self.take()
            while len(data) >= 4 and len(data) >= (size := 4 + int.from_bytes(data[:4], "little")):
                found += frames.replies(data[:size])
                data = data[size:]
            assert time.monotonic() < end, "the answers do not come"
            assert not ended or len(found) == count, "the worker ended the connection"
            try:
                self.look()
            except ConnectionError:
                ended = True  # what was sent before the end has come before it
        assert not data
        return found

    def look(self) -> None:
        """Let a moment pass. Raises ConnectionError when the worker has ended the connection."""
        self.socket.settimeout(0.001)
        try:
            if self.socket.recv(1) == b"":
                raise ConnectionError("the worker ended the connection")
        except TimeoutError:
            pass

    def is_ended(self) -> bool:
        """Wait until the worker ends the connection."""
        self.socket.settimeout(PATIENCE_S)
        return self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()
        self.memory.close()
        os.close(self.bell)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
