"""What an executor does for one call: user code is looked up, given its arguments, run, and its result pickled.

Everything that can raise what the user wrote happens in `run`, which never raises: how it ended is what it returns. A
call is stopped by `Interrupted`, which a signal handler raises while `in_user` holds, and at no other time.
Source: DESIGN §6; reliability C.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard

from cloudburst import config, faults, frames, pickling, references, spans
from cloudburst.continuing import Continue, Continuing, continuing
from cloudburst.errors import (
    Cancelled,
    CloudburstError,
    FunctionTimeout,
    NodeLost,
    NoRoom,
    OutOfMemory,
    RequestError,
)
from cloudburst.executor import trial
from cloudburst.executor.batch import columns, results_of
from cloudburst.executor.ending import (
    FRAME_ROOM,
    Bereft,
    Ending,
    Interrupted,
    Unseen,
    claimant,
    described,
    kept_of,
    laid_out,
    overdue,
    quoted,
    result_of,
)
from cloudburst.executor.joins import Input, Invocation
from cloudburst.executor.library import Library, Loaded
from cloudburst.executor.limits import memory_limit
from cloudburst.executor.queue import Call
from cloudburst.executor.siblings import Siblings
from cloudburst.executor.stagework import StageWork, StepWork, Target
from cloudburst.page import Page, monotonic_us
from cloudburst.records import FunctionStore
from cloudburst.results import RESULTS, Results, once_key
from cloudburst.segments import layout
from cloudburst.segments.descriptors import (
    SegmentGone,
    SegmentUnseen,
    address_of,
    distant_name,
    result_name,
    unpack_descriptor,
)
from cloudburst.segments.distant import open_anywhere
from cloudburst.segments.held import open_segment
from cloudburst.segments.layout import Parts
from cloudburst.segments.shelf import Shelf
from cloudburst.segments.values import read
from cloudburst.spans import SERVER, Recorder, recording, span

if TYPE_CHECKING:
    from cloudburst.executor.sessions import Held
    from cloudburst.transactions import Transaction

KNOW_US: Final = 1_000_000
"""How long an executor waits to hear of one on another node, to which a result is to go."""
KNOW_PAUSE_S: Final = 0.005



class Host(Protocol):
    """The process around it."""

    page: Page
    number: int
    incarnation: int

    def shelf(self) -> Shelf:
        """Return the node's segments."""

    def shelf_of(self, lane: int) -> Shelf | None:
        """Return the segments that a client can map, None when that is none that this process can."""

    def node_of(self, lane: int) -> int:
        """Return the node of a client; 0 when that is not known."""

    def store(self) -> Any:
        """Return this process's client of the store."""

    def system_store(self) -> Any:
        """Return the one that may use reserved keys."""

    def session(self) -> Transaction | None:
        """Return the session that the code which asks runs in."""

    def blocked(self) -> AbstractContextManager[None]:
        """While this call waits in here for another, another executor may take this one's place."""

    def limit_step(self, timeout_s: float | None) -> None:
        """Bound what is left of this call: the function that it has come to has so long; None: as long as the call."""

    def finish(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        """Run a coroutine to its end on this executor's loop, and return what it returns."""

    def deliver(self, stage: Invocation, position: int, result: Input, deadline_us: int) -> None:
        """Take in what a stage returned for one that waits in this executor."""


class Invoker:
    """Runs calls, one at a time. `name` and `version` are of the function that runs now, or ran last."""

    def __init__(self, host: Host, library: Library, siblings: Siblings) -> None:
        self._host = host
        self._library = library
        self._siblings = siblings
        self.number = host.number
        self.name = b""
        self.version = 0
        self.in_user = False
        """Whether user code runs, so that it may be interrupted."""
        self._missed = False
        self.spans = b""
        """What was recorded of the last call, if somebody traces it."""
        self.session: Transaction | None = None
        """The session that user code runs in."""
        self.told = b""
        """What the last call has done in its session, for its caller."""

    def prefixed(self, output: bytes) -> tuple[bytes, int]:
        """Return what the last call has printed, behind what else its reply tells, and the flags that say so."""
        flags = 0
        if self.spans:
            output, self.spans, flags = frames.with_spans(self.spans, output), b"", frames.SPANS
        if self.told:
            output, self.told, flags = frames.with_spans(self.told, output), b"", flags | frames.SESSION
        return output, flags

    def stop_if(self, doomed: bool) -> None:
        """Raise Interrupted in user code, if it runs, that is `doomed`."""
        if self.in_user and doomed:
            self.in_user = False
            raise Interrupted
        self._missed = self._missed or doomed

    def _find(self, name: bytes, version: int) -> Loaded:
        """Return a function, loaded whole: an import that is cut off in the middle can leave what no second one mends.

        What is stopped meanwhile ends here, or, if loading takes too long, with the process.
        """
        self.in_user = self._missed = False
        loaded = self._library.find(name, version)
        self.version = loaded.record.version
        self.in_user = True
        if self._missed:
            self.stop_if(self._host.page.doomed(self.number))
        return loaded

    def run(self, call: Call) -> Ending:
        """Carry out one call."""
        self.name = call.name
        loaded: Loaded | None = None
        flags = frames.EMPTY
        result: bytes | Parts | None = None
        try:
            self.in_user = True
            if call.flags & frames.STAGE:
                result, flags = self._carry_out(call)
            elif call.flags & frames.LOAD:
                trial.load(call.name.decode(), call.payload, frames.unpack(call.extras))
            else:
                loaded = self._find(call.name, call.version)
                extras = frames.unpack(call.extras) if call.extras else _NO_EXTRAS
                once = "id" in extras
                if "trace" in extras:
                    result = self._run_traced(call, loaded, extras)
                else:
                    result = self._run_once(call, loaded, extras) if once else self._run_plainly(call, loaded, extras)
                if result is not None:
                    flags = 0
            payload, flags = (result or b"", flags) if not isinstance(result, Parts) else self.share(call, result)
            self.in_user = False
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            self.in_user = False
            return self._failed(call, loaded, error)
        return Ending(frames.OK, frames.MEASURED | flags, payload, None, loaded)

    def run_batch(self, calls: list[Call]) -> list[Ending]:
        """Carry out calls of one function together; return how each ended."""
        self.name = calls[0].name
        loaded: Loaded | None = None
        try:
            self.in_user = True
            loaded = self._find(calls[0].name, calls[0].version)
            endings = self._run_together(calls, loaded)
            self.in_user = False
        except BaseException as error:  # a user's function may raise anything, SystemExit too
            self.in_user = False
            endings = [self._failed(call, loaded, error) for call in calls]
        return endings

    def _run_together(self, calls: list[Call], loaded: Loaded) -> list[Ending]:
        """Call the function once with lists; what is wrong with one call, or its result, is that one's failure only."""
        endings: dict[int, Ending] = {}
        rows: dict[int, tuple[Any, ...]] = {}
        for place, call in enumerate(calls):
            try:
                rows[place] = self._row(call, len(next(iter(rows.values()))) if rows else None)
            except Exception as error:  # an argument's own code may raise anything
                endings[place] = self._failed(call, loaded, error)
        if rows:
            with memory_limit(loaded.memory) if loaded.memory else nullcontext():
                found = self._together(loaded, list(rows.values()))
            for place, result in zip(rows, found, strict=True):
                endings[place] = self._ending(calls[place], loaded, result)
        return [endings[place] for place in range(len(calls))]

    def _row(self, call: Call, width: int | None) -> tuple[Any, ...]:
        """Return the arguments of one call of a batch whose others have `width` arguments."""
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if not call.flags & frames.EMPTY:
            extras = frames.unpack(call.extras) if call.extras else _NO_EXTRAS
            args, kwargs = self.unpickle(call, call.payload, extras.get("refs"), call.flags)
        if kwargs or (width is not None and len(args) != width):
            words = f"{len(args)} arguments and {len(kwargs)} by name"
            raise RequestError(f"{quoted(self.name)} takes batches, of calls alike and without names; this has {words}")
        return args

    def _together(self, loaded: Loaded, rows: list[tuple[Any, ...]]) -> list[Any]:
        """Return what a function returns for each of these arguments."""
        if loaded.batch is None:  # it took batches when it was called
            return [self._awaited(loaded.target(*row)) for row in rows]
        found = self._awaited(loaded.target(*columns(rows)))
        return results_of(found, len(rows), loaded.record.name)

    def _ending(self, call: Call, loaded: Loaded, result: Any) -> Ending:
        """Return how one call of a batch ended: with a result, or with an exception that stands in its place."""
        try:
            if isinstance(result, Exception):
                raise result
            extras = frames.unpack(call.extras) if call.extras else _NO_EXTRAS
            if type(result) is Continue:
                raise continuing(result, extras)
            if "key" in extras:
                self._host.store().put(extras["key"], result)
            data = None if result is None else pickling.dumps_result(loaded.record.name, result)
            empty = frames.EMPTY if data is None else 0
            payload, flags = self.share(call, data) if isinstance(data, Parts) else (data or b"", empty)
        except (Exception, Continuing) as error:  # the user's own, or what pickling it raises
            return self._failed(call, loaded, error)
        return Ending(frames.OK, frames.MEASURED | flags, payload, None, loaded)

    def _failed(self, call: Call, loaded: Loaded | None, error: BaseException) -> Ending:
        status, data, fault = self.failure(call, loaded, error, self.name)
        return Ending(status, frames.MEASURED, data, fault, loaded)

    def _run_traced(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """Run a call and record it."""
        recorder = Recorder(str(extras["trace"]))
        try:
            with recording(recorder), span(f"run {loaded.record.name}", described(self._host.number, call), SERVER):
                once = "id" in extras
                return self._run_once(call, loaded, extras) if once else self._run_plainly(call, loaded, extras)
        finally:
            self.spans = recorder.pack()

    def _run_plainly(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """Run user code and return what it returned, pickled; None for None."""
        if "session" in extras:
            return self._run_in_session(call, loaded, extras)
        result = self._invoke(call, loaded, extras)
        return None if result is None else pickling.dumps_result(loaded.record.name, result)

    def _run_in_session(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """The same, in the session that the call is in, or opens."""
        from cloudburst.executor.sessions import Held

        with self._in_session(Held(call, (bytes(extras["session"]),), self._host.store)) as held:
            result = self._invoke(call, loaded, extras)
            data = None if result is None else pickling.dumps_result(loaded.record.name, result)
            held.end()
        return data

    @contextmanager
    def _in_session(self, held: Held) -> Iterator[Held]:
        """Have user code run in a session."""
        try:
            with held.around() as self.session:
                yield held
        finally:
            self.session, self.told = None, held.told

    def share(self, call: Call, result: Parts) -> tuple[bytes, int]:
        """Put a large result where its caller can map it; return its descriptor, and SHARED.

        Where the caller is on another host, it stays in this node's memory, from where it is fetched. What is no longer
        than a chunk is returned itself. Raises NoRoom, ValueTooLarge, and Cancelled if nobody waits for it any more.
        """
        name = result_name(call.high, call.request, self._host.incarnation)
        shelf = self._host.shelf_of(call.lane)
        if shelf is None:  # its caller is on another host, and fetches what is longer than a chunk
            own, node = self._host.shelf(), self._host.node_of(call.lane)
            if not own.address or not node or result.size_bytes <= config.CHUNK_BYTES:
                return laid_out(result, f"the result of {quoted(self.name)}"), frames.SHARED
            shelf, name = own, distant_name(node, call.high, call.request, self._host.incarnation)
        try:
            return shelf.put(name, result), frames.SHARED
        except SegmentGone:
            raise Cancelled(f"the caller of {quoted(self.name)} is gone") from None
        except NoRoom as fault:
            fault.definite = False
            raise

    def _run_once(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> bytes | Parts | None:
        """The same, unless a call with this id has returned: then return that."""
        results, key = Results(self._host.system_store()), once_key(loaded.record.name, str(extras["id"]))
        who = claimant(call, extras)
        try:
            with self._host.blocked():
                kept = results.claim(key, who, lambda: (call.deadline_us - monotonic_us()) / 1e6)
        except TimeoutError as fault:
            raise FunctionTimeout(f"{quoted(self.name)} was not begun: {fault}", definite=True) from None
        if kept is not None:
            return result_of(kept)
        try:
            payload = self._run_plainly(call, loaded, extras)
        except BaseException:  # however it ended, it has no result to be kept
            results.release(key)
            raise
        results.keep(key, kept_of(payload, loaded.record.name))
        return payload

    def _invoke(self, call: Call, loaded: Loaded, extras: dict[str, Any]) -> Any:
        """Run user code: unpickle the arguments, call, await, store the result under the key that was asked for."""
        with memory_limit(loaded.memory) if loaded.memory else nullcontext():
            if call.flags & frames.EMPTY:
                result = loaded.target()
            else:
                args, kwargs = self.unpickle(call, call.payload, extras.get("refs"), call.flags)
                result = loaded.target(*args, **kwargs) if loaded.batch is None else self._together(loaded, [args])[0]
            result = self._awaited(result)
        if type(result) is Continue:
            raise continuing(result, extras)
        if "key" in extras:
            self._kvs().put(extras["key"], result)
        return result

    def _carry_out(self, call: Call) -> tuple[bytes | Parts | None, int]:
        """Run the steps of a stage, and hand on the result, or return it pickled when this is the last stage.

        Returns (payload, flags) of the reply; the caller is told of a segment that is handed on, to remove it.
        """
        work = StageWork.of(call)
        if not work.trace:
            return self._carry_through(call, work)
        recorder = Recorder(work.trace)
        try:
            with recording(recorder):
                return self._carry_through(call, work)
        finally:
            self.spans = recorder.pack()

    def _carry_through(self, call: Call, work: StageWork) -> tuple[bytes | Parts | None, int]:
        if not work.contexts:
            return self._carry_on(call, work, None)
        from cloudburst.executor.sessions import Held

        with self._in_session(Held(call, work.contexts, self._host.store, work.run)) as held:
            return self._carry_on(call, work, held)

    def _carry_on(self, call: Call, work: StageWork, held: Held | None) -> tuple[bytes | Parts | None, int]:
        values = [None if one.payload is None else self._loads(call, one.payload, one.flags) for one in work.inputs]
        for step in work.steps:
            if work.trace:
                with span(f"run {step.function.decode()}", described(self._host.number, call), SERVER):
                    values = [self._step(call, step, values)]
            else:
                values = [self._step(call, step, values)]
        if type(values[0]) is Continue:
            if work.targets:
                words = f"{quoted(self.name)} continues with {values[0].name!r}; only the last step of a dag can"
                raise RequestError(words, definite=False)
            raise continuing(values[0], {})
        if work.key is not None:
            self._kvs().put(work.key, values[0])
        result = None if values[0] is None else pickling.dumps_result(self.name.decode(), values[0])
        if not work.targets:
            if held is not None:
                held.end()
            return result, frames.EMPTY if result is None else 0
        context = b"" if held is None else held.handed_on()
        data, flags = (result, 0) if not isinstance(result, Parts) else self.share(call, result)
        self.in_user = False
        left_us = max(1, call.deadline_us - monotonic_us())
        for target in work.targets:
            self._hand_on(call, target, Input(data, context, flags), left_us)
        told = data is not None and flags & frames.SHARED and not layout.is_segment(data)
        return (data, frames.EMPTY | frames.SHARED) if told else (None, frames.EMPTY)

    def _step(self, call: Call, step: StepWork, values: list[Any]) -> Any:
        """Run one step of a stage on what its predecessors returned and its own arguments."""
        self.name = step.function
        self._host.page.rename(self._host.number, step.function)
        loaded = self._find(step.function, step.version)
        self._host.limit_step(loaded.record.options.timeout_s)
        with memory_limit(loaded.memory) if loaded.memory else nullcontext():
            args, kwargs = self.unpickle(call, step.own, list(step.refs), step.flags) if step.own else ((), {})
            if loaded.batch is not None:
                return self._together(loaded, [(*values, *args)])[0]
            return self._awaited(loaded.target(*values, *args, **kwargs))

    def _awaited(self, result: Any) -> Any:
        """Return what a function returned, after running it to its end if it is a coroutine."""
        return self._host.finish(result) if type(result) is CoroutineType else result

    def _hand_on(self, call: Call, target: Target, result: Input, left_us: int) -> None:
        """Send what a stage returned to one of its successors; if that is gone, its caller finds out by itself."""
        slot = self._host.page.locate(target.node, target.slot, target.incarnation)
        if slot == self._host.number:
            self._host.deliver((call.high, target.low), target.position, result, call.deadline_us)
            return
        if slot < 0:
            slot = self._wait_to_know(target, call.deadline_us)
        data, shared = None if result.payload is None else bytes(result.payload), result.flags & frames.SHARED
        if data is not None and shared and target.node != self._host.page.incarnation and not layout.is_segment(data):
            size = unpack_descriptor(data)[2]
            if size <= config.CHUNK_BYTES or (not address_of(data) and size <= FRAME_ROOM):
                data = bytes(open_segment(data))  # that node may be on another host
        frame = frames.input_(
            (call.high, target.low), target.position, data, timeout_us=left_us, context=result.context,
            flags=shared,
        )  # fmt: skip
        if slot >= 0:
            self._siblings.send(slot, self._host.page.state(slot)[1], frame, left_us / 1e6)

    def _wait_to_know(self, target: Target, deadline_us: int) -> int:
        """Return the slot of an executor that this node may just not have heard of yet; -1 when it does not."""
        page, until_us = self._host.page, min(deadline_us, monotonic_us() + KNOW_US)
        while (slot := page.locate(target.node, target.slot, target.incarnation)) < 0:
            if target.node == page.incarnation or monotonic_us() >= until_us:
                return -1
            time.sleep(KNOW_PAUSE_S)
        return slot

    def _loads(self, call: Call, data: bytes | memoryview, flags: int) -> Any:
        """Return a pickled value, which is in a segment, or one itself, if `flags` have SHARED."""
        if not flags & frames.SHARED:
            return pickling.loads(data)
        if layout.is_segment(data):
            return layout.loads(memoryview(data))
        return layout.loads(self._opened(call, bytes(data)))

    def _opened(self, call: Call, descriptor: bytes) -> memoryview:
        """Return the bytes of a segment; what is on another host has been brought, or else is fetched now."""
        try:
            for where, found in call.brought:
                if where == descriptor:
                    if isinstance(found, Exception):
                        raise found
                    return memoryview(found)
            return open_anywhere(self._host.shelf(), descriptor)
        except SegmentUnseen:
            raise Unseen from None
        except SegmentGone:
            raise Cancelled(f"the caller of {quoted(self.name)} has taken back what it was called with") from None
        except NodeLost as fault:
            raise Bereft(str(fault)) from None

    def unpickle(self, call: Call, data: bytes | memoryview, refs: list[str | bytes] | None, flags: int) -> Any:
        """Return (args, kwargs), with what is stored under `refs` in its places."""
        if not refs:
            return self._loads(call, data, flags) if flags & frames.SHARED else pickling.loads(data)
        plain = [key for key in refs if not _is_result(key)]
        with nullcontext() if spans.around is None else spans.around("store mget", {"cloudburst.keys": len(plain)}):
            stored = dict(zip(plain, self._stored(plain) if plain else (), strict=True))
        values = [stored.get(key, _MISSING) for key in refs]
        for place, key in enumerate(refs):
            if _is_result(key):
                values[place] = self._result_of(call, key)
            elif values[place] is _MISSING:
                from anna.errors import KeyNotFound

                raise KeyNotFound(f"no value is stored under {key!r}, which an argument refers to")
        with references.resolving(values):
            return self._loads(call, data, flags)

    def _stored(self, keys: list[str | bytes]) -> list[Any]:
        """Return what is stored under `keys`, _MISSING for nothing."""
        store = self._kvs()
        values: list[Any] = read(lambda: store.mget(keys, default=_MISSING))
        return values

    def _kvs(self) -> Any:
        """Return what the running call reads and writes: its session, if it is in one, or the store."""
        return self._host.session() or self._host.store()

    def _result_of(self, call: Call, key: bytes) -> Any:
        """Return the result of another call that is an argument of this one, waiting for it if it must."""
        from cloudburst.publishing import value_of

        results = Results(self._host.system_store())
        kept = results.find(key)
        if kept is None:
            try:
                with self._host.blocked():
                    kept = results.await_(key, (call.deadline_us - monotonic_us()) / 1e6)
            except TimeoutError as fault:
                raise FunctionTimeout(f"{quoted(self.name)} waits for the result of another call: {fault}") from None
        return value_of(kept, key[len(RESULTS) :].decode(), lambda descriptor: self._opened(call, descriptor))

    def failure(
        self, call: Call, loaded: Loaded | None, error: BaseException, name: bytes
    ) -> tuple[int, bytes, CloudburstError | None]:
        """Return how a call that raised is answered: (status, payload, None), or an error of the runtime itself."""
        if isinstance(error, Continuing):
            return frames.CONTINUED, error.payload, None
        if isinstance(error, Unseen):
            return frames.BOUNCED, frames.WHY_UNSEEN + self._host.shelf().address.encode(), None
        if isinstance(error, Bereft):
            return frames.BOUNCED, frames.WHY_LOST + str(error).encode(), None
        if isinstance(error, Interrupted):
            late = monotonic_us() >= call.deadline_us
            return 0, b"", overdue(name) if late else Cancelled(f"{quoted(name)} was stopped while it ran")
        if isinstance(error, CloudburstError) and not _raised_by_user(error):
            return 0, b"", error
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in OURS:
            trace = trace.tb_next
        if isinstance(error, MemoryError):
            limit = loaded.memory if loaded is not None else None
            allowed = f"its limit of {limit:,} bytes" if limit else "this machine would give"
            fault = OutOfMemory(f"{quoted(name)} wanted more memory than {allowed}")
            fault.remote_traceback = faults.format_traceback(error, trace)
            return 0, b"", fault
        raised_by = name.decode() if call.flags & frames.STAGE else ""
        return frames.RAISED, faults.pack(error, trace, raised_by), None


class _Missing:
    pass


_MISSING: Final = _Missing()
_NO_EXTRAS: Final[dict[str, Any]] = {}
OURS: Final = {
    code.co_filename
    for code in (
        Invoker.run.__code__, trial.load.__code__, StageWork.of.__code__, Library.find.__code__,
        FunctionStore.find.__code__, Results.find.__code__, pickling.dumps.__code__, layout.loads.__code__,
        Shelf.put.__code__, unpack_descriptor.__code__, open_segment.__code__, open_anywhere.__code__,
        results_of.__code__, continuing.__code__,
    )
}  # fmt: skip
"""The files whose frames are no part of a user's traceback."""


def _is_result(key: str | bytes) -> TypeGuard[bytes]:
    """Whether a reference is to the result of a call."""
    return isinstance(key, bytes) and key.startswith(RESULTS)


def _raised_by_user(error: BaseException) -> bool:
    """Whether `error` has passed a frame outside the runtime."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename not in OURS:
            return True
        trace = trace.tb_next
    return False
