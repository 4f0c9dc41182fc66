"""What `anna where` and `anna replicate` do: why a key lives where it lives, and that it is to live elsewhere.

The one rule: what is told is what the view says, worked out by the definition (`anna.routing.ring`), beside what each
owner says that it has. The two differ while copies move, and when something is wrong.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from anna.client import Client
from anna.messages import View
from anna.routing.hash import key_hash
from anna.routing.ring import Rings
from anna.vectors import DEFAULT


def where_of(client: Client, key: str) -> dict[str, Any]:
    """Return {key, hash, view, factor, vector, own, copies, moving_to, owners} of a key.

    `vector` is how many copies it is to have on each tier, its `own` or the default; `copies` for how many of them
    there are workers; `moving_to` the vector that it will have when its copies have moved, None when they do not.
    """
    owned = client.copies(key)
    view = client.view
    owners = []
    for copy in owned:
        worker = view.workers[copy.pop("place")]
        node = view.node_of(worker.worker_id)
        place = {"node": f"{node.node_id:016x}", "worker_id": f"{worker.worker_id:016x}", "seat": worker.seat}
        life = {"tier": node.tier, "status": node.status.name.lower()}
        owners.append({**place, "addresses": list(worker.addresses), **life, **copy})
    position = key_hash(key.encode())
    named = {"key": key, "hash": f"{position:016x}", "view": view.version, "factor": view.factor}
    return {**named, **_vectors_of(view, key.encode(), position), "owners": owners}


def _vectors_of(view: View, key: bytes, position: int) -> dict[str, Any]:
    """Return what the view says of a key's copies."""
    record = next((own for own in view.vectors.own if own.position == position), None)
    target = None
    if record is not None and record.before is not None:
        target = asdict(view.default if record.vector == DEFAULT else record.vector)
    return {
        "vector": asdict(view.vector_at(position)),
        "own": position in view.vectors.serving,
        "copies": asdict(Rings(view).vector(key)),
        "moving_to": target,
    }


def print_where(found: dict[str, Any]) -> None:
    """Print it for people: one line that explains, then the owners in their order."""
    whose = "its own number" if found["own"] else "the default"
    asked = f"it is to have {_words(found['vector'])}, {whose}"
    what = "its owner is" if len(found["owners"]) == 1 else "its owners are"
    if found["copies"] != found["vector"]:
        what = f"there are workers for {_words(found['copies'])}; {what}"
    if found["moving_to"] is not None:
        what = f"it is on the way to {_words(found['moving_to'])}; until it is there {what}"
    print(f"{found['key']!r} has hash {found['hash']}; under view {found['view']} {asked}; {what}")
    for owner in found["owners"]:
        print(f"  worker {owner['seat']} ({owner['worker_id']}) at {'  '.join(owner['addresses'])}")
        print(f"    node {owner['node']}, {owner['tier']}, {owner['status']}: {_holding(owner)}")


def _words(vector: dict[str, int]) -> str:
    """Return in words how many copies on which tier."""
    said = [(vector["memory"], "in memory"), (vector["disk"], "on disk")]
    first, *rest = [(count, place) for count, place in said if count]
    copies = f"{first[0]} cop{'y' if first[0] == 1 else 'ies'} {first[1]}"
    return copies + "".join(f" and {count} {place}" for count, place in rest)


def _holding(owner: dict[str, Any]) -> str:
    """Return in words what an owner holds of a key."""
    if "error" in owner:
        return f"cannot tell ({owner['error']})"
    if not owner["held"]:
        return "holds nothing"
    return f"holds a {owner['type']}" + (f" of stamp {owner['stamp']}" if owner["stamp"] is not None else "")
