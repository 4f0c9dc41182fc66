"""The program that runs the tasks of a stage: it has loaded the application, and for each task it forks.

The one rule: a task is a process, as a program's would be: what it changes, leaks or breaks ends with it, and it can be
stopped at any time. It is asked by packets of JSON on a socket, and ends with whoever asks. What a function prints goes
to standard error; what it returns is the task's result: text and bytes as they are (text as whole lines), nothing for
None, a line of JSON for anything else; of a generator all that it gives. Source: decision record 0046.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

PACKET_BYTES: Final = 1 << 20
DIED: Final = -9
LINE: Final = b"\n"


def main(words: list[str]) -> None:
    """Load a function of an application, say so, and run it for whoever asks; end with them."""
    main_file, function, settings, fd = words
    asked = socket.socket(fileno=int(fd))
    try:
        run = loaded(Path(main_file), function, json.loads(settings))
    except BaseException:  # whatever its module does, and sys.exit, too
        asked.send(json.dumps({"fault": traceback.format_exc()[-3000:]}).encode())
        return
    asked.send(json.dumps({"ready": os.getpid()}).encode())
    while True:
        packet, fds, _, _ = socket.recv_fds(asked, PACKET_BYTES, 2)
        if not packet:
            return
        order = json.loads(packet)
        if "wait" in order:
            asked.send(json.dumps({"code": _code_of(order["wait"])}).encode())
            continue
        try:
            pid = os.fork()
        except OSError as fault:  # no more processes, or no memory
            asked.send(json.dumps({"fault": str(fault)}).encode())
            continue
        if pid == 0:
            asked.close()
            _task(run, order["text"], order["cwd"], *fds)
        with suppress(OSError):
            os.setpgid(pid, pid)  # whoever is first: it is a group before anybody signals it
        watch = os.pidfd_open(pid)
        socket.send_fds(asked, [json.dumps({"pid": pid}).encode()], [watch])
        for one in (watch, *fds):
            os.close(one)


def _code_of(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return DIED


def _task(run: Callable[[str], Iterator[bytes]], text: str, cwd: str, out: int, err: int) -> None:
    """Be the process of one task."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        empty = os.open(os.devnull, os.O_RDONLY)
        for fd, at in ((empty, 0), (err, 1), (err, 2)):
            os.dup2(fd, at)
        os.chdir(cwd)
        with os.fdopen(out, "wb") as file:
            write(run(text), file)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def write(pieces: Iterator[bytes], file: IO[bytes]) -> None:
    """Write a result as it comes."""
    for piece in pieces:
        file.write(piece)


def loaded(main_file: Path, function: str, settings: Mapping[str, str]) -> Callable[[str], Iterator[bytes]]:
    """Return what runs a function of a file for one input, with the settings for its other parameters."""
    from cloudburst import loading

    found = loading.function_of(loading.load(main_file), function)
    taken = takes(found)
    given = _settings_of(found, settings) if settings else {}
    return lambda text: pieces_of(found(taken(text), **given))


def takes(function: Callable[..., Any]) -> Callable[[str], Any]:
    """Return what makes its first argument of an input, as that is annotated: `Path`, `bytes` (its content), a number;
    else it is text. Raises TypeError when it takes none.
    """
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(f"{function.__name__}() takes no input: def {function.__name__}(path): …")
    made: dict[Any, Callable[[str], Any]] = {bytes: _content, Path: Path, int: int, float: float}
    return made.get(parameters[0].annotation, str)


def _content(text: str) -> bytes:
    try:
        return Path(text).read_bytes()
    except FileNotFoundError:
        return os.fsencode(text)


def _settings_of(function: Callable[..., Any], settings: Mapping[str, str]) -> dict[str, Any]:
    from cloudburst.cli import bind

    return bind(function, ["0"], settings)[1]  # the word stands for the input


def pieces_of(value: Any) -> Iterator[bytes]:
    """Yield the bytes that a function's value is as a result. Raises TypeError for what is neither text nor JSON."""
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    if inspect.isasyncgen(value):
        yield from (piece for one in asyncio.run(_all_of(value)) for piece in pieces_of(one))
    elif hasattr(value, "__next__"):
        for one in value:
            yield from pieces_of(one)
    elif isinstance(value, str):
        yield value.encode(errors="surrogateescape")
        if not value.endswith("\n"):
            yield LINE
    elif isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value)
    elif value is not None:
        yield json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape") + LINE


async def _all_of(values: Any) -> list[Any]:
    return [one async for one in values]


if __name__ == "__main__":
    main(sys.argv[1:])
