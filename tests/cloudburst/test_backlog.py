"""A client that does not read its answers holds up nobody else."""

from __future__ import annotations

import cloudburst as cb
from cloudburst import frames
from cloudburst.addresses import connect
from cloudburst.attempts import Task
from cloudburst.page import monotonic_us

WAIT_S = 20.0


def wide() -> bytes:
    return bytes(60_000)


def doubled(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def test_batches_go_on_beside_a_client_that_reads_nothing(client: cb.Client) -> None:
    """What it leaves unread counts as not settled; more of that than fits made a batch of less than none."""
    client.register(wide)
    client.register(doubled, batch=8)
    client.register(abs)
    membership = client._joined()
    begun = membership.executors(monotonic_us())
    silent = [
        connect(membership.address(slot, life), membership.hello(), WAIT_S, membership.directory)
        for slot, life in begun.items()
    ]
    for connection in silent:
        for number in range(20):
            task = Task(999, number, "wide", b"wide", b"", frames.EMPTY, b"", monotonic_us() + 60_000_000, 0)
            connection.sendall(task.frame(monotonic_us()))
    pids = {row["pid"] for row in client.status()["executors"] if row["slot"] in begun}
    plain = [client.spawn("abs", -n) for n in range(200 * len(begun))]
    assert [future.result(timeout=WAIT_S) for future in plain] == list(range(len(plain)))
    batched = [client.spawn("doubled", n) for n in range(20 * len(begun))]
    assert [future.result(timeout=WAIT_S) for future in batched] == [2 * n for n in range(len(batched))]
    assert pids <= {row["pid"] for row in client.status()["executors"]}
    for connection in silent:
        connection.close()
