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

from anna.errors import AnnaError
from anna.rundir import RunDirectory
from cloudburst.errors import NotSigned
from cloudburst.introduction import node_at
from cloudburst.keyring import keys_in, keys_of, signatures_with
from cloudburst.messages import Stored, StoreJob
from cloudburst.neighbours import NodeRecord
from cloudburst.processes import Readable, stop
from cloudburst.records import FunctionStore
from cloudburst.registrar import Registrar
from cloudburst.registry import Registry
from cloudburst.secret import Secret
from cloudburst.shape import Shape, host_identity

log = logging.getLogger("cloudburst.clerk")


class Clerk:
    """Does store jobs in their order. `ready` is readable when `finished` has something to say."""

    def __init__(self, code_tag: str, directory: RunDirectory, shape: Shape) -> None:
        self._directory = directory
        self._shape = shape
        self.ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.addresses: tuple[str, ...] = ()
        """Addresses of the store's workers, once it is open."""
        self.beside: NodeRecord | None = None
        """The node that this one joins."""
        self.refused = 0
        """How many records of functions it has refused, since nobody who may has signed them."""
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

    def close(self, record: NodeRecord | None, hurry: Readable) -> None:
        """Finish the job at hand, drop the others, and leave the store, which may end with it.

        With the `record` of a node that leaves others behind: hide that, and have its store hand over its keys first,
        unless `hurry` is readable before it has.
        """
        self._thread.shutdown(cancel_futures=True)
        if record is not None and self._functions is not None:
            with contextlib.suppress(AnnaError):  # it ends by itself
                Registry(self._functions.kvs).hide(record)
        if self._lease is not None:
            if record is not None and self._shape.apart:
                stop(self._lease.supervisor_pid, "the store of this node", hurry=hurry)
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
            if self._shape.gateway:
                self.beside = self._joined()
                addresses: tuple[str, ...] = self.beside.store_from(host_identity())
            elif address is not None:
                addresses = (address,)
            else:
                self._lease = self._open()
                addresses = tuple(address for worker in self._lease.view.workers for address in worker.addresses)
            self._functions = self._opened(anna.connect(addresses[0], system=True))
            self.addresses = addresses
            os.eventfd_write(self.ready, 1)
        return self._functions

    def _opened(self, kvs: Any) -> FunctionStore:
        return FunctionStore(kvs, signatures_with(keys_in(self._directory.path)), self._refuse)

    def _refuse(self, refusal: NotSigned) -> None:
        self.refused += 1
        log.warning("%s", refusal)

    def _joined(self) -> NodeRecord:
        return node_at(self._shape.join, Secret.of(self._directory.path), keys_of(self._directory.path))

    def _open(self) -> Any:
        """Return a lease on the store: this user's, or this node's part of the one that its neighbours have."""
        from anna import local

        shape = self._shape
        if not shape.apart:
            return local.ensure()
        if shape.join:
            self.beside = self._joined()
        seeds = () if self.beside is None else self.beside.store
        listen = () if shape.place is None else (f"tcp://{_bracketed(shape.place.host)}:0",)
        path = f"{self._directory.path}-store"
        keys = os.environ.get("ANNA_KEYS")
        return local.ensure(path, shape.workers, seeds=seeds, factor=shape.factor, listen=listen, keys=keys)

    def _work(self, job: StoreJob) -> None:
        self._done.append(Stored(job, *self._registrar.run(job)))
        os.eventfd_write(self.ready, 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
