"""The calls of coroutine functions in one executor: which wait, which run beside each other, and how many may.

A pure core. Each function has its limit, and all together have one, because the page can list only so many calls that
have begun. Calls of a function at its limit wait, and let others pass. When everything that runs of a full function
waits for calls of its own, nothing that waits here could be sure to begin: then it is `stuck`, and is handed back.
Source: DESIGN §6; decision record 0022.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from cloudburst import config
from cloudburst.errors import CloudburstError
from cloudburst.executor.queue import Call, Queue

Function = tuple[bytes, int]
Key = tuple[int, int]

UNKNOWN: Final = 1
"""The limit of a function that nobody has looked up yet: its first call does."""


class Crowd:
    """Calls by (lane, request)."""

    def __init__(self, most: int = config.CONCURRENT_CALLS_MAX, waiting: Queue | None = None) -> None:
        self.waiting = Queue() if waiting is None else waiting
        self.running: dict[Key, Call] = {}
        self._most = most
        self._limits: dict[Function, int] = {}
        self._of: Counter[Function] = Counter()
        self._awaiting: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def learn(self, function: Function, limit: int) -> bool:
        """Take in how many calls of a function may run beside each other; return whether that is news."""
        before, self._limits[function] = self._limits.get(function), limit
        return before != limit

    def offer(self, call: Call) -> CloudburstError | None:
        """Take a call in to wait, or return why not."""
        if (call.lane, call.request) in self.running:
            return CloudburstError(f"request {call.request} of this lane is already running")
        return self.waiting.offer(call)

    def begin(self) -> Call | None:
        """Return the oldest call that may begin now, and count it as running; None when there is none."""
        if len(self.running) >= self._most:
            return None
        call = self.waiting.take(self._full) if self._of else self.waiting.take()
        if call is not None:
            self.running[call.lane, call.request] = call
            self._of[call.name, call.version] += 1
        return call

    def _full(self, call: Call) -> bool:
        function = (call.name, call.version)
        return self._of[function] >= self._limits.get(function, UNKNOWN)

    def end(self, call: Call) -> None:
        """Take in that a call has ended."""
        key, function = (call.lane, call.request), (call.name, call.version)
        del self.running[key]
        self._awaiting.pop(key, None)
        self._of[function] -= 1
        if not self._of[function]:
            del self._of[function]

    def hasten(self, call: Call, deadline_us: int) -> None:
        """Give a running call, which nobody waits for any more, less time to end."""
        key = (call.lane, call.request)
        if key in self.running and deadline_us < self.running[key].deadline_us:
            self.running[key] = self.running[key]._replace(deadline_us=deadline_us)

    def await_(self, call: Call, more: int) -> None:
        """Take in that a running call waits for one more call of its own, or (`more` -1) for one less."""
        key = (call.lane, call.request)
        if key in self.running:
            self._awaiting[key] = self._awaiting.get(key, 0) + more
            if not self._awaiting[key]:
                del self._awaiting[key]

    @property
    def stuck(self) -> bool:
        """Whether calls could wait here for what, in the end, waits for them. O(running)."""
        if not self._awaiting:
            return False
        if len(self.running) >= self._most:
            return len(self._awaiting) == len(self.running)
        waits = Counter((call.name, call.version) for key, call in self.running.items() if key in self._awaiting)
        return any(count == self._of[one] >= self._limits.get(one, UNKNOWN) for one, count in waits.items())

    @property
    def first(self) -> Call | None:
        """The running call that must end first. O(running)."""
        return min(self.running.values(), key=lambda call: call.deadline_us, default=None)

    def invocations(self) -> list[tuple[int, int]]:
        """Return what runs, by invocation."""
        return [(call.high, call.low) for call in self.running.values()]

    def of_lane(self, lane: int) -> list[Call]:
        """Return what runs for a client. O(running)."""
        return [call for call in self.running.values() if call.lane == lane]

    def check(self) -> None:
        """Assert the invariants: limits hold, the counts add up, and nothing both waits and runs."""
        self.waiting.check()
        assert all(key == (call.lane, call.request) for key, call in self.running.items())
        assert self._of == Counter((call.name, call.version) for call in self.running.values())
        assert len(self.running) <= self._most
        assert self._awaiting.keys() <= self.running.keys()
        assert all(count > 0 for count in self._awaiting.values())
