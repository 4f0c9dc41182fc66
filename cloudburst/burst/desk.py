"""Where a running `cb up` is asked from other shells: how its machines are, and to have more or fewer.

A Unix socket in the run's private directory; one line of JSON each way, one request at a time. Who connects must be of
the same user. It answers in the thread that runs it, so what is asked for and Ctrl-C do not meet halfway.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloudburst.burst.reaping import DESK
from cloudburst.errors import BY_NAME, CloudburstError, MachinesNotObtained, NodeLost, RequestError

if TYPE_CHECKING:
    from cloudburst.cluster import Cluster

LOOK_S: Final = 0.1
REQUEST_S: Final = 1.0
"""How long who connects may take to say what is asked."""
ANSWER_S: Final = 600.0
LINE_BYTES_MAX: Final = 1 << 20


class Desk:
    """The desk of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(cluster.directory / DESK))
        self._listener.listen(8)

    def serve(self) -> None:
        """Answer until the cluster is over."""
        with self._listener:
            while not self._cluster.over.is_set():
                if select.select([self._listener], [], [], LOOK_S)[0]:
                    self._answer(self._listener.accept()[0])

    def _answer(self, asking: socket.socket) -> None:
        with asking:
            try:
                if _user_of(asking) != os.getuid():
                    return
                asking.settimeout(REQUEST_S)
                asked = _read_line(asking)
                asking.settimeout(None)
                asking.sendall(json.dumps(self._do(asked)).encode() + b"\n")
            except (OSError, ValueError):
                pass  # who asked has gone, or does not speak so

    def _do(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked.get("verb") == "scale":
                self._cluster.scale(asked["hosts"])
            machines = [{**asdict(one), "phase": one.phase} for one in self._cluster.machines]
            bounds, sized = str(self._cluster.bounds), self._cluster.sized
            return {
                "run": self._cluster.run, "machines": machines, "spent": self._cluster.spent, "hosts": bounds,
                "sized": sized,
            }  # fmt: skip
        except CloudburstError as fault:
            return {"error": type(fault).__name__, "message": str(fault)}


def ask(directory: Path, verb: str, **body: Any) -> dict[str, Any]:
    """Ask the `cb up` of a run's directory. Raises its error, or NodeLost when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(str(directory / DESK))
            asking.settimeout(ANSWER_S)
            asking.sendall(json.dumps({"verb": verb, **body}).encode() + b"\n")
            answer = _read_line(asking)
        except (OSError, ValueError) as fault:
            raise NodeLost(f"the `cb up` of {directory} does not answer yet, or not any more: {fault}") from None
    if "error" in answer:
        known = {**BY_NAME, "MachinesNotObtained": MachinesNotObtained}
        raise known.get(answer["error"], RequestError)(answer["message"])
    return answer


def _read_line(connection: socket.socket) -> dict[str, Any]:
    said = b""
    while not said.endswith(b"\n"):
        data = connection.recv(1 << 16)
        if not data or len(said) > LINE_BYTES_MAX:
            raise ValueError("it said no whole line")
        said += data
    found: dict[str, Any] = json.loads(said)
    return found


def _user_of(connection: socket.socket) -> int:
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", said)[1])
