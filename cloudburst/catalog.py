"""What a client knows about the functions that it calls, so that a call asks nobody.

The one rule: what is known is used as long as the page of the node says that no function has changed since.
Source: DESIGN §6.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cloudburst import config, context, frames
from cloudburst.calloptions import NO_OPTIONS, CallOptions
from cloudburst.consistency.levels import level_of
from cloudburst.errors import InvalidDag, Overloaded
from cloudburst.graph import Graph
from cloudburst.membership import Membership
from cloudburst.records import FunctionRecord, check_name
from cloudburst.registration import arity_of

if TYPE_CHECKING:
    from cloudburst.dagrun import Plan

BATCHES_UNDER_WAY: Final = 2
"""So many batches of a function are under way at an executor: one that runs, and one that gathers."""


class Known:
    """What a client knows about a function, or a DAG (`plan`): enough to call it without asking anyone."""

    __slots__ = (
        "concurrency", "flags", "function", "homes", "homes_seen", "name_bytes", "options", "plan", "retries", "seen",
        "session", "timeout_us",
    )  # fmt: skip

    def __init__(
        self, record: FunctionRecord, name: str, seen: int, plan: Plan | None, session: str | None = None
    ) -> None:
        self.plan = plan
        self.name_bytes = name.encode()
        self.timeout_us = int((record.options.timeout_s or config.TIMEOUT_S) * 1e6)
        self.retries = record.options.retries
        self.function = record.name
        self.options = record.options
        self.session = session if record.options.session is None else record.options.session
        self.concurrency = record.concurrency()
        self.flags = frames.ASYNC if self.concurrency else frames.BATCH if record.options.batch else 0
        self.homes: frozenset[int] | None = None
        self.homes_seen = -1
        self.seen = seen

    def asked(self, options: CallOptions) -> tuple[int, int | None]:
        """Return (timeout in microseconds, retries) of a call."""
        timeout_us, retries = self.timeout_us, self.retries
        if options is not NO_OPTIONS:
            timeout_us = timeout_us if options.timeout is None else int(options.timeout * 1e6)
            retries = retries if options.retries is None else options.retries
        return timeout_us, retries

    @property
    def under_way(self) -> int:
        """How many calls of it may be under way at one executor; 0: as many as its window holds."""
        return self.concurrency or (BATCHES_UNDER_WAY * self.options.batch if self.options.batch else 0)


class Catalog:
    """The functions that one client has called."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Known] = {}

    def forget(self) -> None:
        """Know nothing any more: the client has gone to another node."""
        self._known = {}

    def has(self, membership: Membership, name: str, version: int) -> bool:
        """Whether a call of this function needs no look-up first."""
        known = self._known.get((name, version))
        return known is not None and known.seen == membership.page.functions_version

    def know(self, membership: Membership, name: str, options: CallOptions) -> Known:
        """Return what is known of a function, asking the store if that may be old. Raises FunctionNotFound."""
        if context.executing is not None:
            context.require_loaded(name)
        known = self._known.get((name, options.version))
        if known is None or known.seen != membership.page.functions_version:
            known = self._learn(membership, name, options.version)
        return known

    def _learn(self, membership: Membership, name: str, version: int) -> Known:
        seen = membership.page.functions_version
        record = membership.record(check_name(name), version)
        plan, session = _plan(membership, Graph.unpack(record.graph)) if record.graph else (None, None)
        known = self._known[name, version] = Known(record, name, seen, plan, session)
        return known

    def homes_for(self, membership: Membership, known: Known, name: str) -> frozenset[int]:
        """Return the executors that may run a function which not all may. Raises Overloaded."""
        homes = self.homes(membership, known)
        if context.executing is not None and homes == {context.executing.number}:
            raise Overloaded(f"only this executor may run {name!r}, and it waits for what would be run")
        return homes

    def homes(self, membership: Membership, known: Known) -> frozenset[int]:
        """Return the executors that may run a function which not all may."""
        seen = membership.page.executors_version
        if known.homes is None or known.homes_seen != seen:
            found = membership.ask("homes", {"name": known.function, "replicas": known.options.replicas})
            known.homes, known.homes_seen = frozenset(found), seen
        return known.homes


def _plan(membership: Membership, graph: Graph) -> tuple[Plan, str | None]:
    """Look up each function of a graph, and the highest session level that one of them has.

    A call uses the versions that are the newest when it begins.
    """
    from cloudburst.dagrun import Plan

    resolved = {step.function: membership.resolve(step.function, 0) for step in graph.steps}
    meant = {name: f"{one.name}.{method}" if method else one.name for name, (one, method) in resolved.items()}
    found = {meant[name]: record for name, (record, _) in resolved.items()}
    graph = replace(graph, steps=tuple(replace(step, function=meant[step.function]) for step in graph.steps))
    for step in graph.steps:
        if found[step.function].options.replicas is not None:
            words = f"{step.function!r} is for a few executors (replicas); steps of a dag run in any"
            raise InvalidDag(f"dag {graph.name!r} cannot have step {step.name!r}: {words}")
    arities = tuple(arity_of(found[step.function], step.function) for step in graph.steps)
    levels = [level_of(record.options.session) for record in found.values() if record.options.session is not None]
    highest = max(levels, key=lambda level: level.number, default=None)
    plan = Plan.of(graph, tuple(found[step.function].version for step in graph.steps), arities)
    return plan, None if highest is None else highest.name
