"""What a node writes about itself: lines of text for people, or one JSON object a line for programs.

The one rule: a line that a program may wait for has an event from `EVENTS`, and its figures as fields, so nobody has
to take a sentence apart. The sentences may change, events and fields stay. Everything goes to standard error; the
standard library does the rest.

    log.info("recovered %d keys", keys, extra=Event.of("recovered", keys=keys, seconds=seconds))
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

FORMATS: Final = ("text", "json")

TEXT: Final = "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"

EVENTS: Final = {
    "start": "a node has begun to serve: workers, directory",
    "stop": "a node was told to stop: signals",
    "worker-ended": "a worker process has ended: seat, pid, code",
    "worker-started": "a worker process was started in place of one that ended: seat, pid, view",
    "waiting": "no seed has answered for a cluster yet: seeds and what came of each, seconds, tries",
    "view": "who is in the cluster has changed: version, nodes, workers, and of nodes joined, left, died",
    "handoff-begun": "a worker may lack keys that it should have under a new view: view, keys",
    "handoff-ended": "a worker has all that it should: view, keys, seconds",
    "recovery": "a worker has its logged keys back: keys, batches, seconds",
    "checkpoint": "a checkpoint was begun: keys, log_bytes",
    "disk-full": "durable writes are refused until there is room",
    "disk-again": "there is room again",
    "damage": "something on the disk is not as it was written: what",
    "storage-failed": "a worker cannot trust its disk any more: why",
    "superseded": "the cluster has forgotten this node, or given its seat to another worker",
    "not-admitted": "connections were closed for the keys that they showed, or did not: connections, peer, why",
    "malformed": "connections were closed for bytes that are not of the protocol: connections, why",
}
"""Every event, and when it is written; the words after the colon are its fields."""

_identity: dict[str, Any] = {}


class Event:
    """The `extra` of a log line."""

    @staticmethod
    def of(event: str, **fields: Any) -> dict[str, Any]:
        """Return what a log call is given as `extra`. `event` must be one of `EVENTS`."""
        assert event in EVENTS, event
        return {"event": event, "fields": fields}


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, node, worker, event (null: none), fields, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A field that JSON has no form for is written as text."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "node": _identity.get("node"),
            "worker": _identity.get("worker"),
            "event": getattr(record, "event", None),
            "fields": getattr(record, "fields", {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(format: str = "text") -> None:
    """Write log lines to standard error from now on, in one of FORMATS."""
    if format not in FORMATS:
        raise ValueError(f"a log's format is {' or '.join(FORMATS)}, not {format!r}")
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def speak_as(node_id: int, worker: int | None = None) -> None:
    """Name the node, and the worker's place on it, in every JSON line of this process."""
    _identity["node"] = f"{node_id:016x}"
    _identity["worker"] = worker
