"""A blocking connection to one executor: the calling thread sends, and the calling thread waits.

The timeout is the kernel's (SO_RCVTIMEO), set only when it changes by more than 1 %, so that a warm call is one send
and one receive. The answer of a short call is awaited awake (`attention`).
Source: DESIGN §6 (one hop).
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

from cloudburst import config, frames
from cloudburst.addresses import connect
from cloudburst.attention import Attention
from cloudburst.errors import ProtocolError

READ_BYTES: Final = 64 * 1024
TIMEVAL: Final = struct.Struct("@ll")
ANSWER_MARGIN_US: Final = 50_000
"""How long after a deadline a caller still waits for the executor to say what became of the call."""


class LaneLost(Exception):
    """The executor is gone, or has closed this lane. `sent` says whether the call may have reached it."""

    def __init__(self, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


class Lane:
    """One connection, for one call at a time, of a client of the node in `directory`.

    Raises LaneLost when the executor cannot be reached.
    """

    __slots__ = ("_attention", "_socket", "_timeout_us", "incarnation", "slot")

    def __init__(self, address: str, slot: int, incarnation: int, hello: bytes, directory: Path) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self._timeout_us = 0
        self._attention = Attention(config.AWAKE_US)
        try:
            self._socket = connect(address, hello, config.CONNECT_S, directory)
        except OSError:
            raise LaneLost(sent=False) from None

    def exchange(self, frame: bytes, timeout_us: int) -> bytes:
        """Send a call and return its reply. Raises TimeoutError, after which the lane can only be closed."""
        connection = self._socket
        if not self._timeout_us - self._timeout_us // 64 <= timeout_us <= self._timeout_us:
            self._set_timeout(timeout_us)
        try:
            connection.sendall(frame)
            data = self._attention.receive(connection.fileno())
            if data is None:
                data = connection.recv(READ_BYTES)
            if len(data) >= 4 and frames.LENGTH.unpack_from(data)[0] + 4 == len(data):
                return data
            reader = frames.FrameReader()
            while data:
                replies = reader.feed(data)
                if replies:
                    if len(replies) > 1 or reader.unfinished:
                        raise ProtocolError("an executor answered one call more than once", definite=False)
                    return replies[0]
                data = connection.recv(max(READ_BYTES, reader.missing))
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            pass
        raise LaneLost(sent=True)

    def _set_timeout(self, timeout_us: int) -> None:
        self._timeout_us = timeout_us + timeout_us // 128  # so that the next call, a little later, need not set it
        us = self._timeout_us + ANSWER_MARGIN_US
        value = TIMEVAL.pack(us // 1_000_000, us % 1_000_000)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def close(self) -> None:
        """Close it, which cancels what it carries."""
        self._socket.close()
