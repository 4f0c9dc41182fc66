"""What the papers report of the same experiments, to stand beside our figures; measured on their machines, in EC2.

Violations are per cent of transactions; counts are of as many transactions as said. Sources: HydroCache (Wu, Sreekanti,
Hellerstein, SIGMOD 2020), §6.2 and table 3; AFT (Sreekanti et al., EuroSys 2020), table 2, and its row for Cloudburst
in Sreekanti's thesis (UCB/EECS-2020-140); Cloudburst (Sreekanti et al., VLDB 2020), §6.2 and table 2.
"""

from __future__ import annotations

from typing import Final

SKEWS: Final = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)

HYDROCACHE_VIOLATIONS: Final = {
    "Anna (published)": (0.02, 0.4, 1.9, 6.6, 15.0, 21.0),
    "ElastiCache (published)": (0.03, 0.4, 2.0, 6.6, 14.0, 20.0),
    "HydroCache (published)": (0.0,) * 6,
}

AFT_ANOMALIES: Final = {
    "AFT": (0, 0),
    "S3": (595, 836),
    "DynamoDB": (537, 779),
    "DynamoDB transactions": (0, 115),
    "Redis cluster": (215, 383),
    "Cloudburst and Anna, pushes each 10 s": (911, 3628),
}
"""Of 10,000 transactions: own writes not read back, and fractured reads."""

CLOUDBURST_ANOMALIES: Final = (904, 939, 1043, 46)
"""Of 4,000 graphs: single key, and multi key, and causal, each with those before it; non-repeatable reads apart."""

HYDROCACHE_METADATA: Final = {1.0: (120, 432), 1.5: (300, 852)}
"""Bytes of metadata per key, median and 99th percentile, by skew."""

HYDROCACHE_ABORTED: Final = {("linear", 1.5): 8.0, ("v-shaped", 1.5): 75.0}
"""Per cent of optimistic transactions that aborted at least once."""

LEVEL_RATIOS: Final = {
    "Cloudburst, causal / eventual": (5.2 / 5.5, 106 / 20),
    "Cloudburst, distributed causal / eventual": (6.2 / 5.5, 179 / 20),
    "HydroCache / eventual, skew 1.0": (3.9 / 2.4, 10 / 4.3),
    "HydroCache / eventual, skew 1.5": (5.2 / 2.5, 11 / 4.6),
}
"""Latency of a level over that of last writer wins: median, 99th percentile."""
