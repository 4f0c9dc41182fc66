"""How a graph is carried out: in stages, each of which is one call to one executor.

A pure core. A chain of steps in which nobody else takes part is one stage, run in one executor without a message in
between, so a pipeline of functions costs one call. Stages that have several predecessors, or follow one that has
several successors, wait in an executor that was chosen beforehand until the executors of their predecessors have sent
what they need: whoever finishes knows where the next ones are. Source: DESIGN §6; decision record 0019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloudburst.graph import Graph


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that run one after the other in one executor.

    `inputs` are the stages whose results the first step receives, in the order of arguments; `successors` are
    (stage, position among its inputs); `level` is how many stages are before it on the longest way;
    `group` is equal for stages that should share an executor, and differs for all others.
    """

    steps: tuple[int, ...]
    inputs: tuple[int, ...]
    takes_any: bool
    successors: tuple[tuple[int, int], ...]
    level: int
    group: int

    @property
    def awaits(self) -> int:
        """How many results must be there before it can begin."""
        return 1 if self.takes_any else len(self.inputs)


def stages_of(graph: Graph) -> tuple[Stage, ...]:
    """Return the stages of a graph, each after its inputs; the last one ends with the sink."""
    successors: list[list[int]] = [[] for _ in graph.steps]
    for place, step in enumerate(graph.steps):
        for before in step.predecessors:
            successors[before].append(place)
    chains: list[list[int]] = []
    stage_of: dict[int, int] = {}
    for place, step in enumerate(graph.steps):
        before = step.predecessors[0] if len(step.predecessors) == 1 else -1
        if before >= 0 and len(successors[before]) == 1:
            stage_of[place] = stage_of[before]
            chains[stage_of[before]].append(place)
        else:
            stage_of[place] = len(chains)
            chains.append([place])
    chains, stage_of = _in_order(chains)
    groups = _groups(graph, stage_of, len(chains))
    levels: list[int] = []
    stages = []
    for number, chain in enumerate(chains):
        first, last = graph.steps[chain[0]], chain[-1]
        inputs = tuple(stage_of[before] for before in first.predecessors)
        levels.append(1 + max((levels[one] for one in inputs), default=-1))
        outputs = tuple((stage_of[next_], graph.steps[next_].predecessors.index(last)) for next_ in successors[last])
        takes_any = first.takes_any and len(inputs) > 1
        stages.append(Stage(tuple(chain), inputs, takes_any, outputs, levels[-1], groups[number]))
    return tuple(stages)


def _in_order(chains: list[list[int]]) -> tuple[list[list[int]], dict[int, int]]:
    """Return the chains by their last steps, so that each follows those that it needs, and the chain of each step."""
    chains = sorted(chains, key=lambda chain: chain[-1])
    return chains, {place: number for number, chain in enumerate(chains) for place in chain}


def _groups(graph: Graph, stage_of: Mapping[int, int], count: int) -> list[int]:
    group = list(range(count))
    for together in graph.together:
        numbers = {group[stage_of[place]] for place in together}
        group = [min(numbers) if one in numbers else one for one in group]
    return group


AWAY_CALLS: Final = 2
"""A call goes where its arguments are as long as no more calls than this are before it there than elsewhere."""
NONE_WANTED: Final[Mapping[int, frozenset[int]]] = {}


def place_stages(
    stages: tuple[Stage, ...], first: int, loads: Mapping[int, int], wanted: Mapping[int, frozenset[int]] = NONE_WANTED
) -> list[int]:
    """Return the executor of each stage: `first` for the first one, and for the others where least is before them.

    `loads` says how many calls each executor has before it. Only stages of the same level can run at the same time, so
    only they avoid each other; the executor of a predecessor is preferred, since the result is there already.
    `wanted` are the executors near what a stage's arguments refer to: it runs there, the first one, too, unless more
    than AWAY_CALLS calls are before it there than elsewhere.
    """
    slots: list[int] = []
    of_group: dict[int, int] = {}
    busy: dict[tuple[int, int], int] = {}
    for number, stage in enumerate(stages):
        slot = of_group.get(stage.group, -1)
        better = wanted.get(number, frozenset())
        if number == 0 and (not better or first in better):
            slot = first
        elif slot < 0:
            near = {slots[one] for one in stage.inputs}
            slot = min(
                loads or (first,),
                key=lambda one: (
                    # what is under way now will be over when a later stage begins
                    (loads.get(one, 0) if stage.level == 0 else 0)
                    + busy.get((stage.level, one), 0)
                    + (AWAY_CALLS if better and one not in better else 0),
                    bool(better) and one not in better,
                    one not in near,
                    loads.get(one, 0),
                    one,
                ),
            )
        of_group.setdefault(stage.group, slot)
        busy[stage.level, slot] = busy.get((stage.level, slot), 0) + 1
        slots.append(slot)
    return slots
