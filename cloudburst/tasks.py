"""From a call's arguments to what is sent: a task, the run of a DAG, or the words that a function ends with.

The one rule: what is wrong with a call is said here, before anything is sent. Source: DESIGN §6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack

from cloudburst import context, frames
from cloudburst.attempts import Task
from cloudburst.calloptions import NO_OPTIONS, CallOptions
from cloudburst.catalog import Catalog, Known
from cloudburst.errors import RequestError
from cloudburst.membership import Membership
from cloudburst.page import monotonic_us
from cloudburst.pickling import dumps_arguments, dumps_inline

if TYPE_CHECKING:
    from cloudburst.continuing import Continue
    from cloudburst.dagrun import DagRun, Plan


def task_of(
    membership: Membership, catalog: Catalog, known: Known, name: str, args: tuple[Any, ...], kwargs: dict[str, Any],
    options: CallOptions,
) -> Task:  # fmt: skip
    """Return the task that is a call of a function, or of a DAG of one stage. Raises what `call` raises at once."""
    if known.plan is not None:
        return run_of(membership, known, known.plan, args, kwargs, options).alone()
    flags, payload, extras, held = known.flags | frames.EMPTY, b"", b"", None
    needs: tuple[Any, ...] = ()
    refs: list[str | bytes] = []
    if args or kwargs:
        data, collected = dumps_arguments(name, args, kwargs)
        flags = known.flags
        if isinstance(data, bytes):
            payload = data
        else:
            held = membership.hold(data)
            payload, flags = held.descriptor, flags | frames.SHARED
        refs = collected.keys
        if refs:
            extras = msgpack.packb({"refs": refs})
            needs = tuple(collected.futures.values())
    timeout_us, retries = known.asked(options)
    if options.key is not None or options.id is not None:
        asked = {name: value for name, value in (("key", options.key), ("id", options.id)) if value is not None}
        extras = msgpack.packb({**(msgpack.unpackb(extras) if extras else {}), **asked})
    task = Task(
        membership.client, next(membership.numbers), name, known.name_bytes, payload, flags, extras,
        monotonic_us() + timeout_us, retries, options.version,
    )  # fmt: skip
    task.needs, task.held = needs, held
    if options.session is not None or known.session is not None or context.session() is not None:
        _join(task, membership, known, options)
    if refs:
        task.near = membership.near(refs)
    if known.flags:
        task.beside = known.under_way
        if options.id is not None and known.options.batch:
            raise RequestError(f"{name!r} takes batches; a call of it has no id")
    if known.options.replicas is not None:
        task.homes = catalog.homes_for(membership, known, name)
    return task


def _join(task: Task, membership: Membership, known: Known, options: CallOptions) -> None:
    """Have a call run in a session, if it is in one."""
    from cloudburst.sessions import joined_by

    session = joined_by(membership, known, options)
    if session is not None:
        session.identify(task.high, task.low)
        extras = msgpack.unpackb(task.extras) if task.extras else {}
        task.extras = msgpack.packb(extras | {"session": session.context()})
        task.session, task.flags = session, task.flags & ~frames.BATCH


def continuation_of(membership: Membership, catalog: Catalog, one: Continue) -> bytes:
    """Return what a function that ends with this call answers. Raises what `call` would raise at once."""
    known = catalog.know(membership, one.name, NO_OPTIONS)
    if known.plan is not None:
        raise RequestError(f"{one.name!r} is a dag; a call is continued with a function")
    payload, collected = dumps_inline(one.name, one.args, one.kwargs)
    for future in collected.futures.values():
        membership.share(future)
    homes = None if known.options.replicas is None else sorted(catalog.homes(membership, known))
    flags = known.flags if one.args or one.kwargs else known.flags | frames.EMPTY
    return frames.pack_continuation(
        one.name, flags, known.under_way, homes, collected.keys, b"" if flags & frames.EMPTY else payload
    )


def run_of(
    membership: Membership, known: Known, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any],
    options: CallOptions,
) -> DagRun:  # fmt: skip
    """Return what a call of a DAG is carried out by. Raises what `call` raises at once."""
    from cloudburst.dagrun import DagRun, Own

    steps = plan.graph.steps
    given = plan.arguments(args, kwargs)
    owns = {}
    for place, own in given.items():
        data, collected = dumps_arguments(steps[place].name, own, {})
        refs, needs = collected.keys, tuple(collected.futures.values())
        if isinstance(data, bytes):
            owns[place] = Own(data, refs, needs)
        elif membership.must_send(data.size_bytes):
            owns[place] = Own(b"".join(data.pieces()), refs, needs, frames.SHARED)
        else:
            held = membership.hold(data)
            owns[place] = Own(held.descriptor, refs, needs, frames.SHARED, held)
    if options.id is not None or options.hedge is not None:
        what = "an id" if options.id is not None else "a hedge"
        raise RequestError(f"{plan.graph.name!r} is a dag; {what} is for a function")
    timeout_us, retries = known.asked(options)
    deadline_us = monotonic_us() + timeout_us
    run = DagRun(plan, membership.client, membership.numbers, owns, deadline_us, retries, options.key)
    if options.session is not None or known.session is not None or context.session() is not None:
        from cloudburst.sessions import joined_by

        begins = sum(not stage.inputs for stage in plan.stages)
        run.session = joined_by(membership, known, options, apart=begins > 1)
        if run.session is not None:
            run.session.identify(run.high, run.low)
    for number, stage in enumerate(plan.stages):
        referred = [key for place in stage.steps if place in owns for key in owns[place].refs]
        node = membership.near(referred) if referred else 0
        if node:
            run.nears[number] = node
    return run
