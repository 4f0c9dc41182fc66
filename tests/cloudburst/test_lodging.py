"""What a node keeps for clients of others: only its owners have it removed, by name or as they leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudburst.lodging import Lodging
from cloudburst.segments.descriptors import distant_name, result_name
from cloudburst.segments.layout import Parts
from cloudburst.segments.shelf import Shelf

HERE, THERE, ANOTHER = 77, 0xA1, 0xB1
CLIENT, OTHER = 0xC1, 0xC3


class Told:
    """Neighbours that note what they are told."""

    def __init__(self) -> None:
        self.said: list[tuple[int | None, str, dict[str, Any]]] = []

    def tell(self, node: int, verb: str, body: dict[str, Any]) -> None:
        self.said.append((node, verb, body))

    def tell_hosts(self, verb: str, body: dict[str, Any]) -> None:
        self.said.append((None, verb, body))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("CLOUDBURST_SPILL", str(tmp_path / "disk"))
    made = Shelf.make(tmp_path, HERE)
    for owner in (THERE, ANOTHER, CLIENT):
        made.admit(owner)
    yield made
    made.remove_all()


def put(shelf: Shelf, name: str) -> str:
    shelf.put(name, Parts(bytes(1000), []))
    return name


def test_value_is_dropped_by_its_owner_only(shelf: Shelf) -> None:
    told = Told()
    lodging = Lodging(shelf, told)
    theirs = put(shelf, distant_name(THERE, CLIENT, 5, 9))
    own = put(shelf, result_name(CLIENT, 5, 9))
    refused = [
        lodging.hear(ANOTHER, "drop", {"node": HERE, "name": theirs}),
        lodging.hear(THERE, "drop", {"node": HERE, "name": own}),
        lodging.hear(CLIENT, "drop", {"node": HERE, "name": own}),
        lodging.hear(THERE, "drop", {"node": HERE, "name": f"{THERE:x}/../ledger"}),
    ]
    assert None not in refused
    assert sorted(shelf.names()) == sorted([own, theirs])
    assert lodging.hear(THERE, "drop", {"node": HERE, "name": theirs}) is None
    assert lodging.hear(THERE, "drop", {"node": HERE, "name": theirs}) is None, "twice is harmless"
    assert shelf.names() == [own]
    assert told.said == []


def test_what_lies_elsewhere_is_dropped_there(shelf: Shelf) -> None:
    told = Told()
    body = {"node": THERE, "name": distant_name(HERE, CLIENT, 5, 9)}
    assert Lodging(shelf, told).hear(CLIENT, "drop", body) is None
    assert told.said == [(THERE, "drop", body)]


def test_client_that_leaves_takes_along_what_lies_on_other_hosts(shelf: Shelf) -> None:
    told = Told()
    lodging = Lodging(shelf, told)
    for client in (CLIENT, OTHER):
        for request in (1, 2):
            put(shelf, distant_name(THERE, client, request, 9))
    put(shelf, distant_name(ANOTHER, CLIENT, 1, 9))
    lodging.part(CLIENT)
    assert told.said == [(None, "left", {"client": CLIENT})]
    assert lodging.hear(THERE, "left", {"client": CLIENT}) is None
    left = [distant_name(THERE, OTHER, request, 9) for request in (1, 2)] + [distant_name(ANOTHER, CLIENT, 1, 9)]
    assert sorted(shelf.names()) == sorted(left)
    assert shelf.bytes == sum((shelf.path / name).stat().st_size for name in left)
