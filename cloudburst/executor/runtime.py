"""The process that runs user code: takes calls from its lanes, one at a time, and answers them.

The main thread reads, runs and answers, so a short call crosses no thread. While a call runs long, an attendant
thread takes over the reading: it refuses what does not fit, answers cancels and deadlines, and hands waiting calls
back when another executor is idle or when the running call itself waits for a nested one. The two never hold the
lanes at once (`_lock`), and the attendant sleeps unless the alarm rings. A stage of a DAG waits in `executor.joins` for
what it needs, and is a call like any other once it has that; what it returns goes straight to the executors of its
successors. Coroutine functions run beside all that, on a loop in a third thread (`executor.coroutines`). A call is
stopped by SIGTERM, which raises `Interrupted` in user code if, and only if, that call is the doomed one; when that does
not help, or this process cannot do it because the call holds the GIL, the node interrupts and then kills. What is done
for one call is `executor.invoker`'s.
Source: DESIGN §6; reliability C; decision record 0009.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from cloudburst import config, context, frames, pickling
from cloudburst.addresses import executor_address
from cloudburst.attention import Attention
from cloudburst.errors import Cancelled, CloudburstError, FunctionTimeout, NotSupported
from cloudburst.executor.alarm import Alarm
from cloudburst.executor.arrivals import Arrivals, wanted
from cloudburst.executor.batch import Batch
from cloudburst.executor.beside import UNSETTLED_MAX, Beside
from cloudburst.executor.children import Children
from cloudburst.executor.ending import overdue, quoted
from cloudburst.executor.invoker import Invoker
from cloudburst.executor.joins import Input, Invocation, Joins
from cloudburst.executor.lanes import Lanes
from cloudburst.executor.library import Library
from cloudburst.executor.mailbox import Mailbox, Message
from cloudburst.executor.output import Output
from cloudburst.executor.queue import Call, Queue
from cloudburst.executor.siblings import Siblings
from cloudburst.executor.stagework import announced
from cloudburst.executor.stores import Stores
from cloudburst.executor.talking import Talking
from cloudburst.keyring import lesser_keys_in, signatures_with
from cloudburst.logbook import NOBODY, Author
from cloudburst.page import Page, monotonic_us
from cloudburst.records import FunctionStore
from cloudburst.secret import lane_key_of
from cloudburst.segments.held import drop
from cloudburst.segments.shelf import Shelf
from cloudburst.segments.values import install

if TYPE_CHECKING:
    from types import CoroutineType

    from cloudburst.futures import Future
    from cloudburst.transactions import Transaction

READ_EVERY_US: Final = 200
"""A busy executor looks at its lanes this often between calls."""
SHED_PAUSE_S: Final = (0.005, 0.05)
SLEEP_MAX_S: Final = 3600.0
"""A wait of more than 24.8 days is more milliseconds than poll() takes."""
JOINS_LOOK_US: Final = 100_000
"""How often an executor that is awake looks for stages whose deadline has passed; their callers watch it, too."""
LEAVING_LOOK_S: Final = 0.2
"""How often an executor that is leaving looks whether stages still wait in it; and how long it stays at least, to hand
back what those send it who have not seen yet that it leaves."""


class Executor:
    """The executor of one slot. `listener` is where clients connect, `node` the socket to the node.

    `client` is who this process is when its functions call others. `far` is where clients on other hosts connect.
    """

    def __init__(
        self, page: Page, number: int, client: int, directory: str, listener: socket.socket, node: socket.socket,
        far: socket.socket | None = None,
    ) -> None:  # fmt: skip
        self.page = page
        self.number = number
        self.incarnation = page.state(number)[1]
        self.client = client
        self.directory = directory
        self._queue = Queue()
        self._attention = Attention(config.AWAKE_US)
        self._joins = Joins()
        self._arrivals = Arrivals(self)
        key = lane_key_of(directory)
        self._lanes = Lanes(page, number, listener, node, self, far, key)
        self._alarm = Alarm(page, number, node.fileno(), config.LONG_US, config.KILL_GRACE_US)
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._main = threading.get_ident()
        self._read_at_us = 0
        self._joins_look_us = 0
        self.current: Call | None = None
        """What the main thread runs."""
        self._answered = False
        self._deadline_us = 0
        self._batch: Batch | None = None
        self._children = Children(page, number)
        self._blocked = 0
        self._conversing = False
        self._attending = False
        self._leaving = False
        self._stays_us = 0
        self._output = Output(1, self._author)
        self._library = Library(page, self._functions)
        keys = lesser_keys_in(directory)
        self._stores, self._signatures = Stores(page, keys), signatures_with(keys)
        self._shelf: Shelf | None = None
        shelf = self.shelf()
        hello = frames.hello(client, pickling.python_tag(), key, (shelf.token, str(shelf.path)))
        self._siblings = Siblings(lambda slot, life: executor_address(page, directory, slot, life), hello, directory)
        self._invoker = Invoker(self, self._library, self._siblings)
        self._beside = Beside(
            self, page, number, self._lanes, self._alarm, self._lock, self._library, self._invoker, self._output
        )
        self.mailbox = Mailbox()
        self._talking = Talking(self, self._siblings)

    # -- the main thread

    def serve(self) -> None:
        """Run calls until the node says to leave, or is gone."""
        context.executing = self
        sys.stdout = sys.stderr = self._output
        signal.signal(signal.SIGTERM, self._on_term)
        os.register_at_fork(after_in_child=self._part)
        threading.Thread(target=self._attend, name="attendant", daemon=True).start()
        while True:
            call = self._next()
            if call is None:
                break
            self._run(call)
        self._lanes.finish()

    def _part(self) -> None:
        """In a process that user code has forked: be an ordinary program, and hold no connection of this one."""
        context.executing = None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._lanes.part()
        self._siblings.close()

    def _next(self) -> Call | None:
        """Return the next call to run, waiting for one; None when it is time to end."""
        while True:
            with self._lock:
                if self._queue and not self._beside.hung:
                    call = self._take()
                    if call is not None:
                        return call
                    continue
                self._lanes.flush(False)
                if self._leaving and not self._joins and not self._beside and monotonic_us() >= self._stays_us:
                    return None
            self._attention.stay(self._lanes.fileno())
            events = self._lanes.poll(LEAVING_LOOK_S if self._leaving or self._beside.hung else None)
            with self._lock:
                self._serve(events, monotonic_us())

    def _take(self) -> Call | None:
        now_us = monotonic_us()
        if now_us - self._read_at_us > READ_EVERY_US:
            self._serve(self._lanes.poll(0.0), now_us)
        call = self._queue.take()
        self.page.set_waiting(self.number, len(self._queue))
        if call is not None and call.deadline_us <= now_us:
            self.refuse_late(call)
            return None
        return call

    def refuse_late(self, call: Call) -> None:
        """Answer a call that was not begun before its deadline; the lock is held."""
        fault = FunctionTimeout(f"{quoted(call.name)} was not begun before its deadline", definite=True)
        self.refuse(call, fault)

    def _run(self, call: Call) -> None:
        if call.lane not in self._lanes:
            return  # its caller left
        if self._lanes.dirty and self._must_flush(call):
            with self._lock:
                self._lanes.flush(False)
        if call.flags & frames.BATCH:
            self._run_batch(call)
            return
        self.current, self._answered, self._deadline_us = call, False, call.deadline_us
        self.mailbox.open((call.high, call.low))
        self._lanes.unsettled += 1
        if self._beside.running:
            self._begin_before_others(call)
        else:
            self._alarm.begin(call.high, call.low, call.deadline_us, call.name, self._output.written)
        status, flags, payload, fault, loaded = self._invoker.run(call)
        took_us = self._alarm.end()
        self._children.part()
        if loaded is not None:
            loaded.took_us = took_us
        with self._lock:
            self._be_done()
            output, more = self._invoker.prefixed(self._output.take())
            flags |= more
            if not self._answered:
                self._lanes.answer(call.lane, self._reply(call, (status, flags, payload, fault), took_us, output))
            elif flags & frames.SHARED:
                drop(payload)

    def _reply(
        self, call: Call, ending: tuple[int, int, bytes, CloudburstError | None], took_us: int, output: bytes
    ) -> bytes:
        (status, flags, payload, fault), waiting = ending, len(self._queue)
        if fault is not None:
            told = flags & frames.TOLD
            return frames.error(call.request, fault, waiting=waiting, output=output, flags=told)
        return frames.reply(
            status, call.request, payload, flags=flags, waiting=waiting, run_us=took_us, output=output
        )

    def _be_done(self) -> None:
        """Run nothing from now on; the lock is held."""
        self.current = self._batch = None
        self.mailbox.open(None)
        self._blocked = 0
        self._conversing = False
        if self._attending:
            os.eventfd_write(self._wake, 1)
        if self._beside.running:
            self._beside.show()

    def _run_batch(self, first: Call) -> None:
        """Run a call together with those of its function that wait, as many as it takes."""
        with self._lock:
            self._lanes.flush(False)
            room = max(1, UNSETTLED_MAX - self._lanes.unsettled)  # a client that reads nothing may leave none
            count = min(self._library.batch(first.name, first.version), room)
            fellows = self._queue.take_alike(first, count - 1)
            batch = Batch([first, *(one for one in fellows if one.lane in self._lanes)])
            self.current, self._answered, self._batch = first, False, batch
            self._deadline_us = batch.deadline_us
            self.mailbox.open((first.high, first.low))
            self._lanes.unsettled += len(batch.calls)
            self._lanes.beside = True
            for one in batch.calls[1:]:
                self.page.enlist(self.number, one.high, one.low)
            self._alarm.begin(first.high, first.low, batch.deadline_us, first.name, self._output.written)
            self.page.set_waiting(self.number, len(self._queue))
        endings = self._invoker.run_batch(batch.calls)
        took_us = self._alarm.end()
        self._children.part()
        with self._lock:
            self._be_done()
            output = self._output.take()
            for call, ending in zip(batch.calls, endings, strict=True):
                if (call.lane, call.request) in batch.open:
                    self._lanes.answer(call.lane, self._reply(call, ending[:4], took_us, output))
                elif ending.flags & frames.SHARED:
                    drop(ending.payload)

    def _must_flush(self, call: Call) -> bool:
        """Whether replies must not wait for `call` to end: it may take long, or they are for somebody else."""
        return (
            self._lanes.unsettled >= UNSETTLED_MAX
            or self._lanes.holds_replies(call.lane)
            or self._library.took_us(call.name, call.version) >= config.COALESCE_US
        )

    def _on_term(self, _signal: int, _frame: FrameType | None) -> None:
        self._invoker.stop_if(self.page.doomed(self.number))

    # -- what the lanes bring; the lock is held

    def _serve(self, events: list[tuple[int, int]], now_us: int) -> None:
        self._read_at_us = now_us
        self._lanes.serve(events, now_us)
        if self._joins and now_us >= self._joins_look_us:
            self._joins_look_us = now_us + JOINS_LOOK_US
            for late, fault in self._joins.expire(now_us):
                self.refuse(late, fault)
        if self._beside.running:
            self._beside.look(now_us)
        self.page.set_waiting(self.number, len(self._queue))

    def hear_call(self, call: Call) -> None:
        """Queue a call, or say why not."""
        if call.flags & frames.AWAITS:
            self._hear_stage(call)
            return
        if call.flags & frames.SHARED and self._brings(call):
            return
        if call.flags & frames.ASYNC:
            self.bounce(call, frames.WHY_LEAVING) if self._leaving else self._beside.hear(call)
            return
        if self._leaving or self._blocked:
            self.bounce(call, frames.WHY_LEAVING if self._leaving else frames.WHY_BLOCKED)
            return
        fault = self._queue.offer(call)
        if fault is not None:
            self.refuse(call, fault)

    def _hear_stage(self, call: Call) -> None:
        """Let a stage wait for what it needs, if this executor is there to stay."""
        if self._leaving:
            self.bounce(call, frames.WHY_LEAVING)
            return
        found = self._joins.announce(call, *announced(call), monotonic_us())
        if isinstance(found, Call):
            self._take_in(found)
        elif found is not None:
            self.refuse(call, found)

    def hear_input(self, stage: Invocation, position: int, result: Input, deadline_us: int) -> None:
        """Take in what a predecessor of a stage returned, and queue the stage when that was all it needs."""
        found = self._joins.arrive(stage, position, result, deadline_us, monotonic_us())
        if found is not None:
            call, fault = found
            if fault is None:
                self._take_in(call)
            else:
                self.refuse(call, fault)

    def deliver(self, stage: Invocation, position: int, result: Input, deadline_us: int) -> None:
        """Take in what a stage that ran here returned, for one that waits here."""
        with self._lock:
            self.hear_input(stage, position, result, deadline_us)

    def _take_in(self, call: Call) -> None:
        """Queue a stage that has all it needs, or hand it back with that."""
        if self._brings(call):
            return
        if self._leaving or self._blocked:
            self.bounce(call, frames.WHY_LEAVING if self._leaving else frames.WHY_BLOCKED)
        elif self._queue.offer(call) is not None:
            self.bounce(call, frames.WHY_ELSEWHERE)

    def _brings(self, call: Call) -> bool:
        """Whether a call has to wait for what is on other hosts, which is then brought."""
        if call.brought or self._leaving or not (needed := wanted(call)):
            return False
        fault = self._arrivals.bring(call, needed)
        if fault is not None:
            self.refuse(call, fault)
        return True

    def arrived(self, call: Call) -> None:
        """Take in a call that has all it needs."""
        if call.flags & frames.AWAITS:
            self._take_in(call)
        else:
            self.hear_call(call)

    def watch(self, fd: int, hear: Callable[[], None]) -> None:
        """Call `hear` when a descriptor can be read."""
        self._lanes.watch(fd, hear)

    def forget(self, fd: int) -> None:
        """Watch it no more."""
        self._lanes.forget(fd)

    def hear_message(self, lane: int, request: int, to: Invocation, message: Message) -> None:
        """Put a message into the inbox of the invocation that runs, if it is for that one, and say so."""
        fault = self.mailbox.offer(to, message)
        reply = frames.reply(frames.OK, request, b"") if fault is None else frames.error(request, fault)
        self._lanes.answer(lane, reply)
        self._lanes.flush(True)

    def hear_cancel(self, lane: int, request: int) -> None:
        """Give up a waiting call, or interrupt the running one."""
        cancelled = self._queue.cancel(lane, request) or self._joins.cancel(lane, request)
        if cancelled is not None:
            self.refuse(*cancelled)
        elif (arriving := self._arrivals.cancel(lane, request)) is not None:
            self.refuse(arriving, Cancelled("cancelled before it was begun", definite=True))
        elif self._batch is not None and (given_up := self._batch.cancel(lane, request)) is not None:
            self.refuse(given_up, Cancelled(f"{quoted(given_up.name)} was given up while it ran"))
            self._stop_unless_awaited()
        elif self.current is not None and (self.current.lane, self.current.request) == (lane, request):
            self._stop_current()
        else:
            self._beside.cancel(lane, request)

    def hear_leave(self, lane: int) -> None:
        """Drop what waits for a client that is gone, and stop what runs for it."""
        self._queue.leave(lane)
        self._joins.leave(lane)
        self._arrivals.leave(lane)
        self._beside.leave(lane)
        if self._batch is not None:
            self._batch.leave(lane)
            self._stop_unless_awaited()
        elif self.current is not None and self.current.lane == lane:
            self._answered = True
            self._stop_current()

    def hear_node(self, message: bytes) -> None:
        """Leave when the node says so; end at once when it is gone, for then nobody waits here any more."""
        if not message:
            os._exit(0)
        if message[:1] == b"D":
            self._leaving = True
            self._stays_us = monotonic_us() + int(LEAVING_LOOK_S * 1e6)
            self._bounce_all(frames.WHY_LEAVING)
            for call in self._arrivals.give_up():
                self.bounce(call, frames.WHY_LEAVING)
            self._beside.bounce_all(frames.WHY_LEAVING)

    def _stop_current(self) -> None:
        """Interrupt the running call, from the attendant thread."""
        assert self.current is not None
        self.page.doom(self.number, self.current.high, self.current.low)
        signal.pthread_kill(self._main, signal.SIGTERM)

    def refuse(self, call: Call, fault: CloudburstError) -> None:
        """Answer a call with an error; the lock is held."""
        self._lanes.answer(call.lane, frames.error(call.request, fault, waiting=len(self._queue)))

    def bounce(self, call: Call, why: bytes) -> None:
        """Hand a call back unbegun; the lock is held."""
        if call.inputs:
            why += frames.pack_inputs(call.inputs)
        self._lanes.answer(call.lane, frames.reply(frames.BOUNCED, call.request, why, waiting=len(self._queue)))

    def _bounce_all(self, why: bytes) -> None:
        for call in self._queue.shed(len(self._queue)):
            self.bounce(call, why)
        self.page.set_waiting(self.number, 0)

    def finish(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        """Run a coroutine to its end on the loop, for the call that runs here, and return what it returns."""
        return self._beside.loop.finish(coroutine)

    def begun(self) -> list[Invocation]:
        """Return the invocations that have begun and not ended."""
        calls = self._batch.calls if self._batch is not None else [] if self.current is None else [self.current]
        return [*self._beside.invocations(), *((call.high, call.low) for call in calls)]

    def _begin_before_others(self, call: Call) -> None:
        """Begin a call of the main thread while others run on the loop: it is the one that the page shows."""
        with self._lock:
            self._lanes.beside = True
            self._alarm.begin(call.high, call.low, call.deadline_us, call.name, self._output.written)
            if self._beside.aside:
                self.page.block(self.number, True)

    # -- the attendant thread

    def _attend(self) -> None:
        poll = select.poll()
        poll.register(self._lanes.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            self._alarm.wait()
            pause_s, call = SHED_PAUSE_S[0], self.current
            while (wait_s := self._duties(call, pause_s)) is not None:
                poll.poll(min(wait_s, SLEEP_MAX_S) * 1000 if wait_s >= 0 else None)
                pause_s = min(2 * pause_s, SHED_PAUSE_S[1])

    def _duties(self, call: Call | None, pause_s: float) -> float | None:
        """Look after lanes and queue while `call` runs; return how long to sleep, below 0 for ever, None to retire."""
        with self._lock:
            if self._attending:
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
            self._attending = call is not None and self.current is call
            if call is None or not self._attending:
                return None
            now_us = monotonic_us()
            self._serve(self._lanes.poll(0.0), now_us)
            for late, fault in self._queue.expire(now_us):
                self.refuse(late, fault)
            self._expire_current(call, now_us)
            if self._queue:
                for other in self._queue.shed(self.page.idle(self.number)):
                    self.bounce(other, frames.WHY_ELSEWHERE)
            self.page.set_waiting(self.number, len(self._queue))
            self._lanes.flush(True)
            ends = [self._queue.next_deadline_us, None if self._answered else self._next_end_us()]
            wait_s = min((max(0, end - now_us) / 1e6 for end in ends if end is not None), default=-1.0)
            if self._queue:
                return min(wait_s, pause_s) if wait_s >= 0 else pause_s
            return wait_s

    def _expire_current(self, call: Call, now_us: int) -> None:
        """Answer for what runs, once its deadline has passed, and stop it."""
        if self._batch is not None:
            late = self._batch.expire(now_us)
        else:
            late = [call] if now_us >= self._deadline_us and not self._answered else []
        for one in late:
            fault, said = overdue(self._invoker.name), self._output.take()
            self._lanes.answer(one.lane, frames.error(one.request, fault, output=said))
        if late and self._batch is None:
            self._answered = True
            self._stop_current()
        elif late:
            self._stop_unless_awaited()

    def _next_end_us(self) -> int | None:
        return self._deadline_us if self._batch is None else self._batch.next_deadline_us

    def _stop_unless_awaited(self) -> None:
        """Stop a batch of which no call waits for its answer any more."""
        assert self._batch is not None
        if not self._batch.open and not self._answered:
            self._answered = True
            self._stop_current()

    # -- what user code asks for

    def limit_step(self, timeout_s: float | None) -> None:
        """Bound the function that a stage has come to, which may be less than what is left for the stage."""
        call = self.current
        if call is None or (timeout_s is None and self._deadline_us == call.deadline_us):
            return
        until_us = call.deadline_us
        if timeout_s is not None:
            until_us = min(until_us, monotonic_us() + int(timeout_s * 1e6))
        with self._uninterrupted():
            self._deadline_us = until_us
            self.page.redate(self.number, until_us)
            if self._attending:
                os.eventfd_write(self._wake, 1)

    def invocation(self) -> tuple[int, int, str, int, int] | None:
        """Return (high, low, function, version, deadline_us) of what runs now, None when nothing does."""
        run = self._beside.run_here()
        if run is not None:
            return run.call.high, run.call.low, run.call.name.decode(), run.version, run.call.deadline_us
        call = self.current
        if call is None:
            return None
        return call.high, call.low, self._invoker.name.decode(), self._invoker.version, self._deadline_us

    def session(self) -> Transaction | None:
        """Return the session that the code which asks runs in."""
        run = self._beside.run_here()
        return self._invoker.session if run is None else run.session

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """While the caller waits in here for another call, nothing waits in this executor's queue."""
        thread = threading.get_ident()
        if self._beside.holds(thread):
            with self._beside.held_up():
                yield
            return
        if thread != self._main:
            yield  # a thread of the function waits; the function itself goes on
            return
        with self._uninterrupted():
            self._step_aside()
        try:
            yield
        finally:
            with self._uninterrupted():
                self._blocked -= 1
                if not self._blocked:
                    self.page.block(self.number, self._beside.aside)

    @property
    def main_blocked(self) -> bool:
        """Whether what the main thread runs waits for another call, or for messages."""
        return self._blocked > 0

    def awaiting(self) -> AbstractContextManager[None]:
        """While a coroutine waits in here for another call, another executor may take this one's place if it must."""
        return self._beside.awaiting()

    @property
    def talking(self) -> Talking:
        """What sends messages for the call that the main thread runs, and receives those for it."""
        if self._beside.run_here() is not None:
            raise NotSupported("messages are between plain functions; a coroutine shares its executor with others")
        return self._talking

    def adopt(self, future: Future) -> None:
        """Take in a call that the invocation has begun: it is cancelled with it."""
        run = self._beside.run_here()
        if run is not None:
            run.children.add(future)
        elif self.current is not None:
            self._children.add(future)

    def converse(self) -> None:
        """From now on, until the call ends, nothing waits in this executor's queue: it will wait for messages often."""
        with self._uninterrupted():
            if not self._conversing and self.current is not None:
                self._conversing = True
                self._step_aside()

    def _step_aside(self) -> None:
        """Hand back what waits here, and see to it that another executor can run it."""
        self._blocked += 1
        self.page.block(self.number, True)
        self._bounce_all(frames.WHY_BLOCKED)
        self._lanes.flush(True)
        if not self.page.idle(self.number):
            self.ask_for_executor()

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        """Hold the lock, with interruption put off to the end of it."""
        in_user, self._invoker.in_user = self._invoker.in_user, False
        with self._lock:
            yield
        self._invoker.in_user = in_user
        self._invoker.stop_if(self.page.doomed(self.number))

    def look_at_lanes(self) -> None:
        """Take in what the lanes have brought, and send what follows from it: the call that runs may wait for long."""
        with self._uninterrupted():
            self._serve(self._lanes.poll(0.0), monotonic_us())
            self._lanes.flush(True)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `serve` has something to do."""
        return self._lanes.fileno()

    def take_message(self) -> Message | None:
        """Return the oldest message that has come for the invocation that runs."""
        with self._uninterrupted():
            return self.mailbox.take()

    def offer_message(self, to: Invocation, message: Message) -> CloudburstError | None:
        """Take in a message for the invocation that runs here."""
        with self._uninterrupted():
            return self.mailbox.offer(to, message)

    def ask_for_executor(self) -> None:
        """Say to the node that no executor can run what this one waits for."""
        self._lanes.tell_node(b"N")

    def shelf(self) -> Shelf:
        """Return the node's segments."""
        if self._shelf is None:
            self._shelf = Shelf.find(Path(self.directory), self.page.incarnation)
            install()
        return self._shelf

    def shelf_of(self, lane: int) -> Shelf | None:
        """Return the segments that a client can map, None when that is none that this process can."""
        return self._lanes.shelf(lane)

    def node_of(self, lane: int) -> int:
        """Return the node of a client; 0 when that is not known."""
        return self._lanes.node_of(lane)

    def store(self) -> Any:
        """Return this process's client of the store, through the node's cache."""
        self.shelf()
        return self._stores.of(system=False)

    def system_store(self) -> Any:
        """Return a client that may use reserved keys, of their owners: a registration is seen once it is announced."""
        return self._stores.of(system=True)

    def _author(self) -> Author:
        """Return whose output it is that is written now."""
        call = self.current
        return NOBODY if call is None else Author(call.high, call.low, self._invoker.name)

    def _functions(self) -> FunctionStore:
        return FunctionStore(self.system_store(), self._signatures, lambda _: self._lanes.tell_node(b"R"))
