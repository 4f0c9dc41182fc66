"""The simulated client is the one that users have, and its plans show what it does when hosts cannot be reached."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.cluster import Cluster
from tests.sim.faults import Nemesis
from tests.sim.history import OK
from tests.sim.planted import small
from tests.sim.schedule import MS, SECOND
from tests.sim.swarm import plan_of

PUT = {"client": 0, "kind": "put", "keys": ["rk0"], "values": [1], "ack": 1, "deadline": SECOND}
MPUT = PUT | {"kind": "mput", "keys": ["rk0", "sk0"], "values": [1, 1]}


def outcomes(nodes: int, operations: list[dict[str, Any]], faults: list[dict[str, Any]]) -> list[str]:
    """Return what became of each key of these operations of one client, on a cluster with as many copies as nodes."""
    numbered = [{"id": number, **operation} for number, operation in enumerate(operations)]
    plan = small(plan_of(0), nodes, nodes) | {"clients": 1, "disks": False, "operations": numbered, "faults": faults}
    cluster = Cluster(plan)
    Nemesis(cluster)
    cluster.schedule.run(5 * SECOND)
    cluster.close()
    assert [client.loop.failures for client in cluster.clients] == [[]]
    return [entry.outcome for entry in cluster.history.entries]


@pytest.mark.parametrize("write", [PUT, MPUT], ids=["put", "mput"])
@pytest.mark.parametrize("node", [0, 1])
def test_a_write_goes_to_another_owner_when_the_first_never_accepts(write: dict[str, Any], node: int) -> None:
    """Nothing was sent yet, so nobody can have it twice."""
    cut = {"kind": "one-way", "at": 0, "for": 10 * SECOND, "source": 2, "target": node}
    assert set(outcomes(2, [write | {"at": SECOND}], [cut])) == {OK}


def test_a_client_begins_with_the_first_contact_that_answers() -> None:
    down = {"kind": "crash", "at": 0, "for": 10 * SECOND, "node": 0}
    assert outcomes(2, [PUT | {"at": 100 * MS}], [down]) == [OK]
