"""The registers workload reports what is missing, stale and lost, when another client causes it on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import anna
from tests.anna.local.processes import eventually, serving
from tests.lab.programs import start_here
from tests.lab.registers import Registers, Tally


@pytest.fixture
def addresses(directory: Path) -> Iterator[list[str]]:
    with serving("--workers", "2", "--listen", "tcp://127.0.0.1:0") as (_, started):
        yield [worker[-1] for worker in started["workers"]]


def puts(kvs: anna.Client) -> int:
    return sum(worker["puts"] for worker in kvs.status())


def test_a_healthy_store_gives_nothing_to_report(addresses: list[str]) -> None:
    load = Registers(start_here, addresses, keys=2000, rate=4000)
    with anna.Client(addresses) as kvs:
        eventually(lambda: puts(kvs) > 2300, "some of the keys are written again")
    tally = load.stop()
    assert tally.wrong() == {}
    assert (tally.unacknowledged, tally.writes > 200, tally.reads > 500) == (0, True, True)


def test_a_key_that_goes_and_one_that_goes_back_are_reported(addresses: list[str]) -> None:
    load = Registers(start_here, addresses, keys=20, rate=400)
    with anna.Client(addresses) as kvs:
        eventually(lambda: all(kvs.get(f"register-{n}")[1] > 2 for n in range(20)), "every key is written again")
        for number in range(0, 20, 2):
            kvs.delete(f"register-{number}")
            kvs.put(f"register-{number + 1}", (f"register-{number + 1}", 1, "older"))
    tally = load.stop()
    assert tally.missing
    assert tally.lost or tally.stale
    assert set(tally.wrong()) <= {"missing", "lost", "stale"}


def test_the_time_of_reads_is_that_of_the_span_that_was_asked_for() -> None:
    tally = Tally(read_s=[(1.0, 0.1), (2.0, 0.2)]) + Tally(read_s=[(3.0, 0.9)])
    assert [tally.read_within_s(share, 0, 10) for share in (0.0, 0.5, 1.0)] == [0.1, 0.2, 0.9]
    assert tally.read_within_s(0.99, 0, 3) == 0.2
    assert tally.read_within_s(0.99, 5, 6) == 0.0
