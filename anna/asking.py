"""One question to one worker, from a program that does nothing else meanwhile: for backups, metrics and `anna
status`.

The one rule: a question ends by its deadline, whatever the worker does, with the answer or with a typed error. A line
is one stream; after an error that is not the worker's answer it is closed, for what comes later would answer another
question.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgpack

from anna.address import UnixAddress, parse_address
from anna.errors import AnnaError, ConnectionLost, NotAdmitted, NoWorkers, ProtocolError, RequestTimeout
from anna.gate import WANTS_KEYS, wants_keys
from anna.messages import View
from anna.requester import Requester
from anna.requests import Replies
from anna.wire import OK, STATUS, VIEW

if TYPE_CHECKING:
    from anna.keys import Keys
    from anna.sealing import Seal

RECEIVE_BYTES: Final = 1 << 18

ASKED_AT_ONCE_MAX: Final = 64
"""Most workers that are asked for their figures at the same time."""


class Line:
    """A blocking stream to the first of `addresses` that answers. `timeout` (seconds) is each question's.

    With `keys`, TCP is under TLS. Raises NoWorkers, NotAdmitted.
    """

    def __init__(self, addresses: Sequence[str], timeout: float, keys: Keys | None = None) -> None:
        self._timeout = timeout
        self._socket, self._seal, self._address = _dial(addresses, timeout, keys)
        self._requester = Requester(View(0, ()))
        self._replies = Replies()

    def ask(self, op: int, payload: bytes = b"", type: int = 0) -> bytes:
        """Return the payload of the answer. Raises what the answer says, RequestTimeout or ConnectionLost."""
        request, frame = self._requester.request(op, b"", payload, type)
        status, answer = self._exchange(request, frame)
        if status != OK:
            raise self._requester.failure(status, answer)
        return answer

    def _exchange(self, request: int, frame: bytes) -> tuple[int, bytes]:
        deadline = monotonic() + self._timeout
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(self._sealed(frame))
            while True:
                self._socket.settimeout(max(deadline - monotonic(), 1e-6))
                data = self._socket.recv(RECEIVE_BYTES)
                if not data:
                    raise ConnectionLost("the worker closed the connection")
                if data == WANTS_KEYS:
                    raise wants_keys(self._address)
                if self._seal is not None:
                    self._seal.feed(data)
                    data = self._seal.read()
                for reply, status, _, _, _, payload in self._replies.feed(data):
                    if reply == request:
                        return status, payload
        except TimeoutError:
            self.close()
            raise RequestTimeout(f"the worker did not answer within {self._timeout:g} s") from None
        except NotAdmitted:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ConnectionLost(str(error)) from None

    def _sealed(self, frame: bytes) -> bytes:
        if self._seal is None:
            return frame
        self._seal.write(frame)
        return self._seal.take()

    def close(self) -> None:
        """End the stream."""
        self._socket.close()


def _dial(addresses: Sequence[str], timeout: float, keys: Keys | None) -> tuple[socket.socket, Seal | None, str]:
    if keys is not None:
        from anna.handshake import shake_hands
    reason = "it has no address"
    for text in addresses:
        address = parse_address(text)
        try:
            if not isinstance(address, UnixAddress):
                stream = socket.create_connection((address.host, address.port), timeout)
                try:
                    return stream, None if keys is None else shake_hands(stream, keys, text), text
                except BaseException:
                    stream.close()
                    raise
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.settimeout(timeout)
            try:
                stream.connect(address.path)
            except OSError:
                stream.close()
                raise
            return stream, None, text
        except NotAdmitted:
            raise
        except OSError as error:
            reason = f"{text}: {error.strerror or error}"
    raise NoWorkers(f"nobody could be reached ({reason})")


def ask_once(addresses: Sequence[str], op: int, timeout: float, keys: Keys | None = None) -> Any:
    """Ask one question without a payload on a line of its own; return the answer unpacked. Raises AnnaError."""
    line = Line(addresses, timeout, keys)
    try:
        return msgpack.unpackb(line.ask(op))
    finally:
        line.close()


def view_at(addresses: Sequence[str], timeout: float, keys: Keys | None = None) -> View:
    """Return the view as it is known at an address. Raises AnnaError."""
    return View.from_wire(ask_once(addresses, VIEW, timeout, keys))


def figures_of(
    workers: Sequence[Sequence[str]], timeout: float, keys: Keys | None = None
) -> list[dict[str, Any]]:
    """Return the figures of each worker, by its addresses.

    All are asked at the same time, so one that hangs costs the others nothing: it has an
    {"error"} instead.
    """

    def figures(addresses: Sequence[str]) -> dict[str, Any]:
        try:
            found = ask_once(addresses, STATUS, timeout, keys)
            if not isinstance(found, dict):
                raise ProtocolError("its figures are no map")
            return found
        except AnnaError as error:
            return {"error": str(error)}

    if not workers:
        return []
    with ThreadPoolExecutor(min(len(workers), ASKED_AT_ONCE_MAX)) as pool:
        return list(pool.map(figures, workers))
