"""`python -m bench.peers.our_node ADDRESS`: one worker of ours on one address, until SIGTERM.

`anna serve` runs the same `serve_worker` under a supervisor, at several addresses; here is nothing but the worker, so
that its processor time and memory are its own, and a client cannot choose another way to it.
"""

from __future__ import annotations

import socket
import sys

from anna.address import UnixAddress, parse_address
from anna.messages import NodeInfo, View, WorkerInfo
from anna.server import serve_worker

BACKLOG = 512


def listen(address: str) -> socket.socket:
    """Return a socket that listens at `unix:PATH` or `tcp://HOST:PORT`."""
    place = parse_address(address)
    if isinstance(place, UnixAddress):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(place.path)
    else:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.host, place.port))
    listener.listen(BACKLOG)
    return listener


if __name__ == "__main__":
    serve_worker(View(1, (NodeInfo(1, (WorkerInfo(1, (sys.argv[1],)),)),)), 0, [listen(sys.argv[1])])
