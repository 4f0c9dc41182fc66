"""A node's processes are killed and stopped under load: what a single copy in memory promises then, and no more.

Every call ends by its deadline; an error says truly whether the write may have had an effect; nothing is made up;
service is back within three seconds; and what was acknowledged after the last death is there. What a killed worker had
acknowledged before is gone with its memory: that is what one copy is worth. Source: reliability.md A2, E (stage 5).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import anna
from tests.anna.local.processes import PATIENCE_S, Family, Watched, children_of, eventually, serving
from tests.lab.programs import start_here
from tests.lab.setfull import OK, Clients, History, judge, key_of, read_all

KEYS = 8
TIMEOUT_S = 1.0
GRACE_S = 0.5
"""How much longer than its deadline a call may take."""

RESUMED_S = 3.0
"""How long the service of a key may stay away."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A served node with clients that write all the time."""

    supervisor_pid: int
    addresses: tuple[str, ...]
    clients: Clients

    def workers(self) -> list[int]:
        """Return the workers' pids, by seat."""
        names: dict[int, str] = {}
        for pid in children_of(self.supervisor_pid):
            # One that is being replaced may end before its file is opened, or before it is read.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                names[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return sorted(names, key=lambda pid: names[pid])


@pytest.fixture
def loaded(directory: Path) -> Iterator[Loaded]:
    with serving("--workers", "3", "--listen", "tcp://127.0.0.1:0") as (process, started):
        addresses = tuple(worker[-1] for worker in started["workers"])
        clients = Clients(start_here, addresses, keys=KEYS, timeout=TIMEOUT_S)
        with contextlib.closing(clients):
            yield Loaded(process.pid, addresses, clients)


def go_on(seconds: float) -> float:
    """Let the load go on for a while; return when that was over. Real processes have only the real clock."""
    time.sleep(seconds)
    return time.monotonic()


def assert_calls_kept_their_word(history: History, final: dict[str, frozenset[int]]) -> None:
    """Each call ended by its deadline, and what was refused for sure is nowhere."""
    assert history.longest_call_s() <= TIMEOUT_S + GRACE_S
    assert judge(history, final).made_up == ()


def test_each_worker_in_turn_is_killed_under_load(loaded: Loaded) -> None:
    """D20, D31: nobody waits for ever for a dead worker, and its successor takes its seat."""
    begun = go_on(0.3)
    for seat in range(3):
        os.kill(loaded.workers()[seat], signal.SIGKILL)
        last_death = go_on(0.5)
    ended = go_on(1.5)
    history = loaded.clients.stop()
    final = read_all(loaded.addresses, KEYS)
    assert_calls_kept_their_word(history, final)
    assert max(history.longest_gap_s(key_of(n), begun, ended) for n in range(KEYS)) <= RESUMED_S
    after = history.since(last_death)
    assert judge(after, final).lost == ()
    assert len(after.acknowledged()) > 100
    assert judge(history, final).lost, "one copy in memory outlived its worker: this test no longer sees losses"


def test_a_worker_that_is_stopped_for_a_while_loses_nothing_and_holds_up_its_own_keys_alone(loaded: Loaded) -> None:
    """No queue is shared with the silent one; what it was asked is answered when it goes on, or timed out."""
    with anna.Client(loaded.addresses, timeout=GRACE_S) as kvs:
        owners = {key: kvs.where(key)["place"] for key in map(key_of, range(KEYS))}
        stopped = owners[key_of(0)]
        begun = go_on(0.3)
        os.kill(loaded.workers()[stopped], signal.SIGSTOP)
        try:
            for key, owner in owners.items():
                if owner != stopped:
                    assert kvs.get(key)
            with pytest.raises(anna.RequestTimeout):
                kvs.get(key_of(0))
            go_on(1.0)
        finally:
            os.kill(loaded.workers()[stopped], signal.SIGCONT)
        ended = go_on(1.5)
    history = loaded.clients.stop()
    final = read_all(loaded.addresses, KEYS)
    assert_calls_kept_their_word(history, final)
    verdict = judge(history, final)
    assert (verdict.lost, verdict.vanished) == ((), ())
    assert max(history.longest_gap_s(key, begun, ended) for key in owners) <= RESUMED_S
    assert any("RequestTimeout" in add.error for add in history.adds), "nobody was kept waiting by the stopped worker"


def test_a_supervisor_that_is_stopped_hinders_no_client(loaded: Loaded) -> None:
    os.kill(loaded.supervisor_pid, signal.SIGSTOP)
    try:
        begun = go_on(0.0)
        ended = go_on(1.0)
    finally:
        os.kill(loaded.supervisor_pid, signal.SIGCONT)
    history = loaded.clients.stop()
    assert all(add.outcome == OK for add in history.adds)
    assert max(history.longest_gap_s(key_of(n), begun, ended) for n in range(KEYS)) <= GRACE_S
    assert judge(history, read_all(loaded.addresses, KEYS)).lost == ()


def test_clients_outlive_a_killed_supervisor_and_find_the_node_that_is_started_again(
    place: Path, directory: Path
) -> None:
    """D39: a view that leads nowhere is given up, and the seeds are asked again."""
    seed = f"unix:{place}/seed.sock"
    with serving("--workers", "2", "--listen", seed) as (process, _):
        clients = Clients(start_here, [seed], keys=KEYS, timeout=TIMEOUT_S)
        family = Family(process.pid)
        process.kill()
        family.assert_ended()
        go_on(1.5)
    with serving("--workers", "2", "--listen", seed):
        restarted = time.monotonic()
        ended = go_on(2.0)
        history = clients.stop()
        final = read_all([seed], KEYS)
    assert_calls_kept_their_word(history, final)
    assert max(history.longest_gap_s(key_of(n), restarted, ended) for n in range(KEYS)) <= RESUMED_S
    after = history.since(restarted)
    assert judge(after, final).lost == ()
    assert len(after.acknowledged()) > 100


def test_a_worker_that_dies_again_and_again_hinders_no_key_of_the_others(loaded: Loaded) -> None:
    for _ in range(5):
        doomed = Watched(loaded.workers()[0])
        os.kill(doomed.pid, signal.SIGKILL)
        assert doomed.has_ended(PATIENCE_S)
        eventually(lambda: len(loaded.workers()) == 3, "the worker is replaced")
    history = loaded.clients.stop()
    final = read_all(loaded.addresses, KEYS)
    assert_calls_kept_their_word(history, final)
    troubled = {add.key for add in history.adds if add.outcome != OK}
    lost_keys = {add.key for add in history.adds if add.element in judge(history, final).lost}
    assert lost_keys < {key_of(n) for n in range(KEYS)}, "every key lost something, though one worker died"
    assert troubled < {key_of(n) for n in range(KEYS)}, "every key had trouble, though one worker died"
