"""A graph of functions: each receives what its predecessors returned, and the last one's result is the answer.

A pure core: what a user writes in, a checked graph out, or `InvalidDag` with what is wrong spelled out. A step is a
place in the graph and has a name of its own; which function runs there is its own name, unless said otherwise, so the
same function may stand in several places. Steps are kept in one order in which every step follows its predecessors,
the same for the same graph, and predecessors in the order in which they were written: that is the order of arguments.
Source: DESIGN §6; D48 (an edge to nowhere killed the scheduler), D58 (arguments came in the order of arrival).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from cloudburst import config
from cloudburst.errors import InvalidDag, ProtocolError
from cloudburst.records import check_name

ANY_NUMBER: Final = -1
"""`Arity.most` of a function that takes any number of positional arguments."""


class AnyOf(tuple[str, ...]):
    """Predecessors of which the first result is enough; the others are then cancelled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"any_of({', '.join(map(repr, self))})"


def any_of(*steps: str) -> AnyOf:
    """Return predecessors of which a step needs only one: it receives the result that is there first.

    >>> any_of("near", "far")
    any_of('near', 'far')
    """
    return AnyOf(steps)


@dataclass(frozen=True, slots=True)
class Arity:
    """How many positional arguments a function must and may be given; `most` is ANY_NUMBER for `*args`."""

    least: int
    most: int

    def refuses(self, positional: int, named: int = 0) -> bool:
        """Whether so many positional arguments, beside so many by name, are surely too few or too many."""
        return positional + named < self.least or (self.most != ANY_NUMBER and positional > self.most)

    def __str__(self) -> str:
        if self.most == ANY_NUMBER:
            return f"at least {self.least}"
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True, slots=True)
class Step:
    """One place in a graph. `predecessors` are places in `Graph.steps`, in the order of arguments."""

    name: str
    function: str
    predecessors: tuple[int, ...]
    takes_any: bool = False

    @property
    def inputs(self) -> int:
        """How many arguments it receives from its predecessors."""
        return 1 if self.takes_any else len(self.predecessors)


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked graph: `steps` follow their predecessors, and the last is the one sink.

    `together` are groups of steps, by place, that should run in the same executor.
    """

    name: str
    steps: tuple[Step, ...]
    together: tuple[tuple[int, ...], ...] = ()

    def place(self, step: str) -> int:
        """Return where a step is. Raises InvalidDag."""
        for place, known in enumerate(self.steps):
            if known.name == step:
                return place
        raise InvalidDag(f"dag {self.name!r} has no step {step!r}; it has {_listed(one.name for one in self.steps)}")

    def require_arities(self, arity_of: Callable[[str], Arity | None]) -> None:
        """Raise InvalidDag when a function cannot take as many arguments as its step has predecessors."""
        for step in self.steps:
            arity = arity_of(step.function)
            if arity is not None and arity.most != ANY_NUMBER and step.inputs > arity.most:
                raise InvalidDag(
                    f"step {step.name!r} of dag {self.name!r} receives {step.inputs} results;"
                    f" {step.function!r} takes {arity} positional arguments"
                )

    def pack(self) -> bytes:
        """Return the graph as bytes."""
        steps = [[step.name, step.function, step.predecessors, step.takes_any] for step in self.steps]
        return bytes(msgpack.packb([self.name, steps, self.together]))

    @classmethod
    def unpack(cls, data: bytes) -> Graph:
        """Return the graph that `pack` wrote, checked again. Raises ProtocolError, InvalidDag."""
        try:
            name, plain, together = msgpack.unpackb(data)
            steps = tuple(Step(step, function, tuple(before), any_) for step, function, before, any_ in plain)
            names = [step.name for step in steps]
            nodes: dict[str, Sequence[str]] = {}
            for step in steps:
                before = [names[place] for place in step.predecessors]
                nodes[step.name] = AnyOf(before) if step.takes_any else before
            functions = {step.name: step.function for step in steps}
            groups = [[names[place] for place in group] for group in together]
        except (TypeError, ValueError, IndexError) as fault:
            raise ProtocolError(f"{len(data)} bytes are not a graph: {fault}") from None
        graph = graph_of(name, nodes, functions, groups)
        if graph.steps != steps:
            raise ProtocolError(f"the steps of dag {name!r} are out of order, or one is there twice")
        return graph

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            before = (" | " if step.takes_any else ", ").join(self.steps[place].name for place in step.predecessors)
            function = f" ({step.function})" if step.function != step.name else ""
            lines.append(f"{before} → {step.name}{function}" if before else f"{step.name}{function}")
        return "\n".join(lines)


def graph_of(
    name: str,
    nodes: Mapping[str, Sequence[str]],
    functions: Mapping[str, str] | None = None,
    together: Iterable[Sequence[str]] = (),
) -> Graph:
    """Return the graph that a user wrote: step to predecessors. Raises InvalidDag, which spells out what is wrong.

    `functions` says which function runs at a step that is not named after it.
    """
    check_name(name)
    _check_nodes(name, nodes)
    functions = dict(functions or {})
    for step in functions:
        if step not in nodes:
            raise InvalidDag(f"a function is named for step {step!r}, which dag {name!r} does not have")
    order = _order(name, nodes)
    place = {step: at for at, step in enumerate(order)}
    steps = tuple(
        Step(
            step,
            check_name(functions.get(step, step)),
            tuple(place[before] for before in nodes[step]),
            isinstance(nodes[step], AnyOf),
        )
        for step in order
    )
    return Graph(name, steps, _groups(name, together, place))


def _check_nodes(name: str, nodes: Mapping[str, Sequence[str]]) -> None:
    if not nodes:
        raise InvalidDag(f"dag {name!r} has no steps")
    if len(nodes) > config.DAG_STEPS_MAX:
        raise InvalidDag(f"dag {name!r} has {len(nodes):,} steps; dag_steps_max is {config.DAG_STEPS_MAX:,}")
    for step, before in nodes.items():
        check_name(step)
        if isinstance(before, (str, bytes)) or not isinstance(before, Sequence):
            raise InvalidDag(f"the predecessors of step {step!r} are a list of steps; got {before!r}")
        for one in before:
            if one not in nodes:
                raise InvalidDag(f"step {step!r} of dag {name!r} follows {one!r}, which is no step of it")
        twice = sorted({one for one in before if list(before).count(one) > 1})
        if twice:
            raise InvalidDag(f"step {step!r} of dag {name!r} names {_listed(twice)} twice among its predecessors")
        if isinstance(before, AnyOf) and not before:
            raise InvalidDag(f"step {step!r} of dag {name!r} takes any of no steps at all")


def _order(name: str, nodes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the steps so that each follows its predecessors, else as they were written; the one sink is the last."""
    successors: dict[str, list[str]] = {step: [] for step in nodes}
    for step, before in nodes.items():
        for one in before:
            successors[one].append(step)
    missing = {step: len(before) for step, before in nodes.items()}
    ready = [step for step in nodes if not missing[step]]
    order: list[str] = []
    while ready:
        order += ready
        following: list[str] = []
        for step in ready:
            for one in successors[step]:
                missing[one] -= 1
                if not missing[one]:
                    following.append(one)
        ready = following
    if len(order) < len(nodes):
        raise InvalidDag(f"dag {name!r} has a cycle: {_cycle(nodes, [step for step in nodes if missing[step]])}")
    sinks = [step for step in order if not successors[step]]
    if len(sinks) > 1:
        raise InvalidDag(f"dag {name!r} has {len(sinks)} sinks, {_listed(sinks)}; one step must be the last of all")
    return order


def _cycle(nodes: Mapping[str, Sequence[str]], left: list[str]) -> str:
    """Return one cycle among the steps that are left, spelled out in the direction of the edges."""
    among = set(left)
    path = [left[0]]
    while True:
        before = next(one for one in nodes[path[-1]] if one in among)
        if before in path:
            return " → ".join([before, *reversed(path[path.index(before) :])])
        path.append(before)


def _groups(
    name: str, together: Iterable[Sequence[str]], place: Mapping[str, int]
) -> tuple[tuple[int, ...], ...]:
    groups = []
    for group in together:
        for step in group:
            if step not in place:
                raise InvalidDag(f"{step!r} is to run together with others, and is no step of dag {name!r}")
        groups.append(tuple(place[step] for step in group))
    return tuple(groups)


def _listed(names: Iterable[Any], most: int = 8) -> str:
    """Return names for a message, not too many of them."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted) if len(quoted) <= most else f"{', '.join(quoted[:most])} and {len(quoted) - most:,} more"
