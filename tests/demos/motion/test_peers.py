"""The peers run the same planners, and share as ours do: what one finds the others take over."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest

from demos.motion import peers, problems
from demos.retwis import on_redis

PROBLEM = problems.named("panda/cage/1").encode()


@pytest.mark.parametrize("name", peers.PEERS)
def test_every_way_to_share_brings_each_cheaper_path_to_all(name: str) -> None:
    if name.startswith("Redis") and (why := on_redis.missing()):
        pytest.skip(f"Redis is not compared: {why}")
    traces, messages = peers.apart(name, PROBLEM, 2, 0.8)
    assert [trace.seed for trace in traces] == [0, 1]
    assert all(math.isfinite(trace.cost) and trace.checks > 0 for trace in traces)
    assert any(trace.pruned for trace in traces)
    for trace in traces:
        known = [cost for _, cost in sorted([*trace.found, *trace.pruned])]
        assert known == sorted(known, reverse=True)
    assert (messages > 0) == (name != "one process")


def test_a_path_survives_its_way_as_bytes() -> None:
    path = np.linspace(0.0, 1.0, 21).reshape(3, 7)
    cost, back = peers.unpack(peers.pack(6.5, path))
    assert cost == 6.5
    assert np.array_equal(back, path)


def test_who_is_coordinated_takes_the_cheapest_of_what_has_come(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        planner = peers.Coordinated(str(tmp_path / "s"))
        middle, _ = listener.accept()
        assert planner.newest() is None
        for cost in (9.0, 4.0, 6.0):
            middle.send(peers.pack(cost, np.full((2, 2), cost)))
        found = planner.newest()
        assert found is not None
        assert found[0] == found[1][0, 0] == 4.0
        assert planner.newest() is None
        middle.close()
        assert planner.newest() is None
        planner.close()
