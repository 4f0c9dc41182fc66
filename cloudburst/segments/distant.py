"""Values that lie on another host: how a process gets one, and how it lets one go that belongs to it.

A process asks the porter of its own node, over a socket in the node's directory, and gets a segment here, which it maps
while it keeps the connection: the porter removes the name when it is closed, however that comes, and gives up a fetch
that nobody waits for any more. The one rule: nothing of a value is ever in this process's own memory.
Source: DESIGN §6; decision record 0024.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import msgpack

from cloudburst import config
from cloudburst.errors import NodeLost, NoRoom, ProtocolError
from cloudburst.segments.descriptors import OFFERED, SegmentGone, SegmentUnseen, address_of, unpack_descriptor
from cloudburst.segments.held import Owned, open_segment
from cloudburst.segments.shelf import Shelf

ANSWER_BYTES_MAX: Final = 4096
HERE: Final = "here"
GONE: Final = "gone"
LOST: Final = "lost"
FULL: Final = "full"
UNSEEN: Final = "unseen"


class PorterLost(Exception):
    """The node's porter has ended under a request; the next one has its place already, or soon."""


def ask_porter(shelf: Shelf, descriptor: bytes) -> socket.socket:
    """Return a connection on which the node's porter will say when a value is here.

    Raises SegmentUnseen when there is no way to it, NodeLost when the node has ended.
    """
    address = address_of(descriptor)
    elsewhere = address.startswith(OFFERED) and address != OFFERED + shelf.address
    if not shelf.porter or not address or elsewhere:
        raise SegmentUnseen(unpack_descriptor(descriptor)[1])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(shelf.porter)
        connection.send(descriptor)
    except OSError as fault:
        connection.close()
        raise NodeLost(f"the porter of this node cannot be asked: {fault}") from None
    return connection


def taken_in(shelf: Shelf, said: bytes) -> memoryview:
    """Return the value that the porter says is here, mapped.

    Raises PorterLost, SegmentGone when its owner has let it go, NodeLost when its holder cannot be reached, NoRoom,
    SegmentUnseen when the holder, who was to come by himself, has not.
    """
    if not said:
        raise PorterLost
    kind, what = unpack_answer(said)
    if kind == HERE:
        _, name, size, _ = unpack_descriptor(what)
        return shelf.map(name, size, populate=False)
    text = what.decode()
    if kind == UNSEEN:
        raise SegmentUnseen(text)
    raise SegmentGone(text) if kind == GONE else NoRoom(text, definite=False) if kind == FULL else NodeLost(text)


def bring(shelf: Shelf, descriptor: bytes, left_s: float | None = None) -> memoryview:
    """Return the bytes of a segment on another host, fetched into this node's memory and mapped.

    Raises as `ask_porter` and `taken_in`, and TimeoutError when they are not here in `left_s` seconds.
    """
    for _ in range(config.ATTEMPTS_MAX):
        with ask_porter(shelf, descriptor) as connection:
            connection.settimeout(left_s)
            try:
                said = connection.recv(ANSWER_BYTES_MAX)
            except ConnectionError:
                continue
            try:
                return taken_in(shelf, said)
            except PorterLost:
                continue
    raise NodeLost(f"the porter of this node has ended {config.ATTEMPTS_MAX} times under one request")


def open_anywhere(shelf: Shelf, descriptor: bytes) -> memoryview:
    """Return the bytes of a segment, wherever it is; raises as `bring`."""
    return bring(shelf, descriptor) if may_bring(descriptor) else open_segment(descriptor)


def pack_answer(kind: str, what: bytes) -> bytes:
    """Return what a porter answers: HERE and the descriptor here, or what went wrong, in words."""
    return bytes(msgpack.packb([kind, what]))


def unpack_answer(said: bytes) -> tuple[str, bytes]:
    """Return what `pack_answer` was given. Raises ProtocolError."""
    try:
        kind, what = msgpack.unpackb(said)
        return str(kind), bytes(what)
    except (TypeError, ValueError) as fault:
        raise ProtocolError(f"{len(said)} bytes are no answer of a porter: {fault}") from None


class Distant(Owned):
    """A segment on another host that belongs to this process: removed there when it is here, or this object is gone.

    `let_go` is called with (node, name), in any thread, and must neither wait nor lock. `what` it is, in words.
    """

    __slots__ = ("_let_go", "_shelf", "_what", "again")

    def __init__(
        self, shelf: Shelf, descriptor: bytes | memoryview, let_go: Callable[[tuple[int, str]], object], what: str
    ) -> None:
        super().__init__(descriptor)
        self._shelf, self._let_go, self._what = shelf, let_go, what
        self.again: Callable[[NodeLost], Any] | None = None
        """What runs the call once more whose result it is, should it be lost."""
        if not address_of(descriptor):
            raise SegmentGone(unpack_descriptor(descriptor)[1])
        self._own()

    @property
    def elsewhere(self) -> bool:
        """Whether it must still be fetched."""
        return self._data is None

    def view(self, left_s: float | None = None) -> memoryview:
        """Return its bytes, mapped, once they are here. Raises NodeLost when they are lost, NoRoom, TimeoutError."""
        if self._data is None:
            try:
                self._data = bring(self._shelf, self.descriptor, left_s)
            except SegmentGone:
                raise self._lost("has been removed there") from None
            except NodeLost as fault:
                raise self._lost(f"is lost: {fault}") from None
            self._part()
        return self._data

    def _lost(self, how: str) -> NodeLost:
        token, _, size, _ = unpack_descriptor(self.descriptor)
        where = f"node {token:016x} at {address_of(self.descriptor)}"
        return NodeLost(f"{self._what} ({size:,} bytes), in the memory of {where}, {how}", definite=False)

    def _remove(self) -> None:
        token, name, _, _ = unpack_descriptor(self.descriptor)
        self._let_go((token, name))


def may_bring(descriptor: bytes | memoryview) -> bool:
    """Whether a segment is on another host, from where it can be fetched. Raises ProtocolError."""
    token, _, _, path = unpack_descriptor(descriptor)
    return bool(address_of(descriptor)) and Shelf.at(token, path) is None


Brought = tuple[tuple[bytes, Any], ...]
"""(descriptor, its bytes or the error) of values from other hosts."""
