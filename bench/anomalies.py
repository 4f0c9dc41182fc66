"""`python -m bench.anomalies`: what goes wrong at each level of consistency, counted as the papers count it.

Every history is judged by `cloudburst.judge`, which knows nothing of the store: at the promised level nothing may be
found, and in `eventual`, beside it, something must be. Caches are three, or as many as a table says, each on a node of
its own; `refresh` is how often a cache takes up what others wrote (ours: each epoch, 10 ms; the papers': up to 10 s).

    python -m bench.anomalies                  all tables, about half an hour
    python -m bench.anomalies skew --quick     one table, few transactions: a look

Tables are printed, and written to out/anomalies with pictures and the raw figures (anomalies.json). The exit code is 1
when a promised level was violated, or a weak one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table as Shown

from bench import published
from bench.harness import percentile
from bench.killing import KILL_EVERY_S, Killer
from bench.peers import redis_server
from bench.pictures import Picture, Series, draw
from bench.report import digits
from bench.transactions import EVENTUAL, LINEAR, MIXED, PAIR, V_SHAPED, Clients, Load, Ran, cluster
from cloudburst.judge.counting import Counts
from cloudburst.judge.facts import gather
from cloudburst.judge.history import READ, History, Line, Transaction
from cloudburst.judge.levels import stale_directly
from cloudburst.judge.order import Order
from cloudburst.judge.reading import read
from cloudburst.judge.verdict import Verdict, judge

REFRESHES: Final = (0.01, 0.1, 1.0, 10.0)
REFRESH: Final = "CLOUDBURST_REFRESH_S"
CAUSAL: Final = "causal"
READ_ATOMIC: Final = "read-atomic"
STRONG: Final = ("repeatable", READ_ATOMIC, CAUSAL)
METADATA_MAX: Final = 32
DRILL_TIMEOUT_S: Final = 10.0
DRILL_LATE_S: Final = 1.0
"""How much later than its deadline a client may hear of it."""


@dataclass(slots=True)
class Table:
    """One table: what it shows, its heads and rows, what has to be known to read it; and whether it is as promised."""

    name: str
    title: str
    heads: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is run: transactions of each client, skews, refreshes, and where histories go."""

    directory: Path
    quick: bool
    share: float = 1.0

    def count(self, full: int) -> int:
        """Return how many transactions each client does where a table's own number is `full`."""
        return max(4, int(full * self.share / (10 if self.quick else 1)))

    def some(self, full: Sequence[Any]) -> Sequence[Any]:
        """Return the points of an axis: all of them, or the ends."""
        return (full[0], full[-1]) if self.quick else full


@dataclass(frozen=True, slots=True)
class Judged:
    """One run and what the judge found in it."""

    load: Load
    verdict: Verdict
    us: Sequence[float]
    failed: int
    unknown: int
    why: str
    slowest_s: float
    again: int
    carried: Sequence[int]

    @property
    def counts(self) -> Counts:
        """What papers count."""
        assert self.verdict.counts is not None
        return self.verdict.counts

    def violations(self, level: str) -> int:
        """How many transactions read what a level forbids; for eventual, which forbids nothing, what causal does."""
        return self.verdict.transactions(CAUSAL if level == EVENTUAL else level)

    def per_cent(self, count: int | None) -> float:
        """Return a count as a share of the transactions."""
        return 100.0 * (count or 0) / max(1, self.counts.transactions)


def run(clients: Clients, load: Load, amount: Amount) -> Judged:
    """Have the clients do the load, and judge what they saw."""
    path = amount.directory / f"{load.run}.jsonl"
    ran: list[Ran] = clients.run(load, path, seed=len(load.run) * 1000 + int(load.exponent * 100))
    verdict = judge(read(path))
    return Judged(
        load, verdict, sorted(us for one in ran for us in one.us), sum(one.failed for one in ran),
        sum(one.unknown for one in ran), next((one.why for one in ran if one.why), ""),
        max(one.slowest_s for one in ran), sum(one.again for one in ran),
        sorted(size for one in ran for size in one.carried),
    )  # fmt: skip


def promised(table: Table, judged: Judged, level: str) -> None:
    """Note what a run broke of the level that it was promised."""
    table.figures.append({"load": asdict(judged.load), "counts": asdict(judged.counts), "failed": judged.failed})
    if level != EVENTUAL and (found := judged.violations(level)):
        table.broken.append(f"{judged.load.run}: {found} transactions violate {level}")
    if not judged.load.reread and (failed := judged.failed + judged.unknown):
        table.broken.append(f"{judged.load.run}: {failed} transactions failed: {judged.why}")


def skew(amount: Amount) -> Table:
    """HydroCache, table 3: 6 clients, 3 caches, graphs of three functions, against the skew of their keys."""
    skews = amount.some(published.SKEWS)
    table = Table(
        "skew", "Transactions that violate causal consistency, by the skew of their keys (HydroCache, table 3)",
        ["", *(f"zipf {one:g}" for one in skews)],
    )  # fmt: skip
    lines: dict[str, list[tuple[float, float]]] = {}
    weak = 0
    for refresh in amount.some(REFRESHES):
        with cluster(3, 6, {REFRESH: str(refresh)}) as clients:
            for level in (EVENTUAL, CAUSAL):
                name = f"{level}, refresh {seconds(refresh)}"
                for exponent in skews:
                    load = Load(
                        f"skew-{level}-{refresh:g}-{exponent:g}", level, exponent, amount.count(500), (LINEAR.name,)
                    )
                    judged = run(clients, load, amount)
                    promised(table, judged, level)
                    weak += level == EVENTUAL and (judged.counts.causal or 0)
                    lines.setdefault(name, []).append((exponent, judged.per_cent(judged.counts.causal)))
    if not weak:
        table.broken.append("no violation was seen in eventual: the table shows nothing")
    at = [published.SKEWS.index(one) for one in skews]
    for name, found in published.HYDROCACHE_VIOLATIONS.items():
        lines[name] = [(published.SKEWS[one], found[one]) for one in at]
    table.rows = [[name, *(f"{share:.2f} %" for _, share in points)] for name, points in lines.items()]
    table.notes.append(
        "6 clients of 500 linear graphs on 3 nodes, 1,000,000 keys, the 10,000 most frequent in each cache; the"
        " last function writes a key that was read. A violation: a key read at a version under one"
        " that another read depends on."
    )
    table.picture = Picture(
        "anomalies-skew", Series("Transactions that violate causal consistency", lines, "skew of keys (zipf)", "%")
    )
    return table


def fractured(amount: Amount) -> Table:
    """AFT, table 2: 10 clients, 1,000 transactions each of two functions that write one key and read two."""
    table = Table(
        "fractured", "Anomalies in 10,000 transactions of two functions (AFT, table 2)",
        ["", "own write not read back", "fractured reads"],
    )  # fmt: skip
    shown: list[tuple[str, Judged]] = []
    count = amount.count(1000)

    def load(run: str, level: str, redis: str = "") -> Load:
        return Load(
            run, level, 1.0, count, (PAIR.name,), keys=1000, writes_each=True, value_bytes=4096, warm=not redis,
            redis=redis,
        )  # fmt: skip

    for refresh in amount.some(REFRESHES):
        with cluster(3, 10, {REFRESH: str(refresh)}) as clients:
            for level in (EVENTUAL, READ_ATOMIC):
                judged = run(clients, load(f"aft-{level}-{refresh:g}", level), amount)
                promised(table, judged, level)
                shown.append((f"{level}, refresh {seconds(refresh)}", judged))
            if refresh == REFRESHES[0] and (why := redis_server.Redis().missing()) is not None:
                table.notes.append(f"Without Redis: {why}.")
            elif refresh == REFRESHES[0]:
                server = redis_server.RedisServer(amount.directory / "redis", os.sched_getaffinity(0))
                try:
                    judged = run(clients, load("aft-redis", EVENTUAL, server.path), amount)
                finally:
                    server.stop()
                promised(table, judged, EVENTUAL)
                shown.append(("the same functions on one Redis server", judged))
    if not any(judged.counts.fractured_reads for _, judged in shown if not judged.load.redis):
        table.broken.append("no fractured read was seen in eventual: the table shows nothing")
    for name, judged in shown:
        table.rows.append([name, f"{judged.counts.read_your_writes:,}", f"{judged.counts.fractured_reads:,}"])
    for name, (own, torn) in published.AFT_ANOMALIES.items():
        table.rows.append([f"{name} (published)", f"{own:,}", f"{torn:,}"])
    table.notes.append(
        f"{10 * count:,} transactions; 1,000 keys of 4 KiB, zipf 1.0; each function writes one key and then reads"
        " two. A fractured read: a version together with an older one of a key that its transaction wrote as well, or"
        " two of one."
    )
    return table


def graphs(amount: Amount) -> Table:
    """Cloudburst, table 2: 4,000 graphs of two to five functions without consistency, and what went wrong in them."""
    table = Table(
        "graphs", "Anomalies in 4,000 graphs of two to five functions (Cloudburst, table 2)",
        ["", "single key", "and multi key", "and causal", "repeatable read"],
    )  # fmt: skip
    count, weak = amount.count(500), 0
    for refresh in amount.some(REFRESHES):
        with cluster(5, 8, {REFRESH: str(refresh)}) as clients:
            for level in (EVENTUAL, *STRONG):
                shapes = tuple(shape.name for shape in MIXED)
                load = Load(f"graphs-{level}-{refresh:g}", level, 1.0, count, shapes, again=True)
                judged = run(clients, load, amount)
                promised(table, judged, level)
                name = f"{level}, refresh {seconds(refresh)}"
                table.rows.append([name, *accrued(judged), str(judged.counts.repeatable_read)])
                if level == EVENTUAL:
                    weak += judged.counts.repeatable_read
    if not weak:
        table.broken.append("no read that could not be repeated was seen in eventual: the table shows nothing")
    table.rows.append(["eventual (published)", *map(str, published.CLOUDBURST_ANOMALIES)])
    table.notes.append(
        f"8 clients of {count:,} graphs on 5 nodes, 1,000,000 keys, zipf 1.0. Single key: overwrote a version"
        " that it had not seen (last writer wins does so at every level; causal registers keep both). Multi key: within"
        " one function; causal: within the graph. Counts of the first three include those to their left."
    )
    return table


def metadata(amount: Amount) -> Table:
    """HydroCache, §6.2: what goes along with a request for consistency, and how many transactions begin again."""
    table = Table(
        "metadata",
        "What comes with a function of a causal session, in bytes, and transactions that were begun again",
        ["", "metadata", "with own writes, median", "p99", "begun again"],
    )
    with cluster(3, 6, {}) as clients:
        for shape in (LINEAR, V_SHAPED):
            for exponent in amount.some((1.0, 1.25, 1.5)):
                load = Load(f"meta-{shape.name}-{exponent:g}", CAUSAL, exponent, amount.count(200), (shape.name,))
                judged = run(clients, load, amount)
                promised(table, judged, CAUSAL)
                least = judged.carried[0]
                if least > METADATA_MAX:
                    table.broken.append(f"{load.run}: {least} bytes of metadata; at most {METADATA_MAX} are promised")
                if judged.again:
                    table.broken.append(f"{load.run}: {judged.again} transactions were begun again")
                middle, tail = percentile(judged.carried, 0.5), percentile(judged.carried, 0.99)
                again = f"{judged.again} of {judged.counts.transactions:,}"
                table.rows.append([f"{shape.name}, zipf {exponent:g}", str(least), str(middle), str(tail), again])
    for skewed, (middle, tail) in published.HYDROCACHE_METADATA.items():
        table.rows.append([f"HydroCache, zipf {skewed:g}, per key (published)", f"{middle}, p99 {tail}", "", "", ""])
    for (name, skewed), share in published.HYDROCACHE_ABORTED.items():
        table.rows.append([f"HydroCache, {name}, zipf {skewed:g} (published)", "", "", "", f"{share:g} %"])
    table.notes.append(
        "Measured in the functions, before they write. Own writes are what the same client has committed in the last 20"
        " to 30 ms: values that the next session reads without waiting for them."
    )
    return table


def levels(amount: Amount) -> Table:
    """What a level costs: the latency of graphs at each level over that of eventual, in the same rounds."""
    table = Table(
        "levels", "Latency of a level over eventual, a linear graph of three functions",
        ["", "hot, median", "hot, p99", "cold, median", "cold, p99"],
    )  # fmt: skip
    count, rounds = amount.count(60), 2 if amount.quick else 5
    taken: dict[tuple[str, bool], list[Judged]] = {}
    with cluster(3, 1, {}) as clients:
        for number in range(rounds):
            for warm in (True, False):
                for level in (EVENTUAL, *STRONG):
                    load = Load(
                        f"levels-{level}-{warm}-{number}", level, 1.0 if warm else 0.0, count, (LINEAR.name,), warm=warm
                    )
                    judged = run(clients, load, amount)
                    promised(table, judged, level)
                    taken.setdefault((level, warm), []).append(judged)
    for level in (EVENTUAL, *STRONG):
        cells = []
        for warm in (True, False):
            for share in (0.5, 0.99):
                each = [percentile(one.us, share) for one in taken[level, warm]]
                base = [percentile(one.us, share) for one in taken[EVENTUAL, warm]]
                ratio = median(mine / theirs for mine, theirs in zip(each, base))
                cells.append(f"{digits(median(each) / 1000)} ms" + ("" if level == EVENTUAL else f", {ratio:.2f} ×"))
        table.rows.append([level, *cells])
    for name, (middle, tail) in published.LEVEL_RATIOS.items():
        table.rows.append([f"{name} (published)", f"{middle:.2f} ×", f"{tail:.2f} ×", "", ""])
    table.notes.append(
        f"One client, {rounds} rounds of {count} graphs of each level in turn, 3 nodes; medians of the rounds."
        " Hot: zipf 1.0, the 10,000 most frequent of 1,000,000 keys cached. Cold: uniform, nothing cached."
    )
    return table


def drill(amount: Amount) -> Table:
    """Caches (which commit for the functions of their node), executors and a node are killed while transactions run."""
    table = Table(
        "drill", "Killed while transactions commit: caches, executors, and one of three nodes",
        ["", "transactions", "kills", "surely failed", "unknown", "slowest", "violations"],
    )  # fmt: skip
    for level in (READ_ATOMIC, CAUSAL):
        with cluster(3, 6, {}) as clients, Killer(clients.hosts) as killer:
            load = Load(
                f"drill-{level}", level, 1.0, amount.count(400), (LINEAR.name, V_SHAPED.name, PAIR.name), keys=1000,
                timeout_s=DRILL_TIMEOUT_S, reread=True,
            )  # fmt: skip
            judged = run(clients, load, amount)
        promised(table, judged, level)
        if judged.slowest_s > DRILL_TIMEOUT_S + DRILL_LATE_S:
            table.broken.append(
                f"{load.run}: a transaction took {judged.slowest_s:.1f} s; its deadline was {DRILL_TIMEOUT_S:g} s"
            )
        if not killer.killed:
            table.broken.append(f"{load.run}: nothing was killed")
        table.rows.append([
            level, f"{judged.counts.transactions:,}", killer.words(), f"{judged.failed:,}", f"{judged.unknown:,}",
            f"{judged.slowest_s:.2f} s", str(judged.violations(level)),
        ])  # fmt: skip
    table.notes.append(
        f"6 clients; a kill each {KILL_EVERY_S:g} s, whatever is going on. Deadline of a transaction:"
        f" {DRILL_TIMEOUT_S:g} s. At the end each client reads the keys that it was last told are written."
    )
    return table


def accrued(judged: Judged) -> tuple[str, str, str]:
    """Return how many transactions have each anomaly of Cloudburst's, those of the column before included.

    Stamps say which update was lost: of each write in eventual, of the session's commit otherwise.
    """
    lost = judged.counts.lost_updates
    assert lost is not None, f"{judged.load.run}: transactions that wrote have no stamps"
    multi = functions_with_stale_reads(judged.verdict.facts.history)
    causal = max(multi, judged.counts.causal or 0)
    return str(lost), str(lost + multi), str(lost + causal)


def functions_with_stale_reads(history: History) -> int:
    """Return how many transactions have a function whose own reads are no causal cut.

    Each function's reads are judged as if they were a transaction of their own, beside the whole ones, which say what
    depends on what.
    """
    alone = []
    for whole in history.transactions:
        for line in whole.lines:
            reads = tuple(one for one in line.operations if one.kind == READ)
            if len(whole.lines) > 1 and reads:
                name = f"{whole.number}/{line.function}"
                alone.append(Transaction([Line(whole.number, name, reads, line.outcome)]))
    facts = gather(replace(history, transactions=[*history.transactions, *alone]))
    order = Order(facts, sessions=False)
    readers = [facts.transactions[reader] for reader, _ in stale_directly(facts, order)[0]]
    return len({one.number for one in readers if "/" in one.session})


def seconds(value: float) -> str:
    """Return a time in the unit that reads best."""
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"


EXPERIMENTS: Final[dict[str, Callable[[Amount], Table]]] = {
    "skew": skew,
    "fractured": fractured,
    "graphs": graphs,
    "metadata": metadata,
    "levels": levels,
    "drill": drill,
}


def show(table: Table, console: Console) -> None:
    """Print one table."""
    shown = Shown(title=table.title, title_justify="left", title_style="bold")
    for number, head in enumerate(table.heads):
        shown.add_column(head, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*row, style="dim" if "published" in row[0] else "")
    console.print(shown)
    for note in table.notes:
        console.print(note, style="dim")
    for fault in table.broken:
        console.print(f"NOT AS PROMISED: {fault}", style="bold red")
    console.print()


def markdown(table: Table) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield f"### {table.title}"
    yield ""
    yield "| " + " | ".join(table.heads) + " |"
    yield "|" + "---|" * len(table.heads)
    for row in table.rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
    for note in [*table.notes, *(f"**Not as promised:** {fault}" for fault in table.broken)]:
        yield note
        yield ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.anomalies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(EXPERIMENTS)}; all without any")
    parser.add_argument("--quick", action="store_true", help="a tenth of the transactions, the ends of each axis")
    parser.add_argument(
        "--share", type=float, default=1.0, help="so much of the transactions, or so many times as many"
    )
    parser.add_argument("--out", type=Path, default=Path("out/anomalies"), help="folder of what is written")
    parser.add_argument("--keep", type=Path, help="folder for the histories, which are otherwise removed")
    options = parser.parse_args(arguments)
    if unknown := set(options.tables) - set(EXPERIMENTS):
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    console = Console(highlight=False)
    tables = []
    with tempfile.TemporaryDirectory(prefix="anomalies-") as directory:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        amount = Amount(options.keep or Path(directory), options.quick, options.share)
        for name in options.tables or EXPERIMENTS:
            tables.append(EXPERIMENTS[name](amount))
            show(tables[-1], console)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "anomalies.md").write_text("\n".join(line for table in tables for line in markdown(table)))
    figures = {table.name: {"figures": table.figures, "broken": table.broken} for table in tables}
    (options.out / "anomalies.json").write_text(json.dumps(figures, indent=1) + "\n")
    drawn = draw([table.picture for table in tables if table.picture], options.out)
    console.print(f"written to {options.out}: anomalies.md, anomalies.json, {len(drawn)} pictures")
    return 1 if any(table.broken for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main())
