"""Waiting for several futures at once, inside functions too: while one waits, another executor takes its place.

Outside of functions these are `concurrent.futures.wait` and `as_completed`, which accept the same futures.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from cloudburst import context
from cloudburst.futures import Future


def _blocked() -> AbstractContextManager[None]:
    return nullcontext() if context.executing is None else context.executing.blocked()


def wait(
    futures: Iterable[Future], timeout: float | None = None, return_when: str = concurrent.futures.ALL_COMPLETED
) -> tuple[set[Future], set[Future]]:
    """Return (done, not done), once all are done, or the first, or the first that raised: that is `return_when`.

    At the latest after `timeout` seconds.
    """
    with _blocked():
        done, waiting = concurrent.futures.wait(futures, timeout, return_when)
    return cast("set[Future]", done), cast("set[Future]", waiting)


def as_completed(futures: Iterable[Future], timeout: float | None = None) -> Iterator[Future]:
    """Yield futures as they are done. Raises TimeoutError when not all are within `timeout` seconds."""
    completed = concurrent.futures.as_completed(futures, timeout)
    while True:
        with _blocked():
            future = next(completed, None)
        if future is None:
            return
        yield cast(Future, future)


def gather(*futures: Future, timeout: float | None = None) -> list[Any]:
    """Return the results of futures in their order. The first that raises cancels the others, and is raised.

    Raises TimeoutError when not all are there within `timeout` seconds; nothing is cancelled then.
    """
    done, waiting = wait(futures, timeout, concurrent.futures.FIRST_EXCEPTION)
    failed = next((future for future in futures if future in done and future.exception() is not None), None)
    if failed is not None:
        for future in waiting:
            future.cancel()
        failed.result()
    if waiting:
        raise TimeoutError(f"{len(waiting)} of {len(futures)} calls were not done within {timeout} s")
    return [future.result() for future in futures]
