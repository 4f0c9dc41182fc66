"""Sessions on three hosts, while each is cut off from the others for a while and links lose packets: nothing wrong is
read, nothing hangs, and what was cut off goes on afterwards."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from cloudburst.judge.reading import read_lines
from cloudburst.judge.verdict import judge
from cloudburst.secret import Secret
from tests.lab.hosts import Lab
from tests.lab.sessions import CLIENTS, TIMEOUT_S, Hosted

CUT_S = 1.5
"""Half of what it takes to be called dead. TCP waits before it tries again, so some are and some are not."""
BETWEEN_S = 2.0
RECOVER_S = 6.0
"""After the last trouble; who was called dead meanwhile has to be back, and to have what it missed."""
LATE_S = 2.0
"""How much later than its deadline a client that is one of many on this machine may hear of it."""


def test_hosts_that_are_cut_off_for_a_while_see_nothing_that_a_causal_session_forbids(
    three_hosts: Lab, tmp_path: Path
) -> None:
    secret = str(Secret.fresh().keep(tmp_path))
    names = ("h1", "h2", "h3")
    running: dict[str, Hosted] = {}
    for name in names:
        host = three_hosts[name]
        join = three_hosts["h1"].address if running else None
        running[name] = Hosted(
            host.start, name, host.address, join, dir=host.directory, secret=secret, history=tmp_path / name
        )
    time.sleep(BETWEEN_S)
    cuts: dict[str, tuple[float, float]] = {}
    for name in names:
        begun = time.monotonic()
        three_hosts.cut(three_hosts[name], *(three_hosts[other] for other in names if other != name))
        time.sleep(CUT_S)
        three_hosts.heal()
        cuts[name] = begun, time.monotonic()
        time.sleep(BETWEEN_S)
    pairs = list(itertools.permutations((three_hosts[name] for name in names), 2))
    three_hosts.lose(0.05, pairs)
    time.sleep(BETWEEN_S)
    three_hosts.heal()
    time.sleep(RECOVER_S)
    ended: dict[str, dict[str, Any]] = {name: running[name].stop() for name in reversed(names)}

    for name, said in ended.items():
        assert (said["faults"], said["hung"]) == ([], 0), f"{name}: {said['faults']}\n{said['said']}"
        slowest = max(took for _, took, _ in said["took"])
        assert slowest < TIMEOUT_S + LATE_S, f"{name}: a transaction took {slowest:.1f} s"
        after = cuts["h3"][1]
        assert sum(not fault for begun, _, fault in said["took"] if begun > after) > 0, f"{name} did not go on"
    troubled = [name for name in names if _noticed(ended[name]["took"], *cuts[name])]
    assert troubled, "no cut was noticed by anybody: nothing was tested"
    lines = [line for name in names for number in range(CLIENTS) for line in _lines(tmp_path / f"{name}.{number}")]
    verdict = judge(read_lines(lines))
    committed = sum(not fault for said in ended.values() for _, _, fault in said["took"])
    print(f"{committed} committed, cuts were noticed by {troubled}")
    for violation in verdict.found["causal"]:
        raise AssertionError("\n".join(verdict.explain(violation)))


def _noticed(took: list[tuple[float, float, str]], begun: float, healed: float) -> bool:
    """Whether a transaction of that time failed, or waited for half of the cut."""
    meanwhile = [(seconds, fault) for at, seconds, fault in took if at + seconds >= begun and at < healed]
    return any(fault or seconds > CUT_S / 2 for seconds, fault in meanwhile)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)
