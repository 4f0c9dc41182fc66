"""Keeps the epochs of open sessions readable: one thread for all sessions of a process.

A store tells recent epochs apart for 0.3 s, and others while somebody has pinned them; most sessions end before that.
The one rule: a session that is still open after LOOK_S has its epoch pinned, and pinned again before each lease ends,
however rarely it reads. The thread sleeps as long as no session is open. Source: DESIGN §4 (long sessions).
"""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import Final, Protocol

from cloudburst import config

LOOK_S: Final = 0.04
RENEW_S: Final = config.SESSION_LEASE_S / 3
LINGER_LOOKS: Final = 50
"""How often the thread looks once more when no session is open, so that who opens one need not wake it."""


class Kept(Protocol):
    """A session whose epoch is to stay readable."""

    def renew(self) -> None:
        """Have it kept readable for a lease from now."""


class Keeper:
    """The sessions of this process that are open."""

    def __init__(self) -> None:
        self._due: dict[Kept, float] = {}
        self._wake = threading.Event()
        self._awake = False
        self._lock = threading.Lock()

    def keep(self, session: Kept) -> None:
        """See to it that the epoch of a session, which has just begun, stays readable until `release`."""
        self._due[session] = monotonic() + LOOK_S
        if not self._awake:
            self._begin()

    def release(self, session: Kept) -> None:
        """Let go of it."""
        self._due.pop(session, None)

    def _begin(self) -> None:
        with self._lock:
            if not self._awake:
                self._awake = True
                threading.Thread(target=self._look, name="cloudburst-sessions", daemon=True).start()

    def _look(self) -> None:
        idle = 0
        while idle < LINGER_LOOKS:
            self._wake.wait(LOOK_S)
            idle = 0 if self._due else idle + 1
            now = monotonic()
            for session in [one for one, due in list(self._due.items()) if due <= now]:
                session.renew()
                if session in self._due:
                    self._due[session] = monotonic() + RENEW_S
        with self._lock:
            self._awake = False
        if self._due:
            self._begin()  # one came in between


keeper: Final = Keeper()
os.register_at_fork(after_in_child=lambda: keeper.__init__())  # type: ignore[misc]
