"""A change of a key's copies that reached a worker is not called definitely failed, whatever becomes of asking others.

It may be asked for twice, so the client goes on to the next owner; what it asked of the first may arrive all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

from anna import Client
from anna.errors import RequestTimeout
from anna.messages import NodeInfo, View, WorkerInfo
from tests.anna import frames
from tests.anna.scripted import PATIENCE_S, ScriptedWorker, scripted_workers

TIMEOUT_S = 1.0


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[ScriptedWorker]]:
    """Two workers on two nodes, which both own every key, one of them first."""
    with scripted_workers(tmp_path, 2) as two:
        nodes = (NodeInfo(n, (WorkerInfo(100 * n, (worker.address,), 0),)) for n, worker in enumerate(two, 1))
        view = View(1, tuple(nodes), 2)
        for worker in two:
            worker.view = view
        yield two


@contextmanager
def replicating(workers: list[ScriptedWorker]) -> Iterator[tuple[Client, Future[None], ScriptedWorker]]:
    """Let a client ask an owner for other copies, and that vanish; yield client, call and the other owner."""
    with Client([worker.address for worker in workers], timeout=TIMEOUT_S) as kvs, ThreadPoolExecutor(1) as thread:
        first, other = (workers[place] for place in kvs.where("k")["owners"])
        call = thread.submit(kvs.replicate, "k", memory=1)
        first.next()
        first.vanish()
        yield kvs, call, other


def test_nobody_can_be_reached_any_more(workers: list[ScriptedWorker]) -> None:
    """It was said to have failed for sure, because the last try could not be sent."""
    with replicating(workers) as (_, call, other):
        other.vanish()
        error = call.exception(PATIENCE_S)
    assert isinstance(error, RequestTimeout)
    assert not error.definite


def test_another_owner_refuses_it(workers: list[ScriptedWorker]) -> None:
    with replicating(workers) as (_, call, other):
        other.next().answer(0, b"too many keys", status=frames.TOO_LARGE)
        error = call.exception(PATIENCE_S)
    assert error is not None
    assert not error.definite  # type: ignore[attr-defined]


def test_the_client_is_closed_meanwhile(workers: list[ScriptedWorker]) -> None:
    with replicating(workers) as (kvs, call, other):
        asked = other.next()
        kvs.close()
        asked.peer.close()
        other.vanish()
        error = call.exception(PATIENCE_S)
    assert error is not None
    assert not error.definite  # type: ignore[attr-defined]


def test_another_owner_takes_it(workers: list[ScriptedWorker]) -> None:
    with replicating(workers) as (_, call, other):
        other.next().answer(0, msgpack.packb(other.view.to_wire()))
        assert call.exception(PATIENCE_S) is None
