"""How the end of a process is brought about and waited for that is not a child of this one.

By its pidfd, so that a number that the kernel has given to another is never signalled. Who waits in vain is told.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from typing import Protocol

from cloudburst import config

log = logging.getLogger("cloudburst.processes")


class Readable(Protocol):
    """What can be waited for."""

    def fileno(self) -> int:
        """Return its descriptor."""


def wait_for_end(pid: int, what: str, timeout_s: float = config.STOP_S) -> bool:
    """Wait until a process has ended; log which one has not when the time is over, and return whether it has."""
    return _wait(pid, what, timeout_s, (), None)


def stop(pid: int, what: str, timeout_s: float = config.STOP_S, hurry: Readable | None = None) -> bool:
    """Send SIGTERM, and do the same; when `hurry` becomes readable meanwhile, send it again."""
    return _wait(pid, what, timeout_s, (signal.SIGTERM,), hurry)


def _wait(
    pid: int, what: str, timeout_s: float, signals: tuple[signal.Signals, ...], hurry: Readable | None
) -> bool:
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        for number in signals:
            signal.pidfd_send_signal(watch, number)
        end = time.monotonic() + timeout_s
        waited: list[Readable | int] = [watch] if hurry is None else [watch, hurry]
        while ready := select.select(waited, [], [], max(0.0, end - time.monotonic()))[0]:
            if watch in ready:
                return True
            waited.remove(ready[0])
            for number in signals:
                signal.pidfd_send_signal(watch, number)
        log.warning("%s (pid %d) has not ended within %.0f s", what, pid, timeout_s)
        return False
    except ProcessLookupError:
        return True
    finally:
        os.close(watch)
