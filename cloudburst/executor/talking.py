"""How the invocation that runs sends messages to others, and waits for theirs.

A message is answered by the executor that takes it in, so a sender knows that it has arrived, or that nobody is there.
While it waits, for that or for a message, this thread serves the executor's lanes: two that send to each other at the
same moment both go on. An invocation that has waited once takes no place of others any more, for it will wait again.
Source: DESIGN §6.
"""

from __future__ import annotations

import select
from typing import Any, Final, Protocol

from cloudburst import frames, pickling
from cloudburst.context import invocation_id
from cloudburst.errors import CloudburstError, FunctionTimeout, InvocationGone, RequestError
from cloudburst.executor.mailbox import Invocation, Mailbox, Message
from cloudburst.executor.siblings import Siblings
from cloudburst.page import Page, monotonic_us

LOOK_MS: Final = 50
"""The longest that a waiting invocation does not look at the clock and its inbox."""
FIND_PAUSE_MS: Final = 1.0


class Host(Protocol):
    """The executor around it."""

    page: Page
    number: int
    mailbox: Mailbox

    def converse(self) -> None:
        """Until the call ends, let another executor take this one's place."""

    def look_at_lanes(self) -> None:
        """Take in what the lanes have brought."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when `look_at_lanes` has something to do."""

    def take_message(self) -> Message | None:
        """Return the oldest message that has come."""

    def offer_message(self, to: Invocation, message: Message) -> CloudburstError | None:
        """Take in a message for the invocation that runs here."""


class Talking:
    """Messages of one executor's invocations."""

    def __init__(self, host: Host, siblings: Siblings) -> None:
        self._host = host
        self._siblings = siblings

    def send(self, sender: Invocation, to: Invocation, value: Any, until_us: int) -> None:
        """Send a value. Raises InvocationGone when `to` does not run, nor begins to, by `until_us`; Overloaded."""
        payload = pickling.dumps_message(value)
        while True:
            slot = self._host.page.find(*to)
            if slot < 0:
                self._host.converse()
                slot = self._wait_for(to, until_us)
            fault = self._deliver(slot, sender, to, payload, until_us)
            if fault is None:
                return
            late = slot < self._host.page.own or monotonic_us() >= until_us
            if late or not isinstance(fault, InvocationGone):
                raise fault
            self._pause(FIND_PAUSE_MS)  # what the page shows of other nodes is a little behind

    def _deliver(
        self, slot: int, sender: Invocation, to: Invocation, payload: bytes, until_us: int
    ) -> CloudburstError | None:
        """Hand a message to the executor in a slot; return why it did not take it."""
        if slot == self._host.number:
            return self._host.offer_message(to, Message(sender, payload))
        incarnation = self._host.page.state(slot)[1]
        reply = self._exchange(slot, incarnation, frames.message(to, sender, payload), until_us)
        if reply is None:
            words = f"invocation {invocation_id(*to)} ended while a message was on its way"
            raise InvocationGone(words, definite=False)
        return frames.fault_of(memoryview(reply)[frames.REPLY_HEADER_BYTES :]) if reply[4] != frames.OK else None

    def _wait_for(self, to: Invocation, until_us: int) -> int:
        """Return the slot in which an invocation runs, once it does."""
        while (slot := self._host.page.find(*to)) < 0:
            if monotonic_us() >= until_us:
                words = f"invocation {invocation_id(*to)} runs nowhere here: it has ended, or has not begun"
                raise InvocationGone(words)
            self._pause(FIND_PAUSE_MS)
        return slot

    def _pause(self, wait_ms: float, fd: int = -1) -> bool:
        """Serve the lanes for a while; return whether `fd` is readable."""
        poll = select.poll()
        poll.register(self._host.fileno(), select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        ready = {number for number, _ in poll.poll(wait_ms)}
        if self._host.fileno() in ready:
            self._host.look_at_lanes()
        return fd in ready

    def _exchange(self, slot: int, incarnation: int, frame: bytes, until_us: int) -> bytes | None:
        """Send a frame to another executor and return its reply; None when it is gone."""
        left_s = max(0.001, (until_us - monotonic_us()) / 1e6)
        connection = self._siblings.sent(slot, incarnation, frame, left_s)
        if connection is None:
            return None
        reader = frames.FrameReader()
        while monotonic_us() < until_us:
            if not self._pause(LOOK_MS, connection.fileno()):
                continue
            try:
                data = connection.recv(4096)
            except OSError:
                data = b""
            if not data:
                self._siblings.drop(slot, incarnation)
                return None
            replies = reader.feed(data)
            if replies:
                return replies[0]
        self._siblings.drop(slot, incarnation)
        raise FunctionTimeout(f"executor {slot} did not say in time whether it took the message")

    def receive(self, until_us: int) -> tuple[str, Any]:
        """Return (sender's id, value) of the oldest message, waiting for one. Raises TimeoutError."""
        message = self._host.take_message()
        if message is None:
            self._host.converse()
            message = self._await(until_us)
        return invocation_id(*message.sender), pickling.loads(message.payload)

    def _await(self, until_us: int) -> Message:
        while (message := self._host.take_message()) is None:
            left_us = until_us - monotonic_us()
            if left_us <= 0:
                raise TimeoutError("no message came in time")
            self._pause(min(LOOK_MS, left_us / 1000 + 0.5))
        return message


def parse_id(text: str) -> Invocation:
    """Return the invocation that an id names. Raises RequestError."""
    try:
        if len(text) != 32:
            raise ValueError
        return int(text[:16], 16), int(text[16:], 16)
    except (TypeError, ValueError):
        words = f"{text!r} is no invocation's id: 32 hexadecimal digits, a future's or a context's `id`"
        raise RequestError(words) from None
