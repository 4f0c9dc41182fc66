"""How a client asks the node for something: ZeroMQ, msgpack, and a number that brings each answer home.

A request is `[number, msgpack [verb, body]]`, its answer `[number, msgpack [True, answer]]` or
`[number, msgpack [False, [class, message, definite]]]`. Late answers are recognised by their number and dropped (D46,
D63). There are no ZMTP heartbeats; that the node is gone is known from the lease. Source: DESIGN §5 (transports).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgpack

from cloudburst.errors import BY_NAME, CloudburstError, NodeLost, ProtocolError, RequestError

if TYPE_CHECKING:
    import zmq

    from cloudburst.secret import Secret

CONTROL_SOCKET: Final = "control.sock"
LOOK_MS: Final = 100
"""How often who waits for an answer looks whether the node is still there."""
NEWS: Final = bytes(8)
"""In place of a request's number: what follows answers nothing, it is a node's news for its neighbours."""


_sockets: Final = itertools.count(1)
"""Of all sockets of this process: one that was of the client's node before may come back by itself, to the next."""


def identity(client: int, socket: int, endpoint: str) -> bytes:
    """Return the ZeroMQ identity of the `socket`-th socket on which a client asks at an endpoint."""
    kind = b"C" if endpoint.startswith("tcp:") else b"c"
    return kind + client.to_bytes(8, "big") + socket.to_bytes(4, "big")


def client_of(routing_id: bytes) -> int:
    """Return the client whose control socket has this identity; 0 when it is nobody's."""
    return int.from_bytes(routing_id[1:9], "big") if len(routing_id) == 13 and routing_id[:1] in (b"c", b"C") else 0


def node_identity(node: int, socket: int, endpoint: str, guest: bool = False) -> bytes:
    """Return the ZeroMQ identity of the `socket`-th socket on which a node asks another, at an endpoint.

    A `guest` is a gateway where there are keys: it need not have the right to be a node.
    """
    kind = b"n" if not endpoint.startswith("tcp:") else b"G" if guest else b"N"
    return kind + node.to_bytes(8, "big") + (socket & 0xFFFFFFFF).to_bytes(4, "big")


def node_of(routing_id: bytes) -> int:
    """Return the node that asks over the socket with this identity; 0 when it is no node."""
    return int.from_bytes(routing_id[1:9], "big") if len(routing_id) == 13 and routing_id[0] in b"nNG" else 0


def comes_from_afar(routing_id: bytes) -> bool:
    """Whether who has this identity asks from another host."""
    return routing_id[:1] in (b"C", b"N", b"G")


def is_guest(routing_id: bytes) -> bool:
    """Whether who has this identity came as a guest."""
    return routing_id[:1] == b"G"


def pack_request(verb: str, body: dict[str, Any]) -> bytes:
    """Return a request as bytes."""
    return bytes(msgpack.packb([verb, body]))


def unpack_request(data: bytes) -> tuple[str, dict[str, Any]]:
    """Return the verb and body of a request. Raises ProtocolError."""
    try:
        verb, body = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError) as fault:
        raise ProtocolError(f"{len(data)} bytes are not a request: {fault}") from None
    if not isinstance(verb, str) or not isinstance(body, dict):
        raise ProtocolError("a request is a verb and a body")
    return verb, body


def pack_answer(answer: Any) -> bytes:
    """Return an answer, or an error, as bytes."""
    if isinstance(answer, CloudburstError):
        return bytes(msgpack.packb([False, [type(answer).__name__, str(answer), answer.definite]]))
    return bytes(msgpack.packb([True, answer]))


def unpack_answer(data: bytes) -> Any:
    """Return the answer, or raise the error, that `pack_answer` packed."""
    try:
        good, answer = msgpack.unpackb(data, strict_map_key=False)
        if good:
            return answer
        kind, message, definite = answer
    except (ValueError, TypeError) as fault:
        raise ProtocolError(f"{len(data)} bytes are not an answer: {fault}") from None
    raise BY_NAME.get(kind, CloudburstError)(message, definite=definite)


def encrypt(socket: zmq.Socket[bytes], endpoint: str, secret: Secret | None) -> None:
    """Prepare a socket for asking another host's node. Raises RequestError without a secret."""
    import zmq

    if not endpoint.startswith("tcp:"):
        return
    if secret is None:
        raise RequestError(f"{endpoint} is on another host, and there is no secret to be shared with it")
    socket.curve_serverkey = secret.control_keys()[0]
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


class Control:
    """A client's control sockets to one node: one for each thread that is asking at the same moment."""

    def __init__(self, endpoint: str, client: int, secret: Secret | None = None) -> None:
        import zmq

        self._endpoint = endpoint
        self._secret = secret
        self._client = client
        self._zmq = zmq
        self._context = zmq.Context()
        self._idle: list[zmq.Socket[bytes]] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False

    def ask(
        self, verb: str, body: dict[str, Any], timeout_s: float, lost: Callable[[], bool] | None = None
    ) -> Any:
        """Return the node's answer. Raises its error, or NodeLost (indefinite) when none comes in time.

        `lost` says whether the node has ended, so that nobody waits for it.
        """
        socket = self._take()
        number = next(self._numbers).to_bytes(8, "big")
        end = time.monotonic() + timeout_s
        try:
            socket.send_multipart([number, pack_request(verb, body)])
            while True:
                left_ms = int((end - time.monotonic()) * 1000)
                if not socket.poll(max(0, left_ms if lost is None else min(LOOK_MS, left_ms))):
                    if lost is not None and lost():
                        raise NodeLost(f"the node ended before it answered {verb!r}", definite=False)
                    if left_ms > LOOK_MS:
                        continue
                    raise NodeLost(f"the node did not answer {verb!r} within {timeout_s} s", definite=False)
                came, data = socket.recv_multipart()
                if came == number:
                    return unpack_answer(data)
        except self._zmq.ZMQError as fault:
            raise NodeLost(f"the node cannot be asked {verb!r}: {fault}", definite=False) from None
        finally:
            self._give_back(socket)

    def tell(self, verb: str, body: dict[str, Any]) -> None:
        """Ask without waiting for the answer, which is dropped when it comes."""
        socket = self._take()
        try:
            socket.send_multipart([next(self._numbers).to_bytes(8, "big"), pack_request(verb, body)])
        except self._zmq.ZMQError:
            pass  # the node is gone, and nothing is left to tell
        finally:
            self._give_back(socket)

    def _take(self) -> zmq.Socket[bytes]:
        with self._lock:
            if self._closed:
                raise NodeLost("this client is closed")
            if self._idle:
                return self._idle.pop()
            socket = self._context.socket(self._zmq.DEALER)
            socket.setsockopt(self._zmq.LINGER, 0)
            socket.setsockopt(self._zmq.ROUTING_ID, identity(self._client, next(_sockets), self._endpoint))
            encrypt(socket, self._endpoint, self._secret)
            socket.connect(self._endpoint)
            return socket

    def _give_back(self, socket: zmq.Socket[bytes]) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(socket)
                return
        socket.close()

    def close(self) -> None:
        """Close the sockets; a request that is under way fails at its deadline."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for socket in idle:
            socket.close()
        self._context.destroy(linger=0)
