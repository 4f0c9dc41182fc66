"""Machines of EC2, as moto lists them and the hypervisor boots them: brought up, used, taken away, and never left."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from cloudburst.burst.ec2.account import RUN
from demos.wordcount import texts
from demos.wordcount.__main__ import alone
from tests.cloudburst.burst.hypervisor import PORT, Cloud, cloud, why_not
from tests.cloudburst.burst.miniature import check

BUCKET = "cloudburst-tests"
WAIT_S = 100.0
pytestmark = pytest.mark.timeout(300)


@cache
def why_no_cloud() -> str | None:
    return why_not()


@pytest.fixture(scope="module")
def sky() -> Iterator[Cloud]:
    if (reason := why_no_cloud()) is not None:
        pytest.skip(f"NO CLOUD HERE: {reason}")
    with cloud() as made:
        yield made


@pytest.fixture
def ec2(sky: Cloud) -> Iterator[Cloud]:
    """The same, with no machine before, and none left after."""
    assert sky.left() == []
    sky.write()
    sky.hypervisor.boot_s = lambda number: 0.2
    sky.hypervisor.minute_s = 60.0
    yield sky
    sky.lab.heal()
    for pid in sky.client.pids():
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(pid, signal.SIGKILL)
    none_left(sky)
    assert sky.hypervisor.faults == []


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is true; the API is asked now and then, because that costs."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.2)


def none_left(sky: Cloud) -> None:
    """Wait until nobody pays for anything, and nothing runs on any machine."""
    until(lambda: not sky.left(), "no machine is left")


def said_until(command: subprocess.Popen[str], stream: str, pattern: str) -> None:
    """Wait until what a command says on one of its streams has a match."""
    source = getattr(command, stream).fileno()
    said = ""
    while not re.search(pattern, said):
        assert select.select([source], [], [], WAIT_S)[0], said
        data = os.read(source, 1 << 16).decode()
        assert data, (said, command.communicate())
        said += data


def finished(sky: Cloud, program: subprocess.Popen[str]) -> str:
    out, err = program.communicate(timeout=WAIT_S)
    assert program.returncode == 0, (err, sky.hypervisor.console())
    return out


PROGRAM = """
import cloudburst as cb, json, os, sys, time
from pathlib import Path
from demos.wordcount import __main__ as demo, texts
from tests.cloudburst.burst.miniature import retwis
with cb.up(2, on="ec2:{file}", executors=1) as cluster:
    def where(number):
        import os, time
        time.sleep(0.1)
        return os.environ["CLOUDBURST_DIR"].split("-")[-1]
    cb.register(where, name="where")
    def used():
        found = set()
        while len(found) < 2:
            found |= set(cb.map("where", range(8)))
        return sorted(found)
    places = used()
    cb.put("k", list(range(100000)))
    counted = demo.run(cluster.client, list(texts.pieces(texts.reference())), 5)
    row = retwis(cluster, "ec2:{file}", Path("{out}"))
    while not all("first-task" in one.reached for one in cluster.machines):
        time.sleep(0.05)
    print(json.dumps([places, counted.checksum, row, [sorted(one.reached) for one in cluster.machines],
                      [one.place.split()[0] for one in cluster.machines]]), flush=True)
    while not any(one.fault for one in cluster.machines):
        time.sleep(0.05)
    fault = next(one.fault for one in cluster.machines if one.fault)
    cluster.scale(2)
    print(json.dumps([fault, used(), cb.get("k")[-1]]), flush=True)
"""


def test_program_runs_the_demos_on_machines_and_one_that_is_taken_away_is_replaced(ec2: Cloud) -> None:
    ec2.write(spare=0.0)
    program = ec2.program(PROGRAM.format(file=ec2.profile, out=ec2.place / "out"))
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, (program.communicate(), ec2.hypervisor.console())
    places, counted, row, reached, ids = json.loads(line)
    assert places == ["0/node", "1/node"]
    assert counted == alone(list(texts.pieces(texts.reference())), 5).checksum
    check(row)
    assert reached == [sorted(("asked", "pending", "boot", "fetch", "agent", "first-task"))] * 2
    assert not [key for key in ec2.hypervisor.objects(BUCKET) if "/letter/" in key], "letters are read once"
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for id in ids for pid in ec2.lab[id].pids()]
    assert len(words) > 2
    assert not [one for one in words if b"Signature" in one or b"PRIVATE" in one]
    ec2.hypervisor.notify(ids[1])
    fault, places, last = json.loads(finished(ec2, program))
    assert fault == "the machine is taken away by its provider (spot)"
    assert (places, last) == (["0/node", "2/node"], 99999)
    none_left(ec2)
    assert ec2.hypervisor.objects(BUCKET) == []
    assert len(ec2.hypervisor.objects(BUCKET, "shipped/")) == 1
    assert os.listdir(ec2.runtime) == []


def test_client_that_is_lost_in_any_phase_leaves_no_machine(ec2: Cloud) -> None:
    """Killed while machines boot, while they fetch, cut off when they are ready, interrupted. Of the ready ones, one is
    frozen, so that only its time can end it."""
    ec2.write(spare=0.0, lease_s=8.0)
    booting, fetching, interrupted, ready = ec2.up(1), ec2.up(1), ec2.up(1), ec2.up(2, "--ttl", "90s")
    said_until(booting, "stderr", r"host-0 +pending ")
    booting.kill()
    said_until(interrupted, "stderr", r"host-0 +pending ")
    interrupted.send_signal(signal.SIGINT)
    said_until(fetching, "stderr", r"host-0 +fetch ")
    fetching.kill()
    said_until(ready, "stdout", "end it")
    assert interrupted.wait(WAIT_S) == 130
    [path] = [path.parent.name for path in ec2.runtime.glob("*/up") if f'"pid": {ready.pid},' in path.read_text()]
    run = path.removeprefix("cloudburst-run-")
    [frozen, _] = [id for id, one in ec2.hypervisor.listed().items() if {"Key": RUN, "Value": run} in one["Tags"]]
    ec2.lab[frozen].freeze()
    ec2.lab.unplug(ec2.client)
    until(lambda: ec2.left() == [frozen], "all others have ended by themselves")
    assert ec2.hypervisor.machines[frozen].minutes == 2
    ec2.hypervisor.minute_s = 0.1
    none_left(ec2)


def test_machine_that_nobody_renews_and_that_never_boots_is_reaped(ec2: Cloud) -> None:
    ec2.write(spare=0.0, lease_s=2.0)
    ec2.hypervisor.boot_s = lambda number: 1e9
    kept = ec2.up(1)
    said_until(kept, "stderr", r"host-0 +pending ")
    [id] = ec2.hypervisor.alive()
    look = ("reap", "--on", f"ec2:{ec2.profile}", "--json")
    assert json.loads(finished(ec2, ec2.cb(*look))) == [], "somebody has it"
    kept.kill()
    kept.wait()

    def found() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(finished(ec2, ec2.cb(*look, "--dry-run")))
        return rows

    until(lambda: [one["what"] for one in found()] == [id], "its record is old")
    assert ec2.hypervisor.alive() == [id]
    assert [one["what"] for one in json.loads(finished(ec2, ec2.cb(*look)))] == [id]
    assert (ec2.hypervisor.alive(), ec2.hypervisor.objects(BUCKET)) == ([], []), "nor of any run before"


FULL = b"""<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code><Message>full</Message></Error></Errors>
<RequestID>1</RequestID></Response>"""


class Front(BaseHTTPRequestHandler):
    """Stands before the API: refuses the first request for machines, loses the answer to the second."""

    protocol_version = "HTTP/1.1"
    tokens: list[str]
    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        asks = said.get("Action") == "RunInstances" and said.get("DryRun") != "true"
        if asks:
            self.server.asked.append((said["ClientToken"], said["SubnetId"]))
        if asks and len(self.server.asked) == 1:
            self._reply(400, FULL)
            return
        with self.server.host.entered():
            onward = http.client.HTTPConnection("172.31.255.1", PORT)
            onward.request("POST", self.path, body, dict(self.headers))
            answer = onward.getresponse()
            data = answer.read()
            onward.close()
        if asks and len(self.server.asked) == 2:
            self.close_connection = True  # it was done, and nobody hears of it
            return
        self._reply(answer.status, data)

    def _reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_request_that_is_done_twice_doubles_nothing_and_the_late_are_given_back(ec2: Cloud) -> None:
    """The first zone is full; of the second, the answer is lost, so it is asked again, with the same token, and then
    for a spare one. Of the three machines one boots in time, the others never."""
    with ec2.client.entered():
        front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    front.host, front.asked = ec2.client, []  # type: ignore[attr-defined]
    threading.Thread(target=front.serve_forever, daemon=True).start()
    before = len(ec2.hypervisor.listed())
    ec2.hypervisor.boot_s = lambda number: 0.2 if number == before + 1 else 1e9
    try:
        up = ec2.up(1, AWS_ENDPOINT_URL_EC2=f"http://127.0.0.1:{front.server_port}")
        said_until(up, "stdout", "end it")
        (full, first), (lost, second), again, spare = front.asked  # type: ignore[attr-defined]
        assert again == (lost, second), "the same request"
        assert len({full, lost, spare[0]}) == 3
        assert first != second == spare[1]
        assert len(ec2.hypervisor.listed()) == before + 3, "the API has done it twice"
        until(lambda: len(ec2.hypervisor.alive()) == 1, "the others are given back")
        assert finished(ec2, ec2.cb("down"))
        assert up.wait(WAIT_S) == 0
        assert ec2.left() == []
    finally:
        front.shutdown()
        front.server_close()


def test_machine_that_ends_before_it_speaks_is_said_and_given_back(ec2: Cloud) -> None:
    ec2.write(python="/no/python", spare=0.0)
    up = ec2.up(1)
    said = up.communicate(timeout=WAIT_S)[1]
    assert up.returncode == 4, said
    assert re.search(r"0 of 1 machines became ready: host-0 \(i-\w+ c7i.large us-east-1a\) i-\w+ is terminated", said)
    none_left(ec2)


PLANS = """
import json
from pathlib import Path
from cloudburst.burst.provider import Spec
from cloudburst.burst.providers import provider_of
from cloudburst.errors import CloudburstError

def plan(on, price=None):
    try:
        plan = provider_of(on, Path("/nonexistent"), lambda _: None).plan(Spec("plan", price=price), 3)
        return [plan.places, round(plan.price, 5), plan.warnings, plan.priced]
    except CloudburstError as fault:
        return [type(fault).__name__, str(fault)]

print(json.dumps([plan("ec2:{file}"), plan("ec2?image={image}&region=eu-north-1"),
                  plan("ec2?image={image}&type={foreign}"), plan("ec2?image={image}&subnet=subnet-0"),
                  plan("ec2?image={image}&region=eu-north-1", 0.1)]))
"""


def test_plan_has_a_price_and_says_what_cannot_be(ec2: Cloud) -> None:
    foreign = "c7g.large" if os.uname().machine == "x86_64" else "c7i.large"
    text = finished(ec2, ec2.program(PLANS.format(file=ec2.profile, image=ec2.image, foreign=foreign)))
    planned, unpriced, other, unknown, priced = json.loads(text)
    assert planned[:2] == [["c7i.large in us-east-1"] * 3, 3 * 0.08925]
    assert planned[3].startswith("by a table of 2025-06-01, which is an estimate")
    assert priced[:2] == [["c7i.large in eu-north-1"] * 3, 0.3]
    assert any("1 more are asked for" in one for one in planned[2])
    assert any("machines end after 24 h whatever happens" in one for one in planned[2])
    assert unpriced[0] == "RequestError"
    assert "what c7i.large costs in eu-north-1 is not in the table" in unpriced[1]
    assert other[0] == "RequestError"
    assert "choose another type" in other[1]
    assert unknown[0] == "RequestError"
    assert "a subnet is looked for: AWS says InvalidSubnetID.NotFound" in unknown[1]
    assert ec2.hypervisor.alive() == []
