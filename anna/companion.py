"""A process that runs beside a node's workers, and is started again when it ends: the one that serves its metrics.

The one rule: it ends with its node. Its standard input is a pipe whose other end the node alone holds, and it stops at
the end of that, however the node ends.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from anna.backoff import Backoff

log = logging.getLogger("anna.companion")

STOP_S: Final = 2.0
"""How long a companion may take to stop."""


class Companion:
    """A process of `command`, which inherits `descriptors`. The supervisor's selector tells of its end."""

    def __init__(self, name: str, command: Sequence[str], descriptors: Sequence[int]) -> None:
        """Start it. Raises OSError."""
        self.restart_at: float | None = None
        self._name = name
        self._command = tuple(command)
        self._descriptors = tuple(descriptors)
        self._backoff = Backoff()
        self._selector: selectors.BaseSelector | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._start()

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Let `selector` tell of every end; `restart_if_due` then starts the next one."""
        self._selector = selector
        selector.register(self._pidfd, selectors.EVENT_READ, self._ended)

    def restart_if_due(self, now: float) -> None:
        """Start the process again, if its time has come."""
        if self.restart_at is None or self.restart_at > now:
            return
        try:
            self._start()
        except OSError as error:
            self.restart_at = now + self._backoff.crashed(now)
            log.error("cannot start %s: %s", self._name, error)
            return
        self.restart_at = None
        if self._selector is not None:
            self.watch(self._selector)

    def forget_in_worker(self) -> None:
        """In a child of the node: close what is the node's alone."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self._process is not None:
            self._close()

    def end(self) -> None:
        """End the process and wait for it. Ending twice is harmless."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()
        self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=self._descriptors,
            process_group=0,
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._backoff.started(time.monotonic())

    def _ended(self, pidfd: int, _: int) -> None:
        assert self._process is not None
        assert self._selector is not None
        code = self._process.wait()
        self._selector.unregister(pidfd)
        self._close()
        self._process = None
        now = time.monotonic()
        self.restart_at = now + self._backoff.crashed(now)
        log.warning("%s ended with code %d; restart in %.1f s", self._name, code, self.restart_at - now)

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._pidfd)
        self._pidfd = -1
