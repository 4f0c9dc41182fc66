"""What the simulated network promises: the bytes of a stream come in their order, whatever happens to its link."""

from __future__ import annotations

from random import Random

import pytest

from tests.sim.network import Network, Quality, Stream
from tests.sim.schedule import MS, Schedule

LINK = (2, 1)


def heard(seed: int) -> list[int]:
    """Return the order in which a near end hears numbers, whose link is cut and healed while they are on their way."""
    draw, schedule = Random(seed), Schedule(seed)
    network = Network(schedule, Quality(delay=MS, jitter=3 * MS, straggler=0.3, straggler_delay=40 * MS))
    found: list[int] = []

    def hear(data: bytes | None) -> None:
        if data:
            found.append(int(data))

    stream = Stream(network, 1, 2, lambda stream: lambda data: None, hear)
    stream.dial()
    for number in range(30):
        schedule.at(draw.randrange(10 * number, 10 * number + 10) * MS, stream.to_near, str(number).encode())
    for begin in (50, 150, 220):
        schedule.at(begin * MS, network.cut, [LINK])
        schedule.at((begin + draw.randrange(5, 60)) * MS, network.heal, [LINK])
    schedule.run(1000 * MS)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_was_on_its_way_when_a_link_was_healed_comes_after_what_waited_for_that(seed: int) -> None:
    """It overtook, and owners told caches of epochs in another order than they had said."""
    assert heard(seed) == list(range(30))
