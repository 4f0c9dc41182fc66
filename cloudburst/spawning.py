"""The driver of spawned calls: non-blocking lanes, one thread that receives, and the dispatcher between them.

`spawn` itself sends, as long as there is room at an executor, so a single spawned call crosses no thread on its way
out. The receiving thread takes whole batches of answers, refills the windows with one send to each executor, and only
then completes futures. While more calls wait than the executors have room for, it lets answers gather: to be woken for
each of them would cost more than to handle it, on the processors that the calls need. One lock guards the dispatcher;
no lock is held while user code or another system call than a non-blocking send runs.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from cloudburst import frames
from cloudburst.addresses import begin_to_connect, is_far
from cloudburst.attempts import Home, Task
from cloudburst.dispatch import Dispatcher
from cloudburst.errors import CloudburstError, NodeLost, ProtocolError
from cloudburst.lanes import ANSWER_MARGIN_US, READ_BYTES
from cloudburst.outcomes import Outcome
from cloudburst.page import LEAVING, LOST, READY, Chooser, Page, monotonic_us

BATCH_CALLS: Final = 16
"""A thread that spawns without pause sends so many calls at once, unless an executor has nothing to do, and lets
answers in as often, rather than wait for the GIL to change hands."""
GATHER_MS: Final = 1
"""How long answers gather while calls wait here for room: a quarter of the work that executors then have before them
(WINDOW_US), so that none runs dry."""
RETRY_PAUSE_US: Final = 2_000
"""How long calls wait that no executor takes now."""


class Links(Protocol):
    """What the spawner needs from its client."""

    page: Page
    chooser: Chooser
    life: int
    directory: Path

    def executors(self, now_us: int) -> dict[int, int]:
        """Return {slot: incarnation} of the executors that this client holds leases on, renewing them as needed."""

    def want_executor(self) -> bool:
        """Have one more executor started, if this process may ask for it."""

    def forget(self, slot: int) -> None:
        """Use an executor no more until leases are renewed: nothing listens there."""

    def address(self, slot: int, incarnation: int) -> str:
        """Return where an executor listens."""

    def hello(self) -> bytes:
        """Return what opens a lane."""

    def fate(self, slot: int, incarnation: int) -> dict[str, Any] | None:
        """Return how an executor ended."""

    def take(self, task: Task, outcome: Outcome, descriptor: memoryview) -> Outcome:
        """Take over the segment that an answer describes."""

    def withdraw(self, task: Task | None, reply: bytes) -> None:
        """Remove the segment of an answer that came too late."""

    def clear_after(self, task: Task, incarnation: int) -> None:
        """Remove what an executor that has ended may have made for a call without telling."""

    def stop(self, slot: int, task: Task) -> None:
        """Have the node see to it that a call ends."""


class _Link:
    """One non-blocking lane."""

    __slots__ = ("incarnation", "life", "reader", "slot", "socket", "unsent")

    def __init__(self, slot: int, incarnation: int, connection: socket.socket, life: int) -> None:
        self.life = life
        """In the page of which node it has this slot."""
        self.slot = slot
        self.incarnation = incarnation
        self.socket = connection
        self.reader = frames.FrameReader()
        self.unsent = b""


class Spawner:
    """The spawned calls of one client."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._core = Dispatcher()
        self._lock = threading.Lock()
        self._by_slot: dict[int, _Link] = {}
        self._by_fd: dict[int, _Link] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._rest = select.poll()
        self._rest.register(self._wake, select.POLLIN)
        self._deadlines: list[tuple[int, int, Task]] = []
        self._looks: list[tuple[int, int, Callable[[], None]]] = []
        self._looks_made = 0
        self._sleeps_until = 0
        self._awakened = False
        self._settled: deque[tuple[Task, Outcome]] = deque()
        self._lost: list[tuple[_Link, list[Task]]] = []
        self._executors_version = 0
        self._life = 0
        self._incoming: deque[Task] = deque()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.stop: Callable[[Task], None] = self.cancel
        """`cancel`: each future has it, and a new object for each would be one more for the garbage collector."""

    # -- the callers' threads

    def submit(self, task: Task) -> None:
        """Take in a call, and send it at once if an executor has nothing to do. Raises Overloaded, NodeLost.

        Never waits for the lock: whoever holds it looks for what has come in before letting it rest.
        """
        if self._closed:
            raise NodeLost("this client is closed")
        fault = self._core.refusal(len(self._incoming))
        if fault is not None:
            raise fault
        self._incoming.append(task)
        self._take_in_if_free()
        if self._closed and not task.done:
            raise NodeLost("this client was closed meanwhile")

    def _take_in_if_free(self) -> None:
        while self._incoming and self._lock.acquire(blocking=False):
            try:
                if self._closed:
                    return
                self._take_in()
                if self._core.hungry or self._core.waiting >= BATCH_CALLS:
                    self._pump()
                    self._send_what_fits()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._receive, name="cloudburst-answers", daemon=True)
                    self._thread.start()
                elif self._settled or self._deadlines[0][0] < self._sleeps_until or self._stuck():
                    self._awaken()
            finally:
                self._lock.release()

    def cancel(self, task: Task) -> None:
        """Stop a call wherever it is. Its future is cancelled already."""
        with self._lock:
            self._take_in()
            if task.done:
                return
            self._core.finished(task)
            slot = task.slot
            link = self._by_slot.get(slot)
            if link is not None:
                self._push(link, frames.cancel(task.request))
        self._take_in_if_free()
        if slot >= 0:
            self._links.stop(slot, task)

    def at(self, when_us: int, look: Callable[[], None]) -> None:
        """Call `look` then, in the receiving thread, unless this is closed before."""
        with self._lock:
            self._looks_made += 1
            heapq.heappush(self._looks, (when_us, self._looks_made, look))
            if when_us < self._sleeps_until and not self._closed:
                self._awaken()

    def close(self) -> None:
        """Give up every call and close the lanes, which cancels what is under way."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._take_in()
            given_up = self._core.give_up()
            for link in self._by_slot.values():
                given_up += self._core.lose(link.slot)
                link.socket.close()
            for _, tasks in self._lost:
                given_up += tasks
            self._by_slot.clear()
            self._by_fd.clear()
            os.eventfd_write(self._wake, 1)
        for task in given_up:
            if not task.done:
                task.done = True
                fault = NodeLost(f"the client was closed before {task.name!r} had a result", definite=False)
                task.future.settle(task.failed(fault))
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        elif thread is None:
            self._close_files()

    def _close_files(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def abandon(self) -> None:
        """In a forked child: forget the parent's calls, and its connections without a word to the other side."""
        for link in self._by_slot.values():
            link.socket.close()
        self._close_files()
        tasks = [task for _, _, task in self._deadlines if not task.done]
        for task in tasks:
            task.future.settle(task.failed(NodeLost("this call was spawned before the process forked", definite=False)))

    # -- the lock is held

    def _take_in(self) -> None:
        while self._incoming:
            task = self._incoming.popleft()
            self._core.submit(task)
            heapq.heappush(self._deadlines, (task.deadline_us, task.request, task))

    def _awaken(self) -> None:
        if not self._awakened:
            self._awakened = True
            os.eventfd_write(self._wake, 1)

    def _stuck(self) -> bool:
        """Whether calls wait that no answer need set going: executors are absent, or take no calls now."""
        windows = self._core.windows
        if not self._core.waiting:
            return False
        if not any(window.under_way for window in windows.values()):
            return True
        loads = self._links.chooser.loads()
        return any(slot not in loads for slot in windows)

    def _send_what_fits(self) -> None:
        changed = self._links.page.executors_version != self._executors_version or self._links.life != self._life
        if changed and self._core.waiting:  # who needs none asks for none: where there are none, one would be forked
            try:
                self._meet_executors()
            except CloudburstError as fault:
                self._give_up(fault)
                return
        batches: dict[int, list[bytes]] = {}
        now_us = monotonic_us()
        for slot, task in self._core.next_sends(self._links.chooser.loads()) if self._core.waiting else ():
            batches.setdefault(slot, []).append(task.frame(now_us))
            if task.follows:
                heapq.heappush(self._deadlines, (task.deadline_us, task.request, task))
        for slot, batch in batches.items():
            self._push(self._by_slot[slot], batch[0] if len(batch) == 1 else b"".join(batch))

    def _give_up(self, fault: CloudburstError) -> None:
        """The node cannot be asked for executors: fail what would need them."""
        for task in self._core.give_up():
            self._core.finished(task)
            self._settled.append((task, task.failed(fault)))

    def _meet_executors(self) -> None:
        """Open a lane to each executor that is new, and windows as the page allows."""
        version = self._links.page.executors_version
        executors = self._links.executors(monotonic_us())
        moved, self._life = self._links.life != self._life, self._links.life
        if moved:
            self._move()
        for old in list(self._by_slot.values()):
            if self._links.page.state(old.slot)[0] == LOST:
                self._drop(old)
        for slot, incarnation in executors.items():
            link = self._by_slot.get(slot)
            if link is not None and link.incarnation != incarnation:
                self._drop(link)
                link = None
            if link is None and self._links.page.state(slot)[:2] == (READY, incarnation):
                self._open(slot, incarnation)
        self._executors_version = version

    def _move(self) -> None:
        """Find the executors in the page of another node, and their calls go on; part with those that are not in it."""
        page, slots = self._links.page, dict[int, int]()
        for link in list(self._by_slot.values()):
            slot = page.locate(*self._core.windows[link.slot].home)
            if slot >= 0 and page.state(slot)[0] in (READY, LEAVING):
                slots[link.slot] = slot
            else:
                self._drop(link)
        self._core.rename(slots)
        links = list(self._by_slot.values())
        self._by_slot = {slots[link.slot]: link for link in links}
        for slot, link in self._by_slot.items():
            link.slot, link.incarnation, link.life = slot, page.state(slot)[1], self._life

    def _open(self, slot: int, incarnation: int) -> None:
        try:
            connection, unsaid = begin_to_connect(
                self._links.address(slot, incarnation), self._links.hello(), self._links.directory
            )
        except OSError:
            self._links.forget(slot)
            return
        link = _Link(slot, incarnation, connection, self._life)
        link.unsent = unsaid
        self._by_slot[slot] = self._by_fd[connection.fileno()] = link
        node, there, life, address = self._links.page.home(slot)
        self._core.open(slot, Home(node, there, life), is_far(address))
        self._epoll.register(connection.fileno(), select.EPOLLIN | (select.EPOLLOUT if unsaid else 0))

    def _drop(self, link: _Link) -> None:
        """Part with an executor that is gone; the receiving thread finds out what became of its calls."""
        if self._by_slot.get(link.slot) is not link:
            return
        del self._by_slot[link.slot]
        del self._by_fd[link.socket.fileno()]
        self._epoll.unregister(link.socket.fileno())
        link.socket.close()
        self._lost.append((link, self._core.lose(link.slot)))
        self._awaken()

    def _push(self, link: _Link, data: bytes) -> None:
        if link.unsent:
            link.unsent += data
            return
        try:
            sent = link.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader will see the end
        if sent < len(data):
            link.unsent = data[sent:]
            self._epoll.modify(link.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _pump(self) -> None:
        for link in list(self._by_slot.values()):
            self._read(link)

    def _read(self, link: _Link) -> None:
        try:
            data = link.socket.recv(max(READ_BYTES, link.reader.missing))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(link)
            return
        try:
            replies = link.reader.feed(data)
        except ProtocolError:
            self._drop(link)
            return
        unpack, answered, slot = frames.REPLY_HEADER.unpack_from, self._core.answered, link.slot
        for reply in replies:
            _, _, flags, _, request, run_us, _ = unpack(reply)
            task = answered(slot, request, run_us if flags & frames.MEASURED else -1)
            if task is None or task.done:
                if flags & frames.SHARED:
                    self._links.withdraw(task, reply)
                continue
            outcome = task.answered(reply, slot)
            if flags & frames.SHARED and outcome is not None and outcome.descriptor is not None:
                outcome = self._links.take(task, outcome, outcome.descriptor)
            if outcome is None:
                self._core.again(task)
            else:
                self._core.finished(task)
                self._settled.append((task, outcome))

    def _write(self, link: _Link) -> None:
        data, link.unsent = link.unsent, b""
        self._epoll.modify(link.socket.fileno(), select.EPOLLIN)
        self._push(link, data)

    def _expire(self, now_us: int) -> None:
        """Give up calls whose deadline has passed: those that wait here at once, those under way after a margin."""
        heap = self._deadlines
        while heap and (heap[0][2].done or heap[0][0] <= now_us):
            _, request, task = heapq.heappop(heap)
            if task.done:
                continue
            if task.slot >= 0 and now_us < task.deadline_us + ANSWER_MARGIN_US:
                heapq.heappush(heap, (task.deadline_us + ANSWER_MARGIN_US, request, task))
                continue
            outcome = task.expired(begun=task.slot >= 0)
            self._core.finished(task)
            self._settled.append((task, outcome))

    # -- the receiving thread

    def _receive(self) -> None:
        events: Iterable[tuple[int, int]] = ()
        while True:
            with self._lock:
                if self._closed:
                    self._close_files()
                    return
                self._take_in()
                self._serve(events)
                now_us = monotonic_us()
                self._expire(now_us)
                self._send_what_fits()
                lost, self._lost = self._lost, []
                until_us = self._deadlines[0][0] if self._deadlines else 1 << 62
                if self._stuck():
                    until_us = min(until_us, now_us + RETRY_PAUSE_US)
                looks = []
                while self._looks and self._looks[0][0] <= now_us:
                    looks.append(heapq.heappop(self._looks)[2])
                if self._looks:
                    until_us = min(until_us, self._looks[0][0])
                self._sleeps_until = now_us if looks else until_us
                gathers = self._core.waiting > 0 and until_us > now_us + 1000 * GATHER_MS
            self._settle()
            for look in looks:
                look()
            for link, tasks in lost:
                self._mourn(link, tasks)
            if lost or looks or self._incoming:
                events = ()
                continue
            if gathers:
                self._rest.poll(GATHER_MS)
            wait_s = (until_us - monotonic_us()) / 1e6
            events = self._epoll.poll(max(0.0, wait_s + 0.0005) if wait_s < 1e6 else None)

    def _serve(self, events: Iterable[tuple[int, int]]) -> None:
        if self._stuck():
            self._look_for_executors()
        for fd, event in events:
            link = self._by_fd.get(fd)
            if link is None:
                if fd == self._wake:
                    try:
                        os.eventfd_read(self._wake)
                    except BlockingIOError:
                        pass
                    self._awakened = False
                continue
            if event & select.EPOLLOUT:
                self._write(link)
            if event & ~select.EPOLLOUT and self._by_fd.get(fd) is link:
                self._read(link)

    def _look_for_executors(self) -> None:
        """Look for executors that have come, and ask for one: something has to run these calls."""
        self._links.want_executor()
        try:
            self._meet_executors()
        except CloudburstError as fault:
            self._give_up(fault)

    def _settle(self) -> None:
        while self._settled:
            task, outcome = self._settled.popleft()
            future, task.future = task.future, None  # the task may be kept here for longer than its result is wanted
            future.settle(outcome)

    def _mourn(self, link: _Link, tasks: list[Task]) -> None:
        """Find out how an executor ended, and decide for each of its calls."""
        fate = None
        if tasks and link.life == self._links.life:  # a node that was moved to knows others by these numbers
            with suppress(CloudburstError):
                fate = self._links.fate(link.slot, link.incarnation)
        now_us = monotonic_us()
        with self._lock:
            for task in reversed(tasks):
                self._links.clear_after(task, link.incarnation)
                if task.done:
                    continue
                outcome = task.lost(link.slot, fate, now_us)
                if outcome is None:
                    self._core.again(task)
                else:
                    self._core.finished(task)
                    self._settled.append((task, outcome))
            self._executors_version = 0
        self._settle()
