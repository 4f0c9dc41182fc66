"""How long three SSH hosts take until they are ready and until their first task: `python -m
tests.cloudburst.burst.readiness`; with `--on ec2`, the machines of a simulated cloud that boot for 20 s.

Cold means that nothing of ours is on the hosts, so that it is brought to each; warm that it is there from before. The
archive is packed once before. Hosts share this machine's cores, which a real host does not. Prints medians and ranges,
also of the processor time that a host has taken by then: what a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from tests.anna.local.processes import eventually
from tests.cloudburst.burst import hypervisor
from tests.cloudburst.burst.hypervisor import Cloud
from tests.cloudburst.burst.sshd import SshLab, ssh_lab, why_not
from tests.lab.hosts import Host

PROGRAM = """
import json, time
begun = time.time()
import cloudburst as cb
with cb.up({hosts}, on="{on}", executors=1) as cluster:
    ready = time.time()
    print("ready", flush=True)
    cb.register(lambda: 1, name="one")
    cb.call("one")
    first = time.time()
    phases = [dict(one.reached) for one in cluster.machines]
ended = time.time()
print(json.dumps(dict(ready=ready - begun, first=first - ready, down=ended - first, phases=phases)))
"""


def measure(lab: SshLab, rounds: int, cold: bool) -> None:
    """Print how long it took in so many rounds."""
    found = []
    for _ in range(rounds + 1):
        for host in lab.hosts if cold else ():
            shutil.rmtree(lab.place / host.name / "home" / ".cache", ignore_errors=True)
        before = sum(map(processor_s, lab.hosts))
        program = lab.program(PROGRAM.format(hosts=len(lab.hosts), on=f"ssh:{lab.file}"))
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n", program.communicate()
        taken = sum(map(processor_s, lab.hosts)) - before
        out, err = program.communicate(timeout=120)
        assert program.returncode == 0, err
        found.append({**json.loads(out), "processor": taken / len(lab.hosts)})
        eventually(lambda: lab.left() == {}, "nothing is left on any host")
    show("cold" if cold else "warm", found)


def measure_cloud(sky: Cloud, rounds: int, hosts: int, boot_s: float) -> None:
    """Print the same of a cloud's machines, which are always cold; the bucket has the archive after the first round."""
    found = []
    sky.hypervisor.boot_s = lambda number: boot_s
    for _ in range(rounds + 1):
        program = sky.program(PROGRAM.format(hosts=hosts, on=f"ec2:{sky.profile}"))
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n", (program.communicate(), sky.hypervisor.console())
        taken = [processor_s(host) for name, host in sky.lab.hosts.items() if name.startswith("i-") and host.pids()]
        out, err = program.communicate(timeout=240)
        assert program.returncode == 0, (err, sky.hypervisor.console())
        found.append({**json.loads(out), "processor": statistics.median(taken)})
        eventually(lambda: sky.left() == [], "nothing is left")
    show("ec2", found)
    for phase in ("pending", "boot", "fetch", "agent"):
        times = [one[phase] - one["asked"] for each in found[1:] for one in each["phases"]]
        print(f"each {phase:<8} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")


def processor_s(host: Host) -> float:
    """Return the processor time of all that runs on a host, and of what they have waited for, in seconds."""
    ticks = 0
    for pid in host.pids():
        with contextlib.suppress(OSError):  # it has just ended
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def show(kind: str, found: list[dict[str, Any]]) -> None:
    """Print medians and ranges of all rounds but the first."""
    for name in ("ready", "first", "down", "processor"):
        times = [one[name] for one in found[1:]]
        print(f"{kind} {name:<9} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="time from cb.up to ready and to the first task, on SSH hosts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--on", choices=("ssh", "ec2"), default="ssh")
    parser.add_argument("--boot", type=float, default=20.0, metavar="S", help="of a simulated machine of EC2")
    chosen = parser.parse_args()
    if chosen.on == "ec2":
        return main_of_cloud(chosen)
    if (reason := why_not()) is not None:
        print(f"no hosts can be made here: {reason}", file=sys.stderr)
        return 3
    with ssh_lab(chosen.hosts) as lab:
        for cold in (True, False):
            measure(lab, chosen.rounds, cold)
    print("nothing was left on any host after any round")
    return 0


def main_of_cloud(chosen: argparse.Namespace) -> int:
    """Measure a cloud, and print."""
    if (reason := hypervisor.why_not()) is not None:
        print(f"no cloud can be made here: {reason}", file=sys.stderr)
        return 3
    with hypervisor.cloud() as sky:
        sky.write(lease_s=20.0)
        measure_cloud(sky, chosen.rounds, chosen.hosts, chosen.boot)
    print("nothing was left after any round")
    return 0


if __name__ == "__main__":
    sys.exit(main())
