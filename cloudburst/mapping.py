"""`map`: results in the order of the input, which is read only as far as calls can be kept under way.

At most `map_in_flight_max` items have been taken and not yielded. Leaving the iterator cancels what is left. On a
terminal a progress bar appears when the work is not over at once; nothing is printed anywhere else.
"""

from __future__ import annotations

import operator
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from cloudburst import config
from cloudburst.futures import Future

SHOW_AFTER_S: Final = 0.4
REFRESH_S: Final = 0.1


def ordered(start: Callable[[tuple[Any, ...]], Future], name: str, iterables: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the result of `start(items)` for each tuple of items, in order, with a bounded number under way."""
    items = zip(*iterables)
    under_way: deque[Future] = deque()
    bar = Bar(name, _length(iterables))
    try:
        more = True
        while more or under_way:
            while more and len(under_way) < config.MAP_IN_FLIGHT_MAX:
                item = next(items, None)
                if item is None:
                    more = False
                else:
                    under_way.append(start(item))
                if under_way and under_way[0].done():
                    break
            if under_way:
                result = under_way[0].result()  # it stays in there meanwhile, to be cancelled if this is interrupted
                under_way.popleft()
                bar.advance()
                yield result
    finally:
        for future in under_way:
            future.cancel()
        bar.close()


def _length(iterables: tuple[Any, ...]) -> int | None:
    lengths = [operator.length_hint(iterable, -1) for iterable in iterables]
    known = [length for length in lengths if length >= 0]
    return min(known) if known and len(known) == len(lengths) else None


class Bar:
    """A progress bar on standard error, if that is a terminal and the work takes long enough to be watched."""

    def __init__(self, name: str, total: int | None) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._shown: Any = None
        self._next_s = time.monotonic() + SHOW_AFTER_S if sys.stderr.isatty() else float("inf")

    def advance(self) -> None:
        """Count one result."""
        self._done += 1
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + REFRESH_S
        if self._shown is None:
            self._show()
        self._shown.update(self._task, completed=self._done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._shown.add_task(self._name, total=self._total)
        self._shown.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._shown is not None:
            self._shown.stop()
