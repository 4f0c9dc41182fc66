"""`python -m demos.wordcount`, `cb demo wordcount`: count the words of many files, on machines that `--on` names."""

from __future__ import annotations

import argparse
import itertools
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import cloudburst as cb
from cloudburst.errors import CloudburstError
from demos import where
from demos.wordcount import texts
from demos.wordcount.functions import ALL, Tally, tally_of, words_of

EXAMPLES = """examples:
  python -m demos.wordcount                       the sources of Python's library, on the local cluster
  python -m demos.wordcount --on local --hosts 3  the same on three nodes, which end with it
  python -m demos.wordcount --on ssh:hosts.toml   and on your hosts
  python -m demos.wordcount --quick --json        the language reference only
  python -m demos.wordcount *.txt                 your own files
"""
PREFIX = "wordcount."
BUCKETS = 16


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="cb demo wordcount",
        description="Count the words of many files with functions, and compare with one process.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="what to count (default: Python's own files)")
    add("--quick", action="store_true", help="count Python's language reference only, under 10 s")
    add("--top", type=int, default=15, metavar="N", help="how many words to show (default 15)")
    add("--json", action="store_true", help="the result as JSON")
    where.add_options(parser)
    chosen = parser.parse_args(argv)
    if not 1 <= chosen.top <= 1000:
        parser.error("--top is from 1 to 1,000")
    return chosen


def run(client: cb.Client, pieces: Sequence[str], top: int) -> Tally:
    """Return the tally of some texts, made on the cluster of a client.

    Raises RuntimeError when what the pieces had is not what is there.
    """
    for function in ALL:
        client.register(function, name=PREFIX + function.__name__)
    job = secrets.token_hex(4)
    sessions = client.options(session="causal")
    numbers = range(len(pieces))
    words = sum(sessions.map(PREFIX + "count", itertools.repeat(job), itertools.repeat(BUCKETS), numbers, pieces))
    whole = Tally()
    for part in sessions.map(PREFIX + "tally", itertools.repeat(job), range(BUCKETS), itertools.repeat(top)):
        whole = whole.plus(part, top)
    if whole.words != words:
        raise RuntimeError(f"the pieces have {words:,} words, and the store has {whole.words:,}")
    return whole


def alone(pieces: Sequence[str], top: int) -> Tally:
    """Return the same, counted in this process."""
    counts: Counter[str] = Counter()
    for piece in pieces:
        counts.update(words_of(piece))
    return tally_of(counts.items(), top)


def read(chosen: argparse.Namespace) -> tuple[str, list[str]]:
    """Return what is counted: what it is called, and the texts. Raises OSError."""
    if chosen.files:
        return f"{len(chosen.files)} files", texts.own(chosen.files)
    if chosen.quick:
        return "Python's language reference", texts.reference()
    return "the sources of Python's library", texts.library()


def main(argv: list[str] | None = None) -> int:
    """Count, compare, print; exit 0, 1 when something failed or differs, 4 when machines were not obtained."""
    chosen = parse(argv)
    try:
        name, found = read(chosen)
        pieces = list(texts.pieces(found))
        begun = time.perf_counter()
        expected = alone(pieces, chosen.top)
        alone_s = time.perf_counter() - begun
        with where.opened(chosen) as (client, _):
            begun = time.perf_counter()
            counted = run(client, pieces, chosen.top)
            took_s = time.perf_counter() - begun
    except KeyboardInterrupt:
        return 130
    except (CloudburstError, RuntimeError, OSError) as fault:
        sys.stderr.write(f"wordcount: {type(fault).__name__}: {fault}\n")
        return where.exit_code(fault)
    figures = {
        "texts": len(found), "pieces": len(pieces), "words": counted.words, "different": counted.different,
        "checksum": f"{counted.checksum:064x}", "top": counted.top, "same_as_alone": counted == expected,
        "seconds": took_s, "seconds_alone": alone_s,
    }  # fmt: skip
    if chosen.json:
        print(json.dumps(figures))
    else:
        show(Console(), name, figures, counted)
    return 0 if counted == expected else 1


def show(console: Console, name: str, figures: dict[str, object], counted: Tally) -> None:
    """Print the table and what belongs to it."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("word")
    table.add_column("times", justify="right")
    for word, times in counted.top:
        table.add_row(word, f"{times:,}")
    console.print(f"The most frequent words of {name}:", highlight=False)
    console.print(table)
    console.print(f"{counted.words:,} words, {counted.different:,} different ones, in {figures['texts']} texts")
    console.print(f"checksum of all counts: {figures['checksum']}", soft_wrap=True)
    same = "the same" if figures["same_as_alone"] else "ANOTHER RESULT"
    console.print(
        f"{figures['pieces']} calls: {figures['seconds']:.2f} s; one process: {figures['seconds_alone']:.2f} s, {same}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
