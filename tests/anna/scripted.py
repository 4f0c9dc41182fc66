"""Workers that answer as a test tells them to: real sockets, no store, and no answer before the test lets it go."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack

from anna.messages import View
from tests.anna import frames

PATIENCE_S = 3.0
FLAG_STRICT = 2


class Asked(NamedTuple):
    """One request that arrived, and where its answer goes."""

    op: int
    flags: int
    request: int
    stamp: int
    key: bytes
    peer: socket.socket

    @property
    def strict_stamp(self) -> int:
        """Up to which stamp the worker must be current to answer; 0: it may just answer."""
        return self.stamp if self.flags & FLAG_STRICT else 0

    def answer(self, stamp: int, payload: bytes = b"", type: int = 0, status: int = frames.OK) -> None:
        """Send one reply."""
        length = frames.REPLY.size - 4 + len(payload)
        self.peer.sendall(frames.REPLY.pack(length, 1, status, type, 0, self.request, 0, stamp) + payload)


class ScriptedWorker:
    """One worker's socket. Requests for the view are answered with `view`; all others wait in `asked`."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.view = View(0, ())
        self.asked: queue.Queue[Asked] = queue.Queue()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._peers: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def next(self) -> Asked:
        """Return the next request that is no request for the view."""
        return self.asked.get(timeout=PATIENCE_S)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._peers.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer.makefile("rb") as incoming:
            while head := incoming.read(frames.HEADER.size):
                length, _, op, _, flags, request, key_bytes, _, stamp = frames.HEADER.unpack(head)
                body = incoming.read(length + 4 - frames.HEADER.size)
                asked = Asked(op, flags, request, stamp, body[:key_bytes], peer)
                if op == frames.VIEW:
                    asked.answer(0, msgpack.packb(self.view.to_wire()))
                else:
                    self.asked.put(asked)

    def vanish(self) -> None:
        """Refuse every connection from now on, and end those that there are."""
        for open_socket in (self._listener, *self._peers):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
            open_socket.close()


@contextlib.contextmanager
def scripted_workers(directory: Path, count: int) -> Iterator[list[ScriptedWorker]]:
    """Yield `count` workers whose sockets are in `directory`."""
    workers = [ScriptedWorker(directory / f"{number}.sock") for number in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.vanish()
