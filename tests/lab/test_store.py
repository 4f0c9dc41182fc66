"""What the store promises, on real processes, hosts and disks: what was acknowledged is safe as its level says.

Each test names its promise. Durations are real seconds, because processes, heartbeats and the kernel's retransmissions
have no other clock. Source: reliability.md B (P1, P2, P4, P15, P18), E (stages 6 and 7).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import anna
from tests.anna.local.processes import eventually
from tests.lab.disks import Disk, Shim, cut_power
from tests.lab.hosts import Host, Lab
from tests.lab.nodes import Node, nodes, status
from tests.lab.registers import Registers
from tests.lab.setfull import Clients, History, Verdict, judge, key_of, read_all

MakeDisk = Callable[[str, int], Disk]

KEYS = 8
TIMEOUT_S = 2.0
GRACE_S = 0.5

DETECTED_S = 5.0
"""Within which a dead host's keys are served by others: three seconds without a heartbeat, and two for the rest."""

CONVERGED_S = 5.0
"""Within which replicas are equal after a heal (P4, for fewer than 100,000 differing keys)."""


def go_on(seconds: float) -> float:
    """Let the load go on for a while; return when that was over."""
    time.sleep(seconds)
    return time.monotonic()


def addresses(made: Sequence[Node]) -> list[str]:
    return [address for node in made for address in node.addresses]


def judged(history: History, clients: Host, at: Sequence[str]) -> Verdict:
    """Read everything and count; what must never be, whatever the acknowledgement, is asserted here."""
    with clients.entered():
        verdict = judge(history, read_all(at, KEYS))
    assert verdict.made_up == ()
    assert history.longest_call_s() <= TIMEOUT_S + GRACE_S
    return verdict


def held_by(node: Node, clients: Host) -> dict[str, frozenset[int]]:
    """Return the sets as this node alone has them."""
    with node.replica(at=clients) as kvs:
        held = {key_of(n): frozenset(kvs.get(key_of(n), frozenset())) for n in range(KEYS)}
        if len(kvs.view.nodes) > 1:
            raise anna.UnavailableError("the node sent its client on to others, whose answers these may be")
        return held


def assert_replicas_become_equal(made: Sequence[Node], clients: Host, within_s: float) -> None:
    """Every node owns every key here (the factor is the number of nodes), so all must hold the same."""
    deadline = time.monotonic() + within_s
    held: list[object] = []
    while time.monotonic() < deadline:
        with contextlib.suppress(anna.UnavailableError):  # a node that was given up does not answer at once
            held = [held_by(node, clients) for node in made]
            if all(other == held[0] for other in held):
                return
    pytest.fail(f"the replicas are not equal after {within_s} s: {held}"[:2000])


@pytest.fixture
def lab(three_hosts: Lab) -> Lab:
    return three_hosts


# -- hosts that fail


def test_what_two_hosts_acknowledged_outlives_either_of_them(lab: Lab) -> None:
    """P1, P3, D12, D15: ack=2 survives a host with its memory; then redundancy returns, and the next host may go."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2, h3], "--factor", "2") as made:
        load = Clients(clients.start, addresses(made), keys=KEYS, ack=2, timeout=TIMEOUT_S)
        go_on(1)
        h2.crash()
        crashed = time.monotonic()
        ended = go_on(DETECTED_S + 3)
        lab.unplug(h3)  # not even its kernel says that nobody listens
        h3.crash()
        go_on(1)
        history = load.stop()
        verdict = judged(history, clients, made[0].addresses)
    assert verdict.lost == ()
    assert max(history.longest_gap_s(key_of(n), crashed, ended) for n in range(KEYS)) <= DETECTED_S
    assert verdict.acknowledged > 500


@pytest.mark.parametrize("seconds", [1.5, 6.0], ids=["before it is missed", "until it was given up"])
def test_a_host_that_was_frozen_loses_nothing_and_catches_up(lab: Lab, seconds: float) -> None:
    """P4, D13: a pause is not a death; what the host missed reaches it, and nothing old from it harms the others."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2, h3], "--factor", "3") as made:
        load = Clients(clients.start, addresses(made), keys=KEYS, timeout=TIMEOUT_S)
        go_on(0.5)
        h2.freeze()
        go_on(seconds)
        h2.thaw()
        go_on(1)
        history = load.stop()
        assert_replicas_become_equal(made, clients, CONVERGED_S)
        verdict = judged(history, clients, addresses(made))
    assert (verdict.lost, verdict.vanished) == ((), ())


def test_both_sides_of_a_partition_accept_writes_and_are_equal_after_the_heal(lab: Lab) -> None:
    """P4, D13: every message of the cut is lost; digests find what was missed."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2, h3], "--factor", "3") as made:
        here = Clients(h1.start, made[0].addresses, keys=KEYS, ack="memory", timeout=TIMEOUT_S)
        there = Clients(clients.start, addresses(made[1:]), keys=KEYS, ack="memory", timeout=TIMEOUT_S, first=1_000_000)
        go_on(0.5)
        lab.part([h1], [h2, h3, clients])
        cut = time.monotonic()
        ended = go_on(DETECTED_S + 4)
        lab.heal()
        go_on(1)
        alone, majority = here.stop(), there.stop()
        assert_replicas_become_equal(made, clients, CONVERGED_S)
        verdict = judged(alone + majority, clients, addresses(made))
    assert (verdict.lost, verdict.vanished) == ((), ())
    for side in (alone, majority):
        late = [add for add in side.acknowledged() if cut + DETECTED_S < add.invoked and add.ended < ended]
        assert len({add.key for add in late}) == KEYS, "a side did not serve every key while it was alone"


def test_a_one_way_cut_between_two_hosts_kills_neither(lab: Lab) -> None:
    """D15: a third host that hears both is enough."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2, h3], "--factor", "3") as made:
        load = Clients(clients.start, addresses(made), keys=KEYS, timeout=TIMEOUT_S)
        lab.cut_one_way([(h1, h2)])
        go_on(DETECTED_S + 1)
        assert len(status(clients, made[2].address)) == 3
        lab.heal()
        history = load.stop()
        assert_replicas_become_equal(made, clients, CONVERGED_S)
        verdict = judged(history, clients, addresses(made))
    assert (verdict.lost, verdict.vanished) == ((), ())


# -- disks that fail


@contextlib.contextmanager
def durable_nodes(
    hosts: Sequence[Host], disks: Sequence[Disk], *options: str, environment: dict[str, str] | None = None
) -> Iterator[list[Node]]:
    data = {host.name: ("--data", str(disk.path / "data")) for host, disk in zip(hosts, disks, strict=True)}
    with nodes(hosts, *options, of_host=data, environment=environment) as made:
        yield made


def test_what_a_disk_acknowledged_outlives_a_power_cut_of_every_host(lab: Lab, new_disk: MakeDisk) -> None:
    """P2, P15, D16, D17: ack="disk" survives when all hosts lose power at once, twice; each finds its data again."""
    hosts, clients = [lab["h1"], lab["h2"]], lab["clients"]
    disks = [new_disk(host.name, 128) for host in hosts]
    history = History()
    with durable_nodes(hosts, disks, "--factor", "2") as made:
        for life in range(3):
            options = {"keys": KEYS, "ack": "disk", "timeout": TIMEOUT_S, "first": life * 1_000_000}
            load = Clients(clients.start, addresses(made), **options)
            go_on(1.5)
            cut_power(*zip(hosts, disks, strict=True))
            history += load.stop()
            for node in made:
                node.start()
        verdict = judged(history, clients, addresses(made))
    assert verdict.lost == ()
    assert verdict.acknowledged > 300
    assert all(add.durable >= 1 for add in history.acknowledged())


def test_a_disk_whose_syncs_lie_loses_so_that_the_test_above_can_see_losses(
    lab: Lab, new_disk: MakeDisk, place: Path, shim_library: Path
) -> None:
    """P2, control: with lying syncs acknowledged writes must be lost."""
    host, clients, disk = lab["h1"], lab["clients"], new_disk("h1", 128)
    with (
        contextlib.closing(Shim(shim_library, place / "control", disk.path)) as shim,
        durable_nodes([host], [disk], environment=shim.environment) as made,
    ):
        shim.lie_about_syncs()
        load = Clients(clients.start, addresses(made), keys=KEYS, ack="disk", timeout=TIMEOUT_S)
        go_on(1.5)
        cut_power((host, disk))
        history = load.stop()
        made[0].start()
        verdict = judged(history, clients, addresses(made))
        assert shim.count("lied") > 10
    assert len(verdict.lost) > 0


def test_a_full_disk_refuses_for_sure_and_takes_again_when_there_is_room(lab: Lab, new_disk: MakeDisk) -> None:
    """P15, D27: disk full is a definite error; reads go on; what was acknowledged stays."""
    host, clients, disk = lab["h1"], lab["clients"], new_disk("h1", 96)
    with durable_nodes([host], [disk]) as made, made[0].client(at=clients, timeout=TIMEOUT_S) as kvs:
        kvs.put("before", 1, ack="disk")
        disk.fill()
        errors = []
        deadline = time.monotonic() + 30
        written: list[str] = []
        while not errors and time.monotonic() < deadline:
            try:
                kvs.put(f"large-{len(written)}", bytes(500_000), ack="disk")
                written.append(f"large-{len(written)}")
            except anna.AnnaError as error:
                errors.append(error)
        assert errors, "a full disk took everything"
        assert errors[0].definite, errors[0]
        assert kvs.get("before") == 1
        disk.drain()

        def taken() -> bool:
            try:
                return bool(kvs.put("after", 2, ack="disk"))
            except anna.UnavailableError:
                return False

        eventually(taken, "the drained disk takes writes again")
        cut_power((host, disk))
        made[0].start()
        assert (kvs.get("before", timeout=10), kvs.get("after", timeout=10)) == (1, 2)
        assert all(len(kvs.get(key)) == 500_000 for key in written)


def test_a_refused_sync_stops_the_acknowledgements_for_good(
    lab: Lab, new_disk: MakeDisk, place: Path, shim_library: Path
) -> None:
    """P16: after a failed fsync nobody can know what is on the disk; no later write may be acknowledged from it."""
    host, clients, disk = lab["h1"], lab["clients"], new_disk("h1", 96)
    with (
        contextlib.closing(Shim(shim_library, place / "control", disk.path)) as shim,
        durable_nodes([host], [disk], environment=shim.environment) as made,
    ):
        load = Clients(clients.start, addresses(made), keys=KEYS, ack="disk", timeout=TIMEOUT_S)
        go_on(1)
        shim.refuse_syncs()
        go_on(0.5)
        shim.behave()
        go_on(1)
        cut_power((host, disk))
        history = load.stop()
        made[0].start()
        verdict = judged(history, clients, addresses(made))
    assert verdict.lost == ()


# -- nodes that come and go


def test_a_node_joins_and_another_leaves_under_load_and_no_read_fails(lab: Lab) -> None:
    """P18, D10, D11: 100,000 keys move, none is answered with "missing", none is lost, and reads do not slow down."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2], "--factor", "1") as made:
        load = Registers(clients.start, addresses(made), keys=100_000, rate=300, timeout=TIMEOUT_S)
        calm = time.monotonic()
        joining = go_on(3)
        with nodes([h3], "--factor", "1", join=made[0].address) as (joined,):
            eventually(lambda: _keys(clients, joined) > 25_000, "the third node has its share")
            settled = go_on(2)
            made[1].stop()
            eventually(lambda: len(status(clients, made[0].address)) == 2, "the second node has left")
            go_on(1)
            tally = load.stop()
    assert tally.wrong() == {}
    assert tally.unacknowledged == 0
    assert tally.read_within_s(0.99, joining, settled) <= max(3 * tally.read_within_s(0.99, calm, joining), 0.05)


def _keys(clients: Host, node: Node) -> int:
    with node.replica(at=clients) as kvs:
        return sum(worker["keys"] for worker in kvs.status())


def test_a_node_that_dies_while_it_joins_harms_nobody(lab: Lab) -> None:
    """P18: the old owners serve until the new one has everything; one that never will is forgotten."""
    h1, h2, h3, clients = lab.hosts.values()
    with nodes([h1, h2], "--factor", "2") as made:
        load = Registers(clients.start, addresses(made), keys=20_000, rate=300, timeout=TIMEOUT_S)
        for _ in range(2):
            with nodes([h3], "--factor", "2", join=made[0].address):
                pass  # crashed as soon as it serves
            go_on(1)
        go_on(DETECTED_S)
        tally = load.stop()
    assert tally.wrong() == {}
