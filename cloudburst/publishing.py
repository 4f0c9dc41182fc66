"""Futures that are passed on: their outcomes go to the store, where whoever got them finds them.

A future among the arguments of a call defers it: the call is sent when the outcome is in the store, so no executor
waits for it, and a failure becomes the dependent call's own without its being begun. Anywhere else, in a result, in a
stored value, in another program's hands, a future is a `RemoteFuture`.
"""

from __future__ import annotations

import concurrent.futures
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

from cloudburst import config, context, faults, frames
from cloudburst.errors import Cancelled, CloudburstError, FunctionTimeout, NodeLost, UnavailableError
from cloudburst.futures import Future
from cloudburst.outcomes import Outcome
from cloudburst.page import monotonic_us
from cloudburst.references import collected_now
from cloudburst.results import Kept, Results, result_key
from cloudburst.segments import layout

Shared = concurrent.futures.Future[Kept]
"""Done when the outcome of a future is in the store."""


class Publisher:
    """Puts outcomes into the store, from a thread of its own. `open_results` is called when there is a first one.

    `lend` says where a large result is, for as long as the outcome is kept; None for one that is not large.
    """

    def __init__(self, open_results: Callable[[], Results], lend: Callable[[Outcome, int], bytes | None]) -> None:
        self._open_results = open_results
        self._lend = lend
        self._lock = threading.Lock()
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._results: Results | None = None

    def share(self, future: Future, whole: bool) -> Shared:
        """Publish the outcome of a future once it is there; asked for twice, it is as if once.

        `whole`: with the value, however large, so that it is there when nobody keeps the future any more.
        """
        with self._lock:
            if future.shared is not None and (future.whole or not whole):
                return future.shared
            shared, future.whole = Shared(), whole
            future.shared = shared
            if self._thread is None:
                self._thread = concurrent.futures.ThreadPoolExecutor(1, "cloudburst-publisher")
        future.add_done_callback(lambda done: self._submit(done, shared, whole))
        return shared

    def _submit(self, future: Any, shared: Shared, whole: bool) -> None:
        assert self._thread is not None
        try:
            self._thread.submit(self._publish, future, shared, whole)
        except RuntimeError:  # closed: nobody will get it from here
            shared.cancel()

    def _publish(self, future: Future, shared: Shared, whole: bool) -> None:
        try:
            if self._results is None:
                self._results = self._open_results()
            kept = self._lent(future) if not whole else None
            kept = kept_of(future) if kept is None else kept
            self._results.keep(result_key(future.id), kept)
            shared.set_result(kept)
        except BaseException as fault:  # whoever waits for it must be told, whatever the store's client raised
            shared.set_exception(fault)

    def _lent(self, future: Future) -> Kept | None:
        """Return where the large result of a future is; None when there is none."""
        if future.cancelled() or future.outcome().failed:
            return None
        descriptor = self._lend(future.outcome(), config.LEND_BYTES_MIN)
        return None if descriptor is None else Kept(frames.OK, frames.SHARED, descriptor, future.name)

    def close(self) -> None:
        """Publish what is done; forget the rest."""
        if self._thread is not None:
            self._thread.shutdown()


def kept_of(future: Future) -> Kept:
    """Return the outcome of a future that is done, as it is kept."""
    name = future.name
    if future.cancelled():
        status, flags, payload = Outcome.packed_fault(Cancelled(f"the call of {name!r} was cancelled"))
    else:
        status, flags, payload = future.outcome().packed()
    return Kept(status, flags, payload, name)


def value_of(kept: Kept, invocation: str, open_: Callable[[bytes], memoryview]) -> Any:
    """Return the value that was kept, or raise the error; `open_` returns the bytes of a segment."""
    if kept.status == frames.OK:
        if kept.flags & frames.SHARED:
            return layout.loads(open_(kept.payload))
        if kept.flags & frames.LAID:
            return layout.loads(memoryview(kept.payload))
        return None if kept.flags & frames.EMPTY else pickle.loads(kept.payload)
    if kept.status == frames.RAISED:
        where = "in another call"
        raise faults.unpack(kept.payload, function=kept.function, invocation=invocation, attempts=1, where=where)
    raise frames.fault_of(kept.payload)


def _nothing(*_: object) -> None:
    pass


class Deferred:
    """A call that is sent when the futures among its arguments have their results, once it is begun.

    `submit` sends it; `fail` settles its future with a Kept that is a failure, or with an error.
    """

    def __init__(
        self, deadline_us: int, submit: Callable[[], None], fail: Callable[[Kept | CloudburstError], None], name: str
    ) -> None:
        self._lock = threading.Lock()
        self._missing = 0
        self._over = False
        self._submit = submit
        self._fail = fail
        self._timer = threading.Timer(max(0.0, (deadline_us - monotonic_us()) / 1e6), self._expire, (name,))
        self._timer.daemon = True

    def begin(self, needs: Sequence[Shared]) -> None:
        """Wait for these results from now on; the call is sent before this returns when they are there."""
        self._missing = len(needs)
        self._timer.start()
        for shared in needs:
            shared.add_done_callback(self._one_done)

    def stop(self) -> bool:
        """Give it up; return whether it had not been sent, and will not be."""
        with self._lock:
            before, self._over = self._over, True
            self._let_go()
        return not before

    def _let_go(self) -> tuple[Callable[[], None], Callable[[Kept | CloudburstError], None]]:
        """Part with the call, whose futures would otherwise be kept by themselves; the lock is held."""
        self._timer.cancel()
        found, self._submit, self._fail = (self._submit, self._fail), _nothing, _nothing
        return found

    def _expire(self, name: str) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            _, fail = self._let_go()
        fail(FunctionTimeout(f"{name!r} was not begun before its deadline: it waits for a result", definite=True))

    def _one_done(self, shared: Shared) -> None:
        failure: Kept | CloudburstError | None = None
        if shared.cancelled():
            failure = Cancelled("the client that a result was awaited from was closed", definite=True)
        elif (fault := shared.exception()) is not None:
            failure = UnavailableError(f"a result could not be published: {type(fault).__name__}: {fault}")
        elif shared.result().status != frames.OK:
            failure = shared.result()
        with self._lock:
            self._missing -= 1
            if self._over or (failure is None and self._missing):
                return
            self._over = True
            submit, fail = self._let_go()
        if failure is not None:
            fail(failure)
            return
        try:
            submit()
        except CloudburstError as late:
            fail(late)


class RemoteFuture:
    """The result of a call that somebody else made. `cb.gather` and `wait` do not take it; its own methods do."""

    __slots__ = ("id", "name")

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name

    def _results(self) -> Results:
        from cloudburst.entry import default

        return default().results()

    @staticmethod
    def _open(descriptor: bytes) -> memoryview:
        """Return the bytes of a result that its caller still keeps. Raises NodeLost when it does not."""
        from cloudburst.entry import default
        from cloudburst.segments.descriptors import SegmentGone
        from cloudburst.segments.distant import open_anywhere

        try:
            return open_anywhere(default().shelf(), descriptor)
        except SegmentGone:
            raise NodeLost("the result was let go by the program that made the call", definite=False) from None

    def done(self) -> bool:
        """Whether its outcome is there."""
        return self._results().find(result_key(self.id)) is not None

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, or raise what the call raised; TimeoutError if neither is there in `timeout` seconds.

        None waits as long as a result is kept: after that it cannot come any more.
        """
        return value_of(self._await(timeout), self.id, self._open)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None."""
        kept = self._await(timeout)
        if kept.status == frames.OK:
            return None
        try:
            value_of(kept, self.id, self._open)
        except CloudburstError as error:
            return error
        return None

    def _await(self, timeout: float | None) -> Kept:
        key, wait_s = result_key(self.id), config.RESULT_KEEP_S if timeout is None else timeout
        kept = self._results().find(key)
        if kept is not None:
            return kept
        if context.executing is None:
            return self._results().await_(key, wait_s)
        with context.executing.blocked():
            return self._results().await_(key, wait_s)

    def __reduce__(self) -> tuple[Any, ...]:
        collected = collected_now()
        return (RemoteFuture, (self.id, self.name)) if collected is None else collected.place(result_key(self.id))

    def __repr__(self) -> str:
        return f"<the result of {self.name!r}, invocation {self.id}>"
