"""What a node waits for: descriptors and ZeroMQ sockets, each with what to do when it can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq


class Loop:
    """Calls a handler whenever its socket is readable, one at a time, and sleeps in between."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}

    def watch(self, ready: Any, handler: Callable[[], None]) -> None:
        """Call `handler` when `ready`, a descriptor or a ZeroMQ socket, can be read."""
        self._handlers[ready] = handler
        self._poller.register(ready, zmq.POLLIN)

    def forget(self, ready: Any) -> None:
        """Watch `ready` no longer. Forgetting what is not watched is harmless."""
        if self._handlers.pop(ready, None) is not None:
            self._poller.unregister(ready)

    def turn(self, wait_ms: int | None) -> None:
        """Wait at most `wait_ms` (None: for ever), and call the handlers of all that is readable."""
        for ready, _ in self._poller.poll(wait_ms):
            handler = self._handlers.get(ready)
            if handler is not None:
                handler()
