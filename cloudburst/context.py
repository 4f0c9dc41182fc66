"""What a function can ask about its own invocation: `cb.ctx()`.

The runtime of this process, if it is an executor, stands in `executing`; everywhere else there is none, and `ctx()`
says so. This module is the only thing that the client side and the executor side both look at.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from cloudburst import config
from cloudburst.errors import RequestError
from cloudburst.page import Page, monotonic_us

if TYPE_CHECKING:
    from cloudburst.executor.talking import Talking
    from cloudburst.futures import Future
    from cloudburst.transactions import Transaction


class Executing(Protocol):
    """What an executor offers to the code that runs in it."""

    page: Page
    number: int
    client: int
    directory: str

    def invocation(self) -> tuple[int, int, str, int, int] | None:
        """Return (high, low, function, version, deadline_us) of what runs now, None when nothing does."""

    def blocked(self) -> AbstractContextManager[None]:
        """While the caller waits in here for another call, another executor may take this one's place."""

    def awaiting(self) -> AbstractContextManager[None]:
        """While a coroutine waits in here for another call, another executor may take this one's place if it must."""

    def adopt(self, future: Future) -> None:
        """Take in a call that the invocation has begun: it is cancelled with it."""

    def ask_for_executor(self) -> None:
        """Say to the node that no executor can run what this one waits for."""

    def store(self) -> Any:
        """Return this process's client of the store."""

    def session(self) -> Transaction | None:
        """Return the session that the code which asks runs in."""

    @property
    def talking(self) -> Talking:
        """What sends messages for the invocation that runs, and receives those for it."""


executing: Executing | None = None
"""The executor that this process is; None in ordinary programs."""
_loading: int | None = None
"""The thread that loads a function now, and with it the modules that it is in."""


@contextmanager
def loading() -> Iterator[None]:
    """While a function is loaded in here, nothing can be called: each executor that loads it would call it again."""
    global _loading
    before, _loading = _loading, threading.get_ident()
    try:
        yield
    finally:
        _loading = before


def require_loaded(name: str) -> None:
    """Raise RequestError if `name` is called by a module that is imported only for a function that is in it."""
    if _loading is not None and _loading == threading.get_ident():
        raise RequestError(
            f"{name!r} is called while an executor imports the module of a function; what a program does by itself, and"
            ' not in a function, stands under `if __name__ == "__main__":`, or in main() of a file for `cb run`'
        )


def session() -> Transaction | None:
    """Return the session that this code runs in, if it is a function's and that is in one."""
    return None if executing is None else executing.session()


class Context:
    """One invocation as seen from inside."""

    __slots__ = ("_deadline_us", "_executing", "_invocation", "executor", "function", "id", "version")

    def __init__(self, executing: Executing) -> None:
        running = executing.invocation()
        if running is None:
            raise RequestError("ctx() outside a function: no invocation runs in this executor now")
        high, low, self.function, self.version, self._deadline_us = running
        self.id = invocation_id(high, low)
        self._invocation = (high, low)
        self.executor = executing.number
        self._executing = executing

    @property
    def deadline(self) -> float:
        """When the invocation must have ended, on the clock of `time.monotonic`."""
        return self._deadline_us / 1e6

    @property
    def remaining(self) -> float:
        """Seconds until then; negative when it has passed."""
        return (self._deadline_us - monotonic_us()) / 1e6

    def log(self, *message: object, **fields: object) -> None:
        """Write one line to the output of this invocation: the message, then `name=value` for each field."""
        parts = [*map(str, message), *(f"{name}={value!r}" for name, value in fields.items())]
        print(*parts, file=sys.stdout, flush=True)

    def send(self, id: str, message: Any, timeout: float = config.SEND_TIMEOUT_S) -> None:
        """Send a message to the invocation with this id (a future's or a context's), once it runs.

        Returns when it is in that one's inbox; what one sends to another arrives in this order. Raises InvocationGone
        when it does not run, nor begins to, within `timeout` seconds; Overloaded when its inbox is full;
        NotSerializable.
        """
        from cloudburst.executor.talking import parse_id

        until_us = min(monotonic_us() + int(timeout * 1e6), self._deadline_us)
        self._executing.talking.send(self._invocation, parse_id(id), message, until_us)

    def recv(self, timeout: float | None = None) -> Any:
        """Return the oldest message that was sent to this invocation, waiting for one by its deadline or `timeout` s.

        Raises TimeoutError.
        """
        return self.recv_from(timeout)[1]

    def recv_from(self, timeout: float | None = None) -> tuple[str, Any]:
        """Return (id of the sender, message), as `recv`."""
        until_us = self._deadline_us
        if timeout is not None:
            until_us = min(until_us, monotonic_us() + int(timeout * 1e6))
        return self._executing.talking.receive(until_us)

    def progress(self, done: int, total: int) -> None:
        """Say that `done` of `total` parts are finished; `status()` and `cb status` show it."""
        top = 0xFFFFFFFF
        if not 0 <= done <= total <= top:
            raise RequestError(f"progress({done}, {total}): 0 <= done <= total <= {top:,} does not hold")
        page, number = self._executing.page, self._executing.number
        if page.activity(number)[2:4] == self._invocation:  # of those that run beside each other, one is shown
            page.progress(number, done, total)

    def __repr__(self) -> str:
        return f"<invocation {self.id} of {self.function!r}, {self.remaining:.3f} s left>"


def ctx() -> Context:
    """Return the invocation that this code runs in. Raises RequestError outside of functions."""
    if executing is None:
        raise RequestError("ctx() outside a function: this process is no executor")
    return Context(executing)


def invocation_id(high: int, low: int) -> str:
    """Return the text of an invocation's id: 32 hexadecimal digits."""
    return f"{high:016x}{low:016x}"
