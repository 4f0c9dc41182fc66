"""What the modules with commands of `cb` share: exit codes, errors of usage, how results are printed, and which node is
meant.

A module with commands has a function `add_to`, which takes an `Add` and is named once in `cloudburst.cli`.
Source: SURFACE (exit codes).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

OK, FAILED, USAGE, ENVIRONMENT, NOT_OBTAINED, LIMIT, CANCELLED = 0, 1, 2, 3, 4, 5, 130

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]
"""Adds a command: its name, what runs it, what it does, and an example. Returns its parser, for its options."""


class Usage(Exception):
    """The command line asks for what is not there."""


def print_json(value: object) -> None:
    """Print a value, as text what JSON does not have."""
    print(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return value.decode(errors="replace") if isinstance(value, bytes) else repr(value)


def directory_of(parsed: argparse.Namespace) -> Path:
    """Return the directory of the node that is meant."""
    from cloudburst import local

    return Path(parsed.dir).absolute() if parsed.dir else local.default_directory()


def joined(parsed: argparse.Namespace) -> Any:
    """Return a client of the node that runs, or of the one `cb up` that does; a command that only looks starts none.

    Raises NodeLost.
    """
    from cloudburst import running
    from cloudburst.entry import connect
    from cloudburst.errors import NodeLost

    try:
        return connect(f"unix:{directory_of(parsed)}")
    except NodeLost as fault:
        found = running.entrances()
        if not found and not parsed.dir:
            raise NodeLost(f"{fault}, and no `cb up`: begin with cb up --hosts 3, or cb node") from None
        if not found:
            raise
        if len(found) == 1 and not (parsed.dir or os.environ.get("CLOUDBURST_DIR")):
            return connect(f"unix:{found[0]}")
        raise NodeLost(f"{fault}; `cb up` runs others: --dir {' or --dir '.join(map(str, found))}") from None
