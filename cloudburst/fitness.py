"""The commands `cb doctor` and `cb selftest`: whether this machine has what it takes, and whether nodes work on it.

The one rule: a line is shown as soon as it is known, and the exit code is for scripts: 3 when this machine lacks what
nodes need, 1 when a node does something wrong.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from cloudburst.commandline import ENVIRONMENT, FAILED, OK, Add, Usage, print_json

if TYPE_CHECKING:
    from cloudburst.doctor import Finding

DOCTOR: Final = """cb doctor
  cb doctor --host me@build-7 --host 10.0.0.8     how far their clocks are from this one's
  cb doctor --json | jq '.[] | select(.ok | not)'"""
SELFTEST: Final = """cb selftest
  cb selftest --on ssh:hosts.toml --json"""


def add_to(add: Add) -> None:
    """Add the commands."""
    doctor = add("doctor", _doctor, "say what this machine lacks, what for, and how to get it", DOCTOR)
    doctor.add_argument(
        "--host", action="append", default=[], metavar="HOST", help="compare the clock of a host, asked by ssh"
    )
    selftest = add("selftest", _selftest, "start a node, use it, end it, and say what went wrong", SELFTEST)
    selftest.add_argument("--on", default="local", metavar="WHERE", help="where the node is: local, ssh:hosts.toml, …")
    selftest.add_argument("--insecure", action="store_true", help="hand keys over by what is not encrypted (--on ray)")


def _doctor(parsed: argparse.Namespace) -> int:
    from cloudburst.doctor import examine

    findings = []
    for finding in examine(parsed.host):
        findings.append(finding)
        if not parsed.json:
            print("\n".join(shown(finding)), flush=True)
    if parsed.json:
        print_json([asdict(one) for one in findings])
    lacking = [one.name for one in findings if one.needed and not one.ok]
    if lacking and not parsed.json:
        print(f"nodes do not work here without: {', '.join(lacking)}")
    return ENVIRONMENT if lacking else OK


def shown(finding: Finding) -> Iterator[str]:
    """Yield the lines that tell a person."""
    state = "ok" if finding.ok else "missing" if finding.needed else "without"
    yield f"{state:<8} {finding.name:<16} {finding.found}"
    if not finding.ok:
        yield f"{'':<8} {'':<16} for: {finding.why}"
        yield f"{'':<8} {'':<16} get: {finding.mend}"


def _selftest(parsed: argparse.Namespace) -> int:
    from cloudburst.errors import EnvironmentMismatch, RequestError
    from cloudburst.selftest import outcomes

    begun = time.monotonic()
    found = []
    try:
        for one in outcomes(parsed.on, parsed.insecure):
            found.append(one)
            if not parsed.json:
                print(f"{'ok' if one.ok else 'FAILED':<7} {one.name:<16} {one.seconds:6.2f} s  {one.said}", flush=True)
    except EnvironmentMismatch:
        raise
    except RequestError as fault:
        raise Usage(str(fault)) from None
    failed = [one.name for one in found if not one.ok]
    if parsed.json:
        print_json([asdict(one) for one in found])
    else:
        took = time.monotonic() - begun
        print(f"failed: {', '.join(failed)}" if failed else f"all {len(found)} steps are right, in {took:.1f} s")
    return FAILED if failed else OK
