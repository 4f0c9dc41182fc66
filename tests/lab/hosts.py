"""Hosts made of network namespaces, on a bridge whose links can be cut.

The one rule: nothing outside is touched. The bridge has a namespace of its own, the hosts are joined to it by pairs of
virtual Ethernet devices, and every rule of the packet filter is written in the bridge's namespace; the machine's own
network is neither seen nor changed. Whatever a lab made is named by one random suffix, and is gone when its `with`
block ends, however it ends. Processes are signalled through pidfds, after it was seen that they are in the host's
namespace. Needs root, iproute2, nftables and nsenter. Source: reliability.md 0 (what works) and E, stage 6.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

NAMESPACES: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000
PROGRAMS: Final = ("ip", "nft", "nsenter", "unshare", "mount")
MOUNT_AND_RUN: Final = 'mount -t tmpfs -o mode=0700 own "$0" && exec "$@"'

CARRIER: Final = Path(__file__).parent / "delay.py"

os.environ.setdefault("CLOUDBURST_LAB", "1")  # without which what is started here may not be open to other hosts

END_S: Final = 10.0
"""How long the processes of a host may take to be gone after SIGKILL."""


def why_not() -> str | None:
    """Return why no lab can be made here, or None."""
    if os.getuid() != 0:
        return "only root can make network namespaces"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else _try_bridge()


def _try_bridge() -> str | None:
    """Return why this kernel or container refuses what a lab is made of, by making the smallest one."""
    try:
        with lab("h1") as small:
            small.cut(small["h1"], small["h1"])
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


def run(*command: str, script: str | None = None) -> None:
    """Run a command to its end. Raises CalledProcessError with what it said."""
    subprocess.run(command, input=script, check=True, capture_output=True, text=True, timeout=20)


class Host:
    """One network namespace with one address. What runs here sees no other network."""

    def __init__(self, name: str, namespace: str, address: str, port: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.port = port
        self.directory = directory
        """Where each program that is started here sees an empty directory of its own, which ends with it. All other
        files are shared; Unix sockets belong here, or one host could reach another past the network."""
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in this host; `options` are `subprocess.Popen`'s. Its pid is the program's own."""
        network = ["nsenter", f"--net={NAMESPACES / self.namespace}", "--"]
        files = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", MOUNT_AND_RUN, str(self.directory)]
        process = subprocess.Popen([*network, *files, *command], text=True, **options)
        self._started.append(process)
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread be in this host: the sockets that it opens meanwhile are this host's for good."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        here = os.open(NAMESPACES / self.namespace, os.O_RDONLY)
        try:
            _enter(here)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)
            os.close(here)

    def pids(self) -> list[int]:
        """Return the processes in this host."""
        inode = os.stat(NAMESPACES / self.namespace).st_ino
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _network_of(int(name)) == inode]

    def freeze(self) -> None:
        """Stop every process, as a machine does that swaps or whose hypervisor pauses it."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let every process go on."""
        self._signal_all(signal.SIGCONT)

    def crash(self) -> None:
        """Kill every process and wait until all are gone. Files stay, and with them what was written and not synced."""
        self.freeze()  # or a supervisor might start what was killed a moment before
        ended = self._signal_all(signal.SIGKILL)
        deadline = time.monotonic() + END_S
        for pidfd in ended:
            assert _has_ended(pidfd, deadline), f"a process of {self.name} outlives SIGKILL"
            os.close(pidfd)
        for process in self._started:
            process.wait(END_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._started.clear()

    def _signal_all(self, number: int) -> list[int]:
        """Signal every process, those too that are forked meanwhile. Return their pidfds after SIGKILL."""
        done: dict[int, int] = {}
        while new := [pid for pid in self.pids() if pid not in done]:
            for pid in new:
                pidfd = self._open(pid)
                if pidfd is not None:
                    signal.pidfd_send_signal(pidfd, number)
                    done[pid] = pidfd
        if number == signal.SIGKILL:
            return list(done.values())
        for pidfd in done.values():
            os.close(pidfd)
        return []

    def _open(self, pid: int) -> int | None:
        """Return a pidfd of a process of this host; None when it has gone, even if its number is another's by now."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if _network_of(pid) != os.stat(NAMESPACES / self.namespace).st_ino:
            os.close(pidfd)
            return None
        return pidfd


class Lab:
    """Hosts by name, and the state of the links between them: a link is a direction, from one host to another."""

    def __init__(self, suffix: str) -> None:
        self.switch = f"anna-{suffix}-switch"
        self.suffix = suffix
        self.directory = Path(f"/tmp/anna-{suffix}")
        self.hosts: dict[str, Host] = {}
        self._subnet = f"10.{random.SystemRandom().randrange(64, 128)}.{random.SystemRandom().randrange(256)}"
        self._cut: set[tuple[str, str]] = set()
        self._losses: dict[tuple[str, str], float] = {}
        self._carriers: list[subprocess.Popen[str]] = []

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    # -- links

    def cut(self, *between: Host) -> None:
        """Drop every frame between these hosts, both ways. Connections stay open and are not told."""
        self.cut_one_way([(a, b) for a in between for b in between])

    def cut_one_way(self, links: Sequence[tuple[Host, Host]]) -> None:
        """Drop every frame from the first host of each pair to the second."""
        self._cut |= {(a.port, b.port) for a, b in links}
        self._write_rules()

    def part(self, *sides: Sequence[Host]) -> None:
        """Cut between every two hosts of different sides, both ways; inside a side nothing is cut."""
        apart = [(a, b) for one in sides for a in one for other in sides if other is not one for b in other]
        self.cut_one_way(apart)

    def unplug(self, host: Host) -> None:
        """Drop every frame from and to a host: to the others it is as if it had lost its power."""
        self.part([host], [other for other in self.hosts.values() if other is not host])

    def lose(self, fraction: float, links: Sequence[tuple[Host, Host]]) -> None:
        """Drop a frame from the first host of a pair to the second with this probability, in thousandths."""
        self._losses |= {(a.port, b.port): fraction for a, b in links}
        self._write_rules()

    def heal(self) -> None:
        """Deliver everything again."""
        self._cut.clear()
        self._losses.clear()
        self._write_rules()

    def _write_rules(self) -> None:
        """Replace all rules in one transaction."""
        rules = [f'add rule bridge lab links iifname "{a}" oifname "{b}" drop' for a, b in sorted(self._cut)]
        for (a, b), fraction in sorted(self._losses.items()):
            chance = f"numgen random mod 1000 < {round(fraction * 1000)}"
            rules.append(f'add rule bridge lab links iifname "{a}" oifname "{b}" {chance} drop')
        self._filter("\n".join(["flush chain bridge lab links", *rules, ""]))

    def _filter(self, script: str) -> None:
        run("ip", "netns", "exec", self.switch, "nft", "-f", "-", script=script)

    # -- making and unmaking

    def make_switch(self) -> None:
        """Make the bridge, which is cut nowhere."""
        self.directory.mkdir(mode=0o700)
        run("ip", "netns", "add", self.switch)
        # The bridge needs no address, and a tree of bridges has no one to be talked over with.
        run("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge", "stp_state", "0", "forward_delay", "0")
        run("ip", "-n", self.switch, "link", "set", "switch", "up")
        hook = "type filter hook forward priority 0; policy accept;"
        self._filter(f"add table bridge lab\nadd chain bridge lab links {{ {hook} }}\n")

    def add(self, name: str, delay_s: float = 0.0) -> Host:
        """Make one more host, whose link to the switch takes so long each way."""
        number = len(self.hosts) + 1
        address = f"{self._subnet}.{number}"
        host = Host(name, f"anna-{self.suffix}-{name}", address, f"p{number}", self.directory)
        self.hosts[name] = host
        run("ip", "netns", "add", host.namespace)
        if delay_s:
            self._carry(host, delay_s)
        else:
            ends = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            run("ip", "-n", self.switch, "link", "add", host.port, *ends)
        run("ip", "-n", self.switch, "link", "set", host.port, "master", "switch", "up")
        run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("ip", "-n", host.namespace, "link", "set", device, "up")
        return host

    def _carry(self, host: Host, delay_s: float) -> None:
        """Make the host's devices, and start the program that carries frames between them."""
        words = [self.switch, host.namespace, host.port, str(delay_s)]
        carrier = subprocess.Popen([sys.executable, str(CARRIER), *words], stdout=subprocess.PIPE, text=True)
        self._carriers.append(carrier)
        assert carrier.stdout is not None
        assert carrier.stdout.readline() == "ready\n", "the delayed link was not made"

    def _end_carriers(self) -> None:
        for carrier in self._carriers:
            carrier.kill()
            with carrier:
                pass

    def unmake(self) -> None:
        """End every process of every host, then remove the hosts; a step that fails does not keep the others."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self.directory.rmdir)
            for name in self._namespaces():
                last_first.callback(run, "ip", "netns", "delete", name)
            last_first.callback(self._end_carriers)
            for host in self.hosts.values():
                last_first.callback(host.crash)

    def _namespaces(self) -> list[str]:
        names = [*(host.namespace for host in self.hosts.values()), self.switch]
        return [name for name in names if (NAMESPACES / name).exists()]


@contextlib.contextmanager
def lab(*names: str) -> Iterator[Lab]:
    """Make hosts of these names, joined to each other; unmake them in the end. SIGTERM is an end, too."""
    made = Lab(secrets.token_hex(3))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        made.make_switch()
        for name in names:
            made.add(name)
        yield made
    finally:
        made.unmake()
        signal.signal(signal.SIGTERM, before)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter a network namespace: {os.strerror(code)}")


def _network_of(pid: int) -> int | None:
    """Return the inode of a process's network namespace; None when the process has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _has_ended(pidfd: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
