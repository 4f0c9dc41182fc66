"""The owner's side of `cb map`: items into the queue, workers onto executors, results out as they come.

The one rule: it decides nothing about tasks by itself (`desk` does), and waits in one place: for news of the queue, for
more input, for the end of a worker, for the next stage. A worker that ends before the queue is closed is replaced, and
is said to be lost at once; so are all when none is heard of. Whatever ends the command, its workers are told, and
waited for.
"""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Final

from anna.errors import AnnaError
from cloudburst import config
from cloudburst.burst.tasks import workbench
from cloudburst.burst.tasks.board import Board
from cloudburst.burst.tasks.desk import Desk, Outcome
from cloudburst.burst.tasks.facts import Closed, Fact, Taken
from cloudburst.burst.tasks.items import Item
from cloudburst.burst.tasks.pipes import gone
from cloudburst.burst.tasks.programs import Orders
from cloudburst.burst.tasks.queue import Rules, rest_us
from cloudburst.burst.tasks.sources import Source
from cloudburst.burst.tasks.told import Told
from cloudburst.client import Client
from cloudburst.errors import CloudburstError, Overloaded
from cloudburst.futures import Future
from cloudburst.page import monotonic_us

PREFIX: Final = "\0cb/queue/"
FUNCTION: Final = "cb-map"
FOREVER_S: Final = 20 * 24 * 3600.0
LOOK_US: Final = 500_000
STOP_S: Final = config.TASK_TERM_S + 2.0
SILENT_US: Final = 2 * config.QUEUE_BEAT_US
"""How long the owner's own beats have to be seen while none of its workers' is, until it takes others."""
CONTENT_WAIT_S: Final = 2.0
FRUITLESS_MAX: Final = 5
"""Workers in a row that may end before any task has; then the command ends with what they ended with."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A task that is settled, and what it has written, if that is wanted here and not by the next stage.

    `earlier` means that another command has done it, before this one.
    """

    item: Item
    outcome: Outcome
    data: bytes = b""
    earlier: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is done."""
        return self.outcome.ok


class Mapping:
    """One stage: `jobs` tasks at a time, as many executors as that takes.

    `passes_on` is the pipe to a stage after it, for which its results stay in the store, to be taken at its own pace.
    """

    def __init__(
        self, client: Client, orders: Orders, source: Source, *, jobs: int | None = None, retries: int = 0,
        passes_on: int | None = None,
    ) -> None:  # fmt: skip
        self.prefix = PREFIX + secrets.token_hex(8)
        self.name = f"owner-{secrets.token_hex(4)}"
        self.passes_on = passes_on
        self.desk = Desk(self.name, Rules(failures_max=retries + 1))
        self.closed: Closed | None = None
        self.reader: Closed | None = None
        """What the next stage has closed with."""
        self.taken = 0
        self.halted = False
        self._client = client
        self._orders = orders
        self._source = source
        self._items: dict[bytes, Item] = {}
        self._facts: list[Fact] = []
        self._told = Told(self.desk.ledger)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._board = Board(client.reserved(), self.prefix, self.name, self._wake)
        self._look_us = self._beat_us = 0
        self._began_us = self._looked_us = monotonic_us()
        self._workers: dict[str, tuple[Future, int]] = {}
        self._given_up: dict[str, Future] = {}
        self._silent: tuple[int, int] | None = None
        self._fruitless = 0
        nodes = client.status()["nodes"]
        self._far = bool(nodes)
        if orders.code is not None and not all(os.path.isdir(node["directory"]) for node in nodes):
            self._orders = replace(orders, code=orders.code.kept(self._board))
        executors = self._executors()
        self.jobs = executors if jobs is None else jobs
        together = -(-self.jobs // config.TASKS_TOGETHER)
        self._shares = shares_of(self.jobs, executors if self._far else min(executors, together))

    def _executors(self) -> int:
        """Return how many executors there are on all hosts, without those that stand in for others which wait."""
        status = self._client.status()
        executors: int = status["own"] + sum(node["executors"] for node in status["nodes"])
        return max(1, executors)

    # -- the loop

    def run(self) -> Iterator[Finished]:
        """Yield tasks as they are settled, until all are, or `stop` is called. Close the iterator, or exhaust it."""
        try:
            self._client.register(workbench.work, name=FUNCTION)
            self._board.publish(())
            for slots in self._shares:
                self._employ(slots)
            while not self._over():
                now_us = monotonic_us()
                self._offer(now_us)
                yield from self._hear(now_us)
                self._look_after_workers(now_us)
                self._look_at_reader()
                self._write(now_us)
                if not self._over():
                    self._wait()
            self._close(self.closed or Closed(*self._verdict()))
            self._await_reader()
        except BaseException as fault:
            self._close(Closed(130 if isinstance(fault, (KeyboardInterrupt, GeneratorExit)) else 1, "it was stopped"))
            raise

    def _verdict(self) -> tuple[int, str]:
        failed = self.desk.failed
        return (1, f"{failed:,} of {self.desk.announced:,} tasks have failed") if failed else (0, "")

    def _look_at_reader(self) -> None:
        """Stop when the next stage wants no more: it has said so, or is gone."""
        if self.passes_on is None:
            return
        if self.reader is not None:
            self.stop(self.reader.code, self.reader.why or "the next stage wants no more")
        elif gone(self.passes_on):
            self.reader = Closed(0, "the next stage has gone")

    def _await_reader(self) -> None:
        """Keep results until the next stage has taken them, and says so, or is gone."""
        while self.passes_on is not None and self.reader is None:
            select.select([self._wake], [], [], LOOK_US / 1e6)
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            for _ in self._hear(monotonic_us()):
                pass
            if self.reader is None and gone(self.passes_on):
                self.reader = Closed(0, "the next stage has gone")

    def stop(self, code: int, why: str) -> None:
        """Announce nothing more, and have everything that runs stopped."""
        if self.closed is None:
            self.closed = Closed(code, why)

    def halt(self) -> None:
        """Begin nothing more; what is under way goes on to its end."""
        self.halted = True

    def _over(self) -> bool:
        return self.closed is not None or ((self._source.ended or self.halted) and self.desk.empty)

    def _offer(self, now_us: int) -> None:
        room = self.desk.room
        if self.passes_on is not None:
            room = min(room, config.QUEUE_AHEAD_TASKS - (self.desk.announced - self.desk.failed - self.taken))
        if self.halted:
            self._facts += self.desk.withdraw(now_us)
        if room <= 0 or self._source.ended or self.halted:
            return
        for item in self._source.take(room, self._board.keep if self._far else None):
            self._items[item.key] = item
            self._facts.append(self.desk.offer(item.key, item.pack(), now_us))

    def _hear(self, now_us: int) -> Iterator[Finished]:
        outcomes: list[Outcome] = []
        for writer, facts in self._board.news():
            self.desk.ledger.hear(writer, now_us)
            if self.passes_on is None:
                self._told.absorb(writer, facts)
            outcomes += self.desk.absorb(writer, facts, now_us)
            for fact in facts:
                if isinstance(fact, Taken):
                    self.taken = max(self.taken, fact.count)
                elif isinstance(fact, Closed):
                    self.reader = fact
        if now_us >= self._look_us:
            self._look_us = now_us + LOOK_US
            outcomes += self.desk.look(now_us)
        self._facts += [outcome.settled for outcome in outcomes]
        for outcome in outcomes:
            yield self._finished(outcome)

    def _finished(self, outcome: Outcome) -> Finished:
        self._fruitless = 0
        item = self._items.pop(outcome.key)
        self._source.done(item)
        result = outcome.result
        if result is None or not result.ok or self.passes_on is not None:
            return Finished(item, outcome)
        told = self._told.take(outcome.settled)
        if result.size <= config.QUEUE_INLINE_BYTES:
            return Finished(item, outcome, told)
        place = self._board.place(result.output)
        end_s = time.monotonic() + CONTENT_WAIT_S
        while (data := self._board.content(place, result.size)) is None:
            if time.monotonic() >= end_s:
                raise Overloaded(f"the output of {item.text!r}, {result.size:,} bytes, is not in the store any more")
            time.sleep(0.01)
        sent = [(item.content, item.size)] if item.identity and item.content else []
        self._board.forget([(place, result.size), *sent])
        return Finished(item, outcome, data)

    def _write(self, now_us: int) -> None:
        if self._facts:
            facts, self._facts = self._facts, []
            self._board.publish(facts)
        elif now_us >= self._beat_us:
            with suppress(AnnaError):
                self._board.beat()
        else:
            return
        self._beat_us = now_us + config.QUEUE_BEAT_US

    def _wait(self) -> None:
        """Wait for whatever comes next."""
        idle = not self._source.ended and not self._source.fds() and self.desk.room > 0
        if idle and self.passes_on is None and not self.halted:
            return
        rests_us = rest_us(self._looked_us - self._began_us)
        if len(self.desk.ledger.unsettled) <= 2 * self.jobs:  # somebody may soon wait for what is announced here
            rests_us = min(rests_us, 2 * config.QUEUE_GATHER_US)
        time.sleep(max(0, self._looked_us + rests_us - monotonic_us()) / 1e6)  # what comes meanwhile comes together
        waits = 0.02 if self._board.waits else config.QUEUE_BEAT_US / 1e6
        reads = [self._wake, *self._source.fds()] if self.desk.room else [self._wake]
        ready, _, _ = select.select(reads, [], [], waits)
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._looked_us = monotonic_us()

    # -- workers

    def _employ(self, slots: int) -> None:
        name = f"worker-{secrets.token_hex(6)}"
        failures_max, peers = self.desk.ledger.rules.failures_max, len(self._shares)
        calls = self._client.options(timeout=FOREVER_S, retries=0)
        given = (self.prefix, self.name, name, slots, peers, failures_max, asdict(self._orders))
        future = calls.spawn(FUNCTION, *given)
        self._workers[name] = (future, slots)
        wake = self._wake
        future.add_done_callback(lambda _: _wake(wake))

    def _look_after_workers(self, now_us: int) -> None:
        for name, (future, slots) in list(self._workers.items()):
            if not future.done() or self.closed is not None:
                continue
            del self._workers[name]
            fault = future.exception()
            self._fruitless += 1
            if fault is not None and not isinstance(fault, CloudburstError):
                raise fault
            if self._fruitless > FRUITLESS_MAX * len(self._shares):
                raise fault or Overloaded(f"{self._fruitless} workers have ended before any task has")
            self._facts.append(self.desk.lose(name, now_us))
            self._employ(slots)
        if self.closed is None and self._all_are_silent(now_us):
            for name, (future, slots) in list(self._workers.items()):
                del self._workers[name]
                self._given_up[name] = future
                self._facts.append(self.desk.lose(name, now_us))
                self._employ(slots)

    def _all_are_silent(self, now_us: int) -> bool:
        """Whether no worker is heard of, for so long that it is not this process, nor the store, that stood still."""
        if not self.desk.all_silent(self._workers, now_us):
            self._silent = None
            return False
        since_us, seen = self._silent = self._silent or (now_us, self._board.seen)
        if now_us - since_us < SILENT_US or self._board.seen == seen:
            return False
        self._silent = None
        return True

    def _close(self, closed: Closed) -> None:
        """Tell the workers, and wait until they have ended; cancel those that do not, which kills them."""
        self.closed = closed
        futures = [*(future for future, _ in self._workers.values()), *self._given_up.values()]
        try:
            self._board.publish([*self._facts, closed])
            self._facts = []
            concurrent.futures.wait(futures, STOP_S)
        except (AnnaError, CloudburstError):
            pass  # the node is gone, and with it the workers
        finally:
            for future in futures:
                future.cancel()

    def forget(self) -> None:
        """Have the store forget everything of this stage, and listen no more."""
        self._board.news()
        if self.passes_on is None or self.reader is not None:
            places = {
                (self._board.place(end.output), end.size)
                for entry in self.desk.ledger.entries.values()
                for end in entry.ends.values()
                if end is not None and end.size > config.QUEUE_INLINE_BYTES
            }
            if (code := self._orders.code) is not None and code.place:
                places.add((code.place, code.size))
            self._board.forget(places)
            self._board.clear()
        self._board.close()
        os.close(self._wake)


def _wake(fd: int) -> None:
    with suppress(OSError):
        os.eventfd_write(fd, 1)


def shares_of(jobs: int, executors: int) -> list[int]:
    """Return how many tasks at a time each worker runs: one worker for each executor, as far as there are jobs."""
    workers = min(jobs, executors)
    return [jobs // workers + (at < jobs % workers) for at in range(workers)]
