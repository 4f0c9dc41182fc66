"""Batches and pipelines of both clients while owners are stopped and killed: what holds for a key holds for many."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import anna
import anna.aio
from anna import Client
from anna.messages import DEAD
from tests.anna.conftest import RunningWorkers
from tests.anna.local.processes import PATIENCE_S, eventually
from tests.anna.test_failover import LATE_S, until_stable

TIMEOUT_S = 0.4

KEYS = 12
"""Of each session: enough for both owners to be the home of some."""


@dataclass
class Session:
    """A client that writes rising numbers to all of its keys at once, and reads them at once, until told to end."""

    name: str
    over: threading.Event = field(default_factory=threading.Event)
    written: int = 0
    served: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        return [f"{self.name} {number}" for number in range(KEYS)]

    def after_write(self, value: int, outcome: Any, seconds: float) -> None:
        """Note how a write of `value` to all keys ended, and after how long."""
        if not isinstance(outcome, Exception):
            self.written = value
        self._judge_end("write", outcome, seconds)

    def after_read(self, outcome: Any, seconds: float) -> None:
        """Judge what a read of all keys gave: nothing that is older than what this session knows to be written."""
        self._judge_end("read", outcome, seconds)
        if isinstance(outcome, Exception):
            return
        self.served += 1
        if min(outcome) < self.written:
            self.wrong.append(f"read {outcome} after {self.written} was written")

    def _judge_end(self, what: str, outcome: Any, seconds: float) -> None:
        if isinstance(outcome, Exception) and not isinstance(outcome, anna.UnavailableError):
            self.wrong.append(f"a {what} ended with {outcome!r}")
        if seconds > TIMEOUT_S + LATE_S:
            self.wrong.append(f"a {what} took {seconds:.2f} s: {outcome!r}")


def batches(kvs: Any, keys: list[str], value: int | None) -> Any:
    """Write `value` to the keys, or read them, in one call; an asyncio client's result is to be awaited."""
    if value is None:
        return kvs.mget(keys, 0, timeout=TIMEOUT_S)
    return kvs.mput(dict.fromkeys(keys, value), ack=2, timeout=TIMEOUT_S)


def pipelines(kvs: Any, keys: list[str], value: int | None) -> Any:
    """The same with a pipeline."""
    pipeline = kvs.pipeline(ack=2, timeout=TIMEOUT_S)
    for key in keys:
        pipeline.get(key, 0) if value is None else pipeline.put(key, value)
    return pipeline.execute()


Way = Callable[[Any, list[str], int | None], Any]


def run_blocking(session: Session, seeds: list[str], way: Way) -> None:
    with Client(seeds, timeout=PATIENCE_S) as kvs:
        value = 0
        while not session.over.is_set():
            value += 1
            for written in (value, None):
                begun = time.monotonic()
                try:
                    outcome = way(kvs, session.keys, written)
                except anna.AnnaError as error:
                    outcome = error
                note(session, written, outcome, time.monotonic() - begun)


def run_asyncio(session: Session, seeds: list[str], way: Way) -> None:
    async def story() -> None:
        async with await anna.aio.connect(seeds[0], timeout=PATIENCE_S) as kvs:
            value = 0
            while not session.over.is_set():
                value += 1
                for written in (value, None):
                    begun = time.monotonic()
                    try:
                        outcome = await way(kvs, session.keys, written)
                    except anna.AnnaError as error:
                        outcome = error
                    note(session, written, outcome, time.monotonic() - begun)

    asyncio.run(story())


def note(session: Session, written: int | None, outcome: Any, seconds: float) -> None:
    if written is None:
        session.after_read(outcome, seconds)
    else:
        session.after_write(written, outcome, seconds)


@dataclass
class Running:
    """All sessions, each in a thread of its own."""

    sessions: list[Session]

    def all_served(self, more: int) -> None:
        """Wait until each session was served so many more reads."""
        goals = [session.served + more for session in self.sessions]
        eventually(lambda: all(s.served >= goal for s, goal in zip(self.sessions, goals)), "every session is served")


@pytest.fixture
def running(two_nodes: RunningWorkers) -> Iterator[Running]:
    """Sessions of both clients, with batches and with pipelines; what they saw wrong fails the test at its end."""
    seeds = [two_nodes.unix(1), two_nodes.unix(0)]
    ways = {"mput": batches, "pipeline": pipelines}
    sessions, threads = [], []
    for run in (run_blocking, run_asyncio):
        for name, way in ways.items():
            session = Session(f"{run.__name__} {name}")
            threads.append(threading.Thread(target=run, args=(session, seeds, way)))
            sessions.append(session)
    for thread in threads:
        thread.start()
    try:
        yield Running(sessions)
    finally:
        for session in sessions:
            session.over.set()
        for thread in threads:
            thread.join()
    assert {session.name: session.wrong[:3] for session in sessions if session.wrong} == {}


def test_batches_never_go_back_while_owners_are_stopped_in_turn(two_nodes: RunningWorkers, running: Running) -> None:
    """P6, P10: each call ends by its deadline, and gives nothing older than what its session wrote."""
    running.all_served(5)
    for turn in range(6):
        pid = two_nodes.pids[turn % 2]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
        running.all_served(2)


def test_batches_go_on_when_an_owner_is_killed(two_nodes: RunningWorkers, running: Running) -> None:
    """P1, P11: what two owners acknowledged is read at the one that is left, as soon as its view says so."""
    running.all_served(5)
    two_nodes.vanish(0)
    view = two_nodes.view
    two_nodes.tell(1, view.with_node(replace(view.nodes[0], status=DEAD)))
    running.all_served(5)


@pytest.mark.parametrize("way", ["mput", "pipeline"])
def test_a_batch_that_was_lost_on_its_way_is_indefinite_and_not_sent_again(
    two_nodes: RunningWorkers, way: str
) -> None:
    """P11: counters show it: had the asyncio client sent it again elsewhere, they would have been raised twice."""
    keys = [f"counter {number}" for number in range(KEYS)]

    async def story() -> None:
        async with await anna.aio.connect(two_nodes.unix(1), timeout=PATIENCE_S) as kvs:
            await kvs.mput({key: anna.Counter(0) for key in keys}, ack=2)
            os.kill(two_nodes.pids[0], signal.SIGSTOP)
            pipeline = kvs.pipeline(ack="memory", timeout=TIMEOUT_S)
            for key in keys:
                pipeline.put(key, anna.Counter(+1))
            batch = {key: anna.Counter(+1) for key in keys}
            with pytest.raises(anna.RequestTimeout) as caught:
                await (kvs.mput(batch, ack="memory", timeout=TIMEOUT_S) if way == "mput" else pipeline.execute())
            assert not caught.value.definite

    asyncio.run(story())
    os.kill(two_nodes.pids[0], signal.SIGCONT)
    with Client([two_nodes.unix(0)]) as kvs:
        eventually(lambda: kvs.mget(keys) == [1] * KEYS, "what was under way arrives")
        until_stable(kvs, kvs.stamp)
        assert kvs.mget(keys) == [1] * KEYS


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_each_write_of_a_batch_has_its_time_to_live(two_nodes: RunningWorkers, kind: str) -> None:
    """D08: a batch with a time to live expires at both owners, key by key; what was written otherwise stays."""
    keys = [f"k{number}" for number in range(KEYS)]
    later, long = dict.fromkeys(keys[:3], 2), dict.fromkeys(keys[3:6], 3)

    async def story() -> None:
        async with await anna.aio.connect(two_nodes.unix(0)) as kvs:
            assert (await kvs.mput(dict.fromkeys(keys, 1), ack=2, ttl=0.1)).replicas == 2
            assert (await kvs.mput(later.items(), ack=2)).replicas == 2
            assert (await kvs.mput(long, ack=2, ttl=60)).replicas == 2
            with pytest.raises(ValueError, match="ttl is 0 s"):
                await kvs.mput(later, ttl=0)

    if kind == "asyncio":
        asyncio.run(story())
    else:
        with Client([two_nodes.unix(0)]) as kvs:
            assert kvs.mput(dict.fromkeys(keys, 1), ack=2, ttl=0.1).replicas == 2
            assert kvs.mput(later.items(), ack=2).replicas == 2
            assert kvs.mput(long, ack=2, ttl=60).replicas == 2
            with pytest.raises(ValueError, match="ttl is 0 s"):
                kvs.mput(later, ttl=0)
    with Client([two_nodes.unix(1)]) as kvs:
        left = [2] * 3 + [3] * 3 + [None] * (KEYS - 6)
        eventually(lambda: kvs.mget(keys) == left, "what had a short time to live is gone")
        eventually(lambda: [w["keys"] for w in kvs.status()] == [6, 6], "its memory is given back at both")
        assert [worker["expiring"] for worker in kvs.status()] == [3, 3]
