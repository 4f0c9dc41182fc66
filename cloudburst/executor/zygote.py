"""The process that executors are forked from: everything imported, no threads, no event loop, nothing opened.

It does three things. It forks an executor when the node asks, which takes about a millisecond because nothing is left
to import. It is the executors' parent, so it knows when and how each one ended, and says so. And when the node dies,
however it dies, it kills the executors and clears the node's directory, so that nothing is left behind.
Source: DESIGN §6; reliability D (fork from a warm template).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgpack

from anna.keymemory import open_to_others
from anna.keyplaces import MEMORY
from cloudburst import config, sandbox
from cloudburst.errors import CloudburstError
from cloudburst.executor import limits
from cloudburst.keyring import OWN_FILES, VARIABLE, lesser_keys_in
from cloudburst.page import Page
from cloudburst.segments.shelf import Shelf

log = logging.getLogger("cloudburst.zygote")

MESSAGE_BYTES_MAX: Final = 64 * 1024
FIRST_FREE_FD: Final = 10
FED: Final = 1.5
"""A process that has had this much more memory than it began with may be one that the kernel killed for that."""
CACHE: Final = -1
"""In place of an executor's slot: the node's cache."""
PORTER: Final = -3
"""In place of an executor's slot: the node's porter."""
RELAY: Final = -4
"""In place of an executor's slot: the node's relay."""
SANDBOX: Final = -2
"""In place of an executor's slot: the sandbox, inside which another zygote forks the executors."""


class Zygote:
    """Forks executors at the word of the node at the other end of `node`, a SEQPACKET socket.

    `inside` a sandbox it has another zygote outside, which clears up.
    """

    def __init__(self, node: socket.socket, page: Page, directory: str, inside: bool = False) -> None:
        self._node = node
        self._page = page
        self._directory = directory
        self._inside = inside
        self._children: dict[int, tuple[int, int, int]] = {}
        self._memory_kills = limits.memory_kills()
        self._poll = select.poll()
        self._poll.register(node.fileno(), select.POLLIN)

    def serve(self) -> None:
        """Work until the node stops or is gone; then kill every executor, and clear up for a node that cannot."""
        gc.collect()
        gc.freeze()
        while True:
            for fd, _ in self._poll.poll():
                if fd != self._node.fileno():
                    self._child_ended(fd)
                elif not self._hear():
                    return

    def _hear(self) -> bool:
        """Obey one message of the node; False when that is the end: it said so, or it is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._node, MESSAGE_BYTES_MAX, 4, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, fds = b"", []
        order = msgpack.unpackb(data) if data else None
        if order is None or "stop" in order:
            self._kill_all()
            if order is None and not self._inside:
                self._clear_up()
            return False
        self._fork(order, fds)
        return True

    def _fork(self, order: dict[str, Any], fds: list[int]) -> None:
        """Fork the executor of a slot, whose `fds` are its listening socket, its socket to the node and its output.

        Where other hosts may connect, a listening socket for them comes last. Or the cache, which has a listening
        socket only; or the porter or the relay, which has one and perhaps another for other hosts; or the sandbox, with
        a socket to the node and the page. Keys that are in memory come last, with the cache and the relay.
        """
        number, incarnation = order["slot"], order["incarnation"]
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as fault:
            log.error("an executor cannot be forked: %s", fault)
            for fd in fds:
                os.close(fd)
            self._tell({"slot": number, "incarnation": incarnation, "pid": 0, "code": 1})
            return
        if pid == 0 and number == SANDBOX:
            become_sandbox(zygote, order["command"], fds)
        if pid == 0 and number == CACHE:
            shelf = Shelf.find(Path(self._directory), self._page.incarnation)
            become_cache(zygote, self._page, order["cache"], tuple(order["seeds"]), fds, shelf)
        if pid == 0 and number == PORTER:
            shelf = Shelf.find(Path(self._directory), self._page.incarnation)
            become_porter(zygote, shelf, self._directory, fds)
        if pid == 0 and number == RELAY:
            become_relay(zygote, self._directory, order["keys"], fds)
        if pid == 0:
            become_executor(zygote, self._page, number, order["client"], self._directory, fds)
        for fd in fds:
            os.close(fd)
        watch = os.pidfd_open(pid)
        self._children[watch] = (pid, number, incarnation)
        self._poll.register(watch, select.POLLIN)
        self._tell({"slot": number, "incarnation": incarnation, "pid": pid}, watch)

    def _child_ended(self, watch: int) -> None:
        pid, number, incarnation = self._children.pop(watch)
        self._poll.unregister(watch)
        os.close(watch)
        _kill_group(pid)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        starved = self._memory_ran_out() and code == -signal.SIGKILL and used.ru_maxrss > FED * own_memory_kib()
        self._tell({"slot": number, "incarnation": incarnation, "pid": pid, "code": code, "starved": starved})

    def _memory_ran_out(self) -> bool:
        """Whether the kernel has killed somebody for want of memory since the last time that this was asked."""
        before, self._memory_kills = self._memory_kills, limits.memory_kills()
        return self._memory_kills > before

    def _tell(self, news: dict[str, Any], *fds: int) -> None:
        """Send news to the node; a process goes with it as a pidfd, since it may have another number out there."""
        try:
            socket.send_fds(self._node, [msgpack.packb(news)], fds)
        except OSError:
            pass  # the node is gone; the next poll says so

    def _kill_all(self) -> None:
        for pid, _, _ in self._children.values():
            os.kill(pid, signal.SIGKILL)
            _kill_group(pid)
        for pid, _, _ in self._children.values():
            os.waitpid(pid, 0)

    def _clear_up(self) -> None:
        from anna.errors import AnnaError
        from anna.rundir import RunDirectory

        with contextlib.suppress(CloudburstError, OSError):
            Shelf.find(Path(self._directory), self._page.incarnation).remove_all()  # it may outlive the directory
        try:
            directory = RunDirectory(Path(self._directory))
            directory.sweep_if_abandoned(time.monotonic() + config.START_TIMEOUT_S, OWN_FILES)
        except (AnnaError, OSError):
            pass  # it is gone already, or a new node lives in it


def own_memory_kib() -> int:
    """Return the most memory that this process has had, which is what executors begin with."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kill_group(pid: int) -> None:
    """Kill what a process, not yet waited for, has left behind in its session's group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def become_executor(zygote: int, page: Page, number: int, client: int, directory: str, fds: list[int]) -> None:
    """Turn this forked process into the executor of a slot, and never return."""
    code = 1
    try:
        listener, node, output, *far = fds
        limits.die_with_parent(zygote)
        for standard in (1, 2):
            os.dup2(output, standard)
        limits.close_all_but((listener, node, *far))
        if os.environ.get(VARIABLE, "").startswith(MEMORY):  # the node's keys, of which nothing is here
            open_to_others()
        limits.confine()
        import faulthandler
        import sys
        import types

        faulthandler.enable(2, all_threads=False)
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = ["cloudburst-executor"]
        from cloudburst.executor.runtime import Executor

        gc.enable()
        os.environ["CLOUDBURST_DIR"] = directory  # what user code starts joins this node
        ends = [socket.socket(fileno=one) for one in (listener, node, *far)]
        executor = Executor(page, number, client, directory, *ends)
        keys = lesser_keys_in(directory)  # for what user code starts; the node's own are none of its business
        os.environ.pop(VARIABLE, None)
        os.environ |= {VARIABLE: keys} if keys else {}
        executor.serve()
        code = 0
    except BaseException:  # a child must not return into the zygote's code
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def become_cache(
    zygote: int, page: Page, address: str, seeds: tuple[str, ...], fds: list[int], shelf: Shelf
) -> None:
    """Turn this forked process into the node's cache, and never return."""

    def serve() -> None:
        from cloudburst.cache.server import serve_cache

        listener, *held = fds
        if held:
            os.environ[VARIABLE] = f"{MEMORY}{held[0]}"
        serve_cache(socket.socket(fileno=listener), address, seeds, shelf=shelf, page=page)

    _become(zygote, fds, serve)


def become_porter(zygote: int, shelf: Shelf, directory: str, fds: list[int]) -> None:
    """Turn this forked process into the node's porter, and never return."""

    def serve() -> None:
        from cloudburst.porter import serve_porter
        from cloudburst.secret import lane_key_of

        near, *far = (socket.socket(fileno=one) for one in fds)
        serve_porter(shelf, lane_key_of(directory), near, far[0] if far else None)

    _become(zygote, fds, serve)


def become_relay(zygote: int, directory: str, keys: str, fds: list[int]) -> None:
    """Turn this forked process into the node's relay, which speaks with its `keys`, and never return.

    Those in memory come as the last of `fds`, and `keys` says no more than that.
    """

    def serve() -> None:
        from cloudburst.relay import serve_relay

        held = fds[-1:] if keys == MEMORY else []
        near, *far = (socket.socket(fileno=one) for one in fds[: len(fds) - len(held)])
        serve_relay(directory, f"{MEMORY}{held[0]}" if held else keys, near, far[0] if far else None)

    _become(zygote, fds, serve)


def _become(zygote: int, fds: list[int], serve: Callable[[], None]) -> None:
    """Be a process of its own that has these files, serves, and ends with that or with the zygote."""
    code = 1
    try:
        os.setsid()
        limits.die_with_parent(zygote)
        limits.close_all_but(fds)
        serve()
        code = 0
    except BaseException:  # a child must not return into the zygote's code
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def become_sandbox(zygote: int, command: list[str], fds: list[int]) -> None:
    """Turn this forked process into bubblewrap, and that into a zygote inside, and never return."""
    try:
        limits.die_with_parent(zygote)
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD, FIRST_FREE_FD) for fd in fds]
        for fd, place in zip(given, (sandbox.LINK_FD, sandbox.PAGE_FD), strict=True):
            os.dup2(fd, place)
        limits.close_all_but((sandbox.LINK_FD, sandbox.PAGE_FD))
        os.execv(command[0], command)
    except BaseException:  # a child must not return into the zygote's code
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def serve_inside(directory: str, link: int, page: int) -> None:
    """Be the zygote inside a sandbox: the program that bubblewrap starts."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s sandbox %(name)s %(levelname)s %(message)s")
    for fd in (link, page):
        os.set_inheritable(fd, False)
    preload()
    mapped = mmap.mmap(page, 0)
    os.close(page)
    Zygote(socket.socket(fileno=link), Page(mapped), directory, inside=True).serve()


def preload() -> None:
    """Import what executors need, once for all of them."""
    import pickle  # noqa: F401

    import cloudpickle  # noqa: F401

    import anna  # noqa: F401
    import cloudburst.byvalue
    import cloudburst.context
    import cloudburst.entry
    import cloudburst.executor.runtime

    if os.environ.get(VARIABLE):
        import cloudburst.signing  # noqa: F401
