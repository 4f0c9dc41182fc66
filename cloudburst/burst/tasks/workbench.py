"""A worker of `cb map`: a function that runs on an executor, and there runs programs, several at a time.

The one rule: it decides nothing by itself. `queue.Worker` says what to lease, to begin and to stop; this obeys, tells
it how programs have ended, and writes what it wants to be known. It waits in one place, for news, ends of programs and
times. While it is there, another executor may take its place, so a long `cb map` does not keep other calls waiting.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import nullcontext
from typing import Any

from anna.errors import AnnaError
from cloudburst import config, context
from cloudburst.burst.tasks.board import Board
from cloudburst.burst.tasks.facts import Begun, Ended, Fact, Result
from cloudburst.burst.tasks.items import Item
from cloudburst.burst.tasks.programs import STOPPED, Orders, Program, Programs
from cloudburst.burst.tasks.queue import Begin, Instruction, Publish, Rules, Stop, Worker, rest_us
from cloudburst.page import monotonic_us

GONE = -127
"""The code of a program that could not be begun."""


def work(prefix: str, owner: str, name: str, slots: int, peers: int, failures_max: int, orders: dict[str, Any]) -> int:
    """Take tasks of the queue at `prefix` until `owner` closes it; return how many have ended here."""
    from cloudburst.entry import default

    kvs = default().reserved()
    aside = nullcontext() if context.executing is None else context.executing.blocked()
    worker = Worker(name, slots, Rules(failures_max=failures_max), peers)
    bench = Workbench(kvs, prefix, owner, worker, Orders.of(orders))
    try:
        with aside:
            bench.run()
    finally:
        bench.close()
    return bench.done


def programs_of(worker: str, orders: Orders, board: Board) -> Programs:
    """Return what starts the tasks of a worker: programs, or a function of an application."""
    if orders.code is None:
        return Programs(worker, orders)
    from cloudburst.burst.tasks.hands import Hands

    return Hands(worker, orders, orders.code, board)


class Workbench:
    """The programs of one worker, and what it reads and writes."""

    def __init__(self, kvs: Any, prefix: str, owner: str, worker: Worker, orders: Orders) -> None:
        self.done = 0
        self._owner = owner
        self._worker = worker
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._board = Board(kvs, prefix, worker.name, self._wake)
        try:
            self._programs = programs_of(worker.name, orders, self._board)
        except BaseException:
            self._board.close()
            raise
        self._running: dict[bytes, Program] = {}
        self._by_fd: dict[int, Program] = {}
        self._facts: list[Fact] = []
        self._blobs: dict[bytes, bytes] = {}
        self._beat_us = self._looked_us = self._since_us = 0
        self._began_us = monotonic_us()
        self._awaited = False
        self._poll, self._ends = select.poll(), select.poll()
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> None:
        """Work until the owner closes the queue, and nothing runs here."""
        worker = self._worker
        self._worker.ledger.hear(self._owner, monotonic_us())  # it has just called this
        self._obey([worker.join(monotonic_us())])
        while True:
            now_us = monotonic_us()
            if self._hears(now_us):
                self._hear(now_us)
                if not worker.ledger.alive_within(self._owner, config.QUEUE_OWNER_US, now_us):
                    break  # what runs ends with this
                self._obey(worker.tick(now_us))
            self._write_if_due(now_us)
            if worker.over and not self._running and not self._facts:
                break
            self._wait(now_us)

    def _hears(self, now_us: int) -> bool:
        """Whether it is time to look for news: not at each piece of it, while there is enough to do."""
        return not self._worker.fed or now_us >= self._looked_us + rest_us(now_us - self._began_us)

    def _hear(self, now_us: int) -> None:
        self._looked_us = now_us
        for writer, facts in self._board.news():
            self._worker.ledger.hear(writer, now_us)
            self._worker.absorb(writer, facts, now_us)

    def _obey(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            if isinstance(one, Publish):
                self._tell(one.fact)
            elif isinstance(one, Begin):
                if one.alone:
                    self._write()
                self._begin(one)
            else:
                assert isinstance(one, Stop)
                self._running[one.key].stop(STOPPED)

    def _tell(self, fact: Fact) -> None:
        if not self._facts:
            self._since_us = monotonic_us()
            self._awaited = False
        self._awaited |= not isinstance(fact, (Begun, Ended))
        self._facts.append(fact)

    @property
    def _write_us(self) -> int:
        """When what has gathered is to be written."""
        gathers_us = 0 if self._worker.waits_to_tell else config.QUEUE_GATHER_US
        if self._worker.fed and (self._worker.alone or not self._awaited):
            gathers_us = max(gathers_us, rest_us(self._since_us - self._began_us))
        return self._since_us + gathers_us

    def _begin(self, begin: Begin) -> None:
        item = Item.unpack(begin.key, begin.body)
        try:
            program = self._programs.begin(item, self._content(item))
        except (OSError, AnnaError) as fault:
            result = Result(GONE, b"", 0, "", 0, f"it could not be begun: {fault}")
            self._tell(self._worker.ended(begin.key, result, monotonic_us()).fact)
            return
        self._running[begin.key] = program
        self._by_fd[program.pidfd] = program
        for poll in (self._poll, self._ends):
            poll.register(program.pidfd, select.POLLIN)

    def _content(self, item: Item) -> bytes | None:
        """Return the content of an item that is a file which is not seen here. Raises OSError."""
        if self._programs.sees(item):
            return None
        if item.data:
            return item.data
        content = self._board.content(item.content, item.size) if item.content else None
        if content is None:
            raise FileNotFoundError(f"{item.text} is not here as it was when it was read, and not in the store")
        return content

    def _wait(self, now_us: int) -> None:
        """Wait until there is something to do; take in what programs have ended."""
        hears = self._hears(now_us)
        until_us = min(self._worker.next_us(now_us), self._beat_us)
        if not hears:
            until_us = min(until_us, self._looked_us + rest_us(now_us - self._began_us))
        if self._facts:
            until_us = min(until_us, self._write_us)
        if self._board.waits:
            until_us = min(until_us, now_us + config.QUEUE_GATHER_US)
        due_s = self._programs.due(list(self._running.values()), time.monotonic())
        until_ms = min((until_us - monotonic_us()) / 1e3, (due_s - time.monotonic()) * 1e3)
        poll = self._poll if hears else self._ends
        done = self.done
        for fd, _ in poll.poll(max(0, min(250.0, until_ms + 0.5))):
            if fd == self._wake:
                os.eventfd_read(self._wake)
            else:
                self._take_end(self._by_fd.pop(fd))
        if self.done > done:  # the next ones, before anything is read or written
            self._obey(self._worker.tick(monotonic_us(), self._looked_us))

    def _take_end(self, program: Program) -> None:
        for poll in (self._poll, self._ends):
            poll.unregister(program.pidfd)
        key = program.item.key
        del self._running[key]
        result, data = program.end(self._programs.template.writes)
        self._programs.free(program)
        if result.why == STOPPED:
            self._tell(self._worker.stopped(key, monotonic_us()).fact)
            return
        inline = result.ok and len(data) <= config.QUEUE_INLINE_BYTES
        if result.ok and not inline:
            self._blobs[result.output] = data
        self.done += 1
        self._tell(self._worker.ended(key, result, monotonic_us(), data if inline else b"").fact)

    def _write_if_due(self, now_us: int) -> None:
        if self._facts and (now_us >= self._write_us or self._worker.over):
            self._write()
            if self._worker.waits_to_tell:
                self._obey(self._worker.tick(monotonic_us(), self._looked_us))
        elif now_us >= self._beat_us:
            self._beat_us = now_us + config.QUEUE_BEAT_US
            try:
                self._board.beat()
            except AnnaError:
                pass  # the next one says the same

    def _write(self) -> None:
        facts, self._facts, blobs, self._blobs = self._facts, [], self._blobs, {}
        published_us = monotonic_us()
        self._board.publish(facts, blobs)
        self._worker.told(published_us)
        self._beat_us = monotonic_us() + config.QUEUE_BEAT_US

    def close(self) -> None:
        """End everything that runs here, and remove what it has left."""
        for program in self._running.values():
            program.kill()
        self._programs.close(bool(self._running))
        self._board.close()
        os.close(self._wake)
