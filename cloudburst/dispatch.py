"""Which spawned call goes to which executor next: windows of calls under way, and a queue before them.

A pure core: calls, answers and losses in, calls to send out. A client keeps a few calls under way at each executor,
so that none waits for a round trip, and the rest in its own queue, so that none waits behind a slow one while another
executor is idle. The calls of a DAG leave the queue together. The window of an executor follows how long calls take:
about `window_us` of work, so hundreds of no-ops and two long ones. Calls that run beside each other in one executor
have a queue for each function, and as many under way as run there. Source: DESIGN §6 (back-pressure); D53, D62.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cloudburst import config
from cloudburst.attempts import Home, Task
from cloudburst.errors import CloudburstError, Overloaded
from cloudburst.stages import AWAY_CALLS

SMALLEST: Final = 2
"""One call that runs, and one to follow it."""
OVERHEAD_US: Final = 10
"""What a call costs beyond the function's own time, for the size of the window."""


@dataclass(slots=True)
class Window:
    """What is under way at one executor."""

    home: Home
    size: int = config.WINDOW_CALLS_MIN
    average_us: float = -1.0
    held: int = 0
    """How many of those under way wait there, for other stages or for their arguments, and so keep nobody waiting."""
    distant: bool = False
    """Whether large arguments have to be fetched from here."""
    fetching: set[int] = field(default_factory=set)
    """Those under way there that have such."""
    beside: Counter[str] = field(default_factory=Counter)
    """How many of those under way run beside others, by function."""
    under_way: dict[int, Task] = field(default_factory=dict)

    @property
    def busy(self) -> int:
        """How many calls are there to be run."""
        return len(self.under_way) - self.held

    @property
    def room(self) -> int:
        """How many more calls may be sent there."""
        return self.size - self.busy

    def learn(self, run_us: int) -> None:
        """Take in how long a call ran."""
        self.average_us = run_us if self.average_us < 0 else self.average_us + 0.25 * (run_us - self.average_us)
        wanted = int(config.WINDOW_US / (self.average_us + OVERHEAD_US))
        ceiling = min(config.WINDOW_CALLS_MAX, 2 * self.size)
        self.size = max(SMALLEST, min(wanted, ceiling))


class Dispatcher:
    """The spawned calls of one client that have no result yet."""

    def __init__(self, pending_max: int = config.PENDING_CALLS_MAX) -> None:
        self.windows: dict[int, Window] = {}
        self.pending: deque[Task] = deque()
        self.apart: dict[str, deque[Task]] = {}
        """What waits apart: calls that run beside others, or that not every executor may run."""
        self.pending_max = pending_max
        self._live = 0

    def __len__(self) -> int:
        return self._live

    @property
    def hungry(self) -> bool:
        """Whether some executor has nothing from here to do, or there is none: what waits should be sent now.

        So should what waits apart.
        """
        return bool(self.apart) or not all(window.busy for window in self.windows.values()) or not self.windows

    def refusal(self, coming: int = 0) -> CloudburstError | None:
        """Return why no more calls are taken in, None if one more is; `coming` are about to be submitted."""
        live = self._live + coming
        if live < self.pending_max:
            return None
        return Overloaded(f"{live:,} spawned calls have no result yet; pending_calls_max is {self.pending_max:,}")

    def submit(self, task: Task) -> None:
        """Take in a call, unless it was cancelled before it came. Ask for a `refusal` first."""
        if task.done:
            return
        self._live += 1
        task.taken = True
        apart = task.apart
        if apart:
            self.apart.setdefault(apart, deque()).append(task)
        else:
            self.pending.append(task)

    @property
    def waiting(self) -> int:
        """How many calls have not been sent."""
        return len(self.pending) + sum(map(len, self.apart.values())) if self.apart else len(self.pending)

    def give_up(self) -> list[Task]:
        """Return every call that has not been sent, and has no result; they are sent no more."""
        given_up = [task for queue in (self.pending, *self.apart.values()) for task in queue if not task.done]
        self.pending.clear()
        self.apart.clear()
        return given_up

    def open(self, slot: int, home: Home, distant: bool = False) -> None:
        """Use this executor from now on; the one that was in its slot before must be lost first."""
        assert slot not in self.windows
        self.windows[slot] = Window(home, distant=distant)

    def rename(self, slots: Mapping[int, int]) -> None:
        """Know executors by other slots from now on: {the one so far: the one from now on} of every one."""
        assert set(slots) == set(self.windows)
        self.windows = {slots[slot]: window for slot, window in self.windows.items()}
        for slot, window in self.windows.items():
            for task in window.under_way.values():
                task.slot = slot

    def lose(self, slot: int) -> list[Task]:
        """Forget an executor; return what was under way there, in the order it was sent."""
        window = self.windows.pop(slot, None)
        return [] if window is None else list(window.under_way.values())

    def next_sends(self, loads: Mapping[int, int]) -> list[tuple[int, Task]]:
        """Move calls from the queue into the windows, least loaded executor first; return where each is to be sent.

        `loads` says how many calls, anybody's, each executor has before it, as far as the page shows. Those that are
        not in it take no calls now: they wait for a nested call, or are leaving.
        """
        sends = self._sends_apart(loads) if self.apart else []
        pending = self.pending
        while pending:
            slot, least = -1, 1 << 60
            for number, window in self.windows.items():
                load = loads.get(number)
                if load is not None and window.room > 0:
                    load = max(window.busy, load)
                    if load < least:
                        slot, least = number, load
            if slot < 0:
                break
            window = self.windows[slot]
            share = max(1, window.room // 2) if len(self.windows) > 1 else window.room
            for _ in range(min(share, len(pending))):
                task = pending.popleft()
                if task.done:
                    continue
                if task.group is not None:
                    sends += self._place_group(slot, task, loads)
                    continue
                self._put(slot, task)
                sends.append((slot, task))
        return sends

    def _sends_apart(self, loads: Mapping[int, int]) -> list[tuple[int, Task]]:
        """Do the same for calls that wait apart: each goes where there is room for it and the least to do."""
        sends: list[tuple[int, Task]] = []
        for apart in list(self.apart):
            queue = self.apart[apart]
            while queue:
                task = queue[0]
                slot = -1 if task.done else self._best(task, loads)
                if slot < 0 and not task.done:
                    break
                queue.popleft()
                if not task.done:
                    self._put(slot, task)
                    sends.append((slot, task))
            if not queue:
                del self.apart[apart]
        return sends

    def _best(self, task: Task, loads: Mapping[int, int]) -> int:
        """Return the executor for a call that waits apart, -1 when it must wait."""
        best, least = -1, (1 << 60, 0)
        for slot, window in self.windows.items():
            if slot not in loads or not task.may_run(slot):
                continue
            busy = window.beside[task.name] if task.beside else max(window.busy, loads[slot])
            away = AWAY_CALLS if task.near and window.home.node != task.near else 0
            if (busy < task.beside if task.beside else window.room > 0) and (busy + away, loads[slot]) < least:
                best, least = slot, (busy + away, loads[slot])
        return best

    def _place_group(self, slot: int, task: Task, loads: Mapping[int, int]) -> list[tuple[int, Task]]:
        group, task.group = task.group, None
        assert group is not None
        usable = {number: max(window.busy, loads[number]) for number, window in self.windows.items() if number in loads}
        sends = group.place(slot, usable, {number: self.windows[number].home for number in usable})
        for number, one in sends:
            one.taken = True
            self._put(number, one)
        self._live += sum(one.follows for _, one in sends)
        return sends

    def _put(self, slot: int, task: Task) -> None:
        task.slot = slot
        window = self.windows[slot]
        window.under_way[task.request] = task
        if task.beside:
            window.held += 1
            window.beside[task.name] += 1
        else:
            window.held += task.awaits
            if window.distant and task.held is not None:
                window.held += 1
                window.fetching.add(task.request)

    def answered(self, slot: int, request: int, run_us: int) -> Task | None:
        """Take a call out of its window, None if it is not there; `run_us` below 0 says nothing."""
        window = self.windows.get(slot)
        task = window.under_way.pop(request, None) if window is not None else None
        if task is not None and window is not None:
            task.slot = -1
            if task.beside:
                window.held -= 1
                window.beside[task.name] -= 1
                return task
            window.held -= task.awaits
            if window.distant and request in window.fetching:
                window.held -= 1
                window.fetching.remove(request)
            if run_us >= 0:
                window.learn(run_us)
        return task

    def again(self, task: Task) -> None:
        """Put a call back, before those that have not been sent yet."""
        task.slot = -1
        apart = task.apart
        if apart:
            self.apart.setdefault(apart, deque()).appendleft(task)
        else:
            self.pending.appendleft(task)

    def finished(self, task: Task) -> None:
        """Take in that a call has its result, its error or its cancellation: it is not sent again."""
        assert not task.done
        task.done = True
        task.payload, task.held, task.kept, task.needs = b"", None, None, ()
        self._live -= task.taken

    def check(self) -> None:
        """Assert the invariants: every call is in one place, and no window of an open executor overflows."""
        waiting = [task for queue in (self.pending, *self.apart.values()) for task in queue if not task.done]
        under_way = [task for window in self.windows.values() for task in window.under_way.values()]
        assert len({id(task) for task in (*waiting, *under_way)}) == len(waiting) + len(under_way)
        assert all(task.slot == -1 for task in waiting)
        assert all(task.slot == slot for slot, window in self.windows.items() for task in window.under_way.values())
        assert all(SMALLEST <= window.size <= config.WINDOW_CALLS_MAX for window in self.windows.values())
        for window in self.windows.values():
            beside = Counter(task.name for task in window.under_way.values() if task.beside)
            assert beside == +window.beside
            awaiting = sum(task.awaits for task in window.under_way.values())
            assert window.held == beside.total() + awaiting + len(window.fetching)
            assert window.fetching <= window.under_way.keys()
        assert self._live >= 0
