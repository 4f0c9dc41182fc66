"""Runs coroutine functions beside each other, on one event loop that an executor keeps for its life.

The loop has a thread of its own, so neither a blocking function nor a coroutine holds the other up. A call begins when
the loop itself takes it, so what waits behind a coroutine that blocks the loop has not begun. Each invocation has its
own context, deadline and output; it is stopped by asyncio's cancellation, and when that does not help, or the loop does
not turn, the node ends the executor, as it does for any call. Source: DESIGN §6; decision record 0022.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from cloudburst import config, frames, pickling
from cloudburst.continuing import Continue, continuing
from cloudburst.errors import Cancelled, CloudburstError, FunctionTimeout
from cloudburst.executor.ending import Ending, claimant, described, kept_of, overdue, quoted, result_of
from cloudburst.executor.invoker import OURS, Invoker
from cloudburst.executor.library import Library, Loaded
from cloudburst.executor.output import Sheet, sheet
from cloudburst.executor.queue import Call
from cloudburst.logbook import Author
from cloudburst.page import monotonic_us
from cloudburst.results import Results, once_key
from cloudburst.segments.held import drop
from cloudburst.segments.layout import Parts
from cloudburst.spans import SERVER, Recorder, recording, span

if TYPE_CHECKING:
    from cloudburst.futures import Future
    from cloudburst.transactions import Transaction

LOOK_S: Final = 0.05
"""How often the deadlines of calls that wait are looked at."""


class Running:
    """One invocation on the loop."""

    __slots__ = (
        "answered", "begun_us", "call", "children", "loaded", "session", "sheet", "spans", "stopped", "task", "timer",
        "told", "version",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self.call = call
        self.version = call.version
        self.begun_us = monotonic_us()
        self.sheet = Sheet(Author(call.high, call.low, call.name))
        self.spans = b""
        self.session: Transaction | None = None
        self.told = b""
        self.answered = False
        self.children: weakref.WeakSet[Future] = weakref.WeakSet()
        """The calls that it has begun itself."""
        self.stopped = False
        self.loaded: Loaded | None = None
        self.task: asyncio.Task[Ending]
        self.timer: asyncio.TimerHandle


running: Final[ContextVar[Running | None]] = ContextVar("running", default=None)
"""The invocation that this code belongs to, if it runs on the loop or in a thread that the loop has started for it."""


class Host(Protocol):
    """The executor around it."""

    def store(self) -> Any:
        """Return this process's client of the store."""

    def system_store(self) -> Any:
        """Return the one that may use reserved keys."""

    def begin_beside(self) -> Call | None:
        """Return the next call that may begin now, and list it as begun."""

    def learn(self, call: Call, limit: int) -> bool:
        """Take in how many calls of a function may run beside each other; return whether that is news."""

    def answer_beside(self, call: Call, reply: bytes) -> None:
        """Keep a reply."""

    def end_beside(self, call: Call) -> None:
        """Take in that a call has ended."""

    def hasten(self, call: Call, until_us: int) -> None:
        """Give a call that is to stop no more time than this."""

    def printed(self, sheet: Sheet) -> bytes:
        """Return what an invocation has printed since the last time."""

    def hand_over(self) -> None:
        """Hand replies to the kernel, give up waiting calls whose deadline has passed."""

    def anybody_waits(self) -> bool:
        """Whether calls wait that have not begun."""


class Coroutines:
    """The loop and what runs on it. Every method but `wake`, `stop` and `finish` is called by its own thread."""

    def __init__(self, host: Host, library: Library, invoker: Invoker) -> None:
        self._host = host
        self._library = library
        self._invoker = invoker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs: dict[tuple[int, int], Running] = {}
        self._woken = False
        self._handing_over = False
        self._looking = False
        self.thread = 0
        """The loop's thread; 0 while there is none."""

    # -- from other threads

    def wake(self) -> None:
        """Have the loop take the calls that wait. The host's lock is held."""
        if not self._woken:
            self._woken = True
            self._turning().call_soon_threadsafe(self._pull)

    def stop(self, call: Call) -> None:
        """Have a call stopped that runs on the loop."""
        self._turning().call_soon_threadsafe(self._stop, call.lane, call.request)

    def finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop for the thread that waits here, and return what it returns."""
        future = asyncio.run_coroutine_threadsafe(_caught(coroutine), self._turning())
        try:
            value, error = future.result()
        except BaseException:  # this thread is interrupted: what it waits for stops first
            future.cancel()
            raise
        if error is not None:
            raise error
        return value

    def _turning(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._turn, args=(self._loop,), name="coroutines", daemon=True)
            thread.start()
            self.thread = thread.ident or 0
        return self._loop

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while True:
            try:
                loop.run_forever()
            except BaseException:  # a task of user code raised SystemExit: the loop goes on for all others
                continue

    # -- the loop's thread

    def _pull(self) -> None:
        self._woken = False
        assert self._loop is not None
        while (call := self._host.begin_beside()) is not None:
            run = self._runs[call.lane, call.request] = Running(call)
            run.task = self._loop.create_task(self._carry_out(run), name=call.name.decode(errors="replace"))
            run.task.add_done_callback(lambda task, run=run: self._ended(run, task))  # type: ignore[misc]
            run.timer = self._loop.call_at(call.deadline_us / 1e6, self._expire, run)
        if not self._looking and self._host.anybody_waits():
            self._looking = True
            self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        self._hand_over_soon()
        self._pull()

    def _expire(self, run: Running) -> None:
        """At its deadline, answer for an invocation that still runs, and stop it."""
        if not run.task.done():
            if not run.answered:
                run.answered = True
                fault, said = overdue(run.call.name), self._host.printed(run.sheet)
                self._host.answer_beside(run.call, frames.error(run.call.request, fault, output=said))
                self._hand_over_soon()
            run.stopped = True
            run.task.cancel()

    def _stop(self, lane: int, request: int) -> None:
        run = self._runs.get((lane, request))
        if run is not None and not run.task.done():
            run.stopped = True
            self._host.hasten(run.call, monotonic_us() + config.KILL_US)
            run.task.cancel()

    async def _carry_out(self, run: Running) -> Ending:
        """Carry out one call."""
        running.set(run)
        sheet.set(run.sheet)
        call, extras = run.call, frames.unpack(run.call.extras) if run.call.extras else {}
        try:
            loaded = run.loaded = self._library.find(call.name, call.version)
            run.version = loaded.record.version
            if self._host.learn(call, loaded.record.concurrency()):
                asyncio.get_running_loop().call_soon(self._pull)
            if "trace" in extras:
                result = await self._run_traced(run, loaded, extras)
            else:
                result = await self._run_one(call, loaded, extras)
            if isinstance(result, Parts):
                payload, flags = await asyncio.to_thread(self._invoker.share, call, result)
            else:
                payload, flags = result or b"", frames.EMPTY if result is None else 0
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            return self._failure(run, error)
        return Ending(frames.OK, frames.MEASURED | flags, payload, None, None)

    def _failure(self, run: Running, error: BaseException) -> Ending:
        if run.stopped and isinstance(error, asyncio.CancelledError):
            fault: CloudburstError = Cancelled(f"{quoted(run.call.name)} was stopped while it ran")
            return Ending(0, frames.MEASURED, b"", fault, None)
        status, data, found = self._invoker.failure(run.call, run.loaded, error, run.call.name)
        return Ending(status, frames.MEASURED, data, found, None)

    async def _run_traced(self, run: Running, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """Run a call and record it."""
        recorder = Recorder(str(extras["trace"]))
        try:
            about = described(self._invoker.number, run.call)
            with recording(recorder), span(f"run {loaded.record.name}", about, SERVER):
                return await self._run_one(run.call, loaded, extras)
        finally:
            run.spans = recorder.pack()

    async def _run_one(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        once = "id" in extras
        return await (self._run_once if once else self._run_plainly)(call, loaded, extras)

    async def _run_plainly(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """The same, in the session that the call is in, or opens, if there is one."""
        if "session" not in extras:
            return await self._run_alone(call, loaded, extras)
        from cloudburst.executor.sessions import Held

        run, held = running.get(), Held(call, (bytes(extras["session"]),), self._host.store)
        assert run is not None
        try:
            with held.around() as run.session:
                data = await self._run_alone(call, loaded, extras)
                await asyncio.to_thread(held.end)
        finally:
            run.session, run.told = None, held.told
        return data

    async def _run_alone(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """Run user code and return what it returned, pickled; None for None. What may block does so in a thread."""
        args, kwargs, refs = (), {}, extras.get("refs")
        if refs:
            args, kwargs = await asyncio.to_thread(self._invoker.unpickle, call, call.payload, refs, call.flags)
        elif not call.flags & frames.EMPTY:
            args, kwargs = self._invoker.unpickle(call, call.payload, None, call.flags)
        if loaded.record.concurrency():
            result = loaded.target(*args, **kwargs)
        else:  # it was a coroutine function when it was called
            result = await asyncio.to_thread(loaded.target, *args, **kwargs)
        if isinstance(result, Coroutine):
            result = await result
        if type(result) is Continue:
            raise await asyncio.to_thread(continuing, result, extras)
        if "key" in extras:
            run = running.get()
            kvs = self._host.store() if run is None or run.session is None else run.session
            await asyncio.to_thread(kvs.put, extras["key"], result)
        return None if result is None else pickling.dumps_result(loaded.record.name, result)

    async def _run_once(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """The same, unless a call with this id has returned: then return that."""
        results, key = Results(self._host.system_store()), once_key(loaded.record.name, str(extras["id"]))
        who = claimant(call, extras)
        try:
            kept = await asyncio.to_thread(
                results.claim, key, who, lambda: (call.deadline_us - monotonic_us()) / 1e6
            )
        except TimeoutError as fault:
            raise FunctionTimeout(f"{quoted(call.name)} was not begun: {fault}", definite=True) from None
        if kept is not None:
            return result_of(kept)
        try:
            payload = await self._run_plainly(call, loaded, extras)
        except BaseException:  # however it ended, it has no result to be kept
            await asyncio.to_thread(results.release, key)
            raise
        await asyncio.to_thread(results.keep, key, kept_of(payload, loaded.record.name))
        return payload

    def _ended(self, run: Running, task: asyncio.Task[Ending]) -> None:
        call = run.call
        del self._runs[call.lane, call.request]
        run.timer.cancel()
        if run.stopped:
            for child in list(run.children):
                child.cancel()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        ending = task.result() if error is None else self._failure(run, error)
        self._host.end_beside(call)
        if not run.answered:
            self._host.answer_beside(call, self._reply(run, ending))
        elif ending.flags & frames.SHARED:
            drop(ending.payload)
        self._hand_over_soon()
        self._pull()

    def _reply(self, run: Running, ending: Ending) -> bytes:
        status, flags, payload, fault, _ = ending
        request, output = run.call.request, self._host.printed(run.sheet)
        if run.spans:
            output = frames.with_spans(run.spans, output)
            flags |= frames.SPANS
        if run.told:
            output = frames.with_spans(run.told, output)
            flags |= frames.SESSION
        if fault is not None:
            return frames.error(request, fault, output=output, flags=flags & frames.TOLD)
        took_us = monotonic_us() - run.begun_us
        return frames.reply(status, request, payload, flags=flags, run_us=took_us, output=output)

    def _hand_over_soon(self) -> None:
        """Hand over replies once for all that end in this turn of the loop."""
        if not self._handing_over:
            self._handing_over = True
            assert self._loop is not None
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        self._host.hand_over()


async def _caught(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    try:
        return await coroutine, None
    except BaseException as error:  # a user's coroutine may raise anything; the thread that waits raises it
        return None, error


OURS.add(__file__)
