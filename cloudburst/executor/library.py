"""The functions that one executor has loaded.

Each call asks the node's page whether any registration has happened since the function was looked up; only then is
its record read again, so a new version is seen by the very next call and an old one costs nothing. The record is
compared before the body is loaded. Source: D61 (redefinition left stale copies), D52; reliability C (Python version).
"""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from cloudburst import context
from cloudburst.errors import (
    CloudburstError,
    ExecutorLost,
    FunctionError,
    FunctionNotFound,
    RequestError,
    UnavailableError,
)
from cloudburst.executor.modules import BUNDLED
from cloudburst.page import Page
from cloudburst.pickling import code_tag
from cloudburst.records import FunctionRecord, FunctionStore

VERSIONS_KEPT: Final = 3
"""Of so many versions of a class, those used last, an executor keeps the instance."""


class Loaded:
    """One function, ready to run: `target` is what is called, `took_us` how long it took last."""

    __slots__ = ("batch", "bundle", "memory", "record", "seen", "target", "took_us")

    def __init__(self, record: FunctionRecord, target: Callable[..., Any], seen: int) -> None:
        self.record = record
        self.target = target
        self.seen = seen
        self.took_us = 1 << 60
        self.batch = record.options.batch
        self.bundle = record.modules
        self.memory = record.options.memory_bytes


class Library:
    """Loads functions by name on demand, and classes as one instance for each executor."""

    def __init__(self, page: Page, open_store: Callable[[], FunctionStore]) -> None:
        self._page = page
        self._open_store = open_store
        self._loaded: dict[tuple[bytes, int], Loaded] = {}
        self._instances: OrderedDict[tuple[str, int], tuple[FunctionRecord, Any]] = OrderedDict()
        self._tag = ""
        self._lock = threading.RLock()

    def find(self, name: bytes, version: int) -> Loaded:
        """Return the function to run for a call. Raises FunctionNotFound, EnvironmentMismatch, what loading raises."""
        found = self._loaded.get((name, version))
        seen = self._page.functions_version
        if found is not None and found.seen == seen:
            if found.bundle:
                BUNDLED.activate(found.bundle)
            return found
        try:
            with self._lock:
                return self._look_up(name, version, seen, found)
        except CloudburstError:
            raise
        except Exception as fault:  # the call is answered, whatever the store's client raised
            raise UnavailableError(
                f"function {name.decode(errors='replace')!r} cannot be fetched: {type(fault).__name__}: {fault}"
            ) from fault

    def took_us(self, name: bytes, version: int) -> int:
        """Return how long a function took last; very long when it has not run here."""
        found = self._loaded.get((name, version))
        return 1 << 60 if found is None else found.took_us

    def batch(self, name: bytes, version: int) -> int:
        """Return how many calls of a function may be run together; 1 when it has not run here."""
        found = self._loaded.get((name, version))
        return 1 if found is None else found.batch or 1

    def _look_up(self, name: bytes, version: int, seen: int, old: Loaded | None) -> Loaded:
        store = self._open_store()
        try:
            record, method = store.resolve(name.decode(), version)
        except FunctionNotFound:
            self._loaded.pop((name, version), None)
            raise
        if record.poison:
            raise ExecutorLost(record.poison, definite=True)
        if record.graph:
            raise RequestError(f"{record.name!r} is a dag; what an executor runs is a function")
        if old is not None and old.record == record:
            if old.bundle:
                BUNDLED.activate(old.bundle)
            old.seen = seen
            return old
        loaded = Loaded(record, self._target(store, record, method), seen)
        self._loaded[name, version] = loaded
        return loaded

    def _target(self, store: FunctionStore, record: FunctionRecord, method: str) -> Callable[..., Any]:
        if not record.is_class:
            return self._load(store, record)
        which = (record.name, record.version)
        kept = self._instances.pop(which, None)
        if kept is None or kept[0] != record:
            kept = (record, self._load(store, record)())
        self._instances[which] = kept
        others = [one for one in self._instances if one[0] == record.name]
        for oldest in others[:-VERSIONS_KEPT]:
            del self._instances[oldest]
        instance = kept[1]
        target = instance if not method else getattr(instance, method, None) if method[:1] != "_" else None
        if not callable(target):
            public = [key for key in dir(instance) if key[:1] != "_" and callable(getattr(instance, key))]
            wanted = f"no method {method!r}" if method else "no __call__"
            raise FunctionNotFound(f"class {record.name!r} has {wanted}; its methods are {', '.join(public) or 'none'}")
        return target  # type: ignore[no-any-return]

    def _load(self, store: FunctionStore, record: FunctionRecord) -> Callable[..., Any]:
        if not self._tag:
            self._tag = code_tag()
        record.require(self._tag)
        body = store.body(record.body)
        if body is None:
            raise UnavailableError(f"the body of function {record.name!r} is not in the store (hash {record.body})")
        for path in record.paths:
            if path not in sys.path:
                sys.path.append(path)
        modules = store.body(record.modules) if record.modules else None
        try:
            if modules is not None:
                BUNDLED.take(record.modules, modules)
            with context.loading():
                return pickle.loads(body)  # type: ignore[no-any-return]
        except BaseException as fault:  # a user's module may raise anything, SystemExit too
            error = FunctionError(f"function {record.name!r} cannot be loaded here: {type(fault).__name__}: {fault}")
            error.remote_traceback = traceback.format_exc()
            error.exception_type = type(fault).__name__
            error.function = record.name
            raise error from fault
