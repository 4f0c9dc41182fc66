"""A mean among actors: by gossip, where they talk to each other, and by gathering, where one reads what all have said.

Ours gathers through the store and gossips by messages between invocations (`demos.aggregation`); a pool gathers
through Redis, Ray and Dask through what their tasks return. Source: Cloudburst, figure 7, where gossip is compared with
gathering in the same system, and with gathering elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.harness import Settings
from bench.peers import dask_cluster, our_runtime, ray_cluster, redis_pool
from bench.report import OURS, Report, Row
from bench.turns import Question, p50, p50_row, subject, take_turns

ACTORS: Final = 10
TIMES: Final = 20
SUBJECTS: Final = (subject(our_runtime), subject(redis_pool), subject(ray_cluster), subject(dask_cluster))
GATHERING: Final = "ours, gathering"


def rows(settings: Settings, report: Report) -> Iterator[Row]:
    """Measure both ways."""
    report.heading(f"Aggregation: the mean of {ACTORS} actors, two cores for each runtime")
    count = min(TIMES, settings.latencies)
    gather = Question(f"gather from {ACTORS}", "gather", (ACTORS,), count, 4 * settings.seconds)
    gossip = Question(f"gossip among {ACTORS}", "gossip", (ACTORS,), count, 4 * settings.seconds)
    taken = take_turns("aggregation", SUBJECTS, (gather, gossip), settings, report)
    yield p50_row("aggregation", taken, gather.title)
    both = {
        name: taken.samples(question.title, p50).get(OURS, ())
        for name, question in ((OURS, gossip), (GATHERING, gather))
    }
    yield Row("aggregation", f"{gossip.title}, p50", "µs", {name: found for name, found in both.items() if found})
