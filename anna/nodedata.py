"""What a node with data keeps of itself in its directory: who it is, its number of starts, and the cluster it saw last.

The one rule: a file is replaced whole or not at all. The keys themselves are each seat's own (`anna.storage`).

    DIR/node.json   DIR/view   DIR/seat-0/ …
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import msgpack

from anna.errors import ProtocolError, RequestError
from anna.messages import View


class DataMismatch(RequestError, ValueError):
    """The directory holds the data of another node than the one that is to be started."""


@dataclass(frozen=True, slots=True)
class NodeData:
    """One start of a node: its id, the number of this start, and how many workers share its keys."""

    path: Path
    node_id: int
    generation: int
    workers: int
    cluster: str

    def remember(self, view: View) -> None:
        """Keep the newest view, to find the others by after a restart."""
        replace_file(self.path / "view", msgpack.packb(view.to_wire()))

    def set_aside(self) -> Path:
        """Move what this node has aside, and return where: the next start is another node's, with nothing.

        For a node that its cluster has forgotten: what its disks hold may have been deleted since. `view` stays, to
        find the others by.
        """
        place = self.path / f"set-aside-{self.node_id:x}"
        place.mkdir(mode=0o700, exist_ok=True)
        for seat in sorted(self.path.glob("seat-*")):
            seat.rename(place / seat.name)
        (self.path / "node.json").rename(place / "node.json")
        return place

    def known(self) -> View | None:
        """Return the view as it was kept last, None when there is none that can be read."""
        with contextlib.suppress(OSError, ValueError, ProtocolError):
            return View.from_wire(msgpack.unpackb((self.path / "view").read_bytes()))
        return None


def open_data(path: Path, workers: int | None, usual: int, cluster: str, fresh_id: int) -> NodeData:
    """Return the data of the node in `path` for one more start, or begin one of `workers` (None: `usual`) workers.

    Raises DataMismatch when another number of workers, or another cluster, is asked for than the data is of.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = path / "node.json"
    found = json.loads(file.read_text()) if file.exists() else None
    if found is None:
        data = NodeData(path, fresh_id, 1, workers or usual, cluster)
    else:
        if workers is not None and workers != found["workers"]:
            raise DataMismatch(f"{path} holds the keys of {found['workers']} workers, --workers says {workers}")
        if cluster != found["cluster"]:
            raise DataMismatch(f"{path} belongs to the cluster {found['cluster']!r}, --cluster says {cluster!r}")
        data = NodeData(path, int(found["node_id"], 16), found["generation"] + 1, found["workers"], cluster)
    fields = {
        "node_id": f"{data.node_id:#x}",
        "generation": data.generation,
        "workers": data.workers,
        "cluster": cluster,
    }
    replace_file(file, json.dumps(fields).encode())
    return data


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` where `path` is, durably: after a crash the file is the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
