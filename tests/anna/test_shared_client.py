"""One blocking client in several threads: every answer counts for the request and the worker that it is of."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import anna
from anna import Client
from anna.messages import NodeInfo, NodeStatus, View, WorkerInfo
from anna.routing.placement import Placement
from tests.anna import frames
from tests.anna.conftest import RunningWorkers, running_workers
from tests.anna.scripted import PATIENCE_S, ScriptedWorker, scripted_workers

LATE, LATER = 5_000_000 << 10, 6_000_000 << 10
"""Two stamps, seconds apart."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[ScriptedWorker]]:
    with scripted_workers(tmp_path, 3) as workers:
        yield workers


def view_of(version: int, *nodes: tuple[int, ScriptedWorker]) -> View:
    """Return a view of one worker on each node, with two copies of each key."""
    infos = (NodeInfo(n, (WorkerInfo(100 * n, (worker.address,), 0),)) for n, worker in nodes)
    return View(version, tuple(infos), 2)


def key_at_home(*homes: tuple[View, int]) -> str:
    """Return a key whose home is the worker of that id by each of these views."""
    placements = [(Placement(view), worker_id) for view, worker_id in homes]
    keys = (f"k{number}" for number in itertools.count())
    return next(key for key in keys if all(p.owner_of(key.encode()).worker_id == ids for p, ids in placements))


class Call:
    """A call of a client in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._result: object = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        self._result = call()

    def result(self) -> object:
        self._thread.join(PATIENCE_S)
        return self._result


WRITES: dict[str, Callable[[Client, str], object]] = {
    "put": lambda kvs, key: kvs.put(key, 1),
    "mput": lambda kvs, key: kvs.mput({key: 1}),
    "pipeline": lambda kvs, key: kvs.pipeline().put(key, 1).execute(),
}
READS: dict[str, Callable[[Client, str], object]] = {
    "get": lambda kvs, key: kvs.get(key, None),
    "mget": lambda kvs, key: kvs.mget([key]),
    "pipeline": lambda kvs, key: kvs.pipeline().get(key).execute(),
    "watch": lambda kvs, key: next(kvs.watch(key, timeout=0.5), None),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("read", READS)
def test_an_answer_that_comes_after_a_newer_view_counts_for_who_gave_it(
    three: list[ScriptedWorker], write: str, read: str
) -> None:
    """P6: another thread takes up a view in which the place of the worker that is still to answer is another's."""
    first, second, newcomer = three
    before = view_of(1, (5, first), (6, second))
    after = view_of(2, (1, newcomer), (5, first), (6, second))
    key = key_at_home((before, 500), (after, 100))
    for worker in three:
        worker.view = before
    with Client([second.address], timeout=PATIENCE_S) as kvs:
        writing = Call(lambda: WRITES[write](kvs, key))
        put = first.next()
        for worker in three:
            worker.view = after
        kvs.adopt(after)
        put.answer(LATE)
        writing.result()
        reading = Call(lambda: READS[read](kvs, key))
        asked = newcomer.next()
        assert asked.strict_stamp >= LATE, "an answer from before the write would be taken"
        several = asked.op == frames.MGET
        asked.answer(LATER, bytes([1, 0, 0, 0, 1]) + bytes(7), status=frames.OK if several else frames.MISSING)
        kvs.close()
        reading.result()


def test_answers_of_one_worker_that_arrive_in_another_order_do_not_make_it_seem_younger(
    three: list[ScriptedWorker],
) -> None:
    """P6: two threads hear one worker by two connections; the later stamp is what was seen."""
    first, second, _ = three
    view = view_of(1, (5, first), (6, second))
    key = key_at_home((view, 500))
    for worker in three:
        worker.view = view
    with Client([second.address], timeout=PATIENCE_S) as kvs:
        slow = Call(lambda: kvs.put(key, 1))
        early = first.next()
        fast = Call(lambda: kvs.put(key, 2))
        first.next().answer(LATER)
        fast.result()
        early.answer(LATE)
        slow.result()
        first.vanish()
        reading = Call(lambda: kvs.get(key, None))
        asked = second.next()
        assert asked.strict_stamp >= LATER
        asked.answer(LATER, status=frames.MISSING)
        reading.result()


def test_a_pipeline_that_was_queued_under_an_older_view_is_sent_by_the_new_one(three: list[ScriptedWorker]) -> None:
    first, second, newcomer = three
    before = view_of(1, (5, first), (6, second))
    after = view_of(2, (1, newcomer), (5, first), (6, second))
    key = key_at_home((before, 600), (after, 600))
    for worker in three:
        worker.view = before
    with Client([second.address], timeout=PATIENCE_S) as kvs:
        pipeline = kvs.pipeline().get(key)
        kvs.adopt(after)
        running = Call(pipeline.execute)
        second.next().answer(LATE, status=frames.MISSING)
        assert running.result() == [None]
    assert first.asked.empty()


# -- real workers, many threads


def shifted(view: View, version: int) -> View:
    """Return a view in which nobody owns anything else, but every second time each worker has another place."""
    ghost = NodeInfo(1, (WorkerInfo(7, ("unix:/nowhere/ghost.sock",), 0),), status=NodeStatus.JOINING)
    return replace(view, version=version, nodes=(ghost, *view.nodes) if version % 2 else view.nodes)


class Session(threading.Thread):
    """A thread that writes keys of its own through a client that others use, too, and must read what it wrote.

    A key has what was acknowledged, or read, last. Only a write that nobody knows the outcome of may take its place at
    any time, and once: what was then written or read over it is not to go back to it.
    """

    def __init__(self, kvs: Client, number: int, until: threading.Event) -> None:
        super().__init__()
        self.kvs, self.number, self.until = kvs, number, until
        self.random = random.Random(number)
        self.latest: dict[str, object] = {}
        self.pending: dict[str, set[object]] = {}
        self.wrong: list[str] = []
        self.served = 0

    def run(self) -> None:
        steps = [self.single, self.batch, self.pipelined]
        for turn in itertools.count():
            if self.until.is_set():
                return
            try:
                self.random.choice(steps)(turn)
            except anna.UnavailableError:
                continue
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")

    def items(self, turn: int) -> dict[str, str]:
        """Return a few new values; none may be found under any other key."""
        keys = [f"{self.number}:{self.random.randrange(40)}" for _ in range(5)]
        return {key: f"{key} in turn {turn}" for key in keys}

    def expect(self, found: dict[str, object]) -> None:
        self.served += len(found)
        for key, value in found.items():
            pending = self.pending.setdefault(key, set())
            if value != self.latest.get(key) and value not in pending:
                self.wrong.append(f"{key} has {value!r}; it may have {self.latest.get(key)!r} or {pending}")
            pending.discard(value)
            self.latest[key] = value

    def begin(self, items: dict[str, str]) -> None:
        """Until they are answered, writes may happen: one that was given up even after a later one of its key."""
        for key, value in items.items():
            self.pending.setdefault(key, set()).add(value)

    def decided(self, items: dict[str, str]) -> None:
        """These do not happen any more."""
        for key, value in items.items():
            self.pending[key].discard(value)

    def done(self, items: dict[str, str]) -> None:
        self.decided(items)
        self.latest.update(items)

    @property
    def patience(self) -> float:
        """Now and then a deadline that is missed, so that connections are dropped with answers under way."""
        return self.random.choice([0.0002, 1.0, 1.0, 1.0])

    def single(self, turn: int) -> None:
        for key, value in self.items(turn).items():
            self.begin({key: value})
            try:
                self.kvs.put(key, value, timeout=self.patience)
            except anna.AnnaError as error:
                if error.definite:
                    self.decided({key: value})
                raise
            self.done({key: value})
            self.expect({key: self.kvs.get(key, None, timeout=self.patience)})

    def batch(self, turn: int) -> None:
        items = self.items(turn)
        self.begin(items)
        self.kvs.mput(items, timeout=self.patience)
        self.done(items)
        self.expect(dict(zip(items, self.kvs.mget(list(items), timeout=self.patience), strict=True)))

    def pipelined(self, turn: int) -> None:
        items = self.items(turn)
        self.begin(items)
        writes = self.kvs.pipeline(timeout=self.patience)
        for key, value in items.items():
            writes.put(key, value)
        writes.execute()
        self.done(items)
        reads = self.kvs.pipeline(timeout=self.patience)
        for key in items:
            reads.get(key)
        self.expect(dict(zip(items, reads.execute(), strict=True)))


@pytest.fixture
def restless() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture
def scattered() -> Iterator[RunningWorkers]:
    """Three nodes of one worker each, and one copy of each key."""
    with running_workers(1, nodes=3, first_node=5) as cluster:
        yield cluster


@pytest.mark.usefixtures("restless")
def test_threads_of_one_client_get_their_own_values_while_views_change_and_workers_pause(
    scattered: RunningWorkers,
) -> None:
    until = threading.Event()
    with Client([scattered.unix(0)], timeout=1.0) as kvs:
        sessions = [Session(kvs, number, until) for number in range(6)]
        for session in sessions:
            session.start()
        view = kvs.view
        for turn in range(600):
            kvs.adopt(shifted(view, view.version + 1 + turn))
            if turn % 100 == 50:
                os.kill(scattered.pids[turn // 100 % 3], signal.SIGSTOP)
                sessions[0].join(0.03)
                os.kill(scattered.pids[turn // 100 % 3], signal.SIGCONT)
            sessions[0].join(0.003)
        until.set()
        for session in sessions:
            session.join(PATIENCE_S)
    assert [session.wrong for session in sessions] == [[]] * len(sessions)
    assert sum(session.served for session in sessions) > 1000
