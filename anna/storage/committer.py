"""The thread that makes a seat's log durable, so that the event loop never waits for a disk.

The one rule: group commit by itself. While one commit runs, whatever is submitted waits, and the next commit
takes all of it; an idle log commits at once, a busy one in ever larger groups. Nothing is reported before it is
durable, everything is reported in the loop's thread, in order. A log that has been idle for a moment marks its end,
so that damage of its last group is told from a torn one. Source: decisions 0010, 0017, reliability P15, P17.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Protocol

from anna.config import LOG_MARK_AFTER_S, LOG_PENDING_BYTES_MAX, LOG_RETRY_S
from anna.errors import DiskFull, Overloaded, StorageFailed
from anna.storage.engine import Engine


class Listener(Protocol):
    """Who hears, in the loop's thread, what became of the log."""

    def logged(self, number: int) -> None:
        """Note that every blob up to `number` is durable."""

    def full(self, is_full: bool) -> None:
        """Note that there is no room for more durable writes, or that there is room again."""

    def failed(self, error: Exception) -> None:
        """Note that nothing more will ever be durable here; what was not reported as logged may be or not be."""


class Committer:
    """Commits what is submitted to `engine` until it is closed or the disk fails."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self.engine, self.loop, self.listener = engine, loop, listener
        self.wake = threading.Condition()
        self.waiting: list[tuple[int, bytes]] = []
        self.waiting_bytes = 0
        self.drop_to = 0
        self.closing = False
        self.failure: Exception | None = None
        self.was_full = engine.full
        self.thread = threading.Thread(target=self.run, name="log", daemon=True)
        self.thread.start()
        if engine.full:
            listener.full(True)

    def submit(self, number: int, blob: bytes) -> None:
        """Let `blob` be the log's next one. It is durable when `logged` says so.

        Raises Overloaded when LOG_PENDING_BYTES_MAX wait already, and StorageFailed after the disk failed.
        """
        with self.wake:
            if self.failure is not None:
                raise StorageFailed(str(self.failure))
            if self.waiting_bytes >= LOG_PENDING_BYTES_MAX:
                waiting, most = self.waiting_bytes, LOG_PENDING_BYTES_MAX
                raise Overloaded(f"{waiting:,} bytes wait for the disk; log_pending_bytes_max is {most:,}")
            self.waiting.append((number, blob))
            self.waiting_bytes += len(blob)
            self.wake.notify()

    def truncate(self, up_to: int) -> None:
        """Drop the log up to a number, after the commits that were submitted before."""
        with self.wake:
            self.drop_to = max(self.drop_to, up_to)
            self.wake.notify()

    async def close(self) -> None:
        """Commit what was submitted, as far as the disk lets it, and end the thread."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        await self.loop.run_in_executor(None, self.thread.join)

    # in the thread

    def run(self) -> None:
        """Commit until it is closed or the disk fails."""
        try:
            while self.wait():
                self.take()
                self.work()
        except Exception as error:  # who waits for this thread must be told of its end, whatever it is
            with self.wake:
                self.failure = error
            self.tell(self.listener.failed, error)

    def wait(self) -> bool:
        """Wait for something to do; tell whether there is, False when it is closed and nothing is left."""
        with self.wake:
            if self.engine.full and not self.closing:
                if not self.waiting or self.engine.pending:
                    self.wake.wait(LOG_RETRY_S)
                return True
            while not (self.waiting or self.drop_to or self.closing):
                if not self.wake.wait(None if self.engine.is_marked else LOG_MARK_AFTER_S):
                    return True
            return bool(self.waiting or (self.drop_to and not self.engine.full))

    def take(self) -> None:
        """Hand over to the engine what was submitted."""
        with self.wake:
            taken, self.waiting = self.waiting, []
        for number, blob in taken:
            self.engine.append(number, blob)

    def work(self) -> None:
        """Commit what the engine holds, drop what may go, and look for room when there was none."""
        try:
            if self.engine.full:
                self.engine.regain()
            if self.engine.pending:
                number = self.engine.commit()
                self.tell(self.listener.logged, number)
            elif not self.drop_to:
                self.engine.mark()
            if up_to := self.drop_to:
                self.engine.truncate_logs(up_to)
                with self.wake:
                    self.drop_to = self.drop_to if self.drop_to > up_to else 0
        except DiskFull:
            self.engine.full = True
        finally:
            with self.wake:
                self.waiting_bytes = self.engine.pending_bytes + sum(len(blob) for _, blob in self.waiting)
        if self.engine.full != self.was_full:
            self.was_full = self.engine.full
            self.tell(self.listener.full, self.was_full)

    def tell(self, what: object, argument: object) -> None:
        """Call back in the loop's thread; a loop that is closed has nobody to tell."""
        try:
            self.loop.call_soon_threadsafe(what, argument)  # type: ignore[arg-type]
        except RuntimeError:
            pass
