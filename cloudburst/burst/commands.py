"""The commands of `cb` that have to do with machines: up, down, hosts, scale, reap, ssh.

`cb up` keeps the machines for as long as it runs; the others find it by its run directory (`cloudburst.running`), and
ask it at its desk. Source: SURFACE; burst-systems §5.1.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from cloudburst.burst.provider import ASKED, PHASES, Machine
from cloudburst.burst.sizing import Bounds
from cloudburst.burst.terms import IDLE, Terms, seconds
from cloudburst.commandline import FAILED, LIMIT, OK, Add, Usage, directory_of, joined, print_json
from cloudburst.errors import CostLimit, EnvironmentMismatch, RequestError

if TYPE_CHECKING:
    from cloudburst.cluster import Cluster

PLACES = "local, ssh:hosts.toml, ec2, ray://HOST:PORT (docs/deploy.md)"
HOSTS: Final = Bounds(2, 2)
UP: Final = "cb up --hosts 3 --idle-stop 5m"


def add_to(add: Add) -> None:
    """Add them."""
    add_up_options(add("up", _up, "run several nodes until interrupted, or until a limit", UP))
    add("down", _down, "stop what `cb up` or `cb node` runs here, once its calls have ended", "cb down")
    hosts = add("hosts", _hosts, "list the nodes of the cluster that a running node is part of", "cb hosts --phases")
    hosts.add_argument("--phases", action="store_true", help="of `cb up`: how long each machine took for what")
    scale = add("scale", _scale, "have a running `cb up` have so many nodes", "cb scale 8")
    scale.add_argument("hosts", type=_bounds, metavar="N", help="3; or 2..10: as many of these as calls need")
    reap = add("reap", _reap, "end what runs that are over have left", "cb reap --older 1h --dry-run")
    reap.add_argument("--on", default="local", metavar="WHERE", help="where to look (default: local)")
    reap.add_argument("--older", type=_seconds, metavar="TIME", help="also runs that go on, when they are older")
    reap.add_argument("--dry-run", action="store_true", help="only say what it would end")
    shell = add("ssh", _ssh, "open a shell on a machine of a running `cb up`, or run a command there", "cb ssh host-1")
    shell.add_argument("host", metavar="HOST")
    shell.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")


def _bounds(text: str) -> Bounds:
    try:
        return Bounds.of(text)
    except RequestError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from None


def add_up_options(up: argparse._ActionsContainer) -> None:
    """Add the options that say what runs where, and for how long."""
    up.add_argument("--hosts", type=_bounds, default=HOSTS, metavar="N", help="how many: 3, or 2..10 (default: 2)")
    up.add_argument("--executors", type=int, metavar="N", help="of each (default: the cores, shared out)")
    up.add_argument("--on", default="local", metavar="WHERE", help=f"where: {PLACES}")
    up.add_argument("--ready-in", type=_seconds, metavar="TIME", help="all of them within so long, or none (120s)")
    up.add_argument("--ttl", type=_seconds, metavar="TIME", help="end after so long, whatever happens: 90s, 30m, 2h")
    up.add_argument("--idle-stop", type=_seconds, metavar="TIME", help="end when nothing has run for so long")
    up.add_argument("--max-cost", type=float, metavar="USD", help="end when it has cost so much")
    up.add_argument("--price", type=float, metavar="USD", help="what a machine costs in an hour, where you know better")
    up.add_argument("--insecure", action="store_true", help="hand keys over by what is not encrypted (--on ray)")
    up.add_argument("--plan", action="store_true", help="say what would be asked for and what it costs, and end")


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 90s, 30m, 2h") from None


# -- cb up


def _up(parsed: argparse.Namespace) -> int:
    from cloudburst.burst.desk import Desk
    from cloudburst.entry import register_declared

    if parsed.plan:
        return _plan(parsed, _terms(parsed))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what `cb down` sends is Ctrl-C from another shell
    with started(parsed) as cluster, suppress(KeyboardInterrupt):
        try:
            desk = Desk(cluster)
            register_declared(cluster.client)
            _announce(parsed, cluster)
        except Exception:  # whatever is missing when a run is over before anybody has been told of it
            if not cluster.reason:
                raise
        else:
            desk.serve()
    if cluster.reason:
        sys.stderr.write(f"cb up: the run has ended: {cluster.reason}\n")
    return LIMIT if cluster.reason and not cluster.reason.startswith(IDLE) else OK


def _terms(parsed: argparse.Namespace) -> Terms:
    within = {} if parsed.ready_in is None else {"ready_in_s": parsed.ready_in}
    asked = {"ttl_s": parsed.ttl, "idle_stop_s": parsed.idle_stop, "max_cost": parsed.max_cost, "price": parsed.price}
    return Terms(**within, **asked)


def started(parsed: argparse.Namespace, command: bool = True) -> Cluster:
    """Return the nodes that the options ask for; with `command`, other commands find them."""
    from cloudburst.cluster import Cluster

    notice = (lambda _: None) if parsed.json else Progress()
    with _mistakes():
        return Cluster(
            HOSTS if parsed.hosts is None else parsed.hosts, parsed.executors, 1, on=parsed.on or "local",
            terms=_terms(parsed), insecure=parsed.insecure, command=command, notice=notice,
        )  # fmt: skip


@contextmanager
def _mistakes() -> Iterator[None]:
    """What cannot be meant, such as a place that there is not, is a mistake on the command line: exit code 2."""
    try:
        yield
    except (CostLimit, EnvironmentMismatch):
        raise
    except RequestError as fault:
        raise Usage(str(fault)) from None


def _plan(parsed: argparse.Namespace, terms: Terms) -> int:
    from pathlib import Path

    from cloudburst.burst.provider import Spec
    from cloudburst.burst.providers import provider_of

    spec = Spec("plan", parsed.executors, ttl_s=parsed.ttl, insecure=parsed.insecure, price=parsed.price)
    with _mistakes():
        plan = provider_of(parsed.on, Path("/nonexistent"), lambda _: None).plan(spec, parsed.hosts.most)
    plan = plan.at(parsed.price)
    terms.check(plan)
    if parsed.json:
        said = {"places": plan.places, "usd_per_hour": plan.price, "priced": plan.priced, "warnings": plan.warnings}
        print_json(said)
    else:
        print("\n".join(plan.places))
        print(f"{len(plan.places)} machines, ${plan.price:.2f} an hour" + (f" ({plan.priced})" if plan.priced else ""))
        print("".join(f"{one}\n" for one in plan.warnings), end="")
    return OK


class Progress:
    """Says on standard error when a machine has come further: its name, the phase, and the seconds since asked."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def __call__(self, machine: Machine) -> None:
        """Say it, once."""
        news = machine.fault or machine.phase
        with self._lock:
            if (machine.name, news) in self._said or news == ASKED:
                return
            self._said.add((machine.name, news))
            since = time.time() - machine.reached.get(ASKED, time.time())
            sys.stderr.write(f"{machine.name:<8} {news:<10} {since:6.2f} s  {machine.place}\n")
            sys.stderr.flush()


def _announce(parsed: argparse.Namespace, cluster: Any) -> None:
    """Say what runs, how it is used, and how it is ended."""
    for warning in cluster.warnings:
        sys.stderr.write(f"cb up: warning: {warning}\n")
    if parsed.json:
        print_json([{"name": one.name, "address": one.address, "pid": one.pid} for one in cluster.hosts])
        sys.stdout.flush()
        return
    first = cluster.entrance
    for one in cluster.hosts:
        print(f"{one.name:<8} pid {one.pid:<8} {one.address}")
    print(f"use it: CLOUDBURST_DIR={first}")
    print("end it: Ctrl-C, or cb down")
    sys.stdout.flush()


# -- the others


def _down(parsed: argparse.Namespace) -> int:
    from cloudburst import local, running
    from cloudburst.processes import stop

    directory = directory_of(parsed)
    clusters = [running.cluster_in(directory)] if parsed.dir else running.clusters()
    found = [(one.pid, one.directory) for one in clusters if one is not None]
    lease = local.join(directory)
    if lease is not None:
        lease.close()
        if lease.stays:
            found.append((lease.pid, directory))
        elif not found:
            raise Usage(f"the node in {directory} (pid {lease.pid}) is of a program, and ends with its last user")
    if len(found) > 1:
        raise Usage(f"several run here, choose one: --dir {' or --dir '.join(str(place) for _, place in found)}")
    ended = [{"pid": pid, "directory": str(place), "ended": stop(pid, str(place))} for pid, place in found]
    if parsed.json:
        print_json(ended)
    elif not ended:
        print(f"nothing runs in {directory}" + ("" if parsed.dir else ", and no `cb up`"))
    for one in () if parsed.json else ended:
        print(f"{one['directory']} (pid {one['pid']}) has {'ended' if one['ended'] else 'not ended yet'}")
    return OK if all(one["ended"] for one in ended) else FAILED


def _asked(parsed: argparse.Namespace, verb: str, **body: Any) -> dict[str, Any]:
    """Ask the one `cb up` of this user, or the one of `--dir`. Raises Usage when there is none, or several."""
    from cloudburst import running
    from cloudburst.burst.desk import ask

    clusters = [running.cluster_in(directory_of(parsed))] if parsed.dir else running.clusters()
    found = [one.directory for one in clusters if one is not None]
    if not found:
        raise Usage("no `cb up` runs here: begin with cb up --hosts 3")
    if len(found) > 1:
        raise Usage(f"several run here, choose one: --dir {' or --dir '.join(map(str, found))}")
    return ask(found[0], verb, **body)


def _hosts(parsed: argparse.Namespace) -> int:
    if parsed.phases:
        return _show_machines(parsed, _asked(parsed, "hosts"))
    with joined(parsed) as client:
        status = client.status()
    own = {"node": status["node"], "directory": status["directory"], "pid": status["pid"], "heard_s": 0.0,
           "executors": len(status["executors"])}  # fmt: skip
    if parsed.json:
        print_json([own, *status["nodes"]])
        return OK
    for row in (own, *status["nodes"]):
        heard = "this one" if row is own else f"heard of {row['heard_s']:.1f} s ago"
        print(f"node {row['node']}  pid {row['pid']:<8} {row['executors']:>3} executors  {row['directory']}  {heard}")
    return OK


def _scale(parsed: argparse.Namespace) -> int:
    return _show_machines(parsed, _asked(parsed, "scale", hosts=str(parsed.hosts)))


def _show_machines(parsed: argparse.Namespace, found: dict[str, Any]) -> int:
    if parsed.json:
        print_json(found)
        return OK
    for line in phase_table(found["machines"]):
        print(line)
    of = f" of {found['hosts']}" if ".." in found["hosts"] else ""
    print(f"run {found['run']}, {len(found['machines'])}{of} machines, ${found['spent']:.2f} so far")
    if found["sized"]:
        print(found["sized"])
    return OK


def phase_table(machines: list[dict[str, Any]]) -> Iterator[str]:
    """Return lines with what each machine has reached, in seconds since it was asked for."""
    yield f"{'host':<8} " + " ".join(f"{phase:>10}" for phase in PHASES) + "  place"
    for one in machines:
        times = " ".join(_since(one["reached"], phase) for phase in PHASES)
        fault = f"  {' '.join(one['fault'].split())}" if one["fault"] else ""
        yield f"{one['name']:<8} {times}  {one['place']}{fault}"


def _since(reached: Mapping[str, float], phase: str) -> str:
    return f"{reached[phase] - reached[ASKED]:>8.2f} s" if phase in reached else f"{'-':>10}"


def _reap(parsed: argparse.Namespace) -> int:
    from pathlib import Path

    from cloudburst.burst.providers import provider_of

    with _mistakes():
        provider = provider_of(parsed.on, Path("/nonexistent"), lambda _: None)
    found = provider.reap(parsed.older, dry=parsed.dry_run)
    if parsed.json:
        print_json([{"run": one.run, "place": one.place, "pid": one.pid, "what": one.name} for one in found])
        return OK
    did = "would be ended" if parsed.dry_run else "has been ended"
    for one in found:
        print(f"run {one.run} on {one.place}: {one.name} {did}")
    if not found:
        print("nothing is left of runs that are over" + ("" if parsed.older is None else ", and none is that old"))
    return OK


def _ssh(parsed: argparse.Namespace) -> int:
    machines = {one["name"]: one for one in _asked(parsed, "hosts")["machines"]}
    if parsed.host not in machines:
        raise Usage(f"there is no machine {parsed.host!r}; there are {', '.join(machines)}")
    words = list(machines[parsed.host]["shell"])
    if not words:
        raise Usage(f"{parsed.host} ({machines[parsed.host]['place']}) has no shell that can be opened from here")
    given = parsed.words[1:] if parsed.words[:1] == ["--"] else parsed.words
    if given and words[0] == "env":
        words.pop()  # the shell, in place of which the command is run
    os.execvp(words[0], [*words, *given])
