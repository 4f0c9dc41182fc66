"""What is asked of the judge: whether each session has seen what its level promises.

The one rule: a level is judged by the reads of the sessions that were promised it, against the writes of all. Of weaker
sessions the reads are left out; their writes are there as what they were: a transaction, if they were one. Clients
without sessions bring the stamps of their writes along, so those are in their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from cloudburst.consistency.levels import CAUSAL, EVENTUAL, READ_ATOMIC, REPEATABLE, Level
from cloudburst.judge.history import READ, VERSION, History
from cloudburst.judge.reading import read_lines
from cloudburst.judge.verdict import Verdict, judge

Given = tuple[Level, dict[str, Any]]

STRONG = (REPEATABLE, READ_ATOMIC, CAUSAL)


def verdicts(lines: list[Given]) -> Iterator[tuple[str, Verdict]]:
    """Yield the verdict on each level at which sessions ran; on `eventual` the one that causal ones would get."""
    ran = {level.name for level, _ in lines}
    for level in STRONG:
        if level.name in ran:
            yield level.name, judge(history(projected(lines, level)), level.name)
    if EVENTUAL.name in ran:
        yield EVENTUAL.name, judge(history(line for _, line in lines))


def history(lines: Iterable[dict[str, Any]]) -> History:
    """Return lines as the judge takes them."""
    first = json.dumps({"history": VERSION})
    return read_lines(f"{line}\n".encode() for line in (first, *map(json.dumps, lines)))


def projected(lines: list[Given], promised: Level) -> Iterator[dict[str, Any]]:
    """Yield the lines by which a level is judged."""
    for level, line in lines:
        if level.number >= promised.number:
            yield line
            continue
        writes = [one for one in line["operations"] if one[0] != READ]
        named = {"session": f"{line['session']}/{line['invocation']}", "outcome": line["outcome"]}
        if level.atomic:
            yield {**line, **named, "operations": writes, "told": []}
            continue
        for number, one in enumerate(writes):
            alone = f"{named['session']}/{line['function']}.{number}"
            ordered = level is EVENTUAL and line["after"] in ([], [line["function"] - 1])
            yield {**named, "session": line["session"] if ordered else alone, "operations": [one]}


def explained(verdict: Verdict, level: str, most: int = 3) -> list[str]:
    """Return what is wrong, in words."""
    violations = verdict.violations(level)
    return ["\n".join(verdict.explain(one)) for one in violations[:most]]
