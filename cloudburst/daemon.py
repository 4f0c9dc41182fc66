"""The program behind the embedded node: `cloudburst.local` starts it, and it lives as long as it has users.

It keeps nothing of the process that started it. What it says once it is ready, or why it is not, goes to its standard
output, which is a pipe to the starter; everything later goes to the log. Source: anna/daemon.py, whose twin this is.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path


def main(directory: str, shape: str) -> None:
    """Detach, run the node of a directory whose lock the starter holds, and exit when it has stopped.

    `shape` is a packed `Shape`.
    """
    if os.fork() != 0:
        os._exit(0)  # the starter reaps this process at once; the daemon is nobody's child
    os.chdir("/")
    os.umask(0o077)
    os.closerange(_first_unwanted(), int(os.sysconf("SC_OPEN_MAX")))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    faulthandler.enable()
    try:
        from anna.rundir import RunDirectory
        from cloudburst.node import Node
        from cloudburst.shape import Shape

        node = Node(RunDirectory(Path(directory)), Shape.unpack(shape))
        node.start()
    except BaseException as fault:  # whatever it was, the starter waits to be told
        logging.exception("the node did not start")
        _tell_starter(f"{type(fault).__name__}: {fault}".encode())
        raise SystemExit(1) from None
    _tell_starter(b"ready")
    node.run()


def _first_unwanted() -> int:
    """Return from where on descriptors are closed: behind the keys that this node was given, if it was."""
    if "ANNA_KEYS" not in os.environ:
        return 3
    from anna.keymemory import take_inherited

    return take_inherited()


def _tell_starter(message: bytes) -> None:
    try:
        os.write(sys.stdout.fileno(), message)
    except OSError:
        pass  # the starter is gone; the node ends by itself when nobody comes
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
