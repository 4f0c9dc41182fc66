"""The command `cb map`: any program over many inputs, on the executors of all hosts.

The one rule: standard output has results and nothing else, each whole; failures are a table on standard error, the
first distinct ones, and exit code 1. Source: SURFACE (cb map); decision record 0038.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from cloudburst.commandline import CANCELLED, FAILED, OK, Add, Usage

if TYPE_CHECKING:
    from cloudburst.burst.tasks.code import Code
    from cloudburst.burst.tasks.mapping import Finished, Mapping
    from cloudburst.burst.tasks.outputs import Directory, Remaining
    from cloudburst.burst.tasks.programs import Orders
    from cloudburst.burst.tasks.tokens import Token
    from cloudburst.client import Client

WHAT: Final = "run a program over many inputs, on the executors of all hosts"
EXAMPLE: Final = """cb map 'gzip -c {} > {out}' logs/*.txt --out zipped -j 8
  find . -name '*.png' -print0 | cb map -0 'optipng -quiet {} -out {out}' --out small --resume
  cb map 'tr a-z A-Z < {}' *.txt | cb map 'sort {}' | cb map 'uniq -c {}' > counts.txt

{} stands for the input, {/} for its last part, {.} for it without its extension, {out} for a file whose content is the
task's result (else it is what the program prints). They are quoted as their place in the command demands.
--out DIR keeps results as files, named as the inputs; --resume does what is not there yet. More: docs/pipes.md"""
EMIT: Final = "what to print: a token for a stage that takes the results, or them (default: as the pipe's reader takes)"
HALTS: Final = "after a failure: never (go on), soon (begin no more), now (stop all), or 10%% of all have failed: soon"


def add_to(add: Add) -> None:
    """Add the command to those of `cb`."""
    added = add("map", run, WHAT, EXAMPLE)
    added.add_argument("template", metavar="CMD", help="what the shell shall run for each input")
    add_options(added)


def add_options(added: argparse._ActionsContainer) -> None:
    """Add what is the same for all stages: of `cb map`, and of applications that were built."""
    added.add_argument("inputs", nargs="*", metavar="INPUT", help="files or other words; none or -: lines of input")
    added.add_argument("-j", "--jobs", type=_count, metavar="N", help="tasks at a time (default: one per executor)")
    added.add_argument("-k", "--keep-order", action="store_true", help="show results in the order of the inputs")
    added.add_argument("-0", "--null", action="store_true", help="inputs that are read end with a zero byte")
    added.add_argument("--retries", type=_count_or_none, default=0, metavar="N", help="how often a failure is repeated")
    added.add_argument("--timeout", type=_seconds, metavar="S", help="seconds until a task is stopped, and has failed")
    added.add_argument("--halt", type=_halt, default="never", metavar="WHEN", help=HALTS)
    added.add_argument("--out", metavar="DIR", help="write each result to a file of this directory, and print its path")
    added.add_argument("--resume", action="store_true", help="leave out what an earlier command has put into --out")
    added.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the programs")
    added.add_argument("--emit", choices=("token", "data"), help=EMIT)


@dataclass(frozen=True, slots=True)
class Halt:
    """When failures end the command. `share` of the tasks that are settled; 0.0 means the first one."""

    share: float | None
    at_once: bool = False

    def after(self, failed: int, settled: int) -> bool:
        """Whether it ends now."""
        if self.share is None or not failed:
            return False
        return self.share == 0.0 or (failed >= self.share * settled and settled >= 10)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    return run_stage(parsed, "cb map", parsed.template, None, lambda leave: _client(parsed, leave))


def run_stage(
    parsed: argparse.Namespace, program: str, command: str, code: Code | None,
    client_of: Callable[[Token | None], Client],
) -> int:  # fmt: skip
    """Run a stage: a command of the shell for each input, or, with `code`, a function, for which `command` stands.

    `client_of` says of which node, when it is known where the results of the stage before are. Returns the exit code.
    """
    from cloudburst.burst.tasks.programs import Orders
    from cloudburst.burst.tasks.templates import Template
    from cloudburst.errors import RequestError

    try:
        with _interrupted_by_signals():
            if parsed.resume and not parsed.out:
                raise RequestError("--resume needs --out DIR, where the earlier command has put its results")
            Template.of(command)
            path, variables = os.environ.get("PATH", os.defpath), _variables(parsed.env)
            orders = Orders(command, os.getcwd(), path, variables, parsed.timeout, code)
            return _run(parsed, program, orders, client_of)
    except RequestError as fault:
        raise Usage(str(fault)) from None


def _run(
    parsed: argparse.Namespace, program: str, orders: Orders, client_of: Callable[[Token | None], Client]
) -> int:
    from cloudburst.burst.tasks.items import Keys
    from cloudburst.burst.tasks.mapping import Mapping
    from cloudburst.burst.tasks.outputs import Directory, Remaining
    from cloudburst.burst.tasks.pipes import Upstream, announced, first_bytes, is_a_stream, pipe_of
    from cloudburst.burst.tasks.sources import Lines, Source, Words
    from cloudburst.burst.tasks.tokens import read

    keys = Keys(orders.command)
    lines = not parsed.inputs or parsed.inputs == ["-"]
    directory = Directory(parsed.out, parsed.resume) if parsed.out else None
    with announced(0) if lines else nullcontext():
        token, begun = first_bytes(0) if lines and is_a_stream(0) else (b"", b"")
        leave = read(token, time.time()) if token else None
        client = client_of(leave)
        upstream = None if leave is None else Upstream(client.reserved(), leave, keys, 0 if pipe_of(0) else None)
        source: Source = upstream or (
            Lines(0, keys, b"\0" if parsed.null else b"\n", begun) if lines else Words(parsed.inputs, keys)
        )
        remaining = Remaining(source, directory) if directory is not None else None
        passes_on = 1 if directory is None and not parsed.json and _passes_on(parsed) else None
        mapping = Mapping(
            client, orders, remaining or source, jobs=parsed.jobs, retries=parsed.retries, passes_on=passes_on
        )
        code, why = CANCELLED, "it was cancelled"
        try:
            if passes_on is not None:
                _pass_on(mapping, client)
            total = None if lines else len(parsed.inputs)
            code = Run(parsed, program, mapping, directory, remaining, total).run()
            why = "" if code == OK else f"exit code {code}"
            if mapping.reader is not None and mapping.reader.code:
                return mapping.reader.code
            if upstream is not None and upstream.code:
                sys.stderr.write(f"{program}: the stage before: {upstream.why}\n")
                code = code or upstream.code
            return code
        except BrokenPipeError:
            code, why = OK, "what reads it has gone"
            raise
        finally:
            mapping.forget()
            if upstream is not None:  # last: the stage before may have the nodes, and end them
                upstream.close(code if code != OK and not upstream.code else OK, why)
            if directory is not None:
                directory.close()
            client.close()


def _passes_on(parsed: argparse.Namespace) -> bool:
    from cloudburst.burst.tasks.pipes import reader_is_a_stage

    return reader_is_a_stage(1) if parsed.emit is None else parsed.emit == "token"


def _pass_on(mapping: Mapping, client: Client) -> None:
    """Tell the next stage where the results will be."""
    from cloudburst.burst.tasks.tokens import LIVES_S, Token, seal_of

    directory = client.status()["directory"]
    token = Token(mapping.prefix, mapping.name, directory, time.time() + LIVES_S)
    sys.stdout.buffer.write(token.signed(seal_of(directory)))
    sys.stdout.buffer.flush()


class Run:
    """One run of the command: shows what comes, and ends it when it is to be ended."""

    def __init__(
        self, parsed: argparse.Namespace, program: str, mapping: Mapping, directory: Directory | None,
        remaining: Remaining | None, total: int | None,
    ) -> None:  # fmt: skip
        from cloudburst.burst.tasks.outputs import Failures, Order, Printer
        from cloudburst.mapping import Bar

        self._mapping = mapping
        self._remaining = remaining
        self._halt: Halt = parsed.halt if isinstance(parsed.halt, Halt) else _halt(parsed.halt)
        self._order = Order(parsed.keep_order)
        self._printer = Printer(sys.stdout.buffer, directory, parsed.json)
        self._failures = Failures()
        self._bar = Bar(program, total)
        self._program = program
        self._resumable = directory is not None
        self._settled = 0

    def run(self) -> int:
        """Return the exit code."""
        try:
            with closing(self._mapping.run()) as results:  # type: ignore[type-var]
                for finished in results:
                    self._take(finished)
            self._show_skipped()
            for finished in self._order.rest():
                self._printer.show(finished)
        except KeyboardInterrupt:
            hint = "; the same command with --resume goes on from here" if self._resumable else ""
            sys.stderr.write(f"{self._program}: cancelled when {self._settled:,} tasks were done{hint}\n")
            return CANCELLED
        finally:
            self._bar.close()
        return self._summed_up()

    def _take(self, finished: Finished) -> None:
        self._show_skipped()
        self._bar.advance()
        self._settled += 1
        if not finished.ok:
            self._failures.add(finished)
            if self._halt.after(self._failures.count, self._settled):
                self._mapping.halt()
                if self._halt.at_once:
                    self._mapping.stop(FAILED, "a task has failed, and --halt is now")
        if self._mapping.passes_on is None:
            for shown in self._order.through(finished):
                self._printer.show(shown)

    def _show_skipped(self) -> None:
        from cloudburst.burst.tasks.outputs import skipped

        if self._remaining is not None:
            items, self._remaining.skipped = self._remaining.skipped, []
            for item in items:
                self._bar.advance()
                for shown in self._order.through(skipped(item)):
                    self._printer.show(shown)

    def _summed_up(self) -> int:
        if not self._failures.count:
            return OK
        halted = ", and no more were begun" if self._mapping.halted else ""
        sys.stderr.write(f"{self._program}: {self._failures.count:,} of {self._settled:,} tasks have failed{halted}\n")
        sys.stderr.write("\n".join(self._failures.table()) + "\n")
        return FAILED


def _client(parsed: argparse.Namespace, leave: Token | None) -> Client:
    """Return a client of the node that is meant: the one that has the results of the stage before, if there is one."""
    from cloudburst.entry import connect

    if leave is not None:
        return connect(f"unix:{leave.directory}")
    return connect(f"unix:{os.path.abspath(parsed.dir)}") if parsed.dir else connect()


def _variables(given: list[str]) -> dict[str, str]:
    from cloudburst.errors import RequestError

    variables = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            if name not in os.environ:
                raise RequestError(f"--env {name}: there is no such variable here; --env {name}=VALUE gives it one")
            value = os.environ[name]
        variables[name] = value
    return variables


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """While this lasts, the end of the terminal, or a polite kill, is what Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread: nobody sends it signals
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- types of options


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than 1")
    return count


def _count_or_none(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{count} is less than 0")
    return count


def _seconds(text: str) -> float:
    seconds = float(text.removesuffix("s"))
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time: it must be more than 0 s")
    return seconds


def _halt(text: str) -> Halt:
    if text in ("never", "soon", "now"):
        return Halt(None if text == "never" else 0.0, text == "now")
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is none of never, soon, now, and 1% to 100%")
    return Halt(share)
