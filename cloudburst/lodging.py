"""What a node keeps in its memory for clients of nodes on other hosts, and how that is given back.

A result that its caller cannot map lies in a directory of the caller's node (`segments.shelf.distant_name`), so it goes
at the latest when that node is no longer heard of. Before, its owner lets it go by name, through its own node, and a
node tells those on other hosts when a client has left. The one rule: a node has only what is its own removed.
Source: DESIGN §6; decision record 0024.
"""

from __future__ import annotations

from typing import Any, Protocol

from cloudburst.errors import RequestError
from cloudburst.segments.descriptors import NAME
from cloudburst.segments.shelf import Shelf


class Neighbours(Protocol):
    """The other nodes."""

    def tell(self, node: int, verb: str, body: dict[str, Any]) -> None:
        """Tell one, if it is there."""

    def tell_hosts(self, verb: str, body: dict[str, Any]) -> None:
        """Tell those on other hosts."""


class Lodging:
    """What lies on this node's shelf for others, and on others' for its clients."""

    def __init__(self, shelf: Shelf, neighbours: Neighbours) -> None:
        self._shelf = shelf
        self._neighbours = neighbours

    def hear(self, who: int, verb: str, body: dict[str, Any]) -> RequestError | None:
        """Do what a client of this node, or another node, asks for; return why not.

        `drop`: a value, by `node` and `name`, is wanted no more. `left`: so is all that lies here for a `client`.
        """
        if verb == "left":
            self._shelf.remove_of(who, int(body["client"]))
            return None
        node, name = int(body["node"]), str(body["name"])
        if not NAME.fullmatch(name) or "/d" not in name:
            return RequestError(f"{name!r} is no value that lies on another host")
        if node != self._shelf.token:
            self._neighbours.tell(node, "drop", body)
        elif name.startswith(f"{who:x}/"):
            self._shelf.remove(name)
        else:
            return RequestError(f"{name!r} is another node's")
        return None

    def part(self, client: int) -> None:
        """Take in that a client has left this node."""
        self._neighbours.tell_hosts("left", {"client": client})
