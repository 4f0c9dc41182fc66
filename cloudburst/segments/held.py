"""Segments that a process holds: it owes their removal, and pays it when it has mapped them or wants them no more.

The one rule: a name has one owner at a time, and a forked copy of the owner is none.
Source: decision records 0021, 0024.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

import msgpack

from cloudburst.errors import NodeLost, ProtocolError
from cloudburst.segments.descriptors import (
    SegmentGone,
    SegmentUnseen,
    offered_descriptor,
    pack_descriptor,
    unpack_descriptor,
)
from cloudburst.segments.shelf import Shelf


class Owned:
    """A segment that belongs to this process: removed when it has been mapped, or when this object is gone."""

    __slots__ = ("__weakref__", "_data", "_lent", "_pid", "descriptor")

    def __init__(self, descriptor: bytes | memoryview) -> None:
        self._pid = 0
        """The process that owes its removal; 0: nobody does."""
        self._data: memoryview | None = None
        self._lent = False
        self.descriptor = bytes(descriptor)

    def _own(self) -> None:
        self._pid = os.getpid()

    def lend(self) -> bytes | None:
        """Return the descriptor, for others, who may open it as long as this is kept; None when its name is gone."""
        self._lent = True  # before it is looked at whether there is a name: another thread may be about to remove it
        return self.descriptor if self._pid else None

    def _part(self) -> None:
        """Have its name removed, unless it is lent."""
        pid, self._pid = self._pid, 0
        if self._lent:
            self._pid = pid
        elif pid == os.getpid():
            self._remove()

    def drop(self) -> None:
        """Have its name removed; a forked child's copy removes nothing."""
        if self._pid == os.getpid():
            self._pid = 0
            self._remove()

    def _remove(self) -> None:
        raise NotImplementedError

    def __del__(self) -> None:
        if self._pid:
            with contextlib.suppress(OSError):
                self.drop()


class Held(Owned):
    """One on this machine."""

    __slots__ = ("_shelf", "name", "size")
    again: Final = None
    """What is lost of this machine is lost with this process's own node."""
    elsewhere: Final = False

    def __init__(self, descriptor: bytes | memoryview, *, claim: bool = True) -> None:
        """`claim`: nobody else opens it. Raises ProtocolError, and SegmentGone when its node is not known here."""
        super().__init__(descriptor)
        token, self.name, self.size, path = unpack_descriptor(descriptor)
        shelf = Shelf.at(token, path)
        if shelf is None:
            raise SegmentGone(self.name)
        self._shelf = shelf
        self._own()
        if claim:
            shelf.unopened.add(self)

    def keep_bytes(self) -> None:
        """Map it, so that its bytes are here whatever becomes of its node, and leave it to others."""
        self._data = self._shelf.map(self.name, self.size, populate=False)

    def peek(self) -> memoryview:
        """Return the bytes that are kept here."""
        assert self._data is not None
        return self._data

    def offer(self, address: str) -> bytes | None:
        """Have it offered to the porter at an address; return how to ask for it there, None if it cannot be."""
        said = msgpack.packb({"offer": self.descriptor, "to": address})
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(self._shelf.porter)
                connection.send(said)
            except OSError:
                return None
        return offered_descriptor(self.descriptor, address)

    def view(self) -> memoryview:
        """Return its bytes, mapped. Raises NodeLost when they are gone, as they are with their node."""
        if self._data is None:
            try:
                self._data = self._shelf.map(self.name, self.size)
            except SegmentGone:
                why = "a value was in the shared memory of its node, and is gone from there"
                raise NodeLost(why, definite=False) from None
            self._part()
        return self._data

    def _remove(self) -> None:
        self._shelf.remove(self.name)


def leftover(shelf: Shelf, name: str) -> Held:
    """Return what removes a segment, should there be one of this name, when it is gone itself."""
    return Held(pack_descriptor(shelf.token, name, 1, shelf.path), claim=False)


def open_segment(descriptor: bytes | memoryview) -> memoryview:
    """Return the bytes of somebody else's segment, mapped. Raises SegmentGone and ProtocolError."""
    token, name, size, path = unpack_descriptor(descriptor)
    shelf = Shelf.at(token, path)
    if shelf is None:
        raise SegmentUnseen(name)
    return shelf.map(name, size)


def drop(descriptor: bytes | memoryview) -> None:
    """Remove a segment that nobody will open."""
    with contextlib.suppress(SegmentGone, ProtocolError):
        Held(descriptor, claim=False).drop()
