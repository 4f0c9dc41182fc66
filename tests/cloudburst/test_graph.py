"""Graphs: what is accepted, in which order it is kept, and how what is wrong is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudburst import config
from cloudburst.errors import InvalidDag, ProtocolError, RequestError
from cloudburst.graph import ANY_NUMBER, AnyOf, Arity, Graph, any_of, graph_of
from cloudburst.stages import Stage, place_stages, stages_of

SCORE = {"clean": [], "model": ["clean"], "rules": ["clean"], "join": ["model", "rules"]}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph with one sink: each step follows some of those before it, and the last follows all loose ends."""
    count = draw(st.integers(1, 12))
    nodes: dict[str, list[str] | AnyOf] = {}
    used: set[str] = set()
    for number in range(count):
        earlier = list(nodes)
        before = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=4)) if earlier else []
        used |= set(before)
        nodes[f"s{number}"] = any_of(*before) if before and draw(st.booleans()) else before
    loose = [step for step in nodes if step not in used]
    if len(loose) > 1:
        nodes["sink"] = loose
    shuffled = draw(st.permutations(list(nodes)))
    return graph_of("drawn", {step: nodes[step] for step in shuffled})


def test_steps_follow_their_predecessors_and_keep_the_order_of_arguments() -> None:
    graph = graph_of("score", {"join": ["rules", "model"], **{k: v for k, v in SCORE.items() if k != "join"}})
    assert [step.name for step in graph.steps] == ["clean", "model", "rules", "join"]
    assert [graph.steps[place].name for place in graph.steps[-1].predecessors] == ["rules", "model"]


@given(graphs())
def test_every_step_follows_its_predecessors_and_the_sink_is_the_last(graph: Graph) -> None:
    for place, step in enumerate(graph.steps):
        assert all(before < place for before in step.predecessors)
    followed = {before for step in graph.steps for before in step.predecessors}
    assert followed == set(range(len(graph.steps) - 1))
    assert Graph.unpack(graph.pack()) == graph


def test_a_cycle_is_spelled_out_in_the_direction_of_its_edges() -> None:
    with pytest.raises(InvalidDag, match="has a cycle: b → c → d → b"):
        graph_of("loop", {"a": [], "b": ["a", "d"], "c": ["b"], "d": ["c"], "e": ["d"]})
    with pytest.raises(InvalidDag, match="has a cycle: a → a"):
        graph_of("loop", {"a": ["a"], "b": ["a"]})


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({}, "has no steps"),
        ({"a": ["b"]}, "follows 'b', which is no step of it"),
        ({"a": [], "b": ["a", "a"]}, "names 'a' twice"),
        ({"a": [], "b": ["a"], "c": ["a"]}, "has 2 sinks, 'b', 'c'"),
        ({"a": [], "b": "a"}, "are a list of steps; got 'a'"),
        ({"a": [], "b": any_of()}, "takes any of no steps"),
        ({f"s{n}": [f"s{n - 1}"] if n else [] for n in range(2001)}, "has 2,001 steps; dag_steps_max is 2,000"),
    ],
)
def test_what_is_no_dag_is_refused_with_the_reason(nodes: dict[str, list[str]], words: str) -> None:
    with pytest.raises(InvalidDag, match=words):
        graph_of("bad", nodes)


def test_names_are_checked_like_those_of_functions() -> None:
    with pytest.raises(RequestError, match="cannot name a function"):
        graph_of("bad", {"a@1": []})
    with pytest.raises(InvalidDag, match="step 'c', which dag 'bad' does not have"):
        graph_of("bad", {"a": []}, {"c": "f"})


def test_two_thousand_steps_are_a_dag() -> None:
    middle = [f"s{n}" for n in range(1998)]
    wide = graph_of("wide", {"first": [], **{step: ["first"] for step in middle}, "last": middle})
    assert len(stages_of(wide)) == config.DAG_STEPS_MAX
    chain = graph_of("chain", {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(2000)})
    assert [stage.steps for stage in stages_of(chain)] == [tuple(range(2000))]


def test_a_function_that_takes_fewer_arguments_than_there_are_predecessors_is_refused() -> None:
    graph = graph_of("score", SCORE)
    arities = {"clean": Arity(1, 1), "model": Arity(1, 2), "rules": Arity(0, ANY_NUMBER), "join": Arity(1, 1)}
    with pytest.raises(InvalidDag, match=r"step 'join' of dag 'score' receives 2 results; 'join' takes 1 positional"):
        graph.require_arities(arities.get)
    graph.require_arities({**arities, "join": Arity(2, 3)}.get)
    graph_of("any", {**SCORE, "join": any_of("model", "rules")}).require_arities(arities.get)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ProtocolError):
        Graph.unpack(b"\x93\x01")
    graph = graph_of("score", SCORE)
    first, model, rules, join = graph.steps
    with pytest.raises((ProtocolError, InvalidDag)):
        Graph.unpack(Graph("score", (first, join, model, rules)).pack())


def test_a_chain_is_one_stage_and_branches_are_their_own() -> None:
    stages = stages_of(graph_of("score", {"load": [], **SCORE, "clean": ["load"], "store": ["join"]}))
    assert [stage.steps for stage in stages] == [(0, 1), (2,), (3,), (4, 5)]
    assert stages[0].successors == ((1, 0), (2, 0))
    assert stages[3] == Stage((4, 5), (1, 2), False, (), 2, 3)


@given(graphs())
def test_stages_hold_every_step_once_and_agree_on_their_edges(graph: Graph) -> None:
    stages = stages_of(graph)
    assert sorted(step for stage in stages for step in stage.steps) == list(range(len(graph.steps)))
    assert stages[-1].steps[-1] == len(graph.steps) - 1
    for number, stage in enumerate(stages):
        assert all(one < number for one in stage.inputs)
        for position, before in enumerate(stage.inputs):
            assert (number, position) in stages[before].successors
            assert stages[before].level < stage.level
        for before, after in zip(stage.steps, stage.steps[1:], strict=False):
            assert graph.steps[after].predecessors == (before,)
        assert stage.awaits == (0 if not stage.inputs else 1 if stage.takes_any else len(stage.inputs))
    assert sum(len(stage.successors) for stage in stages) == sum(len(stage.inputs) for stage in stages)


def test_branches_go_to_different_executors_and_a_join_to_one_of_theirs() -> None:
    slots = place_stages(stages_of(graph_of("score", SCORE)), 1, {0: 0, 1: 0, 2: 5})
    assert slots[0] == 1
    assert sorted(slots[1:3]) == [0, 1]
    assert slots[3] in slots[1:3]


def test_steps_that_belong_together_share_an_executor() -> None:
    nodes = {"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}
    stages = stages_of(graph_of("near", nodes, together=[["a", "c"], ["c", "d"]]))
    slots = place_stages(stages, 0, {0: 0, 1: 0, 2: 0})
    assert slots[0] == slots[2] == slots[3] != slots[1]


def test_stages_go_where_their_arguments_are_unless_others_wait_there() -> None:
    stages = stages_of(graph_of("near", {"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}))
    there = frozenset((4, 5))
    idle = dict.fromkeys(range(6), 0)
    slots = place_stages(stages, 0, idle, {0: there, 2: there, 3: there})
    assert {slots[0], slots[2]} == there
    assert slots[3] in there
    assert slots[1] not in there
    assert place_stages(stages, 4, idle, {0: there})[0] == 4
    assert place_stages(stages, 0, idle | {4: 2, 5: 2}, {0: there})[0] in there
    assert place_stages(stages, 0, idle | {4: 3, 5: 3}, {0: there})[0] not in there


@given(graphs(), st.dictionaries(st.integers(0, 5), st.integers(0, 9)))
def test_every_stage_is_placed_where_calls_are_taken(graph: Graph, loads: dict[int, int]) -> None:
    slots = place_stages(stages_of(graph), 7, loads)
    assert len(slots) == len(stages_of(graph))
    assert slots[0] == 7
    assert set(slots) <= {7, *loads}
