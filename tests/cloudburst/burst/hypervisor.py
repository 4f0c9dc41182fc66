"""A cloud on one machine: moto answers for EC2 and S3, and its instances are hosts that run what they are given.

The one rule: what an instance is comes from the API alone: the hypervisor looks at the listing, makes a network
namespace with the address that stands there, tells the host about itself where every machine of EC2 is told
(169.254.169.254, version 2), and runs its user data after a while. `shutdown` on the host ends the instance through the
API, as its attribute says; an instance that is ended there loses its power. Each has files, `/tmp` and shared memory of
its own. It can be slow to boot, never boot, or be taken away; a client token means nothing to it, as to moto.
Source: burst-systems §5.6.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.anna.local.processes import eventually
from tests.cloudburst.burst.sshd import PYTHON, ROOT
from tests.lab import hosts
from tests.lab.hosts import Host, Lab, run

LOOK_S: Final = 0.2
METADATA: Final = "169.254.169.254"
PORT: Final = 5000
"""Of the API, in a namespace of its own."""
KEYS: Final = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
OWN_FILES: Final = 'mount -t tmpfs own /tmp && mount -t tmpfs own /dev/shm && mkdir /tmp/home && exec "$@"'
"""What is on a machine is in memory, and gone with it."""


def why_not() -> str | None:
    """Return why no cloud can be made here, or None."""
    for name in ("boto3", "moto", "flask"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (make build)"
    return hosts.why_not()


class Metadata(BaseHTTPRequestHandler):
    """What a machine is told about itself."""

    server: Telling

    def do_PUT(self) -> None:
        self._answer(b"token" if self.path == "/latest/api/token" else None)

    def do_GET(self) -> None:
        told = self.headers.get("X-aws-ec2-metadata-token") == "token"
        self._answer(self.server.facts.get(self.path.removeprefix("/latest/meta-data/")) if told else None)

    def _answer(self, data: bytes | None) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


class Telling(ThreadingHTTPServer):
    """The server of one machine's facts."""

    daemon_threads = True

    def __init__(self, facts: dict[str, bytes]) -> None:
        super().__init__((METADATA, 80), Metadata)
        self.facts = facts


class Machine:
    """An instance as a host."""

    def __init__(self, host: Host, place: Path, telling: Telling) -> None:
        self.host = host
        self.place = place
        self.telling = telling
        self.booted = False
        self.asked_at = 0.0
        self.minutes = float("inf")
        """When it was last asked to end, and in how many minutes from then."""
        self._read = 0

    def boot(self, script: bytes, endpoint: str) -> None:
        """Run its user data."""
        (self.place / "bin").mkdir()
        (self.place / "user-data").write_bytes(script)
        (self.place / "asked").touch()
        shutdown = self.place / "bin" / "shutdown"
        shutdown.write_text(f'#!/bin/sh\necho "$@" >> {self.place}/asked\n')
        shutdown.chmod(0o700)
        environment = {"HOME": "/tmp/home", "PATH": f"{self.place}/bin:{os.environ['PATH']}"}
        with open(self.place / "console", "wb") as console:
            words = ["sh", "-c", OWN_FILES, "sh", "sh", str(self.place / "user-data")]
            self.host.start(*words, env=environment, stdout=console, stderr=console, stdin=subprocess.DEVNULL)
        self.booted = True

    def asked(self) -> list[str]:
        """Return what `shutdown` was asked for since the last look."""
        if not self.booted:
            return []
        lines = (self.place / "asked").read_text().splitlines()
        new, self._read = lines[self._read :], len(lines)
        return new


class Hypervisor:
    """What makes hosts of the instances that the API lists."""

    def __init__(self, lab: Lab, place: Path, endpoint: str) -> None:
        self._lab = lab
        self._place = place
        self._cloud = lab["cloud"]
        self._endpoint = endpoint
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hypervisor")
        self.boot_s: Callable[[int], float] = lambda number: 0.2
        """How long the n-th instance takes to boot."""
        self.minute_s = 60.0
        """How long a minute of `shutdown +1` is; may be changed while it passes."""
        self.machines: dict[str, Machine] = {}
        self.faults: list[Exception] = []
        self._began: dict[str, tuple[int, float]] = {}
        self._gone: set[str] = set()
        with self._cloud.entered():
            self.ec2 = client("ec2", endpoint)
            self.s3 = client("s3", endpoint)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        for machine in self.machines.values():
            machine.telling.shutdown()
            machine.telling.server_close()

    def listed(self) -> Mapping[str, Mapping[str, Any]]:
        """Return all instances as they are described; from any thread."""
        with self._cloud.entered():
            found = self.ec2.describe_instances()["Reservations"]
        return {one["InstanceId"]: one for several in found for one in several["Instances"]}

    def alive(self) -> list[str]:
        """Return the instances that cost money."""
        return [id for id, one in self.listed().items() if one["State"]["Name"] not in ("terminated", "shutting-down")]

    def objects(self, bucket: str, prefix: str = "runs/") -> list[str]:
        """Return what a bucket holds below a prefix."""
        with self._cloud.entered():
            return [one["Key"] for one in self.s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())]

    def take_away(self, id: str) -> None:
        """End an instance without a word, as a provider does that needs it."""
        with self._cloud.entered():
            self.ec2.terminate_instances(InstanceIds=[id])

    def notify(self, id: str) -> None:
        """Tell a machine that it is to be taken away."""
        self.machines[id].telling.facts["spot/instance-action"] = b'{"action": "terminate"}'

    def console(self) -> str:
        """Return what all machines have written."""
        paths = sorted(self._place.glob("i-*/console"))
        return "\n".join(f"{path.parent.name}: {path.read_text(errors='replace')}" for path in paths)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._look()
            except Exception as fault:
                self.faults.append(fault)

    def _look(self) -> None:
        now = time.monotonic()
        there = self._alive()
        for id, machine in self.machines.items():
            if id not in there and id not in self._gone:
                self._gone.add(id)
                machine.host.crash()
        for id, said in there.items():
            number, began = self._began.setdefault(id, (len(self._began), now))
            if id not in self.machines:
                self.machines[id] = self._make(id, said["PrivateIpAddress"])
            machine = self.machines[id]
            if not machine.booted and now - began >= self.boot_s(number):
                machine.boot(self._user_data(id), self._endpoint)
            self._obey(id, machine, now)

    def _alive(self) -> Mapping[str, Mapping[str, Any]]:
        """Return those that run or will: the API takes a millisecond for each that it lists, those of the past too."""
        running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        with self._cloud.entered():
            found = self.ec2.describe_instances(Filters=running)["Reservations"]
        return {one["InstanceId"]: one for several in found for one in several["Instances"]}

    def _obey(self, id: str, machine: Machine, now: float) -> None:
        for words in machine.asked():
            assert words.startswith("-h "), words
            when = words.removeprefix("-h ")
            machine.asked_at, machine.minutes = now, 0.0 if when == "now" else float(when)
        if now - machine.asked_at >= machine.minutes * self.minute_s:
            machine.minutes = float("inf")
            with self._cloud.entered():
                name = "instanceInitiatedShutdownBehavior"
                how = self.ec2.describe_instance_attribute(InstanceId=id, Attribute=name)
                terminate = how["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
                end = self.ec2.terminate_instances if terminate else self.ec2.stop_instances
                end(InstanceIds=[id])

    def _user_data(self, id: str) -> bytes:
        with self._cloud.entered():
            said = self.ec2.describe_instance_attribute(InstanceId=id, Attribute="userData")
        return base64.b64decode(said["UserData"]["Value"])

    def _make(self, id: str, address: str) -> Machine:
        host = self._lab.add(id)
        give(host, address)
        run("ip", "-n", host.namespace, "address", "add", f"{METADATA}/32", "dev", "lo")
        place = self._place / id
        place.mkdir()
        with host.entered():
            telling = Telling({"instance-id": id.encode(), "local-ipv4": address.encode()})
        threading.Thread(target=telling.serve_forever, args=(0.1,), daemon=True).start()
        return Machine(host, place, telling)


def give(host: Host, address: str) -> None:
    """Give a host an address of the cloud's network."""
    run("ip", "-n", host.namespace, "address", "add", f"{address}/16", "dev", "eth0")


def client(service: str, endpoint: str) -> Any:
    """Return a client of the API; its connections are made where its verbs are called."""
    import boto3

    return boto3.client(
        service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )


class Cloud:
    """The API, the hypervisor, and a host for the client; `profile` is what `--on ec2:` names."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self.place = place
        self.client = lab["client"]
        self.runtime = place / "r"
        self.profile = place / "profile.toml"
        self.endpoint = f"http://172.31.255.1:{PORT}"
        give(lab["cloud"], "172.31.255.1")
        give(self.client, "172.31.255.2")
        self.runtime.mkdir(mode=0o700)
        words = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT)]
        with open(place / "moto", "wb") as log:
            lab["cloud"].start(*words, stdout=log, stderr=log, env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": ""})
        self.hypervisor = Hypervisor(lab, place, self.endpoint)
        eventually(self._answers, "the API answers")
        with lab["cloud"].entered():
            images = self.hypervisor.ec2.describe_images()["Images"]
        self.image = str(images[0]["ImageId"])
        self.write()
        self.hypervisor.start()

    def _answers(self) -> bool:
        try:
            self.hypervisor.listed()
        except Exception:
            return False
        return True

    def write(self, **changed: object) -> None:
        """Write the profile."""
        said = {"image": self.image, "python": PYTHON, "bucket": "cloudburst-tests", **changed}
        self.profile.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in said.items()))

    def environment(self) -> dict[str, str]:
        """What commands on the client's host are given: nobody else's runs are seen there."""
        return {
            **os.environ, **KEYS, "AWS_ENDPOINT_URL": self.endpoint, "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(self.runtime), "CLOUDBURST_DIR": str(self.runtime / "node"),
            "ANNA_DIR": str(self.runtime / "store"), "XDG_CACHE_HOME": str(self.place / "cache"),
        }  # fmt: skip

    def cb(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start a command on the client's host."""
        return self._start(["-m", "cloudburst", *words], more)

    def program(self, code: str) -> subprocess.Popen[str]:
        """Start a Python program on the client's host."""
        return self._start(["-c", code], {})

    def _start(self, words: list[str], more: Mapping[str, str]) -> subprocess.Popen[str]:
        pipe: Any = subprocess.PIPE
        environment = self.environment() | dict(more)
        return self.client.start(sys.executable, *words, stdout=pipe, stderr=pipe, cwd=ROOT, env=environment)

    def up(self, hosts: int, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start `cb up`, without waiting for it."""
        on = f"ec2:{self.profile}"
        return self.cb("up", "--hosts", str(hosts), "--executors", "1", "--on", on, *words, **more)

    def left(self) -> list[str]:
        """Return what there is that somebody pays for, or that runs on machines that have ended."""
        running = [name for name, host in self.lab.hosts.items() if name.startswith("i-") and host.pids()]
        return sorted({*self.hypervisor.alive(), *running})


@contextlib.contextmanager
def cloud() -> Iterator[Cloud]:
    """Make a cloud, and unmake it in the end."""
    place = Path(tempfile.mkdtemp(prefix="cb-", dir="/var/tmp"))
    try:
        with hosts.lab("cloud", "client") as lab:
            made = Cloud(lab, place)
            try:
                yield made
            finally:
                made.hypervisor.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)
