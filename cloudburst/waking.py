"""What a future's waiters sleep on: a condition that costs next to nothing until somebody waits.

Every spawned call has one, and as a rule nobody ever sleeps on it: answers come in batches, and who waits for one finds
the others there. `threading.Condition` makes a dozen objects for each, which the garbage collector then walks through
again and again. The one rule: it behaves like one, as far as `concurrent.futures` uses it.
"""

from __future__ import annotations

from _thread import LockType, allocate_lock
from threading import RLock
from typing import Final

FOREVER: Final = -1.0


class Waking:
    """A reentrant lock, with sleep until `notify_all`."""

    __slots__ = ("_lock", "_sleepers")

    def __init__(self) -> None:
        self._lock = RLock()
        self._sleepers: list[LockType] | None = None

    def acquire(self) -> bool:
        """Take the lock."""
        return self._lock.acquire()

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep without the lock until `notify_all`; False when that has not come within `timeout` seconds."""
        own = allocate_lock()
        own.acquire()
        if self._sleepers is None:
            self._sleepers = []
        self._sleepers.append(own)
        held = self._lock._release_save()  # type: ignore[attr-defined]
        woken = False
        try:
            woken = own.acquire(True, FOREVER if timeout is None else max(0.0, timeout))
        finally:
            self._lock._acquire_restore(held)  # type: ignore[attr-defined]
            if not woken and self._sleepers and own in self._sleepers:
                self._sleepers.remove(own)
        return woken

    def notify_all(self) -> None:
        """Wake all that sleep. The lock is held."""
        sleepers, self._sleepers = self._sleepers, None
        for sleeper in sleepers or ():
            sleeper.release()
