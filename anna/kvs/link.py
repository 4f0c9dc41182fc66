"""A link: what one worker sends to another arrives once, in order, over frames that are lost, repeated or reordered.

The one rule: a body counts as sent only when the peer has confirmed it, and the peer confirms only what it has handed
on; so either both ends know it, or it is sent again. A link is between two incarnations: what is addressed to, or comes
from, another one is not taken.

Each end numbers its frames from 1 and says in every frame how far it has come with the other's; number 0 is nothing
else. A window bounds, in bytes and frames, what is unconfirmed, and so what the other end must hold that came early.
What is overdue is sent again with a pause that doubles; a sign of life undoes the doubling.

An end may be forgotten while its process lives: the peer was taken for dead and came back. The end that is made in its
place counts from 1 again, and the other must not take its frames for repeats. So each end has a session, greater than
that of any before it, and frames name both. An end whose peer began anew after confirming something is `broken`: it is
replaced by its `successor`, and what the two workers hold is compared from the start (`anna/kvs/repair.py`).

Pure: `now` is monotonic nanoseconds, an argument. Source: DESIGN §5 (replication); D13 of the defects: gossip that is
sent once, and lost.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from anna import config
from anna.errors import ProtocolError, ValueTooLarge
from anna.kvs.faults import PLANTED

HEADER: Final = struct.Struct("<QQIIQQI")
"""Sender, receiver, as each message between workers begins; their sessions; number; how far confirmed; bytes, MORE."""

MORE: Final = 1 << 31
"""Set in the bytes of a fragment that is not its body's last."""

U32_MAX: Final = 2**32 - 1

Frame = tuple[bytes, bytes]
"""Header and fragment, apart: a body that is built once is copied nowhere on its way from link to link."""


@dataclass(slots=True)
class Unconfirmed:
    """A fragment on its way: its bytes with the MORE bit, when it was sent, and whether more than once."""

    size: int
    fragment: bytes
    sent_at: int
    repeated: bool = False


class Link:
    """One end of the link between the workers `mine` and `peer`; `session` is greater than that of any end before it.

    >>> here, there = Link(1, 2, session=1), Link(2, 1, session=1)
    >>> here.send(b"delta")
    1
    >>> [there.receive(frame, now=0) for frame in here.poll(now=0)]
    [[b'delta']]
    >>> [here.receive(frame, now=5) for frame in there.poll(now=5)], here.acked, here.idle
    ([[]], 1, True)
    """

    def __init__(self, mine: int, peer: int, session: int, peer_session: int = 0) -> None:
        assert 0 < session <= U32_MAX, session
        self.mine = mine
        self.peer = peer
        self.session = session
        self.peer_session = peer_session
        self.broken = False
        self.sent = 0
        """Number of the last fragment that was sent, once at least."""
        self.acked = 0
        """The greatest number that the peer has confirmed; `send` tells a body's."""
        self.delivered = 0
        """Number of the last fragment of the peer's that was taken in order."""
        self.strangers = 0
        self.repeats = 0
        self.queued_bytes = 0
        """Bytes of all bodies that are not confirmed yet."""
        self._queue: deque[tuple[int, bytes]] = deque()
        self._flight: deque[Unconfirmed] = deque()
        self._flight_bytes = 0
        self._early: dict[int, tuple[int, bytes]] = {}
        self._early_bytes = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._ack_due = False
        self._round_trip = 0
        self._waiting_since = 0
        self._doublings = 0
        # What is sent again: from `_resend_next` to `_resend_last`, `_resend_bytes` of it now.
        self._resend_next = 1
        self._resend_last = 0
        self._resend_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether all that was sent is confirmed."""
        return not self._flight and not self._queue

    def send(self, body: bytes) -> int:
        """Queue a body; return the number of its last frame: `acked` reaches it when the peer has the body.

        Raises ValueTooLarge.
        """
        size = len(body)
        if size > config.LINK_BODY_BYTES_MAX:
            raise ValueTooLarge(f"a body has {size:,} bytes; link_body_bytes_max is {config.LINK_BODY_BYTES_MAX:,}")
        self.queued_bytes += size
        if size <= config.LINK_FRAGMENT_BYTES:
            self._queue.append((size, body))
        else:
            for begin in range(0, size, config.LINK_FRAGMENT_BYTES):
                fragment = body[begin : begin + config.LINK_FRAGMENT_BYTES]
                last = begin + len(fragment) == size
                self._queue.append((len(fragment) | (0 if last else MORE), fragment))
        return self.sent + len(self._queue)

    def receive(self, frame: Frame, now: int) -> list[bytes]:
        """Take a frame; return the bodies that it completes, in order.

        Nothing is taken from another incarnation or session. Raises ProtocolError for what no link sends.
        """
        head, fragment = frame
        if len(head) != HEADER.size:
            raise ProtocolError(f"a link's frame has at least {HEADER.size} bytes, got {len(head)}")
        sender, receiver, theirs, ours, number, acked, size = HEADER.unpack(head)
        got = len(fragment)
        if (size & ~MORE) != got or (size and not number) or not theirs:
            raise ProtocolError(f"frame {number} of session {theirs} says {size & ~MORE:,} bytes, has {got:,}")
        if sender != self.peer or receiver != self.mine:
            self.strangers += 1
            return []
        if not self._agree(theirs, ours):
            return []
        self._doublings = 0
        self._confirm(acked, now)
        return self._take(number, size, fragment) if number else []

    def poll(self, now: int) -> list[Frame]:
        """Return the frames to send now: what is overdue, what the window lets through, or a bare confirmation."""
        frames: list[Frame] = []
        if self.broken:
            return frames
        if self._flight and now - self._waiting_since >= self._patience():
            self._begin_resending(now)
        while self._is_resending():
            late = self._flight[self._resend_next - self.acked - 1]
            late.sent_at, late.repeated = now, True
            frames.append(self._frame(self._resend_next, late.size, late.fragment))
            self._resend_next += 1
            self._resend_bytes -= len(late.fragment) + HEADER.size
            self.repeats += 1
        while self._window_is_open():
            size, fragment = self._queue.popleft()
            if not self._flight:
                self._waiting_since = now
            self.sent += 1
            self._flight.append(Unconfirmed(size, fragment, now))
            self._flight_bytes += len(fragment)
            frames.append(self._frame(self.sent, size, fragment))
        if self._ack_due and not frames:
            frames.append(self._frame(0, 0, b""))
        self._ack_due = False
        return frames

    def due(self) -> int | None:
        """Return from when on `poll` has something to send: 0 for at once, None when nothing is on its way."""
        if self.broken:
            return None
        if self._ack_due or self._window_is_open() or self._is_resending():
            return 0
        return self._waiting_since + self._patience() if self._flight else None

    def successor(self, session: int) -> Link:
        """Return the end that replaces this one: nothing sent, nothing heard. `session` must be greater."""
        assert session > self.session, (session, self.session)
        return Link(self.mine, self.peer, session, self.peer_session)

    def check(self) -> None:
        """Assert the link's invariants."""
        assert len(self._flight) == self.sent - self.acked <= config.LINK_WINDOW_FRAMES
        assert self._flight_bytes == sum(len(f.fragment) for f in self._flight)
        assert self._flight_bytes <= config.LINK_WINDOW_BYTES
        assert self.queued_bytes == self._flight_bytes + sum(len(fragment) for _, fragment in self._queue)
        assert self._early_bytes == sum(len(fragment) for _, fragment in self._early.values())
        assert self._early_bytes <= config.LINK_WINDOW_BYTES
        assert all(self.delivered + 1 < n <= self.delivered + config.LINK_WINDOW_FRAMES for n in self._early)
        assert self._parts_bytes == sum(map(len, self._parts)) <= config.LINK_BODY_BYTES_MAX
        assert self._resend_last <= self.sent
        assert self._resend_next > self.acked or self._resend_next > self._resend_last

    def _agree(self, theirs: int, ours: int) -> bool:
        """Return whether a frame is of the present sessions; learn the peer's when it is new."""
        if self.broken or theirs < self.peer_session or ours > self.session:
            return False
        if theirs > self.peer_session:
            self._hear_anew(theirs)
            # The peer's new end waits for number 1; what the one before it has confirmed is not sent any more.
            self.broken = self.acked > 0
        if ours and ours < self.session:
            # It is meant for the end before this one; the peer learns of that from any frame.
            self._ack_due = True
            return False
        return not self.broken

    def _hear_anew(self, peer_session: int) -> None:
        self.peer_session = peer_session
        self.delivered = self._early_bytes = self._parts_bytes = 0
        self._early.clear()
        self._parts.clear()

    def _confirm(self, acked: int, now: int) -> None:
        """Let go of what the peer has taken, and learn how long that took."""
        if acked <= self.acked:
            return
        if acked > self.sent:
            raise ProtocolError(f"worker {self.peer:#x} confirms frame {acked} of a link; {self.sent} were sent")
        freed = 0
        while self.acked < acked:
            taken = self._flight.popleft()
            freed += len(taken.fragment)
            self.acked += 1
        if not taken.repeated:
            # A frame that was sent twice tells nothing: either may have been confirmed.
            sample = now - taken.sent_at
            self._round_trip = (7 * self._round_trip + sample) // 8 if self._round_trip else sample
        self._flight_bytes -= freed
        self.queued_bytes -= freed
        self._waiting_since = now
        self._resend_next = max(self._resend_next, acked + 1)
        self._resend_bytes += 2 * (freed + HEADER.size)

    def _take(self, number: int, size: int, fragment: bytes) -> list[bytes]:
        """Take a fragment of the peer's: hand on what is in order, hold what is early, and say how far that is."""
        self._ack_due = True
        bodies: list[bytes] = []
        if number > self.delivered + 1 and "fire-and-forget" in PLANTED:
            self.delivered = number - 1
        if number != self.delivered + 1:
            self._hold(number, size, fragment)
            return bodies
        while True:
            self.delivered += 1
            body = self._complete(size, fragment)
            if body is not None:
                bodies.append(body)
            held = self._early.pop(self.delivered + 1, None)
            if held is None:
                return bodies
            size, fragment = held
            self._early_bytes -= len(fragment)

    def _hold(self, number: int, size: int, fragment: bytes) -> None:
        """Keep what is early, within the window that the peer keeps to; the rest will be sent again."""
        wanted = self.delivered < number <= self.delivered + config.LINK_WINDOW_FRAMES and number not in self._early
        if wanted and self._early_bytes + len(fragment) <= config.LINK_WINDOW_BYTES:
            self._early[number] = (size, fragment)
            self._early_bytes += len(fragment)

    def _complete(self, size: int, fragment: bytes) -> bytes | None:
        """Return the body that ends with this fragment, None when more is to come."""
        if not size & MORE and not self._parts:
            return fragment
        if self._parts_bytes + len(fragment) > config.LINK_BODY_BYTES_MAX:
            self.broken = True
            raise ProtocolError(f"a body has more than {config.LINK_BODY_BYTES_MAX:,} bytes")
        self._parts.append(fragment)
        self._parts_bytes += len(fragment)
        if size & MORE:
            return None
        body = b"".join(self._parts)
        self._parts.clear()
        self._parts_bytes = 0
        return body

    def _begin_resending(self, now: int) -> None:
        """A confirmation is overdue, all may be lost: send the oldest again, the rest as confirmations come."""
        self._resend_next = self.acked + 1
        self._resend_last = self.sent
        self._resend_bytes = config.LINK_RESEND_BYTES
        self._waiting_since = now
        self._doublings += 1

    def _is_resending(self) -> bool:
        return self._resend_next <= self._resend_last and self._resend_bytes > 0

    def _patience(self) -> int:
        """How long to wait for a confirmation, in nanoseconds."""
        first = 2 * self._round_trip or config.LINK_RESEND_FIRST_US * 1000
        first = max(first, config.LINK_RESEND_MIN_US * 1000)
        return min(first << min(self._doublings, 16), config.LINK_RESEND_MAX_US * 1000)

    def _window_is_open(self) -> bool:
        if not self._queue or len(self._flight) >= config.LINK_WINDOW_FRAMES:
            return False
        return self._flight_bytes + len(self._queue[0][1]) <= config.LINK_WINDOW_BYTES

    def _frame(self, number: int, size: int, fragment: bytes) -> Frame:
        head = HEADER.pack(self.mine, self.peer, self.session, self.peer_session, number, self.delivered, size)
        return head, fragment
