"""`anna keys` and `cb keys`: make keys, hand them out, and replace them.

The one rule: no command prints a private key or takes one as an argument; keys are files, and this says where they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from anna.address import TcpAddress, parse_address
from anna.gate import Right
from anna.keys import BadKeys, check_private

SUMMARY: Final = "Make the keys with which nodes and clients know each other, and encrypt what they say."

ADDRESSED: Final = {"token": "--at", "admit": "--listen"}
"""The option with the address of `admit`."""

HELP: Final = {
    "new": "make an authority for a new cluster in DIR, and the first keys, of right admin, beside it",
    "issue": "make keys in OUT with the authority in DIR: copy OUT, and only OUT, to the host or user that it is for",
    "rotate": "make a new authority in DIR; keys of the old one are accepted until `retire`",
    "retire": "accept no keys of the old authority any more, once all have new ones",
    "token": "print a token with which one machine gets keys by itself, once, within ten minutes; `admit` takes it",
    "admit": "give keys to machines that have a token, until interrupted: who has the authority in DIR runs this",
    "join": "with a token, make keys of this machine's own in DIR",
    "renew": "have keys that came by a token renewed now (a node of `cb` does that itself, in time)",
    "show": "say whose keys are in DIR, for what, and until when",
}

EXAMPLE: Final = """{program} keys new ~/keys
{program} keys issue ~/keys out/db2 --name db2 --right admin       # a node on another host
{program} keys issue ~/keys out/alice --name alice --right data    # somebody who reads and writes
{program} keys admit ~/keys --listen tcp://10.0.0.5:6460
{program} keys token ~/keys --name db3 --right admin --at tcp://10.0.0.5:6460 > token
{program} keys join keys --token-file token                        # on db3, within 10 minutes, once
{program} keys rotate ~/keys"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands about keys; `run` takes what it parses."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="what")
    for what, told in HELP.items():
        command = commands.add_parser(what, help=told, description=told)
        command.add_argument("directory", metavar="DIR", type=Path)
        if what == "issue":
            command.add_argument("out", metavar="OUT", type=Path)
        if what in ("issue", "token"):
            rights = tuple(right.name.lower() for right in Right)
            command.add_argument("--right", choices=rights, default="data", help="what they allow (default: data)")
        if what in ADDRESSED:
            command.add_argument(ADDRESSED[what], type=_place, required=True, metavar="ADDRESS", help="tcp://HOST:PORT")
        if what == "join":
            command.add_argument("--token-file", required=True, metavar="FILE", help="the token; - for standard input")
        if what == "token":
            command.add_argument("--name", required=True, help="whose they will be")
        if what in ("new", "issue"):
            command.add_argument("--name", default="admin" if what == "new" else None, help="whose they are")
        if what not in ("show", "admit", "join", "renew"):
            command.add_argument("--days", type=_days, default=365, help="how long they last (default: 365)")
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def run(parsed: argparse.Namespace) -> int:
    """Do what was asked, and print what the keys are then. Raises BadKeys, NotAdmitted."""
    from anna import authority

    if parsed.what == "token":
        return _token(parsed)
    if parsed.what == "admit":
        return _admit(parsed)
    if parsed.what == "issue":
        right = Right[parsed.right.upper()]
        name, where = parsed.name or parsed.out.name, parsed.out
        shown = authority.issue(parsed.directory, parsed.out, name, right, parsed.days)
    else:
        where = parsed.directory
        calls: dict[str, Callable[[], authority.Shown]] = {
            "new": lambda: authority.found(where, parsed.name, parsed.days),
            "rotate": lambda: authority.rotate(where, parsed.days),
            "retire": lambda: authority.retire(where, parsed.days),
            "join": lambda: _joined(parsed),
            "renew": lambda: _renewed(parsed.directory),
            "show": lambda: authority.show(where),
        }
        shown = calls[parsed.what]()
    _print(_facts(where, shown), parsed.json)
    return 0


def _token(parsed: argparse.Namespace) -> int:
    """Print a new token, and nothing else."""
    from anna import enrolment

    right = Right[parsed.right.upper()]
    print(enrolment.make(parsed.directory, parsed.at, parsed.name, right, days=parsed.days).text, flush=True)
    return 0


def _admit(parsed: argparse.Namespace) -> int:
    """Give keys to who has a token, until interrupted."""
    from anna import enrolment

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    serving = enrolment.Enrolment(parsed.directory)
    family = socket.AF_INET6 if ":" in parsed.listen.host else socket.AF_INET
    with socket.create_server((parsed.listen.host, parsed.listen.port), family=family) as listener:
        host, port = listener.getsockname()[:2]
        sys.stderr.write(f"keys are given to who has a token, at {TcpAddress(host, port)} (Ctrl-C ends it)\n")
        sys.stderr.flush()
        serving.serve(listener)
    return 0


def token_in(file: str) -> str:
    """Return the token in a file that its owner alone can read, or on standard input. Raises BadKeys."""
    if file == "-":
        return sys.stdin.readline()
    path = Path(file)
    try:
        check_private(path, path.stat())
        return path.read_text()
    except OSError as error:
        raise BadKeys(f"the token cannot be read: {error}") from None


def _joined(parsed: argparse.Namespace) -> Any:
    from anna import authority, enrolment

    enrolment.join(enrolment.Token.read(token_in(parsed.token_file)), parsed.directory)
    return authority.show(parsed.directory)


def _renewed(directory: Path) -> Any:
    from anna import authority, renewal

    renewal.renew_in(directory)
    return authority.show(directory)


def _place(text: str) -> TcpAddress:
    try:
        place = parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(place, TcpAddress):
        raise argparse.ArgumentTypeError(f"{text} is no tcp://HOST:PORT")
    return place


def _facts(where: Path, shown: Any) -> dict[str, Any]:
    return {
        "directory": str(where),
        "cluster": shown.identity.cluster,
        "name": shown.identity.name,
        "right": shown.identity.right.name.lower(),
        "until": shown.until.isoformat(timespec="seconds"),
        "authorities": shown.authorities,
        "makes_keys": shown.makes_keys,
    }


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts), flush=True)
        return
    print(f"{facts['directory']}: keys of {facts['name']} for cluster {facts['cluster']}, right {facts['right']}")
    accepted = "its authority" if facts["authorities"] == 1 else "both authorities"
    print(f"  until {facts['until']}; {accepted} accepted")
    if facts["makes_keys"]:
        print("  the authority is here, too: give other hosts what `keys issue` makes, never this directory")


def _days(text: str) -> int:
    number = int(text)
    if not 0 < number <= 3650:
        raise argparse.ArgumentTypeError(f"{text} is not 1 to 3,650 days")
    return number
