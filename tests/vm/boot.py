"""`make vm`: boot a real machine under QEMU's emulation, and have it fetch and run one file of `cb build`.

What no namespace shows: a kernel of its own that has just started, no user but root, empty caches, a network card. The
machine has Debian's cloud kernel and a root in memory with Python and nothing of ours; its first process (`init.sh`)
fetches the file over the emulated network with the program that user-data has (`deploy/cloud-init/fetch.py`), and runs
it: its information, its program on a node of its own, `cb selftest`, and a node as the unit of `deploy/` starts it.

Needs Debian, root, and `apt install qemu-system-x86 mmdebstrap cpio kmod`; takes some minutes, as each instruction of
the guest is emulated (`ACCEL=kvm` uses the processor's own way, where it may), and more at first, when the root is
made. Not part of CI. Exit code 0 when each step has ended well, 1 when one has not or the machine has said nothing for
ten minutes, 3 when something is missing.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
WORK = ROOT / "out" / "vm"
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "cpio", "depmod", "apt-get", "dpkg-deb")
SUITE = "bookworm"
PACKAGES = "python3,iproute2,kmod"
MODULES = ("drivers/net/virtio_net.ko", "drivers/net/net_failover.ko", "net/core/failover.ko", "drivers/virtio")
LEFT_OUT = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./var/cache/apt", "./var/lib/apt/lists")
STEPS = ("kernel", "network", "fetch", "info", "run", "selftest", "node", "down", "end")
SILENT_S = 600.0
MEMORY_MIB = 3072


def missing() -> list[str]:
    """Return what has to be there and is not."""
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root's rights"]


def say(text: str) -> None:
    """Tell whoever waits."""
    print(f"vm: {text}", flush=True)


def kernel() -> Path:
    """Return where Debian's newest cloud kernel is unpacked, with its modules."""
    depends = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True)
    found = re.search(r"Depends: (linux-image-\S+)", depends.stdout)
    if found is None:
        raise SystemExit("vm: apt knows no linux-image-cloud-amd64: apt-get update")
    place = WORK / found[1]
    if not place.exists():
        say(f"fetching {found[1]}")
        with tempfile.TemporaryDirectory(dir=WORK) as name:
            subprocess.run(["apt-get", "download", "-qq", found[1]], cwd=name, check=True, stderr=subprocess.DEVNULL)
            (package,) = Path(name).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, f"{place}.part"], check=True)
        Path(f"{place}.part").rename(place)
    return place


def system() -> Path:
    """Return Debian's smallest system with Python, as an archive."""
    archive = WORK / f"{SUITE}.tar"
    if not archive.exists():
        say(f"making a root of {SUITE} with {PACKAGES}")
        part = archive.with_suffix(".part.tar")
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, part], check=True)
        part.rename(archive)
    return archive


def initramfs(unpacked: Path, place: Path) -> Path:
    """Return the root in memory: the system, the kernel's modules for the network, the first process, the fetcher."""
    root = place / "root"
    root.mkdir()
    without = [f"--exclude={name}" for name in LEFT_OUT]
    subprocess.run(["tar", "-xf", system(), "-C", root, "--exclude=./dev/*", *without], check=True)
    (release,) = (one.name for one in (unpacked / "lib" / "modules").iterdir())
    there = unpacked / "lib" / "modules" / release
    here = root / "lib" / "modules" / release
    here.mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(there / name, here / name)
    for name in MODULES:
        source, target = there / "kernel" / name, here / "kernel" / name
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    subprocess.run(["depmod", "-b", root, release], check=True)
    shutil.copy(ROOT / "tests" / "vm" / "init.sh", root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(ROOT / "deploy" / "cloud-init" / "fetch.py", root / "fetch.py")
    (root / "books").mkdir()
    (root / "books" / "one.txt").write_text("a rose is a rose is a rose\n")
    image = place / "root.cpio"
    with image.open("wb") as file:
        names = subprocess.Popen(["find", ".", "-print0"], cwd=root, stdout=subprocess.PIPE)
        pack = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        subprocess.run(pack, cwd=root, stdin=names.stdout, stdout=file, check=True)
        names.wait()
    shutil.rmtree(root)
    return image


def application(place: Path) -> Path:
    """Return one file: the word count of docs/build.md, built by `cb build`."""
    (code,) = re.findall(r"^```python\n(# wordcount\.py\n.*?)^```", (ROOT / "docs/build.md").read_text(), re.M | re.S)
    (place / "wordcount.py").write_text(code)
    (place / "web").mkdir()
    built = place / "web" / "wc"
    command = [sys.executable, "-m", "cloudburst", "build", "wordcount.py", "-o", str(built)]
    subprocess.run(
        command, cwd=place, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    return built


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and does not talk about it."""

    def log_message(self, *given: object) -> None:
        """Say nothing."""


def lines_of(console: IO[bytes], into: queue.Queue[str | None]) -> None:
    """Pass lines on, and None at the end."""
    for line in console:
        into.put(line.decode(errors="replace").rstrip())
    into.put(None)


def watched(machine: subprocess.Popen[bytes], log: Path) -> dict[str, tuple[float, str]]:
    """Return what the machine has said of its steps: (its uptime in seconds, code), until it ends or falls silent."""
    assert machine.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=lines_of, args=(machine.stdout, lines), daemon=True).start()
    steps: dict[str, tuple[float, str]] = {}
    with log.open("w") as file:
        while True:
            try:
                line = lines.get(timeout=SILENT_S)
            except queue.Empty:
                say(f"the machine has said nothing for {SILENT_S:g} s")
                break
            if line is None:
                break
            file.write(line + "\n")
            file.flush()
            if found := re.search(r"vm: (\w+) ([\d.]+) (\S+)", line):
                steps[found[1]] = (float(found[2]), found[3])
                say(f"{found[1]:9} {found[3]:24} at {float(found[2]):6.1f} s")
    return steps


def main() -> int:
    """Boot it once."""
    if lacking := missing():
        print(
            f"vm: {', '.join(lacking)} is missing: as root, apt install qemu-system-x86 mmdebstrap cpio kmod",
            file=sys.stderr,
        )
        return 3
    WORK.mkdir(parents=True, exist_ok=True)
    accelerator = os.environ.get("ACCEL", "tcg")
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=WORK) as name:
        place = Path(name)
        unpacked = kernel()
        image = initramfs(unpacked, place)
        (vmlinuz,) = (unpacked / "boot").glob("vmlinuz-*")
        built = application(place)
        digest = hashlib.sha256(built.read_bytes()).hexdigest()
        serve = functools.partial(Quiet, directory=built.parent)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://10.0.2.2:{server.server_address[1]}/{built.name}"  # this machine's loopback, to the guest
            options = f"console=ttyS0 panic=-1 quiet vm.url={url} vm.digest={digest}"
            say(f"booting {vmlinuz.name} under {accelerator}; the console is in {WORK / 'console.log'}")
            machine = subprocess.Popen(
                ["qemu-system-x86_64", "-accel", accelerator, "-smp", "2", "-m", str(MEMORY_MIB), "-nographic",
                 "-no-reboot", "-kernel", vmlinuz, "-initrd", image, "-append", options,
                 "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                steps = watched(machine, WORK / "console.log")
            finally:
                machine.kill()
                machine.wait()
                server.shutdown()
    failed = [step for step in STEPS if step not in steps]
    failed += [step for step in STEPS[2:] if step in steps and steps[step][1] != "0"]
    say(f"{len(STEPS) - len(failed)} of {len(STEPS)} steps in {time.monotonic() - began_s:.0f} s" + (
        f"; failed or not reached: {', '.join(failed)}" if failed else ""))  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
