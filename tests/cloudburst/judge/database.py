"""A database of one log, whose clients read as it was some commits ago, but never before what their session has seen.

What it shows is causal, with late reads and blind writes, and its stamps are the order of commits. From transaction
`stale` on, the first read that can be is as it was when the key was first written, or before.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

LAG = 200


def lines(
    transactions: int, keys: int, sessions: int, *, stale: int | None = None, seed: int = 1
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each transaction's line, and whether it is the one with the planted read."""
    random_ = random.Random(seed)
    versions: list[list[tuple[int, str]]] = [[] for _ in range(keys)]
    floor = [0] * sessions
    for stamp in range(1, transactions + 1):
        session = random_.randrange(sessions)
        at = max(floor[session], stamp - 1 - random_.randrange(LAG))
        operations: list[list[Any]] = []
        own: dict[int, str] = {}
        planted = False
        for place in range(random_.randint(2, 6)):
            key = random_.randrange(keys)
            if random_.random() < 0.5:
                own[key] = f"{stamp}.{place}"
                operations.append(["write", f"k{key}", own[key]])
                continue
            end = bisect_right(versions[key], at, key=lambda version: version[0])
            value = own.get(key, versions[key][end - 1][1] if end else None)
            if stale is not None and stamp >= stale and end and key not in own:
                value, planted, stale = versions[key][0][1] if end > 1 else None, True, None
            operations.append(["read", f"k{key}", value])
        for key, value in own.items():
            versions[key].append((stamp, value))
        floor[session] = stamp if own else at
        yield {"session": f"s{session}", "operations": operations, "outcome": "ok", "commit": stamp}, planted


def encoded(found: Iterator[tuple[dict[str, Any], bool]]) -> Iterator[bytes]:
    yield b'{"history":1}\n'
    for line, _ in found:
        yield json.dumps(line).encode() + b"\n"
