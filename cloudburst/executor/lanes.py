"""An executor's side of its lanes: who is connected, what they say, and what they have not yet been told.

Reads never block and never outrun the queue; replies are gathered and handed to the kernel in batches. A client that
leaves its replies unread is not read from any further until it has caught up, and holds up nobody else. Not safe from
threads by itself: `executor.runtime` holds a lock around everything but `poll`.
"""

from __future__ import annotations

import hmac
import select
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol

from cloudburst import config, frames, pickling
from cloudburst.errors import CloudburstError, EnvironmentMismatch, NotSupported, ProtocolError
from cloudburst.executor.joins import Input, Invocation
from cloudburst.executor.mailbox import Message
from cloudburst.executor.queue import Call
from cloudburst.page import Page
from cloudburst.segments.held import drop
from cloudburst.segments.shelf import Shelf

READ_BYTES: Final = 64 * 1024


class Heard(Protocol):
    """What an executor does about what its lanes bring."""

    def hear_call(self, call: Call) -> None:
        """Take in a call, or answer it."""

    def hear_cancel(self, lane: int, request: int) -> None:
        """Stop a call of this lane, if it is still here."""

    def hear_input(self, stage: Invocation, position: int, result: Input, deadline_us: int) -> None:
        """Take in what a predecessor of a stage returned."""

    def hear_message(self, lane: int, request: int, to: Invocation, message: Message) -> None:
        """Take in a message, and answer whether it was."""

    def hear_leave(self, lane: int) -> None:
        """Give up what was done for a client that is gone."""

    def begun(self) -> list[tuple[int, int]]:
        """Return the invocations that have begun and not ended."""

    def hear_node(self, message: bytes) -> None:
        """Obey the node; b"" says that it is gone."""


class Lane:
    """One client's connection."""

    __slots__ = ("number", "reader", "refusal", "replies", "shelf", "socket", "trusted", "unsent", "watched")

    def __init__(self, number: int, connection: socket.socket, trusted: bool) -> None:
        self.number = number
        self.trusted = trusted
        """Whether it may say anything but HELLO: it comes through the node's private directory, or has the key."""
        self.socket = connection
        self.reader = frames.FrameReader()
        self.replies: list[bytes] = []
        self.unsent = b""
        self.refusal: CloudburstError | None = None
        self.shelf: tuple[int, str] | None = None
        """Where the client can map segments: (token, path)."""
        self.watched = select.EPOLLIN


class Lanes:
    """Every lane of one executor, its listening socket, and its socket to the node.

    `far` is the one at which other hosts connect, if they may: who comes there must have the `key`.
    """

    def __init__(
        self, page: Page, number: int, listener: socket.socket, node: socket.socket, heard: Heard,
        far: socket.socket | None = None, key: bytes = b"",
    ) -> None:  # fmt: skip
        self._page = page
        self._number = number
        self._listener = listener
        self._far = far
        self._key = key
        self._node = node
        self._heard = heard
        self._by_number: dict[int, Lane] = {}
        self._by_fd: dict[int, Lane] = {}
        self._made = 0
        self._dirty: list[Lane] = []
        self._backlogged: set[int] = set()
        self._others: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self.unsettled = 0
        """How many calls were begun since everything was last handed to the kernel; its owner counts it up."""
        self.beside = False
        """Whether calls have begun beside each other, so that they may end in any order; its owner sets it."""
        for end in (listener, node) if far is None else (listener, node, far):
            end.setblocking(False)
            self._epoll.register(end.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `serve` has something to do."""
        return self._epoll.fileno()

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def shelf(self, number: int) -> Shelf | None:
        """Return the segments that a client can map and this process, too; None when there are none."""
        lane = self._by_number.get(number)
        return None if lane is None or lane.shelf is None else Shelf.at(*lane.shelf)

    def node_of(self, number: int) -> int:
        """Return the node of a client; 0 when that is not known."""
        lane = self._by_number.get(number)
        return 0 if lane is None or lane.shelf is None else lane.shelf[0]

    def holds_replies(self, but_for: int) -> bool:
        """Whether replies wait here for any other lane than `but_for`."""
        return bool(self._dirty) and (len(self._dirty) > 1 or self._dirty[0].number != but_for)

    @property
    def dirty(self) -> bool:
        """Whether replies wait here to be handed to the kernel."""
        return bool(self._dirty)

    # -- hearing

    def poll(self, timeout_s: float | None = None) -> list[tuple[int, int]]:
        """Wait for something to do, and return it for `serve`."""
        return self._epoll.poll(timeout_s)

    def serve(self, events: list[tuple[int, int]], now_us: int) -> None:
        """Read what there is to read, and send what could not be sent before."""
        for fd, event in events:
            lane = self._by_fd.get(fd)
            if lane is not None:
                if event & select.EPOLLOUT:
                    self._send(lane, b"")
                if event & ~select.EPOLLOUT:
                    self._read(lane, now_us)
            elif fd == self._listener.fileno():
                self._accept(self._listener)
            elif self._far is not None and fd == self._far.fileno():
                self._accept(self._far)
            elif fd == self._node.fileno():
                self._hear_node()
            elif fd in self._others:
                self._others[fd]()

    def watch(self, fd: int, hear: Callable[[], None]) -> None:
        """Call `hear` when another descriptor can be read."""
        self._others[fd] = hear
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Watch that descriptor no more; it is open still."""
        del self._others[fd]
        self._epoll.unregister(fd)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if listener is self._far:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._made += 1
        lane = Lane(self._made, connection, trusted=listener is not self._far)
        self._by_number[lane.number] = self._by_fd[connection.fileno()] = lane
        self._epoll.register(connection.fileno(), lane.watched)

    def _hear_node(self) -> None:
        try:
            message = self._node.recv(64)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._heard.hear_node(message)

    def _read(self, lane: Lane, now_us: int) -> None:
        try:
            data = lane.socket.recv(max(READ_BYTES, lane.reader.missing))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(lane)
            return
        try:
            for frame in lane.reader.feed(data):
                self._hear(lane, frame, now_us)
        except ProtocolError as fault:
            print(f"closing a lane: {fault}", file=sys.__stderr__, flush=True)
            self._close(lane)

    def _hear(self, lane: Lane, frame: bytes, now_us: int) -> None:
        op = frame[4]
        if not lane.trusted:
            self._let_in(lane, frame)
        if op == frames.CALL:
            self._hear_call(lane, frame, now_us)
        elif op == frames.INPUT:
            self._hear_input(lane, frame, now_us)
        elif op == frames.MESSAGE:
            self._hear_message(lane, frame)
        elif op == frames.HELLO:
            said = frames.unpack(memoryview(frame)[5:])
            lane.refusal = self._judge(said)
            if lane.refusal is None and said.get("shelf"):
                token, path = said["shelf"]
                lane.shelf = int(token), str(path)
        elif len(frame) < frames.CANCEL_FRAME.size:
            raise ProtocolError(f"a frame of {len(frame)} bytes with operation {op}")
        elif op == frames.CANCEL:
            self._heard.hear_cancel(lane.number, frames.CANCEL_FRAME.unpack_from(frame)[4])
        else:
            fault = NotSupported(f"this executor does not know operation {op}")
            self.answer(lane.number, frames.error(frames.CANCEL_FRAME.unpack_from(frame)[4], fault))

    def _let_in(self, lane: Lane, frame: bytes) -> None:
        """Trust a lane that comes from another host and begins with the key. Raises ProtocolError."""
        said = frames.unpack(memoryview(frame)[5:]) if frame[4] == frames.HELLO else None
        key = said.get("key") if isinstance(said, dict) else None
        if not self._key or not isinstance(key, bytes) or not hmac.compare_digest(key, self._key):
            raise ProtocolError("a connection from another host without the key")
        lane.trusted = True

    def _judge(self, said: object) -> CloudburstError | None:
        """Return why a client cannot be served: it runs another Python, between which nothing can be unpickled."""
        theirs, here = said.get("python") if isinstance(said, dict) else None, pickling.python_tag()
        if theirs == here:
            return None
        return EnvironmentMismatch(f"the caller runs {theirs}, this executor runs {here}: nothing was loaded")

    def _hear_call(self, lane: Lane, frame: bytes, now_us: int) -> None:
        at = frames.CALL_HEADER_BYTES
        if len(frame) < at:
            raise ProtocolError(f"a call of {len(frame)} bytes; its header has {at}")
        header = frames.CALL_HEADER.unpack_from(frame)
        _, _, flags, name_bytes, request, extras_bytes, version, timeout_us, high, low = header
        middle, body = at + name_bytes, at + name_bytes + extras_bytes
        if body > len(frame):
            raise ProtocolError(f"a call of {len(frame)} bytes claims {body}")
        call = Call(
            lane.number, request, frame[at:middle], version, high, low, now_us + min(timeout_us, 1 << 60),
            flags, frame[middle:body], memoryview(frame)[body:],
        )  # fmt: skip
        if lane.refusal is not None:
            self.answer(lane.number, frames.error(request, lane.refusal))
        else:
            self._heard.hear_call(call)

    def _hear_input(self, lane: Lane, frame: bytes, now_us: int) -> None:
        start = frames.INPUT_HEADER_BYTES
        if len(frame) < start:
            raise ProtocolError(f"a result of {len(frame)} bytes; its header has {start}")
        _, _, flags, position, context_bytes, timeout_us, high, low = frames.INPUT_HEADER.unpack_from(frame)
        body = start + context_bytes
        if body > len(frame):
            raise ProtocolError(f"a result of {len(frame)} bytes claims {body}")
        if lane.refusal is not None:
            return  # its stage fails at the caller's deadline; executors of one node never get here
        payload = None if flags & frames.EMPTY else memoryview(frame)[body:]
        result = Input(payload, frame[start:body], flags & frames.SHARED)
        self._heard.hear_input((high, low), position, result, now_us + min(timeout_us, 1 << 60))

    def _hear_message(self, lane: Lane, frame: bytes) -> None:
        start = frames.MESSAGE_HEADER_BYTES
        if len(frame) < start:
            raise ProtocolError(f"a message of {len(frame)} bytes; its header has {start}")
        _, _, _, _, request, to_high, to_low, high, low = frames.MESSAGE_HEADER.unpack_from(frame)
        if lane.refusal is not None:
            self.answer(lane.number, frames.error(request, lane.refusal))
        else:
            message = Message((high, low), memoryview(frame)[start:])
            self._heard.hear_message(lane.number, request, (to_high, to_low), message)

    def _close(self, lane: Lane) -> None:
        if self._by_number.pop(lane.number, None) is None:
            return
        fd = lane.socket.fileno()
        del self._by_fd[fd]
        self._epoll.unregister(fd)
        lane.socket.close()
        for reply in lane.replies:
            _withdraw(reply)
        self._backlogged.discard(lane.number)
        if lane in self._dirty:
            self._dirty.remove(lane)
        self._heard.hear_leave(lane.number)

    # -- answering

    def answer(self, number: int, reply: bytes) -> None:
        """Keep a reply for `flush`; it is dropped when its lane has closed."""
        lane = self._by_number.get(number)
        if lane is None:
            _withdraw(reply)
            return
        if not lane.replies:
            self._dirty.append(lane)
        lane.replies.append(reply)

    def flush(self, running: bool) -> None:
        """Hand every reply to the kernel, and say so in the page; `running`: a call has begun and not ended."""
        for lane in self._dirty:
            data = lane.replies[0] if len(lane.replies) == 1 else b"".join(lane.replies)
            lane.replies.clear()
            self._send(lane, data)
        self._dirty.clear()
        if self.unsettled and not self._backlogged:
            if self.beside:
                self._settle_beside()
            else:
                self.unsettled = int(running)
                self._page.settle(self._number, running)

    def _settle_beside(self) -> None:
        begun = self._heard.begun()
        self.unsettled, self.beside = len(begun), bool(begun)
        self._page.settle_but(self._number, begun)

    def _send(self, lane: Lane, data: bytes) -> None:
        if lane.unsent:
            data = lane.unsent + data
        try:
            sent = lane.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader will see the end
        lane.unsent = data[sent:]
        watched = select.EPOLLIN
        if lane.unsent:
            self._backlogged.add(lane.number)
            watched = select.EPOLLOUT
            if len(lane.unsent) < config.REPLY_BACKLOG_BYTES_MAX:
                watched |= select.EPOLLIN
        elif self._backlogged:
            self._backlogged.discard(lane.number)
        if watched != lane.watched:
            lane.watched = watched
            self._epoll.modify(lane.socket.fileno(), watched)

    def tell_node(self, message: bytes) -> None:
        """Say something to the node; it is not lost on it if it has not yet heard the last."""
        try:
            self._node.send(message)
        except BlockingIOError:
            pass

    def part(self) -> None:
        """In a forked child: close every copy of a connection, without a word to the other side."""
        for end in (self._listener, self._node, *(lane.socket for lane in self._by_number.values())):
            end.close()
        if self._far is not None:
            self._far.close()
        self._epoll.close()

    def finish(self) -> None:
        """Send what is left to be sent, blocking, before this process ends."""
        for lane in self._by_number.values():
            if lane.unsent:
                lane.socket.setblocking(True)
                try:
                    lane.socket.sendall(lane.unsent)
                except OSError:
                    pass


def _withdraw(reply: bytes) -> None:
    """Remove the segment of a reply that nobody will read."""
    if reply[5] & frames.SHARED:
        drop(memoryview(reply)[frames.REPLY_HEADER_BYTES + frames.REPLY_HEADER.unpack_from(reply)[6] :])
