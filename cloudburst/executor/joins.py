"""The stages that wait in one executor for what their predecessors return.

A pure core: stages, results and `now` in, complete calls out. A stage is known by its invocation; its caller announces
it, and each predecessor's executor sends one result to one of its positions, over another connection: so a result may
come before its stage is announced, twice when a predecessor had to be run again, or after the stage has begun or was
given up, and then it is dropped. What arrives early is kept until the deadline that it carries. Source: DESIGN §6;
D47, D57 (duplicate triggers were not suppressed, and what waited was never forgotten), D58.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudburst import config
from cloudburst.errors import Cancelled, CloudburstError, FunctionTimeout, Overloaded
from cloudburst.executor.queue import Call

Invocation = tuple[int, int]


class Input(NamedTuple):
    """What one predecessor returned: a pickled value, None for None, and the context that travels with it.

    `flags` are those of a frame: SHARED says that the payload only describes where the value is.
    """

    payload: bytes | memoryview | None
    context: bytes = b""
    flags: int = 0

    @property
    def size_bytes(self) -> int:
        """What it counts for against `join_bytes_max`."""
        return len(self.context) + (0 if self.payload is None else len(self.payload))


@dataclass(slots=True)
class _Waiting:
    """A stage, or what has come for one that is not announced yet (`call` None)."""

    deadline_us: int
    call: Call | None = None
    awaits: int = 0
    positions: int = 0
    inputs: dict[int, Input] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        own = 0 if self.call is None else self.call.size_bytes
        return own + sum(one.size_bytes for one in self.inputs.values())


class Joins:
    """What waits, by invocation."""

    def __init__(
        self, calls_max: int = config.JOIN_CALLS_MAX, bytes_max: int = config.JOIN_BYTES_MAX, begun_max: int = 4096
    ) -> None:
        self.calls_max = calls_max
        self.bytes_max = bytes_max
        self._waiting: dict[Invocation, _Waiting] = {}
        self._by_request: dict[tuple[int, int], Invocation] = {}
        self._over: OrderedDict[Invocation, None] = OrderedDict()
        self._over_max = begun_max
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_request)

    def announce(self, call: Call, positions: int, awaits: int, now_us: int) -> Call | CloudburstError | None:
        """Take in a stage that needs `awaits` results, one for each of `positions`, or just the first of them.

        Returns it complete when all that it needs has come already, an error when it is refused, else None.
        """
        if len(self._by_request) >= self.calls_max:
            self.forget_late(now_us)
            if len(self._by_request) >= self.calls_max:
                return Overloaded(
                    f"{len(self):,} stages of DAGs wait in this executor; join_calls_max is {self.calls_max:,}"
                )
        fault = self._refusal(call.size_bytes, now_us)
        if fault is not None:
            return fault
        key = (call.high, call.low)
        if key in self._over:
            return Overloaded("what this stage needs came before it was announced, and there was no room to keep it")
        kept = self._waiting.setdefault(key, _Waiting(call.deadline_us))
        if kept.call is not None or (call.lane, call.request) in self._by_request:
            return CloudburstError(f"request {call.request} of this lane waits already")
        kept.call, kept.deadline_us, kept.awaits, kept.positions = call, call.deadline_us, awaits, positions
        self._by_request[call.lane, call.request] = key
        self._bytes += call.size_bytes
        for position in [position for position in kept.inputs if position >= positions]:
            self._bytes -= kept.inputs.pop(position).size_bytes
        return self._complete(key, kept)

    def arrive(
        self, key: Invocation, position: int, result: Input, deadline_us: int, now_us: int
    ) -> tuple[Call, CloudburstError | None] | None:
        """Take in the result for one position; return the stage when that was the last it needed.

        It comes with an error, and is given up, when there is no room for the result.
        """
        if key in self._over or deadline_us <= now_us:
            return None
        kept = self._waiting.get(key)
        if kept is not None and (position in kept.inputs or (kept.call is not None and position >= kept.positions)):
            return None
        fault = self._refusal(result.size_bytes, now_us)
        kept = self._waiting.get(key) or self._waiting.setdefault(key, _Waiting(deadline_us))
        if fault is not None:
            self._forget(key)
            return None if kept.call is None else (kept.call, fault)
        kept.inputs[position] = result
        self._bytes += result.size_bytes
        call = self._complete(key, kept)
        return None if call is None else (call, None)

    def _refusal(self, more_bytes: int, now_us: int) -> CloudburstError | None:
        if self._bytes + more_bytes <= self.bytes_max:
            return None
        self.forget_late(now_us)
        if self._bytes + more_bytes <= self.bytes_max:
            return None
        return Overloaded(
            f"{self._bytes + more_bytes:,} bytes would wait for other results; join_bytes_max is {self.bytes_max:,}"
        )

    def _complete(self, key: Invocation, kept: _Waiting) -> Call | None:
        if kept.call is None or len(kept.inputs) < kept.awaits:
            return None
        self._forget(key)
        inputs = tuple(kept.inputs[position] for position in sorted(kept.inputs)[: kept.awaits])
        return kept.call._replace(inputs=inputs)

    def give_up(self, key: Invocation) -> Call | None:
        """Forget a stage, and what comes for it from now on; return it if it was announced."""
        kept = self._waiting.get(key)
        if kept is None:
            return None
        self._forget(key)
        return kept.call

    def cancel(self, lane: int, request: int) -> tuple[Call, CloudburstError] | None:
        """Give up a waiting stage at its caller's wish; None when it does not wait here."""
        key = self._by_request.get((lane, request))
        call = None if key is None else self.give_up(key)
        return None if call is None else (call, Cancelled("cancelled before it was begun", definite=True))

    def leave(self, lane: int) -> None:
        """Give up everything that waits for a caller who has gone. O(waiting)."""
        for key in [key for (theirs, _), key in self._by_request.items() if theirs == lane]:
            self._forget(key)

    def expire(self, now_us: int) -> list[tuple[Call, CloudburstError]]:
        """Give up every stage whose deadline has passed, and what came for stages that nobody announced. O(waiting)."""
        late: list[tuple[Call, CloudburstError]] = []
        for key, kept in [(key, kept) for key, kept in self._waiting.items() if kept.deadline_us <= now_us]:
            self._forget(key)
            if kept.call is not None:
                name = kept.call.name.decode(errors="replace")
                what = f"{name!r} had {len(kept.inputs)} of the {kept.awaits} results that it needs"
                fault = FunctionTimeout(f"{what}, and was not begun before its deadline", definite=True)
                late.append((kept.call, fault))
        return late

    def forget_late(self, now_us: int) -> None:
        """Drop what came for stages that nobody has announced in time. O(waiting)."""
        for key, kept in [(key, kept) for key, kept in self._waiting.items() if kept.deadline_us <= now_us]:
            if kept.call is None:
                self._forget(key)

    @property
    def next_deadline_us(self) -> int | None:
        """When `expire` next has something to do. O(waiting)."""
        return min((kept.deadline_us for kept in self._waiting.values()), default=None)

    def _forget(self, key: Invocation) -> None:
        kept = self._waiting.pop(key)
        self._bytes -= kept.size_bytes
        if kept.call is not None:
            del self._by_request[kept.call.lane, kept.call.request]
        self._over[key] = None
        while len(self._over) > self._over_max:
            self._over.popitem(last=False)

    def check(self) -> None:
        """Assert the invariants: nothing complete waits, both tables agree, and the bytes add up."""
        announced = {key for key, kept in self._waiting.items() if kept.call is not None}
        assert announced == set(self._by_request.values())
        assert len(announced) == len(self._by_request)
        assert all(kept.call is None or len(kept.inputs) < kept.awaits for kept in self._waiting.values())
        assert self._bytes == sum(kept.size_bytes for kept in self._waiting.values()) <= self.bytes_max
        assert not self._over.keys() & self._waiting.keys()
