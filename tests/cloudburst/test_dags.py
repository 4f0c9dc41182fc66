"""DAGs on a real node: values and their order, failures from any place, and what is cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cloudburst as cb
from tests.cloudburst.conftest import Post, every_executor_held, release
from tests.cloudburst.samples import append_to, hold, hold_until_told, tell

SCORE = {"clean": [], "model": ["clean"], "rules": ["clean"], "join": ["model", "rules"]}
FORK = {"start": [], "left": ["start"], "right": ["start"], "end": ["left", "right"]}


def register(client: cb.Client, **functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        client.register(function, name=name)


@pytest.fixture
def score(client: cb.Client) -> cb.Client:
    """A client with the DAG of the first page, whose functions say what they received."""
    register(
        client,
        clean=lambda text: text.strip(),
        model=lambda text: ["model", text],
        rules=lambda text, level: ["rules", text, level],
        join=lambda model, rules: (model, rules),
    )
    client.dag("score", SCORE)
    return client


def test_results_go_along_the_edges_in_their_order_and_lists_stay_lists(score: cb.Client) -> None:
    """D47: a list is one value, an empty one too. D58: arguments come in the order of the edges, not of arrival."""
    for _ in range(20):
        found = score.call("score", {"clean": (" x ",), "rules": ("strict",)})
        assert found == (["model", "x"], ["rules", "x", "strict"])
    register(score, nil=lambda: [*()], count=lambda a, b: (a, b))
    score.dag("lists", {"a": [], "b": [], "count": ["a", "b"]}, functions={"a": "nil", "b": "nil"})
    assert score.call("lists") == ([], [])


def test_a_chain_is_one_call_in_one_executor(client: cb.Client) -> None:
    register(client, first=lambda x: [x, os.getpid()], second=lambda pair, more: [*pair, os.getpid(), more])
    client.dag("chain", {"first": [], "second": ["first"]})
    x, one, two, more = client.call("chain", {"first": (3,), "second": ("more",)})
    assert (x, more) == (3, "more")
    assert one == two


def test_branches_run_at_the_same_time_in_different_executors(client: cb.Client, post: Post, directory: Path) -> None:
    def branch(_: None, address: str, own: str) -> tuple[str, int]:
        return hold_until_told(address, own), os.getpid()

    register(client, start=lambda: None, branch=branch, pair=lambda *both: both)
    client.dag("fork", FORK, functions={"left": "branch", "right": "branch", "end": "pair"})
    own = {step: str(directory / step) for step in ("left", "right")}
    future = client.spawn("fork", {step: (post.address, path) for step, path in own.items()})
    assert len({post.wait()[1] for _ in own}) == 2  # both have begun, in two processes, and neither has ended
    for step, path in own.items():
        release(path, step)
    (left, one), (right, two) = future.result(timeout=20)
    assert (left, right) == ("left", "right")
    assert one != two


def test_none_and_large_values_travel_like_any_other(client: cb.Client) -> None:
    register(client, make=lambda n: bytes(n) + b"", none=lambda _: None, same=lambda x: x)
    register(client, both=lambda a, b: (a, len(b)))
    client.dag("values", {"make": [], "none": ["make"], "same": ["make"], "both": ["none", "same"]})
    for size in (0, 1, 10_000_000):
        assert client.call("values", {"make": (size,)}) == (None, size)


def test_many_calls_of_a_dag_at_once_each_get_their_own_result(score: cb.Client) -> None:
    futures = [score.spawn("score", {"clean": (f" {n} ",), "rules": (n,)}) for n in range(500)]
    for n, future in enumerate(futures):
        assert future.result(timeout=60) == (["model", str(n)], ["rules", str(n), n])
    mapped = score.map("score", [{"clean": (str(n),), "rules": (n,)} for n in range(20)])
    assert [found[1][2] for found in mapped] == list(range(20))


def test_refs_are_resolved_where_a_step_runs_and_the_result_can_be_stored(score: cb.Client) -> None:
    score.put("dag-text", " stored ")
    found = score.options(key="dag-result").call("score", {"clean": (cb.Ref("dag-text"),), "rules": (1,)})
    assert found == score.get("dag-result") == (["model", "stored"], ["rules", "stored", 1])


def test_wide_and_long_dags_of_two_thousand_steps_work(client: cb.Client) -> None:
    register(client, one=lambda *_: 1, total=lambda *all_: sum(all_), plus=lambda x=0: x + 1)
    wide = {"first": [], **{f"s{n}": ["first"] for n in range(1998)}, "total": [f"s{n}" for n in range(1998)]}
    client.dag("wide", wide, functions=dict.fromkeys([*wide][:-1], "one"))
    assert client.call("wide") == 1998
    long = {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(2000)}
    client.dag("long", long, functions=dict.fromkeys(long, "plus"))
    assert client.call("long") == 2000


@pytest.mark.parametrize("at", ["clean", "model", "join"])
def test_an_exception_at_any_step_reaches_the_caller_and_names_its_function(score: cb.Client, at: str) -> None:
    """D44: the caller of a DAG that failed waited for ever, and its executor was gone."""

    def fail(*_: object) -> None:
        raise ValueError("bad", 7)

    register(score, broken=fail)
    score.dag("failing", SCORE, functions={at: "broken"})
    pids = {row["pid"] for row in score.status()["executors"]}
    with pytest.raises(ValueError) as caught:
        score.call("failing", {"clean": (" x ",)[: at != "clean"], "rules": (1,)})
    assert isinstance(caught.value, cb.FunctionError)
    assert caught.value.args == ("bad", 7)
    assert caught.value.function == "broken"
    assert caught.value.attempts == 1
    assert "as a step of dag 'failing'" in caught.value.__cause__.__notes__[0]
    assert pids == {row["pid"] for row in score.status()["executors"]}


def test_a_failing_step_of_a_chain_is_named(client: cb.Client) -> None:
    register(client, fine=lambda: 1, broken=lambda x: x / 0)
    client.dag("failing-chain", {"fine": [], "broken": ["fine"]})
    with pytest.raises(ZeroDivisionError) as caught:
        client.call("failing-chain")
    assert isinstance(caught.value, cb.FunctionError)
    assert caught.value.function == "broken"


def test_a_failure_cancels_the_other_branches(client: cb.Client, post: Post, directory: Path) -> None:
    def fail_when_told(_: None, address: str, own: str) -> None:
        raise ValueError(hold_until_told(address, own))

    register(client, start=lambda: None, slow=lambda _, to: hold(to), fail_when_told=fail_when_told, end=lambda *_: 1)
    steps = {"start": [], "slow": ["start"], "fail_when_told": ["start"], "end": ["slow", "fail_when_told"]}
    client.dag("racing", steps)
    own = str(directory / "own")
    future = client.spawn("racing", {"slow": (post.address,), "fail_when_told": (post.address, own)})
    assert [post.wait()[0] for _ in range(2)] == ["begun", "begun"]
    release(own, "now")
    with pytest.raises(ValueError, match="now"):
        future.result(timeout=20)
    assert post.wait()[0] == "stopped"


def test_any_of_takes_the_first_result_and_cancels_the_others(client: cb.Client, post: Post, directory: Path) -> None:
    register(client, near=hold_until_told, far=lambda to: hold(to), take=lambda winner, word: (winner, word))
    client.dag("race", {"far": [], "near": [], "take": cb.any_of("far", "near")})
    own = str(directory / "own")
    future = client.spawn("race", {"far": (post.address,), "near": (post.address, own), "take": ("won",)})
    assert [post.wait()[0] for _ in range(2)] == ["begun", "begun"]
    release(own, "near")
    assert future.result(timeout=20) == ("near", "won")
    assert post.wait()[0] == "stopped"


def test_any_of_bears_a_failure_while_another_may_still_succeed(client: cb.Client) -> None:
    def fail() -> None:
        raise ValueError("bad")

    register(client, bad=fail, good=lambda: 7, take=lambda winner: winner)
    client.dag("bearing", {"bad": [], "good": [], "take": cb.any_of("bad", "good")})
    for _ in range(10):
        assert client.call("bearing") == 7
    client.dag("hopeless", {"a": [], "b": [], "take": cb.any_of("a", "b")}, functions={"a": "bad", "b": "bad"})
    with pytest.raises(ValueError, match="bad"):
        client.call("hopeless")


def test_a_killed_executor_costs_an_attempt_and_no_more(client: cb.Client, post: Post, directory: Path) -> None:
    """D45: lost triggers were never sent again, and nothing had a deadline."""

    def once(_: None, address: str, path: str) -> int:
        count = append_to(path, "ran")
        if count == 1:
            tell(address, "begun")
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    register(client, start=lambda: None, once=once, other=lambda _: "other", end=lambda a, b: (a, b))
    client.dag("mortal", {"start": [], "once": ["start"], "other": ["start"], "end": ["once", "other"]})
    future = client.spawn("mortal", {"once": (post.address, str(directory / "runs"))})
    assert future.result(timeout=30) == (2, "other")
    assert future.attempts == 2


def test_a_dag_that_is_too_late_ends_by_its_deadline_and_stops_what_runs(client: cb.Client, post: Post) -> None:
    register(client, start=lambda address: hold(address), left=lambda x: x, right=lambda x: x, end=lambda a, b: 1)
    client.dag("late", FORK)
    with pytest.raises(cb.FunctionTimeout):
        client.options(timeout=0.3).call("late", {"start": (post.address,)})
    assert [post.wait()[0] for _ in range(2)] == ["begun", "stopped"]
    assert client.call("square", 3) == 9


def test_cancelling_the_future_stops_every_step(client: cb.Client, post: Post) -> None:
    register(client, start=lambda: None, left=lambda _, to: hold(to), right=lambda _, to: hold(to), end=lambda a, b: 1)
    client.dag("cancelled", FORK)
    future = client.spawn("cancelled", {"left": (post.address,), "right": (post.address,)})
    assert [post.wait()[0] for _ in range(2)] == ["begun", "begun"]
    assert future.cancel()
    assert [post.wait()[0] for _ in range(2)] == ["stopped", "stopped"]
    with pytest.raises(cb.Cancelled):
        future.result()


def test_a_dag_waits_for_executors_that_are_busy(score: cb.Client, post: Post) -> None:
    with every_executor_held(score, post):
        future = score.spawn("score", {"clean": (" x ",), "rules": (1,)})
        assert not future.done()
    assert future.result(timeout=20)[0] == ["model", "x"]


def test_dags_are_called_from_inside_functions_without_deadlock(score: cb.Client) -> None:
    def outer(depth: int) -> int:
        if depth:
            return int(cb.call("nest", {"outer": (depth - 1,)}))
        return len(cb.call("score", {"clean": ("y",), "rules": (1,)}))

    register(score, outer=outer, same=lambda x: x, both=lambda a, b: a + b)
    score.dag("nest", {"outer": [], "left": ["outer"], "right": ["outer"], "both": ["left", "right"]},
              functions={"left": "same", "right": "same"})  # fmt: skip
    futures = [score.spawn("nest", {"outer": (3,)}) for _ in range(8)]
    assert [future.result(timeout=60) for future in futures] == [32] * 8


def test_what_its_functions_print_is_in_the_logs(client: cb.Client) -> None:
    register(client, start=lambda: print("one"), left=lambda _: print("two"), right=lambda _: None, end=lambda a, b: 1)
    client.dag("talking", FORK)
    for _ in range(200):  # the last result may overtake what another step has printed, and `logs` waits for that
        future = client.spawn("talking")
        assert future.result(timeout=20) == 1
        assert sorted(future.logs().split()) == ["one", "two"]


def test_a_new_version_of_a_function_is_used_by_the_next_call(client: cb.Client) -> None:
    register(client, start=lambda: 1, left=lambda x: x, right=lambda x: x, end=lambda a, b: a + b)
    client.dag("versions", FORK)
    assert client.call("versions") == 2
    register(client, start=lambda: 10)
    assert client.call("versions") == 20


def test_what_is_wrong_is_said_at_registration_and_nothing_is_stored(score: cb.Client) -> None:
    with pytest.raises(cb.InvalidDag, match="cycle: model → rules → model"):
        score.dag("wrong", {"clean": [], "model": ["clean", "rules"], "rules": ["model"], "join": ["rules"]})
    with pytest.raises(cb.FunctionNotFound, match="'claen'; did you mean 'clean'"):
        score.dag("wrong", {"claen": []})
    with pytest.raises(cb.InvalidDag, match=r"step 'clean' of dag 'wrong' receives 2 results; 'clean' takes 1"):
        score.dag("wrong", {"model": [], "rules": [], "clean": ["model", "rules"]})
    with pytest.raises(cb.InvalidDag, match="is itself a dag"):
        score.dag("wrong", {"score": []})
    assert "wrong" not in {record["name"] for record in score.functions()}
    with pytest.raises(cb.FunctionNotFound):
        score.call("wrong")


def test_arguments_that_do_not_fit_are_said_before_anything_runs(score: cb.Client) -> None:
    with pytest.raises(cb.InvalidDag, match=r"'rules' of dag 'score' would get 1 results and 0 arguments; .* takes 2"):
        score.call("score", {"clean": ("x",)})
    with pytest.raises(cb.InvalidDag, match="has no step 'cleen'"):
        score.call("score", {"cleen": ("x",)})
    with pytest.raises(cb.InvalidDag, match=r"a tuple, such as \(x,\)"):
        score.call("score", {"clean": "x"})
    with pytest.raises(cb.InvalidDag, match="one dictionary"):
        score.call("score", "x")


def test_a_deleted_function_is_missed_by_name_and_the_node_lives_on(client: cb.Client) -> None:
    """D48: the call of a DAG whose function had been deleted ended the scheduler."""
    register(client, start=lambda: 1, left=lambda x: x, right=lambda x: x, end=lambda a, b: a + b)
    client.dag("orphan", FORK)
    client.delete("left")
    with pytest.raises(cb.FunctionNotFound, match="'left'"):
        client.call("orphan")
    assert client.call("square", 2) == 4
    client.delete("orphan")
    with pytest.raises(cb.FunctionNotFound, match="'orphan'"):
        client.call("orphan")
