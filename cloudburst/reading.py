"""How what the executors of all nodes print is read: each is asked for its lines after a number, and they are merged.

What is there already comes in the order of its times, as far as the clocks of hosts agree; then, to follow, a thread
waits for each node, and lines come as they are printed. A node that comes later is read from then on, and one that goes
is let go; only the end of the client's own node, with no other to go on at, ends the reading.
Source: SURFACE (`cb logs -f`).
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from cloudburst import config
from cloudburst.errors import CloudburstError, NodeLost
from cloudburst.logbook import LogLine

ANSWERS_MAX: Final = 16
"""Answers that wait here for a slow reader; lines beyond them wait at the nodes, which drop the oldest."""
LOOK_S: Final = 1.0
"""How often, at least, a follower looks for nodes that have come."""
PUT_S: Final = 0.1
MARGIN_S: Final = config.CONTROL_TIMEOUT_S / 5


class Node(Protocol):
    """Whom a reader asks: its share in a node."""

    def ask(
        self, verb: str, body: dict[str, Any], timeout_s: float = ..., given_up: Callable[[], bool] | None = None
    ) -> Any:
        """Return the node's answer to a request. Raises its error, or NodeLost, also once it is `given_up`."""


class Reader:
    """Reads the lines of a cluster; `chosen` are the invocation and the function that they are of, if any."""

    def __init__(self, own: Node, chosen: dict[str, Any]) -> None:
        self._own = own
        self._chosen = chosen
        self._after: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._following: dict[str, threading.Thread] = {}
        self._found: queue.Queue[list[LogLine] | CloudburstError] = queue.Queue(ANSWERS_MAX)
        self._stopped = threading.Event()
        self._home = ""

    def present(self) -> Iterator[LogLine]:
        """Yield what has been printed up to now."""
        yield from heapq.merge(*map(self._kept, self._look()), key=lambda line: line.time)

    def follow(self) -> Iterator[LogLine]:
        """Yield what has been printed up to now, and then what is, for ever."""
        try:
            yield from self.present()
            look_at = 0.0
            while True:
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_S
                    for node in self._look():
                        self._begin(node)
                try:
                    found = self._found.get(timeout=LOOK_S)
                except queue.Empty:
                    continue
                if isinstance(found, NodeLost):
                    look_at = 0.0  # which raises when there is no other node to go on at
                elif isinstance(found, CloudburstError):
                    raise found
                else:
                    yield from found
        finally:
            self._stopped.set()
            for thread in self._following.values():
                thread.join()

    def _look(self) -> list[str]:
        """Return the nodes that there are, the client's own first."""
        status = self._own.ask("status", {})
        self._home = status["node"]
        for row in (status, *status["nodes"]):
            name = row["name"]
            if row["node"] not in self._names:
                self._names[row["node"]] = f"{name}@{row['node'][:8]}" if name in self._names.values() else name
        return [status["node"], *(row["node"] for row in status["nodes"])]

    def _ask(self, node: str, wait_s: float) -> tuple[list[LogLine], int]:
        """Return the next lines of a node, and the number of its newest."""
        asked = {**self._chosen, "node": node, "after": self._after.get(node, 0), "wait_s": wait_s}
        answer = self._own.ask("logs", asked, wait_s + MARGIN_S, self._stopped.is_set)
        self._after[node] = answer["last"]
        lines, dropped = [], answer["dropped"]
        for number, time_s, executor, who, what, text in answer["lines"]:
            lines.append(LogLine(number, time_s, executor, who, what, text, dropped, self._names[node]))
            dropped = 0
        return lines, answer["newest"]

    def _kept(self, node: str) -> Iterator[LogLine]:
        """Yield what one node has kept up to now; nothing more when it goes."""
        end = None
        while end is None or self._after[node] < end:
            try:
                lines, newest = self._ask(node, 0.0)
            except CloudburstError:
                if node == self._home:
                    raise
                return
            yield from lines
            end = newest if end is None else end

    def _begin(self, node: str) -> None:
        thread = self._following.get(node)
        if thread is None or not thread.is_alive():
            self._following[node] = threading.Thread(target=self._wait_at, args=(node,), daemon=True)
            self._following[node].start()

    def _wait_at(self, node: str) -> None:
        while not self._stopped.is_set():
            try:
                lines, _ = self._ask(node, config.LOG_WAIT_S)
            except CloudburstError as fault:
                if node == self._home:
                    self._put(fault)
                return
            if lines:
                self._put(lines)

    def _put(self, found: list[LogLine] | CloudburstError) -> None:
        while not self._stopped.is_set():
            try:
                self._found.put(found, timeout=PUT_S)
                return
            except queue.Full:
                continue
