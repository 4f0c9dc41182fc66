"""A node in the foreground: the program behind `cb node`, which says how it can be reached, until it is told to stop.

Source: anna/serve.py, whose twin this is.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anna.address import Address
from anna.gate import Right
from anna.keys import ENVIRONMENT, keys_from
from anna.listening import check_local
from anna.rundir import RunDirectory
from cloudburst import config, sandbox
from cloudburst.errors import RequestError
from cloudburst.introduction import node_at
from cloudburst.keyring import OWN_FILES, renew
from cloudburst.local import default_directory
from cloudburst.node import Node
from cloudburst.secret import SECRET_FILE, Secret
from cloudburst.shape import Shape

if TYPE_CHECKING:
    from anna.renewal import Renewal

MAKE_KEYS: Final = "make keys with `cb keys new DIR` and give --keys DIR"
"""What to do about an address that others can reach."""


def main(arguments: list[str] | None = None) -> int:
    """Run a node until it is interrupted; return its exit code."""
    what = "Run a node until it is interrupted."
    parser = argparse.ArgumentParser(prog="cb node", description=what)
    parser.add_argument("--dir", type=Path, help="the node's private directory (default: this user's own)")
    parser.add_argument("--executors", type=int, help="how many executors (default: one per core)")
    parser.add_argument("--min-executors", type=int, help="how few, when there is nothing to do; 0 for none")
    parser.add_argument("--max-executors", type=int, help="how many, when there is much to do")
    parser.add_argument("--workers", type=int, help="how many workers of the store (default: one per core)")
    parser.add_argument("--join", metavar="ADDRESS", help="be one more node beside this: unix:DIR or tcp://HOST:PORT")
    parser.add_argument("--listen", metavar="ADDRESS", help="let nodes on other hosts join: tcp://HOST:PORT (0: any)")
    parser.add_argument("--secret", metavar="FILE", help="what the nodes share (default: a new one, in the directory)")
    parser.add_argument("--token-file", metavar="FILE", help="get keys with a join token (cb keys token); - for stdin")
    parser.add_argument("--keys", metavar="DIR", help="keys of right admin, instead of a secret (default: $ANNA_KEYS)")
    parser.add_argument("--factor", type=int, metavar="K", help="copies of each key, of the whole cluster")
    parser.add_argument("--insecure", action="store_true", help="allow addresses that other machines can reach")
    parser.add_argument("--sandbox", help="where user code runs: none, or bwrap (default: $CLOUDBURST_SANDBOX)")
    options = parser.parse_args(arguments)
    if options.sandbox is not None:
        os.environ[sandbox.VARIABLE] = options.sandbox
    confined = sandbox.parse(os.environ.get(sandbox.VARIABLE))
    if confined is not None:
        sandbox.require(confined)
    shape = Shape.of(
        options.executors, workers=options.workers, join=options.join, linger_s=None, listen=options.listen or "",
        factor=options.factor, least=options.min_executors, most=options.max_executors,
    )  # fmt: skip
    if options.keys is not None:
        os.environ[ENVIRONMENT] = os.path.abspath(options.keys)
    enrolling = None if options.token_file is None else _Enrolling(options.token_file)
    keyed = enrolling is not None or (shape.meets_hosts and _check_keys())
    places: list[Address] = [] if shape.place is None else [shape.place]
    for warning in check_local(places, options.insecure, keyed, MAKE_KEYS):
        sys.stderr.write(f"cb node: warning: {warning}\n")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    directory = RunDirectory.make(options.dir.absolute() if options.dir else default_directory())
    directory.lock(time.monotonic() + config.START_TIMEOUT_S)
    if directory.connect_lease(time.monotonic() + config.START_TIMEOUT_S) is not None:
        parser.error(f"a node already runs in {directory.path}")
    directory.sweep_sockets()
    if options.secret is not None:
        Secret.read(options.secret).keep(directory.path)
    if shape.join and enrolling is None:
        _check_join(shape.join, directory)
    node = Node(directory, shape)
    if enrolling is not None:
        node.prepare = lambda: enrolling.enter(directory, shape.join)
    node.start()
    directory.unlock()
    _announce(node)
    renewal = _renewal() if enrolling is None else enrolling.renewal(directory)
    node.run()
    if renewal is not None:
        renewal.close()
    return 0


class _Enrolling:
    """Gets a node keys of its own with a token; those of right `admin` are in its memory alone, and go with it."""

    def __init__(self, file: str) -> None:
        from anna.enrolment import Token
        from anna.keycommands import token_in
        from anna.keymemory import Held

        self._token = Token.read(token_in(file))
        self._held = Held()
        os.environ[ENVIRONMENT] = self._held.place

    def enter(self, directory: RunDirectory, join: str) -> None:
        """Get them, and see whether the node to be joined is there. Raises NotAdmitted, BadKeys, NodeLost."""
        from anna.enrolment import obtain

        try:
            renew(directory.path, obtain(self._token), self._held)
        except BaseException:
            directory.sweep(OWN_FILES)
            raise
        if join:
            _check_join(join, directory)

    def renewal(self, directory: RunDirectory) -> Renewal:
        """Begin to renew them."""
        from anna.renewal import Renewal

        def put(files: Mapping[str, str]) -> None:
            renew(directory.path, files, self._held)

        return Renewal(self._held.place, self._token.at, put)


def _renewal() -> Renewal | None:
    """Begin to renew the keys of this node, if they came by a token once."""
    directory = Path(os.environ.get(ENVIRONMENT) or "/nowhere")
    if not (directory / "enrolled").is_file():
        return None
    from anna.keys import keep
    from anna.renewal import Renewal, place_in

    at = place_in(directory)
    return None if at is None else Renewal(str(directory), at, lambda files: keep(directory, files))


def _check_keys() -> bool:
    """Return whether there are keys. Raises RequestError unless they allow to be a node, BadKeys."""
    keys = keys_from(None)
    if keys is None:
        return False
    name, right = keys.holder.name, keys.holder.right
    if right < Right.ADMIN:
        raise RequestError(f"the keys of {name} have the right {right.name.lower()}; to be a node needs admin")
    os.environ[ENVIRONMENT] = str(keys.directory)  # whatever the working directory is
    return True


def _check_join(address: str, directory: RunDirectory) -> None:
    """Ask the node that is to be joined who it is, before anything is started. Raises NodeLost, UnavailableError."""
    try:
        node_at(address, Secret.of(directory.path), keys_from(None))
    except BaseException:
        directory.sweep(OWN_FILES)
        raise


def _announce(node: Node) -> None:
    """Say where the node can be reached, and how others join it."""
    where = node.directory.path
    sys.stderr.write(f"a node with {node.shape.executors} executors runs in {where} (Ctrl-C ends it)\n")
    sys.stderr.write(f"  use it:   CLOUDBURST_DIR={where} cb call …, or cb.connect('unix:{where}')\n")
    sys.stderr.write(f"  join it:  cb node --dir ANOTHER --join unix:{where}\n")
    if node.shape.place is not None:
        far, secret = node.switchboard.endpoints[-1], node.directory.file(SECRET_FILE)
        if node.keys:
            sys.stderr.write("  join it from another host, with keys of right admin (cb keys issue):\n")
            sys.stderr.write(f"            cb node --join {far} --keys DIR --listen tcp://HOST:0\n")
            sys.stderr.write("  use it from another host, with keys of right code:\n")
            sys.stderr.write(f"            cb.connect({far!r}, keys=DIR)\n")
            sys.stderr.flush()
            return
        sys.stderr.write(f"  join it from another host, with a copy of {secret}:\n")
        sys.stderr.write(f"            cb node --join {far} --secret FILE --listen tcp://HOST:0\n")
        sys.stderr.write("  use it from another host, with what that file holds:\n")
        sys.stderr.write(f"            cb.connect({far!r}, token=…)\n")
    sys.stderr.flush()
