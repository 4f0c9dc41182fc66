"""`anna router`: newcomers learn the view from a process that holds no keys."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

import anna
from anna.cli import main
from anna.errors import AnnaError
from tests.anna.local.processes import PATIENCE_S, eventually, running, serving

routing = partial(running, "router")


def reaches(address: str) -> bool:
    """Whether a client that knows nothing but `address` can write and read."""
    try:
        with anna.connect(address) as kvs:
            kvs.put("k", "v")
            return bool(kvs.get("k") == "v")
    except AnnaError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_client_reaches_the_cluster_through_a_router_until_a_signal(place: Path, number: signal.Signals) -> None:
    with serving("--dir", f"{place}/c", "--workers", "2") as (_, started):
        at = started["workers"][0][0]
        with routing("--join", at, "--listen", "tcp://127.0.0.1:0", "--listen", f"unix:{place}/r") as (router, told):
            tcp, unix = told["addresses"]
            for address in (tcp, unix):
                eventually(lambda address=address: reaches(address), "the router knows the cluster")  # type: ignore[misc]
            with anna.connect(tcp) as kvs:
                assert len(kvs.view.workers) == 2
            router.send_signal(number)
            assert router.wait(PATIENCE_S) == 0
    assert not (place / "r").exists()


def test_a_restarted_router_learns_the_view_at_start(place: Path) -> None:
    """D31: a router that was started again knew nobody until somebody joined."""
    with serving("--dir", f"{place}/c", "--workers", "2") as (_, started):
        join = ("--join", f"unix:{place}/nobody", "--join", started["workers"][1][0])
        for _ in range(2):
            with routing(*join, "--listen", f"unix:{place}/r") as (router, told):
                eventually(lambda told=told: reaches(told["addresses"][0]), "the router knows the cluster")  # type: ignore[misc]
                router.kill()
                router.wait(PATIENCE_S)


def test_a_router_learns_of_a_node_that_joins_and_one_that_leaves(place: Path) -> None:
    with serving("--dir", f"{place}/c", "--workers", "1", "--listen", "tcp://127.0.0.1:0") as (_, started):
        seed = started["workers"][0][1]
        with routing("--join", seed, "--listen", f"unix:{place}/r") as (_, told):

            def workers() -> int:
                with anna.connect(told["addresses"][0]) as kvs:
                    return len(kvs.view.workers)

            eventually(lambda: reaches(told["addresses"][0]), "the router knows the cluster")
            assert workers() == 1
            with serving(
                "--dir", f"{place}/d", "--workers", "1", "--listen", "tcp://127.0.0.1:0", "--join", seed
            ) as (joined, _):
                eventually(lambda: workers() == 2, "the router knows the second node")
                joined.terminate()
                assert joined.wait(PATIENCE_S) == 0
            eventually(lambda: workers() == 1, "the router knows that the second node has left")


def test_a_router_whose_cluster_is_away_says_so_and_does_not_hang(place: Path) -> None:
    """D25: a start without a seed that answers blocked for ever."""
    with routing("--join", f"unix:{place}/nobody", "--listen", f"unix:{place}/r") as (router, told):
        with pytest.raises(AnnaError, match="has not learnt the view yet"):
            anna.connect(told["addresses"][0], timeout=0.5)
        router.terminate()
        assert router.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("--join", "tcp://127.0.0.1:1", "--listen", "tcp://192.0.2.1:0"), 2, "can be reached from other machines"),
        (("--join", "tcp://127.0.0.1:1", "--listen", "tcp://0.0.0.0:0", "--insecure"), 2, "name the interface"),
        (("--join", "nowhere", "--listen", "tcp://127.0.0.1:0"), 2, "neither unix:PATH nor tcp://HOST:PORT"),
        (("--join", "tcp://127.0.0.1:1"), 2, "--listen"),
        (("--listen", "tcp://127.0.0.1:0"), 2, "--join"),
    ],
)
def test_what_a_router_cannot_do_is_refused_before_it_starts(
    words: tuple[str, ...], code: int, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """D42, D43: options are checked, and what is wrong is one line."""
    try:
        ended = main(("router", *words))
    except SystemExit as usage:
        ended = int(str(usage.code))
    out, errors = capfd.readouterr()
    assert (ended, out) == (code, "")
    assert complaint in errors
