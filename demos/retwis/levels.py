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
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

import cloudburst as cb
from demos.retwis import editing, functions, on_anna, page, report, workload
from demos.retwis.__main__ import bars, count, positive, versions
from demos.retwis.on_anna import register, set_variable
from demos.retwis.page import Feed, Front
from demos.retwis.people import Graph, Texts, load_graph, load_texts
from demos.retwis.report import Result, Row
from demos.retwis.workload import OPERATIONS, OpenBackend, Operations, is_orphan

LEVELS = ("eventual", "repeatable", "read-atomic", "causal")
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


def at_level(addresses: tuple[str, ...], level: str) -> Operations:
    """Return the eight operations as calls in sessions of a level, for this process."""
    caller = client(addresses).options(session=level)
    return {name: functools.partial(caller.call, name) for name in WITH_EDITS}


class Watcher(threading.Thread):
    """Looks at the busiest timelines while others write, and keeps those that show an orphan, with what causal shows.

    Both are read one right after the other, so the second may have something newer; what it lacks is an orphan's place.
    """

    def __init__(self, client: cb.Client, graph: Graph) -> None:
        super().__init__(name="watcher", daemon=True)
        self._client = client
        self._people = sorted(range(graph.people), key=lambda person: -len(graph.following()[person]))[:200]
        self._over = threading.Event()
        self.pairs: list[tuple[Feed, Feed]] = []

    def run(self) -> None:
        """Look until it is told to stop, or has seen enough."""
        weak, strong = (self._client.options(session=level) for level in ("eventual", "causal"))
        seen: set[int] = set()
        while not self._over.is_set() and len(self.pairs) < PAIRS_MAX:
            for person in self._people:
                if self._over.is_set():
                    return
                shown = weak.call("timeline", person)
                if orphans(shown) and person not in seen:
                    seen.add(person)
                    profile = weak.call("profile", person)
                    beside = strong.call("timeline", person)
                    self.pairs.append(
                        (
                            Feed(person, profile, shown, f"eventual: {orphans(shown)} orphans"),
                            Feed(person, profile, beside, f"causal, right after it: {orphans(beside)} orphans"),
                        )
                    )

    def stop(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()


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
        backends: dict[str, OpenBackend] = {
            level: functools.partial(at_level, addresses, level) for level in options.levels
        }
        result.rows = [Row(level, level) for level in options.levels]
        task = progress.add_task("starting the clients", total=len(result.rows))
        with workload.Crowd(options.clients, backends, graph.people, texts, options.seed) as crowd:
            for row in result.rows:
                progress.update(task, description=row.title)
                watcher = Watcher(cluster.client, graph)
                if row.name == "eventual":
                    watcher.start()
                measured = crowd.turn(row.name, options.seconds * WARM_UP, options.seconds)
                if row.name == "eventual":
                    watcher.stop()
                    pairs = watcher.pairs
                row.repeats.append(report.summarise(measured))
                progress.advance(task)
    result.notes = notes(options, result, time.monotonic() - begun)
    return finish(options, console, result, pairs)


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


def finish(options: argparse.Namespace, console: Console, result: Result, pairs: Sequence[tuple[Feed, Feed]]) -> int:
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
    feeds = [feed for pair in pairs for feed in pair]
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
