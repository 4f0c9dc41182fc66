"""How long three SSH hosts take until they are ready and until their first task: `python -m
tests.cloudburst.burst.readiness`.

Cold means that nothing of ours is on the hosts, so that it is brought to each; warm that it is there from before. The
archive is packed once before. Hosts share this machine's cores, which a real host does not. Prints medians and ranges.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys

from tests.cloudburst.burst.sshd import SshLab, ssh_lab, why_not

PROGRAM = """
import json, time
begun = time.time()
import cloudburst as cb
with cb.up({hosts}, on="ssh:{file}", executors=1, insecure=True) as cluster:
    ready = time.time()
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
        program = lab.program(PROGRAM.format(hosts=len(lab.hosts), file=lab.file))
        out, err = program.communicate(timeout=120)
        assert program.returncode == 0, err
        found.append(json.loads(out))
        assert lab.left() == {}, lab.left()
    kind = "cold" if cold else "warm"
    for name in ("ready", "first", "down"):
        times = [one[name] for one in found[1:]]
        print(f"{kind} {name:<6} {statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="time from cb.up to ready and to the first task, on SSH hosts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=3)
    chosen = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"no hosts can be made here: {reason}", file=sys.stderr)
        return 3
    with ssh_lab(chosen.hosts) as lab:
        for cold in (True, False):
            measure(lab, chosen.rounds, cold)
    print("nothing was left on any host after any round")
    return 0


if __name__ == "__main__":
    sys.exit(main())
