"""Calls that run beside each other in one executor: what the page shows of them, and who waits for whom.

Between the crowd, which decides (`executor.crowd`), and the loop, which runs (`executor.coroutines`). The executor's
lock is held around the crowd. The page has room to show one invocation: that of the main thread while there is one,
else the one that must end first, so that a deadline is enforced from outside though the loop may not turn.
Source: decision record 0022.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from cloudburst import config, frames
from cloudburst.errors import CloudburstError
from cloudburst.executor.alarm import Alarm
from cloudburst.executor.crowd import Crowd
from cloudburst.executor.invoker import Invoker
from cloudburst.executor.lanes import Lanes
from cloudburst.executor.library import Library
from cloudburst.executor.output import Output, Sheet
from cloudburst.executor.queue import Call
from cloudburst.page import Page, monotonic_us

if TYPE_CHECKING:
    from cloudburst.executor.coroutines import Coroutines, Running

UNSETTLED_MAX = 60
"""Most calls begun before their replies are handed to the kernel: the page can list 64."""


class Host(Protocol):
    """The executor around it."""

    @property
    def current(self) -> Call | None:
        """What the main thread runs."""

    @property
    def main_blocked(self) -> bool:
        """Whether that waits for another call."""

    def refuse(self, call: Call, fault: CloudburstError) -> None:
        """Answer a call with an error; the lock is held."""

    def refuse_late(self, call: Call) -> None:
        """Answer a call that was not begun before its deadline; the lock is held."""

    def bounce(self, call: Call, why: bytes) -> None:
        """Hand a call back unbegun; the lock is held."""

    def ask_for_executor(self) -> None:
        """Say to the node that no executor can run what this one waits for."""

    def store(self) -> Any:
        """Return this process's client of the store."""

    def system_store(self) -> Any:
        """Return the one that may use reserved keys."""


class Beside:
    """The calls of coroutine functions in one executor."""

    def __init__(
        self, host: Host, page: Page, number: int, lanes: Lanes, alarm: Alarm, lock: threading.Lock,
        library: Library, invoker: Invoker, output: Output,
    ) -> None:  # fmt: skip
        self._host = host
        self._page = page
        self._number = number
        self._lanes = lanes
        self._alarm = alarm
        self._lock = lock
        self._library = library
        self._invoker = invoker
        self._output = output
        self._crowd = Crowd()
        self.running = self._crowd.running
        """What runs, by (lane, request)."""
        self._coroutines: Coroutines | None = None
        self._held_up = 0
        self.aside = False
        """Whether nothing may wait here for the loop, because what waited might be waited for."""
        self.hung = False
        """Whether a call on the loop has not ended though it was stopped, so that the node must end the executor."""

    def __len__(self) -> int:
        return len(self._crowd)

    @property
    def loop(self) -> Coroutines:
        """What runs the calls, made when it is first needed."""
        if self._coroutines is None:
            from cloudburst.executor.coroutines import Coroutines

            self._coroutines = Coroutines(self, self._library, self._invoker)
        return self._coroutines

    def run_here(self) -> Running | None:
        """Return the invocation on the loop that this code belongs to, if there is one."""
        if self._coroutines is None:
            return None
        from cloudburst.executor.coroutines import running

        return running.get()

    def holds(self, thread: int) -> bool:
        """Whether a thread is the loop's own."""
        return self._coroutines is not None and self._coroutines.thread == thread

    # -- what the lanes bring; the lock is held

    def hear(self, call: Call) -> None:
        """Let a call wait for the loop, or say why not."""
        if self.aside:
            self._host.bounce(call, frames.WHY_BLOCKED)
            return
        fault = self._crowd.offer(call)
        if fault is not None:
            self._host.refuse(call, fault)
        else:
            self.loop.wake()

    def cancel(self, lane: int, request: int) -> bool:
        """Stop a running call, or give up a waiting one; False when it is not here."""
        call = self.running.get((lane, request))
        if call is not None:
            self.loop.stop(call)
            return True
        found = self._crowd.waiting.cancel(lane, request)
        if found is not None:
            self._host.refuse(*found)
        return found is not None

    def leave(self, lane: int) -> None:
        """Drop what waits for a client that is gone, and stop what runs for it."""
        self._crowd.waiting.leave(lane)
        for call in self._crowd.of_lane(lane):
            self.loop.stop(call)

    def bounce_all(self, why: bytes) -> None:
        """Hand back what has not begun."""
        for call in self._crowd.waiting.shed(len(self._crowd.waiting)):
            self._host.bounce(call, why)

    def look(self, now_us: int) -> None:
        """Find out whether the loop has stopped turning."""
        first = self._crowd.first
        self.hung = first is not None and first.deadline_us + config.KILL_GRACE_US < now_us

    def invocations(self) -> list[tuple[int, int]]:
        """Return what runs, by invocation."""
        return self._crowd.invocations()

    def show(self) -> None:
        """Show, while the main thread runs nothing, the call that must end first."""
        if self._host.current is not None:
            return
        call = self._crowd.first
        if call is None:
            self._page.end(self._number)
            return
        shown = call.high, call.low, call.deadline_us, call.name, monotonic_us()
        self._page.show(self._number, *shown, self.aside)
        self._alarm.arm()

    # -- what the loop asks for

    def begin_beside(self) -> Call | None:
        """Return the next call that the loop may begin now, listed as begun."""
        with self._lock:
            while (call := self._crowd.begin()) is not None:
                if call.lane in self._lanes and call.deadline_us > monotonic_us():
                    if self._lanes.unsettled >= UNSETTLED_MAX:
                        self._lanes.flush(self._host.current is not None)
                    self._lanes.unsettled += 1
                    self._lanes.beside = True
                    self._page.enlist(self._number, call.high, call.low)
                    self.show()
                    return call
                self._crowd.end(call)
                self._host.refuse_late(call)
            return None

    def end_beside(self, call: Call) -> None:
        """Take in that a call on the loop has ended."""
        with self._lock:
            self._crowd.end(call)
            self.hung = False
            self._consider()
            self.show()

    def learn(self, call: Call, limit: int) -> bool:
        """Take in how many calls of a function may run beside each other; return whether that is news."""
        with self._lock:
            return self._crowd.learn((call.name, call.version), max(1, limit))

    def answer_beside(self, call: Call, reply: bytes) -> None:
        """Keep a reply for `hand_over`."""
        with self._lock:
            self._lanes.answer(call.lane, reply)

    def hasten(self, call: Call, until_us: int) -> None:
        """Give a call that is to stop no more time than this."""
        with self._lock:
            self._crowd.hasten(call, until_us)
            self.show()

    def anybody_waits(self) -> bool:
        """Whether calls wait for the loop."""
        return bool(self._crowd.waiting)

    def hand_over(self) -> None:
        """Hand replies to the kernel, and give up calls that wait for the loop beyond their deadline."""
        with self._lock:
            if self._crowd.waiting:
                for late, fault in self._crowd.waiting.expire(monotonic_us()):
                    self._host.refuse(late, fault)
            self._lanes.flush(self._host.current is not None)

    def printed(self, sheet: Sheet) -> bytes:
        """Return what an invocation has printed since the last time."""
        return self._output.take(sheet)

    def store(self) -> Any:
        """Return this process's client of the store."""
        return self._host.store()

    def system_store(self) -> Any:
        """Return the one that may use reserved keys."""
        return self._host.system_store()

    # -- calls that wait for calls

    @contextmanager
    def awaiting(self) -> Iterator[None]:
        """While a call on the loop waits in here for another, without holding up the loop."""
        run = self.run_here()
        if run is None:
            yield
            return
        self._await(run.call, 1)
        try:
            yield
        finally:
            self._await(run.call, -1)

    def _await(self, call: Call, more: int) -> None:
        with self._lock:
            self._crowd.await_(call, more)
            self._consider()

    @contextmanager
    def held_up(self) -> Iterator[None]:
        """While a call on the loop waits in here for another, and holds up the loop."""
        with self._lock:
            self._held_up += 1
            self._consider()
        try:
            yield
        finally:
            with self._lock:
                self._held_up -= 1
                self._consider()

    def _consider(self) -> None:
        """Hand back what waits for the loop when it may be waited for by what holds it up, and say so in the page."""
        aside = self._held_up > 0 or self._crowd.stuck
        if aside == self.aside:
            return
        self.aside = aside
        if self._host.current is not None:
            self._page.block(self._number, aside or self._host.main_blocked)
        else:
            self.show()
        if aside:
            self.bounce_all(frames.WHY_BLOCKED)
            self._lanes.flush(self._host.current is not None)
            if not self._page.idle(self._number):
                self._host.ask_for_executor()
