"""One call as its caller sees it: what is sent, what each answer means, and when to try again.

A pure core, shared by `call`, which waits, and `spawn`, which does not. Infrastructure faults are tried again, at most
`attempts_max` times in all; what the user's code did (an exception, a timeout, a result that cannot be sent) only if
`retries` was given. A call that came back unbegun, because its executor was busy or died before it got to it, has not
used up an attempt. Source: P19, P22; decision record 0009.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgpack

from cloudburst import config, frames
from cloudburst.context import invocation_id
from cloudburst.endings import describe_exit, last_words
from cloudburst.errors import (
    CloudburstError,
    ExecutorLost,
    FunctionTimeout,
    NodeLost,
    OutOfMemory,
    Overloaded,
    ProtocolError,
    RequestError,
    SnapshotExpired,
    UnavailableError,
    ValueTooLarge,
)
from cloudburst.outcomes import Outcome

SMALL_BYTES: Final = 4096
"""The result in a reply below this size is copied: that costs less than to keep a view of the reply."""


class Joined(Protocol):
    """The session that a call is in."""

    def context(self) -> bytes:
        """Return what goes along with the call."""

    def identify(self, high: int, low: int) -> None:
        """Take in which call it is."""

    def renewed(self, at: tuple[int, int]) -> bytes | None:
        """Return what goes along with the next attempt when the epoch is lost; None: the session cannot go on.

        `at`: the only epoch, and its view, that it may be begun at; with view 0 the least one, which may be 0.
        """

    def continued(self, context: bytes) -> bytes:
        """Return what goes along with the call that the function has ended with. Raises CloudburstError."""

    def failed(self, context: bytes, tries: int) -> None:
        """Take in what is recorded of a call that has raised, after so many tries that had ended before."""

    def returned(self, context: bytes) -> None:
        """Take in what the call has done in the session. Raises CloudburstError."""

    @property
    def stamp(self) -> int:
        """The stamp at which what the call has written was committed; 0 when it has committed nothing."""


class Arguments(Protocol):
    """Shared memory with arguments, which others may open."""

    def peek(self) -> memoryview:
        """Return its bytes."""

    def offer(self, address: str) -> bytes | None:
        """Have them offered to the porter at an address; return how to ask for them there, None if they cannot be."""


NEAR: Final = "\0near"
"""The queue of calls that would rather run on one node than on another."""


class Home(NamedTuple):
    """Which executor it is, wherever it is spoken of: its node, its slot there, and which life of it."""

    node: int
    slot: int
    incarnation: int


class Group(Protocol):
    """Tasks that are sent together, when the turn of the one that stands for them has come."""

    def place(self, slot: int, loads: Mapping[int, int], homes: Mapping[int, Home]) -> list[tuple[int, Task]]:
        """Return what to send where: `slot` is the turn's, `loads` and `homes` are of those that could be used."""


class Task:
    """One call on its way. `low` numbers it within its client (`high`); `group` goes with it when it is sent."""

    __slots__ = (
        "attempts",
        "attempts_max",
        "avoids",
        "beside",
        "bounces",
        "continued",
        "counted",
        "deadline_us",
        "done",
        "extras",
        "flags",
        "future",
        "group",
        "held",
        "high",
        "homes",
        "kept",
        "low",
        "name",
        "name_bytes",
        "near",
        "needs",
        "output",
        "payload",
        "refusals",
        "request",
        "session",
        "slot",
        "spans",
        "taken",
        "user_attempts_max",
        "version",
    )  # fmt: skip

    def __init__(
        self, high: int, low: int, name: str, name_bytes: bytes, payload: bytes, flags: int, extras: bytes,
        deadline_us: int, retries: int | None, version: int = 0,
    ) -> None:  # fmt: skip
        self.high = high
        self.low = low
        self.request = low & 0xFFFFFFFF
        self.name = name
        self.name_bytes = name_bytes
        self.payload = payload
        self.flags = flags
        self.extras = extras
        self.version = version
        self.deadline_us = deadline_us
        self.attempts = 0
        self.attempts_max = config.ATTEMPTS_MAX if retries is None else retries + 1
        self.user_attempts_max = 1 if retries is None else retries + 1
        self.bounces = 0
        self.refusals = 0
        self.continued = 0
        self.counted = 0
        """Attempts that were used up by the functions before the one that it was continued with."""
        self.output = b""
        self.spans: tuple[bytes, ...] = ()
        self.slot = -1
        self.done = False
        self.taken = False
        """Whether the dispatcher counts it."""
        self.future: Any = None
        self.group: Group | None = None
        self.beside = 0
        """How many calls of this function may be under way at one executor; 0: as many as its window holds."""
        self.avoids = -1
        """The executor that it must not be sent to."""
        self.near = 0
        """The node whose cache holds most of its arguments, 0 for any."""
        self.homes: frozenset[int] | None = None
        """The only executors that it may be sent to."""
        self.kept: object = None
        self.held: Arguments | None = None
        """What must stay as long as it may be sent: the segment of its arguments."""
        self.session: Joined | None = None
        self.needs: tuple[Any, ...] = ()
        """The futures among its arguments: it is sent when they have their results."""

    @property
    def id(self) -> str:
        """The invocation's id, the same for all of its attempts."""
        return invocation_id(self.high, self.low)

    def keep(self, thing: object) -> bool:
        """Keep `thing` until the whole that this call is part of is over; False when it is no part of any."""
        return False

    @property
    def apart(self) -> str:
        """The queue of its own kind that it waits in, so that nothing else waits behind it; "" for the common one."""
        if self.avoids >= 0:
            return f"{self.name} again"
        if self.beside or self.homes is not None:
            return self.name
        return NEAR if self.near else ""

    def may_run(self, slot: int) -> bool:
        """Whether it may be sent to an executor."""
        return slot != self.avoids and (self.homes is None or slot in self.homes)

    @property
    def follows(self) -> bool:
        """Whether it is sent when another task's turn has come, and not by itself."""
        return False

    @property
    def awaits(self) -> bool:
        """Whether results of others go to where it was sent, so that it waits there without being run."""
        return False

    def frame(self, now_us: int) -> bytes:
        """Return the bytes that ask an executor for it, with the time that is left."""
        name, extras, payload = self.name_bytes, self.extras, self.payload
        header = frames.CALL_HEADER.pack(
            frames.CALL_HEADER_BYTES - 4 + len(name) + len(extras) + len(payload),
            frames.CALL, self.flags, len(name), self.request, len(extras), self.version,
            max(1, self.deadline_us - now_us), self.high, self.low,
        )  # fmt: skip
        return b"".join((header, name, extras, payload))

    def answered(self, frame: bytes, slot: int) -> Outcome | None:
        """Take in a reply: return how the call ended, or None when it is to be sent again."""
        _, status, flags, _, _, _, output_bytes = frames.REPLY_HEADER.unpack_from(frame)
        start = frames.REPLY_HEADER_BYTES + output_bytes
        if output_bytes:
            output = frame[frames.REPLY_HEADER_BYTES : start]
            if flags & frames.SESSION:
                context, output = frames.split_spans(output)
                flags &= ~frames.SESSION
                fault = self._in_session(status, context)
                if fault is not None:
                    return self.failed(fault)
            if flags & frames.SPANS:
                spans, output = frames.split_spans(output)
                self.spans += (spans,)
                flags &= ~frames.SPANS
            self.output += output
        if status == frames.OK:
            self.attempts += 1
            copied = len(frame) < SMALL_BYTES and not flags & frames.SHARED
            return Outcome(self, status, flags, frame[start:] if copied else memoryview(frame)[start:], "")
        payload = memoryview(frame)[start:]
        if status == frames.RAISED:
            self.attempts += 1
            if self.attempts < self.user_attempts_max:
                return None
            return Outcome(self, status, flags, payload, self._where(slot))
        if status == frames.BOUNCED:
            why = bytes(payload[:1])
            if why == frames.WHY_LOST:
                return self._bereft(bytes(payload[1:]).decode(errors="replace"))
            if why == frames.WHY_UNSEEN and self.held is not None:
                fault = self._send_along(self.held, bytes(payload[1:]).decode(errors="replace"))
                if fault is not None:
                    return self.failed(fault)
            return self._bounced()
        if status == frames.CONTINUED:
            return self._continued(payload)
        if status == frames.ERROR:
            return self._refused(frames.fault_of(payload))
        return self.failed(ProtocolError(f"executor {slot} answered with status {status}", definite=False))

    def _in_session(self, status: int, context: bytes) -> CloudburstError | None:
        """Take in what the function has done in its session; return what is wrong with it."""
        if self.session is not None:
            try:
                if status == frames.CONTINUED:
                    self._send_session(self.session.continued(context))
                elif status == frames.OK:
                    self.session.returned(context)
                elif status == frames.RAISED:
                    self.session.failed(context, self.tries)
            except CloudburstError as fault:
                fault.definite = False
                return fault
        return None

    @property
    def tries(self) -> int:
        """How often it has been begun and has ended before."""
        return self.attempts

    def _send_session(self, context: bytes) -> None:
        """Send this along as the session from now on."""
        extras = frames.unpack(self.extras) if self.extras else {}
        self.extras = msgpack.packb(extras | {"session": context})

    def _continued(self, payload: memoryview) -> Outcome | None:
        """Become the call that the function has ended with; attempts are counted on, and their limits with them."""
        self.attempts += 1
        self.continued += 1
        if self.continued > config.CONTINUATIONS_MAX:
            words = f"{self.name!r} is the {config.CONTINUATIONS_MAX:,}th continuation (continuations_max) of a call"
            return self.failed(RequestError(words, definite=False))
        used, self.counted = self.attempts - self.counted, self.attempts
        self.attempts_max += used
        self.user_attempts_max += used
        self.name, self.flags, self.beside, homes, refs, data = frames.unpack(payload)
        self.homes = None if homes is None else frozenset(homes)
        self.name_bytes, self.payload, self.version, self.held = self.name.encode(), data, 0, None
        before = frames.unpack(self.extras) if self.extras else {}
        extras = {name: before[name] for name in ("key", "trace", "session") if name in before}
        extras |= {"refs": refs} if refs else {}
        self.extras = msgpack.packb(extras) if extras else b""
        self.bounces = self.refusals = 0
        return None

    def _send_along(self, arguments: Arguments, porter: str = "") -> CloudburstError | None:
        """Send the arguments themselves from now on: where they are cannot be seen everywhere; return why not.

        Those that are longer than a chunk are offered to the `porter` where the call was, if it has an address.
        """
        data = arguments.peek()
        offered = arguments.offer(porter) if porter and len(data) > config.CHUNK_BYTES else None
        if offered is not None:
            self.payload = offered
            return None
        if len(data) > config.FRAME_BYTES_MAX - config.FRAME_HEAD_BYTES_MAX:
            limit = f"above frame_bytes_max, {config.FRAME_BYTES_MAX:,}, they are fetched, from a node with --listen"
            return ValueTooLarge(f"the arguments of {self.name!r} have {len(data):,} bytes; {limit}")
        self.payload = bytes(data)
        return None

    def _bereft(self, how: str) -> Outcome | None:
        """Take in that what it was to be called with is lost with the node that it was on."""
        self.attempts += 1
        fault = self._send_along(self.held) if self.held is not None else None
        if fault is None and self.attempts < self.attempts_max:
            return None
        return self.failed(fault or ExecutorLost(f"what {self.name!r} was to be called with is lost: {how}"))

    def unfetched(self, fault: NodeLost) -> Outcome | None:
        """Take in that its result was lost before it was here, with the node that it lay on: that attempt is lost."""
        return None if self.attempts < self.attempts_max else self.failed(fault)

    def anew(self, payload: bytes, held: Arguments | None, kept: object, needs: tuple[Any, ...]) -> Task:
        """Return the same call, to be sent once more, with what it had been sent with."""
        fresh = Task(
            self.high, self.low, self.name, self.name_bytes, payload, self.flags, self.extras, self.deadline_us, None,
            self.version,
        )  # fmt: skip
        for name in ("attempts", "attempts_max", "user_attempts_max", "counted", "continued", "output", "spans",
                     "beside", "homes", "near", "session"):  # fmt: skip
            setattr(fresh, name, getattr(self, name))
        fresh.held, fresh.kept, fresh.needs = held, kept, needs
        return fresh

    def _bounced(self) -> Outcome | None:
        self.bounces += 1
        if self.bounces <= config.BOUNCES_MAX:
            return None
        return self.failed(Overloaded(f"{self.name!r} was handed back {self.bounces:,} times by busy executors"))

    def _refused(self, fault: CloudburstError) -> Outcome | None:
        if isinstance(fault, Overloaded) or (type(fault) is UnavailableError and fault.definite):
            self.refusals += 1  # for one, the store had not yet noticed that a node is gone
            return None if self.refusals < config.ATTEMPTS_MAX else self.failed(fault)
        if isinstance(fault, SnapshotExpired):
            return self._expired_under(fault)
        if not fault.definite:
            self.attempts += 1
            if isinstance(fault, OutOfMemory) and self.attempts < self.user_attempts_max:
                return None
        return self.failed(fault)

    def _expired_under(self, fault: SnapshotExpired) -> Outcome | None:
        """Take in that its session's epoch was not kept any more: that attempt is lost, and had no effect."""
        at = fault.epoch, fault.view
        context = None if self.session is None else self.session.renewed(at)
        if context is None or self.attempts + 1 >= self.attempts_max:
            return self.failed(fault)
        self.attempts += 1
        self._send_session(context)
        return None

    def lost(self, slot: int, fate: dict[str, Any] | None, now_us: int) -> Outcome | None:
        """Take in that the executor ended, or closed the lane, under this call."""
        begun = None if fate is None else fate["unsettled"]
        if begun is not None and [self.high, self.low] not in begun:
            return self._bounced()
        self.attempts += 1
        if fate is not None and list(fate.get("running") or ()) == [self.high, self.low]:
            self.output += fate["tail"].encode()
        if now_us >= self.deadline_us:
            return self.failed(
                FunctionTimeout(f"{self.name!r} was still running at its deadline, and its executor had to be killed")
            )
        poisoned = fate is not None and fate["poisoned"]
        if self.attempts < self.attempts_max and not poisoned:
            return None
        kind = OutOfMemory if fate is not None and fate.get("starved") else ExecutorLost
        return self.failed(kind(self._describe_loss(slot, fate, poisoned)))

    def _describe_loss(self, slot: int, fate: dict[str, Any] | None, poisoned: bool) -> str:
        how = f"executor {slot} closed the connection" if fate is None else (
            f"executor {slot} (pid {fate['pid']}) ended by {describe_exit(fate['code'])}"
        )  # fmt: skip
        if fate is not None and fate.get("starved"):
            how += ", by the kernel, which was out of memory,"
        text = f"{how} while it ran {self.name!r}, in attempt {self.attempts} of {self.attempts_max}"
        if poisoned:
            text += f"; {self.name!r} is refused until it is registered anew"
        last = last_words(fate["tail"]) if fate is not None else []
        return "\n    ".join((f"{text}; it last said:", *last)) if last else text

    def expired(self, begun: bool) -> Outcome:
        """Take in that the deadline has passed with no answer: `begun` if it was sent, and so may run."""
        if begun:
            self.attempts += 1
            return self.failed(FunctionTimeout(f"no answer from {self.name!r} before its deadline"))
        return self.failed(FunctionTimeout(f"{self.name!r} was not begun before its deadline", definite=True))

    def failed(self, fault: CloudburstError) -> Outcome:
        """Return the outcome that raises `fault`, which is not definite when an attempt before it had begun."""
        if self.attempts and fault.definite:
            fault.definite = False
        return Outcome(self, frames.ERROR, 0, fault, "")

    def _where(self, slot: int) -> str:
        attempt = f" in attempt {self.attempts} of {self.user_attempts_max}" if self.user_attempts_max > 1 else ""
        return f"in executor {slot}{attempt}"
