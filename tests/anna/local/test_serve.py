"""`anna serve`: a node in the foreground."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import anna
from anna import local
from anna.cli import main
from tests.anna.local.processes import PATIENCE_S, Family, eventually, serving


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_served_node_stays_without_users_and_a_signal_ends_it(directory: Path, number: signal.Signals) -> None:
    with serving("--workers", "2") as (process, started):
        family = Family(process.pid)
        assert (started["pid"], started["directory"], len(started["workers"])) == (process.pid, str(directory), 2)
        for value in (1, 2):
            with anna.connect() as kvs:
                assert kvs.get("k", value - 1) == value - 1
                kvs.put("k", value)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        family.assert_ended()
    assert not directory.exists()


def test_each_worker_listens_on_tcp_too(directory: Path) -> None:
    with serving("--workers", "3", "--listen", "tcp://127.0.0.1:0", "--listen", "tcp://[::1]:0") as (process, started):
        addresses = [address for worker in started["workers"] for address in worker if address.startswith("tcp:")]
        assert len(set(addresses)) == 6
        for number, address in enumerate(addresses):
            with anna.Client([address]) as kvs:
                kvs.put("k", number)
                assert kvs.get("k") == number
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_a_seed_socket_elsewhere_is_removed_in_the_end(place: Path, directory: Path) -> None:
    seed = place / "seed.sock"
    with serving("--workers", "2", "--listen", f"unix:{seed}") as (process, started):
        assert [len(worker) for worker in started["workers"]] == [2, 1]
        with anna.connect(f"unix:{seed}") as kvs:
            assert len(kvs.view.workers) == 2
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert list(place.iterdir()) == []


def test_a_seed_socket_is_removed_when_the_supervisor_is_killed_and_replaced_when_all_are(
    place: Path, directory: Path
) -> None:
    seed = place / "seed.sock"
    with serving("--workers", "1", "--listen", f"unix:{seed}") as (process, _):
        family = Family(process.pid)
        process.kill()
        family.assert_ended()
    assert list(place.iterdir()) == []
    with serving("--workers", "1", "--listen", f"unix:{seed}") as (process, _):
        family = Family(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        for member in (*family.workers, family.supervisor):
            os.kill(member.pid, signal.SIGKILL)
        family.assert_ended()
    assert seed.exists()
    with serving("--workers", "1", "--listen", f"unix:{seed}") as (process, _):
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert list(place.iterdir()) == []


def test_a_second_server_in_the_directory_is_refused_and_the_first_unharmed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving("--workers", "1"):
        assert main(["serve"]) == 1
        assert f"a cluster runs in {directory} already" in capsys.readouterr().err
        with anna.connect() as kvs:
            kvs.put("k", 1)
            assert kvs.get("k") == 1


def test_the_embedded_cluster_is_the_served_one_when_there_is_one(directory: Path) -> None:
    with serving("--workers", "1") as (process, _), local.ensure() as lease:
        assert (lease.started, lease.supervisor_pid) == (False, process.pid)


@pytest.mark.parametrize(
    ("address", "code", "complaint"),
    [
        ("tcp://203.0.113.5:6450", 2, r"203\.0\.113\.5:6450 can be reached from other machines"),
        ("tcp://db.example:6450", 2, "can be reached from other machines"),
        ("tcp://0.0.0.0:6450", 2, "name the interface that clients connect to"),
        ("tcp://127.0.0.1", 2, "not of the form tcp://HOST:PORT"),
        ("unix:/nowhere/x.sock", 3, "cannot listen on unix:/nowhere/x.sock: No such file or directory"),
    ],
)
def test_an_address_that_does_not_fit_is_refused_and_nothing_is_left(
    directory: Path, capsys: pytest.CaptureFixture[str], address: str, code: int, complaint: str
) -> None:
    assert main(["serve", "--workers", "1", "--listen", address]) == code
    assert re.search(complaint, capsys.readouterr().err)
    assert not directory.exists()


def test_a_reachable_address_needs_insecure_which_warns(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOUDBURST_LAB", raising=False)
    assert main(["serve", "--workers", "1", "--listen", "tcp://203.0.113.5:6450", "--insecure"]) == 2
    assert "--insecure takes CLOUDBURST_LAB=1 there; make keys with `anna keys new DIR`" in capsys.readouterr().err
    monkeypatch.setenv("CLOUDBURST_LAB", "1")
    assert main(["serve", "--workers", "1", "--listen", "tcp://203.0.113.5:6450", "--insecure"]) == 3
    errors = capsys.readouterr().err
    assert "warning: tcp://203.0.113.5:6450 is open to everyone who can reach it: --insecure" in errors
    assert "cannot listen on tcp://203.0.113.5:6450" in errors
    assert not directory.exists()


def test_a_port_in_use_is_told(directory: Path, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    with serving("--workers", "1", "--listen", "tcp://127.0.0.1:0", "--dir", str(place / "other")) as (_, started):
        taken = started["workers"][0][1]
        assert main(["serve", "--workers", "1", "--listen", taken]) == 3
        assert f"cannot listen on {taken}: Address already in use" in capsys.readouterr().err
    assert not directory.exists()


def test_the_message_for_people_names_addresses_and_how_to_connect(directory: Path) -> None:
    command = [sys.executable, "-m", "anna.cli", "serve", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        process.terminate()
    assert re.fullmatch(rf"anna serves with 1 worker in {directory}, ready in \d+\.\d\d s\n", said[0])
    assert said[1:] == [
        f"  worker 0: unix:{directory}/w0.sock\n",
        "connect with anna.connect(); stop with Ctrl-C\n",
    ]


def test_a_node_whose_seeds_do_not_answer_says_so_and_joins_when_one_does(place: Path, directory: Path) -> None:
    """It waits for nodes that may be starting, too; the terminal says for whom, how long, and what came of asking."""
    seed, nobody = f"unix:{place}/seed.sock", f"unix:{place}/nobody.sock"
    command = [sys.executable, "-m", "anna.cli", "serve", "--workers", "1", "--dir", f"{place}/b"]
    with subprocess.Popen(
        [*command, "--join", seed, "--join", nobody], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(f"anna joins the cluster of {seed} or {nobody} with 1 worker ")
            said = next(line for line in process.stderr if "waiting" in line)
            assert re.search(r"none of the 2 seeds has answered for a cluster in 2 s, asked \d+ times", said), said
            assert f"{seed} (No such file or directory), {nobody} (No such file or directory)" in said
            with serving("--workers", "1", "--listen", seed), anna.Client([seed]) as kvs:

                def joined() -> bool:
                    kvs.refresh(time.monotonic_ns() + 1_000_000_000)
                    return len(kvs.view.serving) == 2

                eventually(joined, "the node has joined")
        finally:
            process.kill()
