"""`python -m demos.retwis.levels`: the clone on three nodes at each level of consistency, and what readers see there.

The one rule: the functions are the same, and so is the load; only the session that they are called in differs. An
orphan is a reply that is shown without the post that it answers, or above an older text of it than the one that it
answers: here posts are edited, too. In `eventual` that happens: a timeline is newer than what a cache holds of a post.
In `causal` it must not: whoever sees the reply sees what its author had seen.

Caches take up what others wrote each `--refresh` seconds. Ours do so each epoch (10 ms); the published systems
did each 10 s, which is the default here, to see the same thing happen.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

import cloudburst as cb
from cloudburst.optioned import Calls
from demos.retwis import editing, functions, on_anna, page, report, workload
from demos.retwis.__main__ import bars, count, positive, versions
from demos.retwis.on_anna import register, set_variable
from demos.retwis.page import Feed, Front
from demos.retwis.people import Graph, Texts, load_graph, load_texts
from demos.retwis.report import Result, Row
from demos.retwis.workload import OPERATIONS, OpenBackend, Operations, is_orphan

WEAK = "eventual"
LEVELS = (WEAK, "repeatable", "read-atomic", "causal")
EDITING = {name: getattr(editing, name) for name in ("edit", "reply", "timeline")}
WITH_EDITS = (*OPERATIONS, "edit")
NODES = 3
REFRESH_VARIABLE = "CLOUDBURST_REFRESH_S"
WARM_UP = 0.2
PAIRS_MAX = 3
EXAMPLES = """examples:
  python -m demos.retwis.levels                   four levels, about a minute
  python -m demos.retwis.levels --quick           eventual beside causal, in 15 s
  python -m demos.retwis.levels --refresh 0.01    with caches that are refreshed as ours are
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m demos.retwis.levels", description=(__doc__ or "").partition("\n")[0], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--quick", action="store_true", help="eventual and causal only, 2 s each")
    add("--seconds", type=positive, help="measured time of each level (default 8; quick 2)")
    add("--clients", type=count, default=6, help="client processes (default 6)")
    add("--posts", type=count, help="posts that are there before (default 2000; quick 300)")
    add("--refresh", type=positive, default=10.0, help="seconds between two refreshes of a cache (default 10)")
    add("--turns", type=count, default=5, help="turns of eventual, at most, until it has shown an orphan (default 5)")
    add("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    add("--out", type=Path, default=Path("out/retwis-levels"), metavar="DIR", help="for result.json, chart and page")
    options = parser.parse_args(argv)
    options.seconds = options.seconds or (2.0 if options.quick else 8.0)
    options.posts = options.posts or (300 if options.quick else 2000)
    options.levels = (LEVELS[0], LEVELS[-1]) if options.quick else LEVELS
    return options


@functools.cache
def client(addresses: tuple[str, ...]) -> cb.Client:
    """Return this process's client, of one of the nodes."""
    return cb.connect(addresses[os.getpid() % len(addresses)])


def at_level(addresses: tuple[str, ...], level: str, directory: Path) -> Operations:
    """Return the operations as calls in sessions of a level, for this process; orphans are kept in `directory`."""
    caller = client(addresses).options(session=level)
    operations: dict[str, Any] = {name: functools.partial(caller.call, name) for name in WITH_EDITS}
    if level == "eventual":
        strong = client(addresses).options(session="causal")
        operations["timeline"] = functools.partial(watched, caller, strong, directory)
    return operations


def watched(weak: cb.Client | Calls, strong: cb.Client | Calls, directory: Path, person: int) -> Any:
    """Return a timeline; one with an orphan is kept, beside what causal shows right after it.

    The second may have something newer; what it lacks is an orphan's place.
    """
    shown = weak.call("timeline", person)
    if orphans(shown) and len(list(directory.iterdir())) < PAIRS_MAX:
        pair = [person, weak.call("profile", person), shown, strong.call("timeline", person)]
        (directory / f"{person}.json").write_text(json.dumps(pair))
    return shown


def pairs(directory: Path) -> list[Feed]:
    """Return the timelines that were kept, eventual and causal in turn."""
    found = []
    for path in sorted(directory.iterdir())[:PAIRS_MAX]:
        person, profile, weak, strong = json.loads(path.read_text())
        found.append(Feed(person, profile, weak, f"eventual: {counted(orphans(weak))}"))
        found.append(Feed(person, profile, strong, f"causal, right after it: {counted(orphans(strong))}"))
    return found


def counted(number: int) -> str:
    """Return a number of orphans in words."""
    return "no orphan" if number == 0 else "1 orphan" if number == 1 else f"{number} orphans"


def orphans(timeline: Sequence[Any]) -> int:
    """Return how many replies are shown without what they answer."""
    return sum(map(is_orphan, timeline))


def run(options: argparse.Namespace, console: Console) -> int:
    """Do it all; return the exit code: 1 when causal showed an orphan, or eventual none."""
    begun = time.monotonic()
    graph, texts = load_graph(), load_texts("sample")
    result = Result(parameters(options, graph, texts), report.machine(), versions())
    with ExitStack() as stack:
        stack.callback(set_variable, REFRESH_VARIABLE, os.environ.get(REFRESH_VARIABLE))
        set_variable(REFRESH_VARIABLE, str(options.refresh))
        progress = stack.enter_context(bars(console))
        cluster = stack.enter_context(cb.up(hosts=NODES, executors=1))
        register({name: getattr(functions, name) for name in OPERATIONS} | EDITING)
        addresses = tuple(host.address for host in cluster.hosts)
        fill(cluster.client, options, graph, texts, progress)
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retwis-")))
        backends: dict[str, OpenBackend] = {
            level: functools.partial(at_level, addresses, level, kept) for level in options.levels
        }
        result.rows = [Row(level, level) for level in options.levels]
        task = progress.add_task("starting the clients", total=len(result.rows))
        with workload.Crowd(options.clients, backends, graph.people, texts, options.seed) as crowd:
            for row in result.rows:
                progress.update(task, description=row.title)
                for _ in range(options.turns if row.name == WEAK else 1):
                    measured = crowd.turn(row.name, options.seconds * WARM_UP, options.seconds)
                    row.repeats.append(report.summarise(measured))
                    if row.count("orphans"):
                        break
                progress.advance(task)
        feeds = pairs(kept)
    result.notes = notes(options, result, time.monotonic() - begun)
    return finish(options, console, result, feeds)


def fill(client: cb.Client, options: argparse.Namespace, graph: Graph, texts: Texts, progress: Any) -> None:
    """Sign everybody up, and write the first posts."""
    for description, total, batches in (
        ("people", graph.people, on_anna.sign_up_all(client.store, graph)),
        ("posts", options.posts, workload.seed_posts(
            on_anna.called(), graph.people, texts, options.posts, options.seed
        )),
    ):  # fmt: skip
        task = progress.add_task(description, total=total)
        for batch in batches:
            progress.advance(task, batch)


def parameters(options: argparse.Namespace, graph: Graph, texts: Texts) -> dict[str, object]:
    """Return what the run was asked to do."""
    asked = {name: getattr(options, name) for name in ("seconds", "clients", "posts", "refresh", "seed", "quick")}
    return asked | {"texts": texts.source, "people": graph.people, "follows": len(graph.follows), "nodes": NODES}


def notes(options: argparse.Namespace, result: Result, seconds: float) -> list[str]:
    """Return the lines under the table."""
    machine = result.machine
    replies = ", ".join(f"{row.count('replies'):,} in {row.title}" for row in result.rows)
    return [
        f"{NODES} nodes with a cache and an executor each; caches take up what others wrote each {options.refresh:g} s",
        f"{options.clients} closed-loop clients, {options.seconds:g} s each; "
        "90 % timelines, 5 % posts, 3 % replies, 1 % likes, 1 % edits",
        f"orphan: a reply shown without the post, or the edition, that it answers; replies shown: {replies}",
        f"{machine['processor']}, {machine['cores']} cores for clients and servers; the whole run took {seconds:.0f} s",
    ]


def finish(options: argparse.Namespace, console: Console, result: Result, feeds: Sequence[Feed]) -> int:
    """Write the files, print the table, and say whether it is as it should be."""
    options.out.mkdir(parents=True, exist_ok=True)
    result.write(options.out / "result.json")
    picture = options.out / "levels.png"
    drawn = report.chart(result, picture)
    front = Front(
        "at two levels",
        "On the left what a reader sees in eventual while others write, on the right what causal shows. ",
        pairs=True,
    )
    page.write(options.out / "levels.html", result, feeds, picture if drawn else None, front)
    console.print(report.table(result))
    for path in ("result.json", "levels.html"):
        console.print(f"{path:<12} {(options.out / path).resolve()}", markup=False, soft_wrap=True)
    shown = {row.name: row.count("orphans") for row in result.rows}
    if shown["causal"] or not shown["eventual"]:
        console.print(f"Not as it should be: orphans by level {shown}; causal shows none, eventual some.", style="red")
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it."""
    options = parse(argv)
    try:
        return run(options, Console())
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
