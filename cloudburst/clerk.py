"""The node's one thread that may wait for the store: it opens it, and does the jobs for the table of functions.

The embedded store starts while the node does; a node with a store that does not start answers everything that needs it
with the reason. Source: DESIGN §6, registrar.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloudburst.messages import Stored, StoreJob
from cloudburst.records import FunctionStore
from cloudburst.registrar import Registrar

log = logging.getLogger("cloudburst.clerk")


class Clerk:
    """Does store jobs in their order. `ready` is readable when `finished` has something to say."""

    def __init__(self, code_tag: str) -> None:
        self.ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.addresses: tuple[str, ...] = ()
        """Addresses of the store's workers, once it is open."""
        self._registrar = Registrar(self._table, code_tag)
        self._done: deque[Stored] = deque()
        self._lease: Any = None
        self._functions: FunctionStore | None = None
        self._thread = ThreadPoolExecutor(1, "clerk")
        self._thread.submit(self._open_early)

    def do(self, job: StoreJob) -> None:
        """Do a job when its turn comes."""
        self._thread.submit(self._work, job)

    def finished(self) -> list[Stored]:
        """Return the jobs done since the last time."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.ready)
        done = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def close(self) -> None:
        """Finish the job at hand, drop the others, and leave the store, which may end with it."""
        self._thread.shutdown(cancel_futures=True)
        if self._lease is not None:
            self._lease.close()
        os.close(self.ready)

    # -- the thread

    def _open_early(self) -> None:
        try:
            self._table()
        except Exception:  # the next request tries again, and is answered with what it was
            log.exception("the store cannot be reached")

    def _table(self) -> FunctionStore:
        if self._functions is None:
            import anna

            address = os.environ.get("ANNA_ADDRESS")
            if address is not None:
                addresses: tuple[str, ...] = (address,)
            else:
                from anna import local

                self._lease = local.ensure()
                addresses = tuple(self._lease.addresses)
            self._functions = FunctionStore(anna.connect(addresses[0], system=True))
            self.addresses = addresses
            os.eventfd_write(self.ready, 1)
        return self._functions

    def _work(self, job: StoreJob) -> None:
        self._done.append(Stored(job, *self._registrar.run(job)))
        os.eventfd_write(self.ready, 1)
