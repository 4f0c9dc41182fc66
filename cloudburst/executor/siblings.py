"""An executor's connections to others, of any node, over which it hands on what the stages of a DAG return.

Sending blocks, by the deadline of the stage, while nothing of this process is locked: the other side reads its lanes
whatever it runs. Whether it arrived is not asked: the caller hears of every stage's end by itself, and of the end of
the executor that was to run it. Source: DESIGN §6 (executors trigger each other directly).
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from cloudburst import config
from cloudburst.addresses import connect


class Siblings:
    """Connections by (slot, incarnation); `address` says where an executor listens, `hello` opens a lane.

    `directory` is the own node's.
    """

    def __init__(self, address: Callable[[int, int], str], hello: bytes, directory: str) -> None:
        self._directory = directory
        self._address = address
        self._hello = hello
        self._open: dict[tuple[int, int], socket.socket] = {}

    def send(self, slot: int, incarnation: int, frame: bytes, timeout_s: float) -> bool:
        """Hand `frame` to the kernel; False when that executor is gone, or has not read for so long."""
        return self.sent(slot, incarnation, frame, timeout_s) is not None

    def sent(self, slot: int, incarnation: int, frame: bytes, timeout_s: float) -> socket.socket | None:
        """The same, and return the connection, on which the answer will come if there is one; None for False."""
        connection = self._open.get((slot, incarnation))
        if connection is None:
            connection = self._connect(slot, incarnation, timeout_s)
            if connection is None:
                return None
        try:
            connection.settimeout(timeout_s)
            connection.sendall(frame)
        except OSError:
            self.drop(slot, incarnation)
            return None
        return connection

    def drop(self, slot: int, incarnation: int) -> None:
        """Close a connection whose other end is gone, or out of step."""
        connection = self._open.pop((slot, incarnation), None)
        if connection is not None:
            connection.close()

    def _connect(self, slot: int, incarnation: int, timeout_s: float) -> socket.socket | None:
        for old in [key for key in self._open if key[0] == slot]:
            self._open.pop(old).close()
        try:
            address, within_s = self._address(slot, incarnation), min(timeout_s, config.CONNECT_S)
            connection = connect(address, self._hello, within_s, self._directory)
        except OSError:
            return None
        self._open[slot, incarnation] = connection
        return connection

    def close(self) -> None:
        """Close every connection."""
        while self._open:
            self._open.popitem()[1].close()
