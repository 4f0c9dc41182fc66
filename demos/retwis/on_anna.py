"""The clone on our own store: the store alone, and the store with a node that runs functions.

Two ways to the same lattices. "In functions" is what users do: `cb.call` runs an operation in an executor, which reads
through its node's cache. "Bare client" runs the very same code in the client's process, with a client of the store in
the place of `cb`: the fair pair to a bare Redis client, which does its logic in the client too. Each has a store of its
own, since the owners of the first also keep the node's cache current.
"""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FunctionType, TracebackType
from typing import Any, Self

import anna
import cloudburst as cb
from anna import local
from anna.lattices import LWW, Lattice, Map, Max
from demos.retwis import functions
from demos.retwis.people import Graph, handle
from demos.retwis.workload import OPERATIONS, OpenBackend, Operations

LOAD_PEOPLE = 100
END_SECONDS_MAX = 2.0
DIRECTORIES = {"ANNA_DIR": "anna", "CLOUDBURST_DIR": "cloudburst"}


class AnnaStore:
    """A store that nobody else sees, as a `workload.Store`; a context manager."""

    title = "our store"

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lease: local.Lease | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = tempfile.TemporaryDirectory(prefix="retwis-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(directory))
            stack.callback(await_empty, path)
            self.open(stack, path)
            self._stack = stack.pop_all()
        return self

    def open(self, stack: ExitStack, directory: Path) -> None:
        """Start what runs, below `directory`, and leave its end to `stack`."""
        self._lease = stack.enter_context(local.ensure(directory / "anna"))
        stack.enter_context(connection(self.lease.address))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def lease(self) -> local.Lease:
        """What keeps the store running."""
        assert self._lease is not None, "not entered"
        return self._lease

    def load(self, graph: Graph) -> Iterable[int]:
        """Sign everybody up with all their follows; yield how many each batch had."""
        return sign_up_all(self.client(), graph)

    def client(self) -> anna.Client:
        """Return this process's client, the one that `operations` use."""
        return connection(self.lease.address)

    def operations(self) -> Operations:
        """Return the eight operations, for this process."""
        return bare(self.lease.address)

    def backends(self) -> dict[str, OpenBackend]:
        """Return the way in which clients are to use this store."""
        return {"ours-bare": functools.partial(bare, self.lease.address)}

    def keys(self) -> int:
        """Return how many keys the store's workers hold."""
        return sum(int(figures["keys"]) for figures in connection(self.lease.address).status())

    def memory_bytes(self) -> int:
        """Return the memory of the store's workers."""
        return anonymous_bytes(children(self.lease.supervisor_pid))

    def versions(self) -> dict[str, str]:
        """Return what is measured."""
        return {"anna": f"{len(self.lease.view.workers)} workers"}


class NodeStore(AnnaStore):
    """The same with a node, in which the eight functions are registered.

    Its directories are in the environment, where every process that this one starts finds them.
    """

    title = "our node"

    def open(self, stack: ExitStack, directory: Path) -> None:
        """Start the store, then the node beside it."""
        for variable, name in DIRECTORIES.items():
            stack.callback(set_variable, variable, os.environ.get(variable))
            set_variable(variable, str(directory / name))
        super().open(stack, directory)
        stack.enter_context(cb.connect())
        register({name: getattr(functions, name) for name in OPERATIONS})

    def client(self) -> anna.Client:
        """Return this process's client, which reads through the node's cache."""
        client: anna.Client = cb.default().store
        return client

    def operations(self) -> Operations:
        """Return the eight operations as calls of the registered functions."""
        return called()

    def backends(self) -> dict[str, OpenBackend]:
        """Return the way in which clients are to use this node."""
        return {"ours-functions": called}

    def versions(self) -> dict[str, str]:
        """Return what is measured."""
        return {**super().versions(), "cloudburst": f"{len(cb.status()['executors'])} executors"}


def sign_up_all(client: anna.Client, graph: Graph) -> Iterator[int]:
    """Sign everybody up with all their follows, a hundred people in one flight; yield how many each had."""
    since, following, followers = functions.now(), graph.following(), graph.followers()
    for start in range(0, graph.people, LOAD_PEOPLE):
        batch = range(start, min(start + LOAD_PEOPLE, graph.people))
        writes: dict[str, Lattice] = {}
        for person in batch:
            writes[f"user/{person}"] = Map({"name": LWW(handle(person)), "since": LWW(since)})
            writes[f"following/{person}"] = Map({other: Max(1) for other in following[person]})
            writes[f"followers/{person}"] = Map({other: Max(1) for other in followers[person]})
        client.mput(writes)
        yield len(batch)


@functools.cache
def connection(address: str) -> anna.Client:
    """Return this process's client of the store at `address`."""
    return anna.connect(address)


def bare(address: str) -> Operations:
    """Return the eight operations to be run in this process: the same code, where `cb` is a client of the store."""
    names: dict[str, Any] = {**vars(functions), "cb": connection(address)}
    for name, function in inspect.getmembers(functions, inspect.isfunction):
        names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
    return {name: names[name] for name in OPERATIONS}


def called(prefix: str = "") -> Operations:
    """Return the eight operations as calls of what was registered with `prefix`."""
    return {name: functools.partial(cb.call, prefix + name) for name in OPERATIONS}


def register(operations: Operations, prefix: str = "") -> None:
    """Register operations as functions, by their names after `prefix`."""
    for name, function in operations.items():
        cb.register(function, name=prefix + name)


def await_empty(directory: Path) -> None:
    """Wait until what ran below `directory` has taken its files away, for at most `END_SECONDS_MAX`."""
    deadline = time.monotonic() + END_SECONDS_MAX
    while any(directory.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)


def set_variable(name: str, value: str | None) -> None:
    """Set an environment variable, or remove it when `value` is None."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that still run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Return the memory that processes have written, together; a page that several share counts once."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:"))
    return total
