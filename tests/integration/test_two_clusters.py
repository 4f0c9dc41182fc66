"""A node that is told to join a cluster of another name: neither takes the other for one of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import anna
from tests.anna.local.processes import serving

TRIED_S = 2.0
"""How long the stranger may try: four heartbeats' time."""

AT: tuple[str, ...] = ("--workers", "1", "--listen", "tcp://127.0.0.1:0")


def test_nodes_of_different_clusters_refuse_each_other(directory: Path, place: Path) -> None:
    """C: the name is part of what workers tell each other, and a wrong one is answered with nothing."""
    with serving(*AT, "--cluster", "one") as (_, first), anna.connect(first["workers"][0][1]) as kvs:
        kvs.put("k", 1)
        stranger = (*AT, "--cluster", "two", "--join", first["workers"][0][1], "--dir", str(place / "other"))
        with serving(*stranger) as (_, second), anna.Client([second["workers"][0][1]], timeout=TRIED_S) as other:
            with pytest.raises(anna.UnavailableError) as caught:
                other.get("k")
            assert caught.value.definite
            assert [worker["keys"] for worker in other.status()] == [0]
            with anna.Client(kvs.seeds) as again:
                assert len(again.view.nodes) == 1
                assert again.get("k") == 1
        begun = time.monotonic()
        assert kvs.get("k") == 1
        assert time.monotonic() - begun < TRIED_S
