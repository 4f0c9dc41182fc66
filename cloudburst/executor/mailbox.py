"""The messages that have come for the invocation that runs, and for no other.

A pure core. An inbox begins and ends with its invocation, so nobody reads what was meant for somebody before. It is
bounded; whoever sends is told whether the message was taken in, so what one sender sends arrives in its order, once.
Source: DESIGN §6; D59 (messages went to executors, and inboxes were emptied between calls).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from cloudburst import config
from cloudburst.context import invocation_id
from cloudburst.errors import CloudburstError, InvocationGone, Overloaded

Invocation = tuple[int, int]


class Message(NamedTuple):
    """A pickled value and who sent it."""

    sender: Invocation
    payload: bytes | memoryview


class Mailbox:
    """The inbox of one executor."""

    def __init__(
        self, messages_max: int = config.INBOX_MESSAGES_MAX, bytes_max: int = config.INBOX_BYTES_MAX
    ) -> None:
        self.messages_max = messages_max
        self.bytes_max = bytes_max
        self._owner: Invocation | None = None
        self._waiting: deque[Message] = deque()
        self._bytes = 0

    def open(self, owner: Invocation | None) -> None:
        """Begin an empty inbox for `owner`; None: nobody runs."""
        self._owner = owner
        if self._waiting:
            self._waiting.clear()
            self._bytes = 0

    def offer(self, to: Invocation, message: Message) -> CloudburstError | None:
        """Take a message in, or return why not."""
        if to != self._owner:
            return InvocationGone(f"invocation {invocation_id(*to)} does not run here any more")
        if len(self._waiting) >= self.messages_max:
            return Overloaded(f"{len(self._waiting):,} messages wait; inbox_messages_max is {self.messages_max:,}")
        size = len(message.payload)
        if self._bytes + size > self.bytes_max and self._waiting:
            return Overloaded(f"{self._bytes + size:,} bytes would wait; inbox_bytes_max is {self.bytes_max:,}")
        self._waiting.append(message)
        self._bytes += size
        return None

    def take(self) -> Message | None:
        """Return the oldest message."""
        if not self._waiting:
            return None
        message = self._waiting.popleft()
        self._bytes -= len(message.payload)
        return message

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self) -> None:
        """Assert the invariants: the bounds hold, the bytes add up, and nothing waits for nobody."""
        assert self._bytes == sum(len(message.payload) for message in self._waiting)
        assert len(self._waiting) <= self.messages_max
        assert self._owner is not None or not self._waiting
