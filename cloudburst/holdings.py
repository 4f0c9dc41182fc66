"""What a client's calls have left in memory: results here or on other hosts, until they are asked for or let go.

A result on another host stays there until somebody asks for it. If its node has ended by then, the call counts as a
lost attempt and is run again, within its deadline, if it may be; a graph is not, for that would take all of its calls.
What is let go is told to the node by a thread of its own: it happens wherever the garbage collector comes along, and
must neither wait nor lock. Source: decision records 0021, 0024.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from cloudburst import frames
from cloudburst.attempts import Task
from cloudburst.errors import CloudburstError, FunctionTimeout, NodeLost, NoRoom, ProtocolError
from cloudburst.outcomes import Outcome
from cloudburst.page import monotonic_us
from cloudburst.segments.descriptors import SegmentGone, distant_name, result_name
from cloudburst.segments.distant import Distant
from cloudburst.segments.held import Held, leftover
from cloudburst.segments.layout import Parts, split
from cloudburst.segments.shelf import Shelf

if TYPE_CHECKING:
    from cloudburst.futures import Future
    from cloudburst.spawning import Spawner


class Node(Protocol):
    """The ways of a client to its node."""

    sharing: Callable[[Future], object]

    def shelf(self) -> Shelf:
        """Return the node's segments."""

    def spawner(self) -> Spawner:
        """Return what runs spawned calls."""

    def hold(self, parts: Parts) -> Held:
        """Put a value into shared memory."""


class Holdings:
    """The segments of one client's results. `tell_node` passes a request on to its node."""

    def __init__(self, node: Node, tell_node: Callable[[str, dict[str, Any]], None]) -> None:
        self._node = node
        self._tell_node = tell_node
        self._released: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._far: dict[int, tuple[int, int]] = {}

    def meet(self, incarnation: int, node: int, life: int) -> None:
        """Take in which executor of another node it is that is called `incarnation` here."""
        self._far[incarnation] = node, life

    def take(self, task: Task, outcome: Outcome, descriptor: memoryview) -> Outcome:
        """Take over the segment that an answer describes: `outcome` owns it from now on."""
        try:
            segment = self._segment(task, descriptor)
            outcome.hold(segment)
            if isinstance(segment, Distant) and type(task) is Task:
                segment.again = _Rerun(self._node, task).run
            return outcome
        except (SegmentGone, ProtocolError, NodeLost) as fault:
            return task.failed(ProtocolError(f"a result in shared memory cannot be found: {fault}", definite=False))

    def _segment(self, task: Task | None, descriptor: memoryview, *, claim: bool = True) -> Held | Distant:
        shelf = self._node.shelf()
        try:
            return Held(descriptor, claim=claim)
        except SegmentGone:
            what = "a result" if task is None else f"the result of {task.name!r}, invocation {task.id},"
            distant = Distant(shelf, descriptor, self._released.put, what)
            self._begin()
            return distant

    @staticmethod
    def fetch(task: Task, outcome: Outcome) -> Outcome | None:
        """Have a result here that somebody waits for; None when the call must be sent again."""
        segment = outcome.segment
        if not isinstance(segment, Distant):
            return outcome
        try:
            segment.view(max(0.001, (task.deadline_us - monotonic_us()) / 1e6))
            return outcome
        except NodeLost as fault:
            return task.unfetched(fault)
        except NoRoom as fault:
            return task.failed(fault)
        except TimeoutError:
            return task.failed(FunctionTimeout(f"the result of {task.name!r} was not here before its deadline"))

    def withdraw(self, task: Task | None, reply: bytes) -> None:
        """Remove the segment of an answer that came too late, or of a call that was cancelled."""
        descriptor = memoryview(reply)[frames.REPLY_HEADER_BYTES + frames.REPLY_HEADER.unpack_from(reply)[6] :]
        with suppress(SegmentGone, ProtocolError, NodeLost):
            segment = self._segment(task, descriptor, claim=False)
            if task is not None:
                task.keep(segment)

    def clear_after(self, task: Task, incarnation: int) -> None:
        """Remove what an executor that has ended may have made for a call without telling."""
        with suppress(NodeLost):
            shelf = self._node.shelf()
            task.keep(leftover(shelf, result_name(task.high, task.request, incarnation)))
            far = self._far.get(incarnation)
            if far is not None and not task.awaits:
                self._begin()
                self._released.put((far[0], distant_name(shelf.token, task.high, task.request, far[1])))

    def lend(self, outcome: Outcome, bytes_min: int) -> bytes | None:
        """Return where the large result of a call is, for others, as long as `outcome` is kept; None for a small one.

        One that has been mapped already, so that it has no name any more, is put there anew. Raises NoRoom, NodeLost.
        """
        segment = outcome.segment
        if segment is None:
            return None
        found = segment.lend()
        if found is not None:
            return found
        data = segment.view()
        if len(data) < bytes_min:
            return None
        held = self._node.hold(Parts(*split(data)))
        outcome.hold(held)
        return bytes(held.descriptor)

    # -- what is let go

    def _begin(self) -> None:
        """See to it that there is a thread that tells the node what is let go."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell, name="cloudburst-releases", daemon=True)
                self._thread.start()

    def _tell(self) -> None:
        while (one := self._released.get()) is not None:
            with suppress(CloudburstError):
                self._tell_node("drop", {"node": one[0], "name": one[1]})

    def close(self) -> None:
        """Say no more: the node tells the others that this client has left."""
        if self._pid == os.getpid() and self._thread is not None:
            self._released.put(None)


class _Rerun:
    """Runs a call again whose result was lost with the node that it lay on: once, whoever asks."""

    def __init__(self, node: Node, task: Task) -> None:
        self._node, self._task = node, task
        self._sent = task.payload, task.held, task.kept, task.needs
        self._lock = threading.Lock()
        self._found: Outcome | None = None

    def run(self, fault: NodeLost) -> Outcome:
        """Return how it ended this time. Raises `fault` when it may not be begun again."""
        with self._lock:
            if self._found is None:
                self._found = self._once_more(fault)
            return self._found

    def _once_more(self, fault: NodeLost) -> Outcome:
        from cloudburst.futures import Future

        if self._task.unfetched(fault) is not None or monotonic_us() >= self._task.deadline_us:
            fault.attempts = self._task.attempts
            raise fault
        fresh, spawner = self._task.anew(*self._sent), self._node.spawner()
        future = fresh.future = Future(fresh, spawner.stop, self._node.sharing)
        try:
            spawner.submit(fresh)
            future.exception()
        except BaseException:
            future.cancel()
            raise
        self._task.attempts = fresh.attempts
        return future.outcome()
