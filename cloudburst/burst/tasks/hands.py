"""The worker's side of a stage's tasks: one program has loaded the application, and forks a process for each.

The one rule: a task looks like a program to whoever runs it: it has a process group, a descriptor that says when it has
ended, files that it writes to. When the program that forks is gone, its worker is lost, and others do its tasks.
Source: decision record 0046.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import Any, Final

from cloudburst.burst.tasks.board import Board
from cloudburst.burst.tasks.code import Code
from cloudburst.burst.tasks.hand import PACKET_BYTES
from cloudburst.burst.tasks.programs import Orders, Process, Programs
from cloudburst.errors import ExecutorLost, RequestError

GONE: Final = "what runs the tasks of a stage on this host was killed"
VARIABLES: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")
"""What an executor has been started with, and a Python of another file must not have."""


class Hand:
    """The program that forks. Raises RequestError when it cannot load the application, with what it has said."""

    def __init__(self, code: Code, board: Board, environment: dict[str, str]) -> None:
        words, variables, self._lock = code.started(board)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        kept = {name: value for name, value in environment.items() if name not in VARIABLES}
        with theirs:
            self._process = subprocess.Popen(
                [*words, code.function, json.dumps(dict(code.settings)), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                env=kept | variables, pass_fds=[theirs.fileno()], process_group=0,
            )  # fmt: skip
        try:
            said = self._hear()[0]
        except BaseException:
            self.close()
            raise
        if "fault" in said:
            self.close()
            raise RequestError(f"{code.inside} cannot be loaded on a host of this cluster: {said['fault'].strip()}")

    def fork(self, text: str, cwd: str, writes: list[int]) -> Forked:
        """Begin a task. Raises ExecutorLost when this is gone, OSError when there can be no more processes."""
        order = json.dumps({"text": text, "cwd": cwd}).encode()
        try:
            socket.send_fds(self._socket, [order], writes)
        except ConnectionError:
            raise ExecutorLost(GONE) from None
        said, fds = self._hear()
        if "fault" in said:
            raise OSError(said["fault"])
        return Forked(self, int(said["pid"]), fds[0])

    def code_of(self, pid: int) -> int:
        """Return how a task has ended. Raises ExecutorLost when this is gone, and nobody knows."""
        try:
            self._socket.send(json.dumps({"wait": pid}).encode())
        except ConnectionError:
            raise ExecutorLost(GONE) from None
        return int(self._hear()[0]["code"])

    def _hear(self) -> tuple[dict[str, Any], list[int]]:
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, PACKET_BYTES, 1)
        except ConnectionError:
            packet, fds = b"", []
        if not packet:
            raise ExecutorLost(GONE)
        return json.loads(packet), fds

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        if self._lock is not None:
            os.close(self._lock)


class Forked:
    """The process of one task."""

    def __init__(self, hand: Hand, pid: int, watch: int) -> None:
        self.pid = pid
        self.watch = watch
        self._hand = hand

    def wait(self) -> int:
        """Return how it has ended, negative for a signal."""
        return self._hand.code_of(self.pid)


class Hands(Programs):
    """Starts tasks of a stage for a worker that is called `worker`."""

    def __init__(self, worker: str, orders: Orders, code: Code, board: Board) -> None:
        super().__init__(worker, orders)
        try:
            self._hand = Hand(code, board, self._environment)
        except BaseException:
            super().close(False)
            raise

    def _start(self, text: str, out: str, cwd: str, said: list[int]) -> tuple[Process, int]:
        forked = self._hand.fork(text, cwd, said)
        return forked, forked.watch

    def close(self, stopped: bool) -> None:
        """End all, and see to it that nothing is left."""
        self._hand.close()
        super().close(stopped)
