"""What a program holds: functions by name, calls that wait, calls that do not, and the store.

The one rule: every call ends by its deadline, with its value or a typed error that says whether it may have had an
effect. A client is safe from threads; a forked child of its process gets a share in the node of its own when it first
needs one. Source: DESIGN §6, SURFACE (cloudburst).
"""

from __future__ import annotations

import inspect
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack

from cloudburst import config, context, frames, spans
from cloudburst.attempts import Task
from cloudburst.blocking import Blocking
from cloudburst.calloptions import NO_OPTIONS, CallOptions, options_of
from cloudburst.catalog import Catalog, Known
from cloudburst.errors import (
    CloudburstError,
    MissingDependency,
    NodeLost,
    RequestError,
)
from cloudburst.futures import Future
from cloudburst.graph import Graph, graph_of
from cloudburst.locality import bundle_of
from cloudburst.membership import Membership
from cloudburst.optioned import Calls
from cloudburst.outcomes import Outcome
from cloudburst.page import monotonic_us
from cloudburst.pickling import code_tag, dumps_function
from cloudburst.records import FunctionOptions, check_name
from cloudburst.registration import arities_of, coroutines_of, import_paths, name_of, signature_of
from cloudburst.stored import Stored
from cloudburst.tasks import continuation_of, run_of, task_of

if TYPE_CHECKING:
    from cloudburst.continuing import Continue
    from cloudburst.hedging import Latencies
    from cloudburst.logbook import LogLine
    from cloudburst.recorder import Recorder
    from cloudburst.results import Results
    from cloudburst.segments.shelf import Shelf
    from cloudburst.spans import Traced

T = TypeVar("T", bound=Callable[..., Any])

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client(Stored):
    """A program's access to a node. Made by `cloudburst.connect`; `record` is where its sessions are written down."""

    def __init__(self, join: Callable[[], Membership], record: str | Path | None = None) -> None:
        self._join = join
        self._recorder: Recorder | None = None
        if record is not None:
            from cloudburst.recorder import Recorder

            self._recorder = Recorder(record)
        self._lock = threading.Lock()
        self._catalog = Catalog()
        self._latencies: dict[str, Latencies] = {}
        self._membership: Membership | None = self._enter()
        self._closed = False
        self._blocking = Blocking(lambda membership, task: self._start_task(membership, task, None))
        _clients.add(self)

    def _enter(self) -> Membership:
        membership = self._join()
        membership.moved = self._catalog.forget
        membership.recorder = self._recorder
        if self._recorder is not None:
            from cloudburst.recorder import words_of
            from cloudburst.results import Results

            self._recorder.words = words_of(lambda: Results(membership.store(system=True)))
        return membership

    def _joined(self) -> Membership:
        """Return this process's membership, which a forked child takes for itself."""
        membership = self._membership
        if membership is not None:
            return membership
        with self._lock:
            if self._closed:
                raise NodeLost("this client is closed")
            if self._membership is None:
                self._catalog.forget()
                self._membership = self._enter()
            return self._membership

    # -- functions

    def register(
        self,
        function: T,
        *,
        name: str | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        memory: int | None = None,
        concurrency: int | None = None,
        batch: int | None = None,
        replicas: int | None = None,
        session: str | None = None,
    ) -> T:
        """Store a function or class under `name` (its own, by default) and return it as it was.

        A class is constructed, without arguments, once in each executor that needs it; its methods are called as
        `Class.method`, and the instance itself, if it is callable, as `Class`. `retries` also repeats calls whose
        exception is the user's; `timeout` is in seconds; `memory` is how many bytes one call may map; `concurrency` is
        how many calls of a coroutine function run beside each other in one executor; `batch`: the function takes lists,
        one for each argument, of up to so many calls, and returns a list of their results; `replicas`: at most so many
        executors of a node run it; `session` is the level that it reads and writes at. The name has a new version
        unless nothing has changed. Raises NotSerializable before anything is sent;
        EnvironmentMismatch; MissingDependency, which says what the executors have. Nothing is stored then.
        """
        if not callable(function):
            raise RequestError(f"a function or a class is registered; got a {type(function).__name__}")
        name = check_name(name if name is not None else name_of(function))
        options = FunctionOptions(timeout, retries, memory, concurrency, batch, replicas, session)
        coroutines = coroutines_of(function)
        options.require(name, coroutines)
        body = dumps_function(function, name)
        if len(body) > config.FUNCTION_BYTES_WARN:
            warnings.warn(
                f"function {name!r} has {len(body):,} bytes with all it captures; put large values in the store and"
                " pass a Ref",
                stacklevel=3,
            )
        request = {
            "name": name, "body": body, "code_tag": code_tag(), "is_class": inspect.isclass(function),
            "doc": (inspect.getdoc(function) or "").partition("\n")[0], "signature": signature_of(function),
            "paths": import_paths(), "options": options.pack(), "arities": arities_of(function),
            "coroutines": coroutines, "modules": bundle_of(function, body),
        }  # fmt: skip
        membership = self._joined()
        extras = {"paths": request["paths"], "tag": request["code_tag"], "modules": request["modules"]}
        self._try_loading(membership, name, body, extras)
        membership.ask("register", request)
        return function

    def _try_loading(self, membership: Membership, name: str, body: bytes, extras: dict[str, Any]) -> None:
        """Have an executor that has nothing to do load a function. Raises MissingDependency.

        Not from inside a function, whose own executor has what it has; and what else goes wrong is left to the call.
        """
        if context.executing is not None or not membership.page.idle():
            return
        deadline_us = monotonic_us() + int(config.LOAD_TIMEOUT_S * 1e6)
        number, packed = next(membership.numbers), msgpack.packb(extras)
        task = Task(membership.client, number, name, name.encode(), body, frames.LOAD, packed, deadline_us, 0)
        try:
            self._blocking.complete(membership, task).value()
        except MissingDependency:
            raise
        except CloudburstError:
            return

    def dag(
        self,
        name: str,
        steps: Mapping[str, Sequence[str]],
        *,
        functions: Mapping[str, str] | None = None,
        together: Iterable[Sequence[str]] = (),
        retries: int | None = None,
        timeout: float | None = None,
        session: str | None = None,
    ) -> Graph:
        """Store a graph of functions under `name`, to be called like a function; return it as it was understood.

        `steps` says for each step which steps come before it; it receives their results in that order, then its own
        arguments, and the result of the one step that no other follows is the result of the whole. `any_of(…)` in
        place of a list gives a step the result that is there first, and cancels the others. A step is named after its
        function, unless `functions` names another. Steps in one group of `together` run in the same executor.
        A graph runs in one session, at `session` or the highest level that one of its functions is registered with.
        Called as `call(name, {step: (argument, …), …})`. The functions must be registered.
        Raises InvalidDag, which spells out what is wrong, and FunctionNotFound; nothing is stored then.
        """
        graph = graph_of(name, steps, functions, together)
        options = FunctionOptions(timeout, retries, session=session)
        self._joined().ask("dag", {"graph": graph.pack(), "doc": "", "options": options.pack()})
        return graph

    def delete(self, name: str) -> None:
        """Forget a function or a DAG; calls that have begun go on. Raises FunctionNotFound."""
        self._joined().ask("delete", {"name": name})

    def alias(self, name: str, function: str, version: int = 0) -> None:
        """Have `name` stand for one version of a function, class or DAG, its newest if none is given.

        It is called like what it stands for. Called again, it moves, in one step; `delete` leaves the function. Raises
        FunctionNotFound; RequestError when the name is a function's own.
        """
        self._joined().ask("alias", {"name": name, "function": function, "version": version})

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Return every version of a name, oldest first, as `functions` shows them. Raises FunctionNotFound."""
        records: list[dict[str, Any]] = self._joined().ask("versions", {"name": name})
        return records

    def functions(self) -> list[dict[str, Any]]:
        """Return what is registered: one dictionary for each name, with version, signature, doc, options."""
        records: list[dict[str, Any]] = self._joined().ask("functions", {})
        return records

    # -- calls

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a function and return its value. Raises what it raised, or one of `cloudburst.errors`."""
        return self.run(name, args, kwargs, NO_OPTIONS)

    def spawn(self, name: str, /, *args: Any, **kwargs: Any) -> Future:
        """Start a call and return its Future."""
        return self.start(name, args, kwargs, NO_OPTIONS)

    def map(self, name: str, /, *iterables: Any) -> Iterator[Any]:
        """Yield the function's results for the items of the iterables, in order, as they are needed."""
        return self.spread(name, iterables, NO_OPTIONS)

    def options(self, **options: Any) -> Calls:
        """Return `call`, `spawn` and `map` with options.

        `timeout` in seconds; `retries`, also after the function's own exceptions; `key`, under which the result is
        stored as well; `version`; `hedge`: when no answer has come so many seconds after sending, or "p95" of what its
        calls took, another executor gets the call, too, and the first answer counts; `id`: a call of this function with
        the same id within ten minutes of the first one's end does not run it again, but returns what that has returned.
        """
        return Calls(self, options_of(options))

    def run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """`call`, with options."""
        if spans.begin is not None:
            return self._run_traced(spans.begin(name), name, args, kwargs, options)
        membership = self._joined()
        known = self._catalog.know(membership, name, options)
        if known.plan is not None and len(known.plan.stages) > 1:
            return _waited(self._start_dag(membership, known, args, kwargs, options))
        task = task_of(membership, self._catalog, known, name, args, kwargs, options)
        if task.needs or task.homes is not None or options.hedge is not None:
            return _waited(self._start_task(membership, task, options.hedge))
        if context.executing is not None:
            with context.executing.blocked():
                return self._blocking.complete(membership, task).value()
        return self._blocking.complete(membership, task).value()

    def _run_traced(
        self, traced: Traced | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Any:
        if traced is None:
            return _waited(self._start(name, args, kwargs, options, ""))
        future = self._start_traced(traced, name, args, kwargs, options)
        try:
            return _waited(future)
        finally:
            future.tell(traced)

    def _start_traced(
        self, traced: Traced, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> Future:
        try:
            return self._start(name, args, kwargs, options, traced.parent)
        except BaseException as error:
            traced.end(error, (), {})
            raise

    def start(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Future:
        """`spawn`, with options."""
        traced = None if spans.begin is None else spans.begin(name)
        if traced is None:
            return self._start(name, args, kwargs, options, "")
        future = self._start_traced(traced, name, args, kwargs, options)
        future.add_done_callback(lambda _: future.tell(traced))
        return future

    def _start(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions, trace: str
    ) -> Future:
        membership = self._joined()
        known = self._catalog.know(membership, name, options)
        if known.plan is not None and len(known.plan.stages) > 1:
            return self._start_dag(membership, known, args, kwargs, options, trace)
        task = task_of(membership, self._catalog, known, name, args, kwargs, options)
        if trace:
            task.extras = spans.with_trace(task.extras, trace)
        return self._start_task(membership, task, options.hedge)

    def _start_task(self, membership: Membership, task: Task, hedge: float | str | None) -> Future:
        if hedge is not None:
            return self._start_hedged(membership, task, hedge)
        spawner = membership.spawner()
        future = task.future = Future(task, spawner.stop, membership.sharing)
        if task.needs:
            return self._defer(membership, task, future, partial(spawner.submit, task), task.needs, task.deadline_us)
        try:
            spawner.submit(task)
        except CloudburstError:
            raise
        except BaseException:
            future.cancel()  # nobody has it
            raise
        return future

    def _start_hedged(self, membership: Membership, task: Task, hedge: float | str) -> Future:
        from cloudburst.hedgedcall import HedgedCall
        from cloudburst.hedging import Hedge, HedgedTask, Latencies, after_us_of

        first = HedgedTask(
            task.high, task.low, task.name, task.name_bytes, task.payload, task.flags, task.extras,
            task.deadline_us, None, task.version,
        )  # fmt: skip
        first.attempts_max, first.user_attempts_max = task.attempts_max, task.user_attempts_max
        first.beside, first.homes, first.held, first.needs = task.beside, task.homes, task.held, task.needs
        extras = msgpack.unpackb(task.extras) if task.extras else {}
        second = msgpack.packb(extras | {"second": True})
        latencies = self._latencies.setdefault(task.name, Latencies())
        core = Hedge(first, after_us_of(hedge), latencies, second)
        call = HedgedCall(first, core, membership.spawner(), membership.share)
        if task.needs:
            return self._defer(membership, task, call.future, call.start, task.needs, task.deadline_us)
        return _submitted(call.future, call.start)

    def _defer(
        self, membership: Membership, task: Task | None, future: Future, submit: Callable[[], None],
        needs: tuple[Any, ...], deadline_us: int,
    ) -> Future:  # fmt: skip
        """Send a call when the futures among its arguments have their results; it fails as the first of them does."""
        from cloudburst.publishing import Deferred
        from cloudburst.results import Kept

        def fail(why: Kept | CloudburstError) -> None:
            shown = task if task is not None else Task(0, 0, future.name, b"", b"", 0, b"", deadline_us, None)
            shown.done = True
            if isinstance(why, CloudburstError):
                future.settle(shown.failed(why))
            else:
                future.settle(Outcome(shown, why.status, why.flags, why.payload, "in a call whose result was awaited"))

        awaited = [membership.share(one, whole=False) for one in needs]
        deferred = Deferred(deadline_us, submit, fail, future.name)
        future.unsent = deferred.stop
        return _submitted(future, partial(deferred.begin, awaited))

    def spread(self, name: str, iterables: tuple[Any, ...], options: CallOptions) -> Iterator[Any]:
        """`map`, with options."""
        from cloudburst.mapping import ordered

        return ordered(lambda args: self.start(name, args, {}, options), name, iterables)

    def knows(self, name: str, options: CallOptions = NO_OPTIONS) -> bool:
        """Whether a call of this function needs no look-up first."""
        membership = self._membership
        return membership is not None and self._catalog.has(membership, name, options.version)

    def continuation(self, one: Continue) -> bytes:
        """Return what a function that ends with this call answers. Raises what `call` would raise at once."""
        return continuation_of(self._joined(), self._catalog, one)

    def _start_dag(
        self, membership: Membership, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any],
        options: CallOptions, trace: str = "",
    ) -> Future:  # fmt: skip
        from cloudburst.dagcall import DagCall

        assert known.plan is not None
        run = run_of(membership, known, known.plan, args, kwargs, options)
        run.trace = trace
        call = DagCall(run, membership.spawner(), membership.share)
        if run.needs:
            return self._defer(membership, None, call.future, call.start, run.needs, run.deadline_us)
        return _submitted(call.future, call.start)

    def shelf(self) -> Shelf:
        """Return the segments of its node."""
        return self._joined().shelf()

    def results(self) -> Results:
        """Return the results that are kept in the store, for futures of others."""
        from cloudburst.results import Results

        return Results(self._joined().store(system=True))

    def reserved(self) -> Any:
        """Return the store's own client that may use reserved keys, which `scan` and users do not see."""
        return self._joined().store(system=True)

    # -- the node

    def status(self) -> dict[str, Any]:
        """Return what the node is doing: its executors, clients, store and cache, and for how long it has been up."""
        membership = self._joined()
        found: dict[str, Any] = membership.ask("status", {})
        return found | {"reads": membership.reads()}

    def logs(
        self, follow: bool = False, *, invocation: str | None = None, function: str | None = None
    ) -> Iterator[LogLine]:
        """Yield what all nodes' executors have printed, line by line, as far as it is kept (`log_bytes_max` each).

        With `follow` the iterator goes on with each line as it is printed, for ever. `invocation` (the id of a future
        or a context) and `function` choose among the lines. Raises NodeLost when there is no node any more.
        """
        from cloudburst.reading import Reader

        reader = Reader(self._joined(), {"invocation": invocation, "function": function})
        return reader.follow() if follow else reader.present()

    def output(self) -> dict[int, str]:
        """Return the last output of each executor, by slot."""
        tails = self._joined().ask("output", {})
        return {slot: tail.decode(errors="replace") for slot, tail in tails.items()}

    def close(self) -> None:
        """Cancel what is under way and leave the node, which stops with its last user. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            membership, self._membership = self._membership, None
        if self._recorder is not None:
            self._recorder.close()
        if membership is not None:
            membership.close()

    def _after_fork(self) -> None:
        membership, self._membership = self._membership, None
        self._lock = threading.Lock()
        if membership is not None:
            membership.abandon()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()



def _submitted(future: Future, submit: Callable[[], None]) -> Future:
    """Submit a call and return its future; it is stopped when this is interrupted, for nobody has the future then."""
    try:
        submit()
    except CloudburstError:
        raise
    except BaseException:
        future.cancel()
        raise
    return future


def _waited(future: Future) -> Any:
    """Return the result of a call that is waited for here; whatever interrupts the waiting stops the call."""
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C, or a cancelled function; one that is done is not touched
        raise


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
