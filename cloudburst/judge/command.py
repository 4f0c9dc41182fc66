"""`cb check FILE`: whether a history holds at each level, and if not, which lines show it.

The one rule: the exit code is 0 when the level that was asked for held, 1 when it was violated, 2 when the file is no
history. How far it is goes to standard error, and only to a terminal.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cloudburst.judge.verdict import Verdict

HELD, VIOLATED, USAGE = 0, 1, 2

WHAT: Final = "judge what sessions read and wrote: repeatable, read-atomic, causal"
EXAMPLE: Final = """cb check history.jsonl                       all levels, and the first violations in words
  cb check history.jsonl --level read-atomic   exit code 1 unless this level held
  cb check history.jsonl --show 20 --json"""

CHOICES: Final = ("repeatable", "read-atomic", "causal", "all")
COUNTED: Final = {
    "repeatable_read": "two versions of a key (Cloudburst, repeatable read)",
    "read_your_writes": "own write not read back (AFT, read-your-writes)",
    "fractured_reads": "part of another's writes (AFT, fractured reads)",
    "causal": "a version under one that is depended on (HydroCache)",
    "lost_updates": "overwrote what it had not seen (Cloudburst, single key)",
}
NOT_COUNTED: Final = {
    "causal": "too many transactions for this count",
    "lost_updates": "needs commit stamps, and not too many transactions",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="the history, one JSON line for each transaction (docs/histories.md)"
    )
    parser.add_argument("--level", choices=CHOICES, default="all", help="up to which level (default: all)")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="how many violations of a level are explained")


def run(parsed: argparse.Namespace) -> int:
    """Judge the file and print what was found; return the exit code.

    Meanwhile nothing looks for garbage: a history is millions of objects that stay, and looking took half of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run(parsed)
    finally:
        if collecting:
            gc.enable()


def _run(parsed: argparse.Namespace) -> int:
    from cloudburst.judge.history import HistoryError
    from cloudburst.judge.reading import read
    from cloudburst.judge.verdict import judge

    level = "causal" if parsed.level == "all" else parsed.level
    tell = _teller()
    try:
        history = read(parsed.file, lambda lines: tell(f"{lines:,} lines read"))
        verdict = judge(history, level, tell)
    except (HistoryError, OSError) as fault:
        tell("")
        return _refused(fault, parsed)
    tell("")
    if parsed.json:
        print(json.dumps(as_json(verdict, parsed.file, parsed.show)))
    else:
        print("\n".join(as_text(verdict, parsed.file, parsed.show)))
    return HELD if verdict.held(level) else VIOLATED


def as_text(verdict: Verdict, file: str, show: int) -> list[str]:
    """Return the lines for a person."""
    facts = verdict.facts
    outcomes = [
        f"{facts.outcomes.count(name):,} {name}" for name in ("ok", "failed", "unknown") if name in facts.outcomes
    ]
    sessions = len({one.session for one in facts.transactions})
    operations = sum(len(line.operations) for one in facts.transactions for line in one.lines)
    lines = [
        f"{file}: {len(facts.transactions):,} transactions of {sessions:,} sessions ({', '.join(outcomes)}), "
        f"{operations:,} operations on {len(facts.keys):,} keys"
    ]
    if facts.history.torn:
        lines.append("the last line was cut off, and is left out")
    for level in verdict.found:
        many = verdict.transactions(level)
        said = f"violated by {many:,} transaction{'s' * (many != 1)}" if many else "held"
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in verdict.kinds(level).items())
        lines.append(f"{level:<17} {said}" + (f" ({kinds})" if kinds else ""))
    for level, found in verdict.found.items():
        for number, violation in enumerate(found[:show], 1):
            lines += ["", f"{level}, {number} of {len(found):,}, {violation.kind}:"]
            lines += [f"  {line}" for line in verdict.explain(violation)]
    return [*lines, "", "transactions, as papers count them:", *_counted(verdict)]


def _counted(verdict: Verdict) -> list[str]:
    counts = asdict(verdict.counts) if verdict.counts else {}
    all_of_them = max(counts.pop("transactions", 0), 1)
    shown = []
    for name, count in counts.items():
        figure = f"{count:>9,}  {count / all_of_them:7.2%}" if count is not None else f"{'-':>9}  {'':7}"
        why = f": {NOT_COUNTED[name]}" if count is None else ""
        shown.append(f"{figure}  {COUNTED[name]}{why}")
    return shown


def as_json(verdict: Verdict, file: str, show: int) -> dict[str, Any]:
    """Return the same for a program."""
    facts = verdict.facts
    return {
        "file": file,
        "transactions": len(facts.transactions),
        "torn": facts.history.torn,
        "levels": {
            level: {
                "held": verdict.held(level),
                "transactions": verdict.transactions(level),
                "kinds": verdict.kinds(level),
                "violations": [
                    {
                        "kind": one.kind,
                        "line": one.line or facts.line(one.transaction),
                        "session": facts.session(one.transaction),
                        "key": facts.keys[one.key] if one.key >= 0 else None,
                        "words": verdict.explain(one),
                    }
                    for one in found[:show]
                ],
            }
            for level, found in verdict.found.items()
        },
        "counts": asdict(verdict.counts) if verdict.counts else None,
    }


def _refused(fault: Exception, parsed: argparse.Namespace) -> int:
    if parsed.json:
        print(json.dumps({"error": {"type": type(fault).__name__, "message": str(fault), "definite": True}}))
    else:
        sys.stderr.write(f"cb check: {fault}\n")
    return USAGE


def _teller() -> Callable[[str], None]:
    """Return what shows how far it is, on one line of a terminal; an empty text takes that away."""
    if not sys.stderr.isatty():
        return lambda _: None

    def tell(what: str) -> None:
        sys.stderr.write(f"\r\033[K{what and 'cb check: ' + what}")
        sys.stderr.flush()

    return tell
