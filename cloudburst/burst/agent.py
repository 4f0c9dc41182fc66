"""The agent on a host: it has the node there for whoever asked for it, and ends with them.

The one rule: it is told everything over its standard input, secret and keys too, of which it writes those into a file
that users' functions may have; whoever is at the other end is alive as long as it says so: when the input ends, or
nothing comes for `agent_lease_s`, the node is ended at once. A second program, the guard, ends what is left should the
agent be killed, and everything when the time to live is over, though the agent be frozen. And the agent holds the
node's lease, so the kernel ends the node with it. What happens it tells as
lines of JSON. Source: burst-systems §5.5 (three kill switches); docs/decisions/0036, 0049.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from anna.keymemory import Held
from cloudburst import config, local
from cloudburst.burst import reaping
from cloudburst.burst.bootstrap import say
from cloudburst.burst.work import Work
from cloudburst.keyring import renew
from cloudburst.processes import stop
from cloudburst.running import Word
from cloudburst.secret import Secret
from cloudburst.shape import Shape

NODE: Final = "node"
COPIES: Final = 2
LOOK_S: Final = 0.02
"""How often the node's page is looked at while something is awaited there."""
REST_S: Final = 0.25
GUARD_GRACE_S: Final = 5.0


class Orders:
    """The lines that come, by a descriptor."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._said = b""
        self.heard_at = time.monotonic()
        self.ended = False

    def next(self, within_s: float) -> dict[str, Any] | None:
        """Return the next one; None when none comes in time, or none will come any more."""
        if b"\n" not in self._said and not self.ended and select.select([self._fd], [], [], within_s)[0]:
            data = os.read(self._fd, 1 << 16)
            self.ended = not data
            self._said += data
            self.heard_at = time.monotonic()
        line, newline, rest = self._said.partition(b"\n")
        if not newline:
            return None
        self._said = rest
        order: dict[str, Any] = json.loads(line)
        return order

    @property
    def lost(self) -> bool:
        """Whether nobody is at the other end any more."""
        return self.ended or time.monotonic() - self.heard_at > config.AGENT_LEASE_S


class Agent:
    """The agent of one machine, as its order says."""

    def __init__(self, order: dict[str, Any], orders: Orders) -> None:
        self._order = order
        self._orders = orders
        name = f"{reaping.PREFIX}{order['run']}-{order['name']}"
        self._directory = Path("/tmp", name)
        self._met = -1
        self._begun = False

    def run(self) -> None:
        """Have a node until told otherwise, or nobody tells anything any more; leave nothing."""
        self._directory.mkdir(mode=0o700)
        self._directory.chmod(0o700 | stat.S_ISVTX)
        self._word = Word(self._directory, self._order["run"], False)
        guard = self._start_guard()
        how = "now"
        lease: local.Lease | None = None
        try:
            lease = self._start()
            if lease is not None:
                self._tell(lease)
                how = self._attend(lease)
        except Exception as fault:  # whoever asked for it is told
            say(fault=f"{type(fault).__name__}: {fault}")
        finally:
            self._end(lease, how, guard)

    def _start(self) -> local.Lease | None:
        """Start the node; None when nobody wants it any more before it is there."""
        made: list[local.Lease] = []
        faults: list[Exception] = []

        def start() -> None:
            try:
                secret = Secret(self._order["secret"])
                shape, place = self._shape(), self._directory / NODE
                patience_s = config.AGENT_START_S
                made.append(local.ensure_shape(place, shape, timeout_s=patience_s, secret=secret, keys=self._held))
            except Exception as fault:
                faults.append(fault)

        self._held = Held(self._order["keys"])
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        newer = None
        while starting.is_alive():
            order = self._orders.next(LOOK_S)
            if self._orders.lost or "end" in (order or {}):
                self._kill()
                return None
            newer = (order or {}).get("keys", newer)
            starting.join(LOOK_S if self._orders.ended else 0.0)
        if faults:
            raise faults[0]
        if newer is not None:
            renew(self._directory / NODE, newer, self._held)
        return made[0]

    def _kill(self) -> None:
        """End a node that is only just starting."""
        until = time.monotonic() + GUARD_GRACE_S
        while (left := self._processes()) and time.monotonic() < until:
            reaping.send(left, signal.SIGKILL, GUARD_GRACE_S)

    def _shape(self) -> Shape:
        order = self._order
        first: dict[str, Any] = {} if order["join"] else {"own_store": True, "factor": COPIES}
        return Shape.of(
            order["executors"], least=order["least"], most=order["most"], workers=order["workers"],
            join=order["join"], listen=f"tcp://{_bracketed(order['address'] or _reached_at())}:0", **first,
        )  # fmt: skip

    def _start_guard(self) -> subprocess.Popen[bytes]:
        words = ["guard", str(self._directory), str(self._order["until"]), str(GUARD_GRACE_S)]
        return subprocess.Popen(
            [sys.executable, "-I", reaping.__file__, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip

    def _tell(self, lease: local.Lease) -> None:
        """Say where the node is."""
        from cloudburst.control import Control

        control = Control(lease.control, lease.client)
        try:
            status = control.ask("status", {}, config.CONTROL_TIMEOUT_S, lease.lost)
        finally:
            control.close()
        say(address=status["control"][-1], pid=lease.pid, executors=len(status["executors"]))

    def _attend(self, lease: local.Lease) -> str:
        """Do as told, and tell what the node does; return how it is to end."""
        work = Work(lease.page)
        while not self._orders.lost:
            order = self._orders.next(LOOK_S if not self._begun else REST_S)
            if order is not None and "end" in order:
                return str(order["end"])
            if order is not None and "keys" in order:
                renew(self._directory / NODE, order["keys"], self._held)
            if lease.lost():
                say(fault="its node has ended" + self._log())
                return "now"
            active = work.look()
            if lease.page.foreign() != self._met or (active and not self._begun):
                self._met = lease.page.foreign()
                self._begun = self._begun or active
                say(met=self._met, begun=self._begun)
            if order is not None:
                say(active=active)
        return "now"

    def _log(self) -> str:
        try:
            return "\n" + (self._directory / NODE / "log").read_text()[-config.CONSOLE_BYTES :]
        except OSError:
            return ""

    def _end(self, lease: local.Lease | None, how: str, guard: subprocess.Popen[bytes]) -> None:
        """End the node: `leave` hands over its keys, `drain` lets calls end that run there, `now` does neither.

        Where nothing is left the guard has no more to do, and whoever hears `ended` finds no process of the run: the
        agent ends it first.
        """
        if lease is not None:
            if how == "leave":
                stop(lease.pid, NODE)
            else:
                lease.stop()
                if how == "now":
                    lease.stop()
                self._wait(lease)
            lease.close()
        until = time.monotonic() + GUARD_GRACE_S
        while self._processes() and time.monotonic() < until:
            time.sleep(LOOK_S)
        left = self._processes()
        self._word.take_back()
        if not left:
            shutil.rmtree(self._directory, ignore_errors=True)
            guard.kill()
            guard.wait()
        try:
            say(ended=True, left=len(left))
        except OSError:
            pass  # nobody hears it

    def _wait(self, lease: local.Lease) -> None:
        """Wait for the end of the node, at most for as long as one may take; being told again, or left, end it."""
        until = time.monotonic() + config.STOP_S
        hurried = False
        while not wait_for_end_soon(lease.pid) and time.monotonic() < until:
            order = self._orders.next(0.0)
            if not hurried and (self._orders.lost or (order or {}).get("end") == "now"):
                hurried = True
                lease.stop()

    def _processes(self) -> list[int]:
        """Return the processes of the node and its store; the guard is not one of them."""
        return reaping.processes_of(str(self._directory / NODE)) + reaping.processes_of(
            f"{self._directory / NODE}-store"
        )


def wait_for_end_soon(pid: int) -> bool:
    """Return whether a process has ended, or does in a moment."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], 0.05)[0])
    finally:
        os.close(watch)


def _reached_at() -> str:
    """Return the address of this host at which the client has reached it."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else "127.0.0.1"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def main() -> None:
    """Say that it is there, take the order, and do it."""
    os.umask(0o077)
    say(agent=os.getpid())
    orders = Orders()
    order = None
    while (order is None or "beat" in order) and not orders.lost:
        order = orders.next(1.0)
    if order is not None and "run" in order:
        Agent(order, orders).run()
