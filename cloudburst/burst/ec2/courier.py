"""On a machine of EC2: carries what is said between the agent there and whoever asked for the machine, by objects.

The one rule: the run's record is a lease. While it changes, the agent is told that somebody is there; once it has not
for as long as it says, or is gone, the agent's input ends, and with that its node (`cloudburst.burst.agent`); then this
program ends, and the script that started it ends the machine. Everything goes out: nothing listens here. What is said
is one object that is written anew as a whole, so what is lost on the way is in the next. It uses nothing but Python,
and its addresses come in no arguments. Source: burst-systems §5.5; docs/decisions/0042.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from cloudburst import config
from cloudburst.burst.bootstrap import PROGRAM

METADATA: Final = "http://169.254.169.254/latest/"
ASK_S: Final = 4.0
"""How long one request may take: less than half of what the agent waits."""
SAY_S: Final = 5.0
"""How often something is said though there is nothing new."""
NOTICE_S: Final = 5.0
"""How often is asked whether the machine is to be taken away."""
FIRST_S: Final = 600.0
"""How long a machine waits for its order, as long as the record is renewed."""
LEAVE_S: Final = 90.0


class Gone(Exception):
    """Nobody wants this machine any more."""


def ask(url: str, method: str = "GET", data: bytes | None = None, **headers: str) -> bytes:
    """Return what an address answers. Raises OSError."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream", **named}, method=method)
    with urllib.request.urlopen(request, timeout=ASK_S) as answer:
        found: bytes = answer.read()
    return found


def metadata(path: str) -> str:
    """Return what the machine is told about itself. Raises OSError."""
    token = ask(METADATA + "api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60").decode()
    return ask(METADATA + "meta-data/" + path, X_aws_ec2_metadata_token=token).decode()


class Record:
    """The run's record as it was last read, and what it says to this machine."""

    def __init__(self, url: str, me: str) -> None:
        self._url = url
        self._me = me
        self._said: dict[str, Any] = {}
        self._version = -1
        self._changed_at = time.monotonic()
        self._told_by = time.monotonic()
        self.mine: dict[str, Any] = {}

    def look(self) -> None:
        """Read it. Raises Gone when it is gone, or has not changed for as long as it says."""
        try:
            said = json.loads(ask(self._url))
            if said != self._said:
                self._changed_at = time.monotonic()
                self._said, self._url = said, said["record"]
            if said["version"] != self._version:
                self.mine = json.loads(ask(said["hosts"])).get(self._me, self.mine)
                self._version = said["version"]
        except urllib.error.HTTPError as fault:
            if fault.code in (403, 404):
                raise Gone("the run's record is gone") from None
        except (OSError, ValueError):
            pass  # as if it had not changed
        if time.monotonic() - self._changed_at > self._said.get("lease_s", config.CLOUD_LEASE_S):
            raise Gone("the run's record is not renewed any more")

    @property
    def soabi(self) -> str:
        """What compiled modules of the run are for."""
        return str(self._said.get("soabi", ""))


class Courier:
    """What goes on between one agent and one run."""

    def __init__(self, record: Record, place: str, begun: float, address: str) -> None:
        self._record = record
        self._place = place
        self._address = address
        self._times = {"boot": begun, "fetch": time.time()}
        self._state: dict[str, Any] = {}
        self._said: dict[str, Any] = {}
        self._said_at = 0.0
        self._agent: subprocess.Popen[bytes] | None = None
        self._letters = 0
        """How many have been read."""
        self._rest = b""
        self._told = ""
        self._leaving = 0.0
        self._noticed_at = time.monotonic()

    def run(self) -> None:
        """Carry, until the node has ended. Raises Gone."""
        began = time.monotonic()
        looked = 0.0
        while True:
            waits = not self._state.get("begun")
            pause = config.CLOUD_LOOK_S if waits or self._told else config.CLOUD_REST_S
            if time.monotonic() - looked >= pause:
                looked = time.monotonic()
                self._record.look()
                self._check_python()
                self._start()
                self._read()
                if not self._letters and time.monotonic() - began > FIRST_S:
                    raise Gone("no order has come")
                self._notice()
                self._pass_on()
            self._listen(min(pause, 0.1))
            if self._state.get("fault") or self._state.get("ended"):
                self._say(last=True)
                return
            self._say()

    def end(self) -> None:
        """Let the agent end its node, and wait for it."""
        if self._agent is None:
            return
        assert self._agent.stdin is not None
        try:
            self._agent.stdin.close()
        except OSError:
            pass
        try:
            self._agent.wait(config.STOP_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()  # the guard ends what is left, and the machine ends now

    def _check_python(self) -> None:
        """See whether what was compiled where the run is from can be used here."""
        if self._record.soabi not in ("", sysconfig.get_config_var("SOABI")):
            self._state["fault"] = (
                f"{sys.executable} is Python {sys.version.split()[0]} there, and {self._record.soabi} is what was"
                " compiled here: choose an image, or `python`, of the same minor version and platform"
            )

    def _start(self) -> None:
        """Start the agent, once it is known that it can run here: it loads what it needs while its order is awaited."""
        if self._agent is not None or not self._record.soabi or self._state.get("fault"):
            return
        environment = {**os.environ, "PYTHONPATH": self._place, "PYTHONNOUSERSITE": "1"}
        words, pipe = [sys.executable, "-P", "-c", PROGRAM], subprocess.PIPE
        self._agent = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, cwd="/")

    def _read(self) -> None:
        """Read the next letter for the agent, once: the first is its order."""
        mine, number = self._record.mine, self._letters + 1
        if f"letter {number}" not in mine or self._agent is None or self._state.get("fault"):
            return
        try:
            order = json.loads(ask(mine[f"letter {number}"]))
            ask(mine[f"read {number}"], "DELETE")
        except OSError:
            return
        if not self._letters:
            order["address"] = self._address
        self._letters = number
        self._tell(**order)

    def _tell(self, **order: Any) -> None:
        if self._agent is None:
            return
        assert self._agent.stdin is not None
        try:
            self._agent.stdin.write(json.dumps(order).encode() + b"\n")
            self._agent.stdin.flush()
        except OSError:
            pass  # its end is seen where it speaks

    def _pass_on(self) -> None:
        """Tell the agent that somebody is there, and how it is to end."""
        how = self._record.mine.get("end", "")
        if how and not self._letters:
            raise Gone("it is not wanted any more")
        if how and how != self._told:
            self._told = how
            self._tell(end=how)
        else:
            self._tell(beat=1)
        if self._leaving and time.monotonic() - self._leaving > LEAVE_S:
            raise Gone("the machine is taken away")

    def _notice(self) -> None:
        """See whether the machine is to be taken away in two minutes; then its node hands over its keys."""
        if self._told or time.monotonic() - self._noticed_at < NOTICE_S:
            return
        self._noticed_at = time.monotonic()
        try:
            metadata("spot/instance-action")
        except OSError:
            return
        self._leaving = time.monotonic()
        self._told = "leave"
        self._tell(end="leave")

    def _listen(self, within_s: float) -> None:
        """Take in what the agent says."""
        if self._agent is None:
            time.sleep(within_s)
            return
        assert self._agent.stdout is not None
        if not select.select([self._agent.stdout], [], [], within_s)[0]:
            return
        data = os.read(self._agent.stdout.fileno(), 1 << 16)
        if not data:
            self._state.setdefault("ended", True)
            if "left" not in self._state:
                self._state.setdefault("fault", f"the agent has ended with {self._agent.wait(ASK_S)}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            said = {}
        if "address" in said:
            self._state["node"] = {name: said[name] for name in ("address", "pid", "executors")}
        if said.get("active"):
            self._times["active"] = time.time()
        self._state |= {name: said[name] for name in ("met", "begun", "fault", "ended", "left") if name in said}
        if self._leaving and "ended" in said:
            self._state["fault"] = "the machine is taken away by its provider (spot)"

    def _say(self, last: bool = False) -> None:
        """Write down what there is to say, when it is new, or has not been said for a while."""
        now = time.monotonic()
        if "say" not in self._record.mine or (self._state == self._said and not last and now - self._said_at < SAY_S):
            return
        state = dict(self._state)
        ages = {name: round(time.time() - at, 3) for name, at in self._times.items()}
        for _ in range(5 if last else 1):
            try:
                ask(self._record.mine["say"], "PUT", json.dumps({**state, **ages, "beat": now}).encode())
            except OSError:
                continue
            self._said, self._said_at = state, now
            return


def main(url: str, place: str, begun: float) -> None:
    """Carry between the run whose record is at `url` and a node here, until one of them has ended."""
    try:
        courier = Courier(Record(url, metadata("instance-id")), place, begun, metadata("local-ipv4"))
        try:
            courier.run()
        finally:
            courier.end()
    except (Gone, OSError) as why:
        print(f"cloudburst: {why}", flush=True)  # on the machine's console


if __name__ == "__main__":
    main(sys.stdin.readline().strip(), str(Path(__file__).parents[3]), time.time())
