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
from cloudburst.records import FunctionOptions, FunctionRecord, FunctionStore, check_name
from cloudburst.registration import arity_of

GRAPH_BODY: Final = "graph"
"""What stands in a DAG's record in place of a body's hash: there is no code in it."""


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
        if len(code) > config.FUNCTION_BYTES_MAX:
            limit = f"function_bytes_max is {config.FUNCTION_BYTES_MAX:,}"
            raise ValueTooLarge(f"function {body['name']!r} has {len(code):,} bytes; {limit}")
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
        record = store.newer(replace(record, body=store.put_body(code)))
        changed = record != store.find(record.name)
        if changed:
            store.put(record)
        return {"version": record.version, "body": record.body}, changed

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
        changed = record != store.find(record.name)
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
        return [asdict(record) | {"graph": str(Graph.unpack(record.graph)) if record.graph else ""}
                for record in store.all()], False  # fmt: skip

    def _poison(self, store: FunctionStore, body: dict[str, Any]) -> tuple[Any, bool]:
        record = store.find(body["name"]) or store.find(body["name"].rpartition(".")[0] or body["name"])
        if record is None or record.poison:
            return None, False
        store.put(replace(record, poison=body["reason"]))
        return None, True
