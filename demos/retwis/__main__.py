"""`python -m demos.retwis`, `cb demo retwis`, `make demo`: load the graph, let clients loop, print the table.

The program only arranges: inputs from `people`, servers from `on_anna` and `on_redis` (or `on_machines`, with
`--on`), load and loop from `workload`, what comes out from `report` and `page`. Everything that it starts is private
to the run and gone at its end.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cloudburst.errors import CloudburstError
from demos import fetch, where
from demos.retwis import on_anna, on_machines, on_redis, page, report, workload
from demos.retwis.people import Graph, Texts, load_graph, load_texts, some_people
from demos.retwis.report import Result, Row

EXAMPLES = """examples:
  python -m demos.retwis                          the whole run, about a minute and a half
  python -m demos.retwis --quick                  the same in miniature, under 15 s
  python -m demos.retwis --clients 8 --seconds 20 --repeats 5
  python -m demos.retwis --no-redis --json        our rows only; result.json on the standard output
  python -m demos.retwis --on ssh:hosts.toml      the functions on your hosts, one row
"""
TITLES = {
    "ours-functions": "ours, in functions",
    "redis-functions": "Redis, in functions",
    "ours-bare": "ours, bare client",
    "redis-bare": "Redis, bare client",
}
QUICK = {"seconds": 0.8, "repeats": 1, "posts": 200, "clients": 2, "feeds": 3, "fetch_seconds": 3.0}
WHOLE = {
    "seconds": 5.0,
    "repeats": 3,
    "posts": 5000,
    "clients": max(2, len(os.sched_getaffinity(0))),
    "feeds": 6,
    "fetch_seconds": fetch.DEADLINE_SECONDS,
}
WARM_UP = 0.2  # of the measured time, before it


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options, with `--quick`'s smaller values where none was given."""
    parser = argparse.ArgumentParser(
        prog="cb demo retwis",
        description="A Twitter clone on a real follow graph: ours and Redis, with and without functions.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller in every way; ends within 15 s")
    add("--seconds", type=positive, help="measured time of each backend in each repeat (default 5; quick 0.8)")
    add("--repeats", type=count, help="how often each backend has its turn (default 3; quick 1)")
    add("--clients", type=count, help="client processes (default one for each core, at least 2; quick 2)")
    add(
        "--posts",
        type=count,
        help="posts that are there before the measuring begins (default 5000; quick 200)",
    )
    add("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    add(
        "--texts",
        choices=("auto", "tweets", "sample"),
        default="auto",
        help="auto: tweets, or the sample without network",
    )
    add("--no-redis", action="store_true", help="leave the Redis rows out")
    add(
        "--out",
        type=Path,
        default=Path("out/retwis"),
        metavar="DIR",
        help="for result.json, chart and page (default out/retwis)",
    )
    add("--json", action="store_true", help="print result.json instead of the table")
    where.add_options(parser)
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else WHOLE).items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)
    return options


def positive(text: str) -> float:
    """Read a positive number of seconds."""
    value = float(text)
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86,400")
    return value


def count(text: str) -> int:
    """Read a number from 1 to 100,000."""
    value = int(text)
    if not 1 <= value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100,000")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the demo; exit 0, 1 when something failed, 2 for wrong usage, 4 without machines, 130 when interrupted."""
    options = parse(argv)
    console = Console(stderr=options.json)
    try:
        run(options, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except (fetch.FetchError, CloudburstError, RuntimeError, OSError) as error:
        Console(stderr=True).print(f"retwis: {type(error).__name__}: {error}", style="red", markup=False)
        return where.exit_code(error)
    return 0


def run(options: argparse.Namespace, console: Console) -> None:
    """Do it all, from the inputs to the files."""
    begun = time.monotonic()
    graph, texts = load_graph(), load_texts(options.texts, options.fetch_seconds)
    if texts.fallback:
        console.print(f"No tweets ({texts.fallback}); using {texts.source}.", markup=False)
    no_redis = why_no_redis(options)
    result = Result(parameters(options, graph, texts), report.machine(), versions())
    with ExitStack() as stack:
        progress = stack.enter_context(bars(console))
        stores: list[workload.Store] = []
        if options.on is None:
            stores += [stack.enter_context(on_anna.NodeStore()), stack.enter_context(on_anna.AnnaStore())]
        else:
            stores.append(stack.enter_context(on_machines.MachineStore(options)))
        if no_redis is None:
            stores.append(stack.enter_context(on_redis.RedisStore()))
        backends: dict[str, workload.OpenBackend] = {}
        for store in stores:
            bytes_per_key = load(store, options, graph, texts, progress)
            result.versions |= store.versions()
            backends |= store.backends()
            result.rows += [Row(name, TITLES[name], bytes_per_key) for name in store.backends()]
        result.rows.sort(key=lambda row: list(TITLES).index(row.name))
        measure(options, graph, texts, progress, result, backends)
        timelines = stores[0].operations()
        people = some_people(graph.people, options.feeds, options.seed)
        feeds = [page.Feed(person, timelines["profile"](person), timelines["timeline"](person)) for person in people]
    result.notes = notes(options, result, no_redis, time.monotonic() - begun)
    finish(options, console, result, feeds)


def why_no_redis(options: argparse.Namespace) -> str | None:
    """Return why there are no rows of Redis, or None."""
    if options.on is not None:
        return f"it would run here, and not on {options.on}"
    return "left out by --no-redis" if options.no_redis else on_redis.missing()


def bars(console: Console) -> Progress:
    """Return the progress display; it draws on a terminal only."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def load(
    store: workload.Store, options: argparse.Namespace, graph: Graph, texts: Texts, progress: Progress
) -> float | None:
    """Fill the store with the people, their follows and the first posts; return the growth of its memory per
    key, None where that is not known.
    """
    before = store.memory_bytes()
    steps: tuple[tuple[str, int, Iterable[int]], ...] = (
        (f"people into {store.title}", graph.people, store.load(graph)),
        (f"posts into {store.title}", options.posts, workload.seed_posts(
            store.operations(), graph.people, texts, options.posts, options.seed
        )),
    )  # fmt: skip
    for description, total, batches in steps:
        task = progress.add_task(description, total=total)
        for batch in batches:
            progress.advance(task, batch)
    after = store.memory_bytes()
    return None if before is None or after is None else (after - before) / max(1, store.keys())


def measure(
    options: argparse.Namespace, graph: Graph, texts: Texts, progress: Progress, result: Result,
    backends: dict[str, workload.OpenBackend],
) -> None:  # fmt: skip
    """Give every backend its turn in every repeat, and keep what was measured in the rows."""
    task = progress.add_task("starting the clients", total=options.repeats * len(result.rows))
    with workload.Crowd(options.clients, backends, graph.people, texts, options.seed) as crowd:
        for repeat in range(options.repeats):
            for row in result.rows:
                progress.update(task, description=f"{repeat + 1}/{options.repeats}: {row.title}")
                measured = crowd.turn(row.name, options.seconds * WARM_UP, options.seconds)
                row.repeats.append(report.summarise(measured))
                progress.advance(task)


def parameters(options: argparse.Namespace, graph: Graph, texts: Texts) -> dict[str, object]:
    """Return what the run was asked to do, as `result.json` keeps it."""
    asked = {name: getattr(options, name) for name in ("seconds", "repeats", "clients", "posts", "seed", "quick")}
    mix = {"timeline": 0.90, "post": 0.05, "reply": 0.03, "like": 0.02}
    graph_facts = {"people": graph.people, "follows": len(graph.follows)}
    return asked | {"warm_up_seconds": options.seconds * WARM_UP, "mix": mix, "texts": texts.source} | graph_facts


def versions() -> dict[str, str]:
    """Return the versions of what runs on the client's side."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("cloudburst", "redis", "hiredis") if installed(name)
    }


def installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def notes(options: argparse.Namespace, result: Result, no_redis: str | None, seconds: float) -> list[str]:
    """Return the lines under the table: the workload, the machine, what is missing."""
    machine, asked = result.machine, result.parameters
    warm_up = options.seconds * WARM_UP
    lines = [
        f"{asked['people']:,} people, {asked['follows']:,} follows, {asked['texts']}; "
        "90 % timelines, 5 % posts, 3 % replies, 2 % likes",
        f"{options.clients} closed-loop client{'s' * (options.clients > 1)}, {options.seconds:g} s a turn after "
        f"{warm_up:g} s of warm-up; median of {options.repeats}, seed {options.seed}",
        f"{machine['processor']}, {machine['cores']} cores for clients and servers; load average before: "
        f"{machine['load_average']}; Python {platform.python_version()}; the whole run took {seconds:.0f} s",
    ]
    shown = sum(row.count("replies") for row in result.rows)
    lines.append(f"orphan: a reply shown without the post that it answers; {shown:,} replies were shown in all")
    if no_redis:
        lines.append(f"No Redis rows: {no_redis}.")
    else:
        version = result.versions["redis-server"]
        lines.append(f"Redis {version}: one server, Unix socket, no disk, no replicas, so it has no orphans")
    return lines


def finish(options: argparse.Namespace, console: Console, result: Result, feeds: list[page.Feed]) -> None:
    """Write the files, print the table (or the JSON) and where the files are."""
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / name for name in ("result.json", "retwis.png", "retwis.html")}
    result.write(files["result.json"])
    drawn = report.chart(result, files["retwis.png"])
    page.write(files["retwis.html"], result, feeds, files["retwis.png"] if drawn else None)
    if options.json:
        print(files["result.json"].read_text(encoding="utf-8"), end="")
    else:
        console.print(report.table(result))
    if not drawn:
        console.print("No chart: matplotlib is not installed (pip install matplotlib).", markup=False)
    for name, path in files.items():
        if name != "retwis.png" or drawn:
            console.print(f"{name:<12} {path.resolve()}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
