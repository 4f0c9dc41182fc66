"""The clone on machines that `--on` names: the same functions, called from here; the store is theirs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import anna
import cloudburst as cb
from demos import where
from demos.retwis import functions
from demos.retwis.on_anna import called, register, set_variable, sign_up_all
from demos.retwis.people import Graph
from demos.retwis.workload import OPERATIONS, OpenBackend, Operations

DIRECTORY = "CLOUDBURST_DIR"


class MachineStore:
    """A cluster of a provider's machines, as a `workload.Store`; a context manager that gives them back.

    Its entrance is in the environment, where every process that this one starts finds it. What its workers use of
    memory is not asked: they are elsewhere.
    """

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.title = f"machines on {chosen.on}"
        self._chosen = chosen
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._client, directory = stack.enter_context(where.opened(self._chosen))
            stack.callback(set_variable, DIRECTORY, os.environ.get(DIRECTORY))
            set_variable(DIRECTORY, str(directory))
            register({name: getattr(functions, name) for name in OPERATIONS})
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def load(self, graph: Graph) -> Iterable[int]:
        """Sign everybody up with all their follows; yield how many each batch had."""
        client: anna.Client = self._client.store
        return sign_up_all(client, graph)

    def operations(self) -> Operations:
        """Return the eight operations as calls of the registered functions."""
        return called()

    def backends(self) -> Mapping[str, OpenBackend]:
        """Return the way in which clients are to use it."""
        return {"ours-functions": called}

    def keys(self) -> int:
        """Return 0: nobody is asked."""
        return 0

    def memory_bytes(self) -> None:
        """Return None: nobody is asked."""

    def versions(self) -> dict[str, str]:
        """Return what is measured."""
        nodes = cb.status()["nodes"]
        return {"cloudburst": f"{self._chosen.hosts} machines on {self._chosen.on}, {len(nodes)} other nodes known"}
