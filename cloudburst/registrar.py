"""The one writer of the table of functions on a node: does the store jobs that the scheduler hands out, in their order.

Registrations go through it so that two that come at once get two versions. It blocks on the store, so it has a thread
of its own, and it never looks inside a body: it compares records and moves bytes.
Source: D56, reliability A2-12 to A2-14.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from cloudburst import config
from cloudburst.errors import (
    CloudburstError,
    FunctionNotFound,
    InvalidDag,
    RequestError,
    UnavailableError,
    ValueTooLarge,
)
from cloudburst.graph import Graph
from cloudburst.messages import StoreJob
from cloudburst.neighbours import NodeRecord
from cloudburst.records import FunctionOptions, FunctionRecord, FunctionStore, check_name
from cloudburst.registration import arity_of
from cloudburst.registry import Registry

GRAPH_BODY: Final = "graph"
"""What stands in a DAG's record in place of a body's hash: there is no code in it."""

ALIAS_BODY: Final = "alias"
"""The same for an alias."""


class Registrar:
    """Does store jobs. `open_store` blocks until there is a store, or raises why there is none."""

    def __init__(self, open_store: Callable[[], FunctionStore], code_tag: str) -> None:
        self._open_store = open_store
        self._code_tag = code_tag
        self._verbs: dict[str, Callable[[FunctionStore, dict[str, Any]], tuple[Any, bool]]] = {
            "register": self._register,
            "dag": self._dag,
            "delete": self._delete,
            "functions": self._functions,
            "poison": self._poison,
            "alias": self._alias,
            "versions": self._versions,
            "nodes": self._nodes,
        }

    def run(self, job: StoreJob) -> tuple[Any, bool]:
        """Do one job; return its answer (or the error that it ended with) and whether the table has changed."""
        try:
            return self._verbs[job.verb](self._open_store(), job.body)
        except CloudburstError as fault:
            return fault, False
        except (KeyError, TypeError, ValueError) as fault:
            return RequestError(f"request {job.verb!r}: {type(fault).__name__}: {fault}"), False
        except Exception as fault:  # who asked must be answered, whatever the store's client raised
            return UnavailableError(f"the store failed: {type(fault).__name__}: {fault}", definite=False), False

    def _register(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        code = body["body"]
        modules = bytes(body.get("modules", b""))
        if len(code) + len(modules) > config.FUNCTION_BYTES_MAX:
            limit = f"function_bytes_max is {config.FUNCTION_BYTES_MAX:,}"
            what = f"{len(code):,} bytes" + (f" and {len(modules):,} of local modules" if modules else "")
            raise ValueTooLarge(f"function {body['name']!r} has {what}; {limit}")
        record = FunctionRecord(
            name=check_name(body["name"]),
            version=0,
            body="",
            code_tag=str(body["code_tag"]),
            created_us=time.time_ns() // 1000,
            is_class=bool(body["is_class"]),
            doc=str(body["doc"]),
            signature=str(body["signature"]),
            paths=tuple(map(str, body["paths"])),
            options=FunctionOptions(*body["options"]),
            arities={str(method): (int(least), int(most)) for method, (least, most) in body["arities"].items()},
            coroutines=tuple(map(str, body.get("coroutines", ()))),
        )
        record.require(self._code_tag)
        before = store.standing(record.name)
        if before is not None and before.alias:
            raise RequestError(f"{record.name!r} is an alias of {before.alias!r}; delete it first")
        address = store.put_body(modules) if modules else ""
        record = store.newer(replace(record, body=store.put_body(code), modules=address))
        changed = record != before
        if changed:
            store.put(record)
        return {"version": record.version, "body": record.body}, changed

    def _alias(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        """Have a name stand for one version of a function: one write moves it."""
        name, function, version = check_name(body["name"]), str(body["function"]), int(body["version"])
        target, method = store.resolve(function, version)
        before = store.standing(name)
        if method:
            raise RequestError(f"an alias stands for all of a class; {function!r} is a method")
        if before is not None and not before.alias:
            raise RequestError(f"{name!r} is a function, and no alias; delete it first, or choose another name")
        record = FunctionRecord(
            name=name, version=0, body=ALIAS_BODY, code_tag=target.code_tag, created_us=time.time_ns() // 1000,
            alias=target.name, alias_version=target.version,
        )  # fmt: skip
        record = store.newer(record)
        changed = record != before
        if changed:
            store.put(record)
        return {"version": record.version, "alias_version": target.version}, changed

    def _versions(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        return [_shown(record) for record in store.versions(str(body["name"]))], False

    def _dag(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        """Store a DAG whose functions exist and can take what they will be given; nothing is stored otherwise."""
        graph = Graph.unpack(body["graph"])
        for step in graph.steps:
            if store.resolve(step.function)[0].graph:
                raise InvalidDag(f"step {step.name!r} of dag {graph.name!r} is itself a dag; a step is a function")
        graph.require_arities(lambda function: arity_of(store.resolve(function)[0], function))
        record = FunctionRecord(
            name=graph.name,
            version=0,
            body=GRAPH_BODY,
            code_tag=self._code_tag,
            created_us=time.time_ns() // 1000,
            doc=str(body["doc"]),
            options=FunctionOptions(*body["options"]),
            graph=graph.pack(),
        )
        record = store.newer(record)
        changed = record != store.standing(record.name)
        if changed:
            store.put(record)
        return {"version": record.version}, changed

    def _delete(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        name = check_name(body["name"])
        record = store.find(name)
        if record is None:
            raise FunctionNotFound(f"no function is registered as {name!r}")
        store.remove(record)
        return None, True

    def _functions(self, store: FunctionStore, _body: dict[str, Any]) -> tuple[Any, bool]:
        return [_shown(record) for record in store.all()], False

    def _poison(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        try:
            record = store.resolve(body["name"])[0]
        except FunctionNotFound:
            return None, False
        if record.poison:
            return None, False
        poisoned, newest = record.amended(poison=body["reason"]), store.find(record.name)
        if newest is not None and newest.version == record.version:
            store.put(poisoned)
        else:
            store.amend(poisoned)
        return None, True

    def _nodes(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        """Show a node's record to others for a while, if it has one to show, and return what others show."""
        registry = Registry(store.kvs)
        record = NodeRecord.unpack(body["record"])
        if record.control:
            registry.show(record)
        return [record.pack() for record in registry.all()], False

def _shown(record: FunctionRecord) -> dict[str, Any]:
    """Return a record as it is shown to users."""
    shown = asdict(record)
    del shown["revision"]
    return shown | {"graph": str(Graph.unpack(record.graph)) if record.graph else ""}
