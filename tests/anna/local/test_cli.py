"""The command `anna`, end to end against real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

import anna
from anna import local
from anna.cli import main
from tests.anna.local.processes import PATIENCE_S, Family, eventually, serving

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster(directory: Path) -> Iterator[local.Lease]:
    """A running cluster of two workers, held by the test."""
    with local.ensure(workers=2, linger_s=0.0) as lease:
        family = Family(lease.supervisor_pid)
        yield lease
    family.assert_ended()


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command; returns its exit code, output and errors."""

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as usage:
            code = int(usage.code or 0)
        sys.stdout.flush()
        out, errors = capfdbinary.readouterr()
        return code, out.decode(), errors.decode()

    return command


def test_put_get_and_delete(cluster: local.Lease, run: Run) -> None:
    """D42: a missing key or argument ended the command line with an assertion."""
    assert run("put", "greeting", "hello world") == (0, "", "")
    assert run("get", "greeting") == (0, "hello world\n", "")
    assert run("delete", "greeting") == (0, "", "")
    missing = "no value is stored under 'greeting' (KeyNotFound)\n"
    assert run("get", "greeting") == (1, "", f"anna get: {missing}")
    assert run("delete", "greeting") == (1, "", f"anna delete: {missing}")


def test_json_in_and_out(cluster: local.Lease, run: Run) -> None:
    code, out, _ = run("put", "k", '{"a": [1, 2.5, null, "é"]}', "--json")
    ack = json.loads(out)
    assert (code, ack["key"], ack["type"], ack["replicas"]) == (0, "k", "lww", 1)
    assert ack["stamp"] > 0
    assert run("get", "k") == (0, '{"a": [1, 2.5, null, "é"]}\n', "")
    assert run("get", "k", "--json") == (
        0,
        '{"key": "k", "type": "lww", "value": {"a": [1, 2.5, null, "é"]}}\n',
        "",
    )
    error = {"type": "KeyNotFound", "message": "no value is stored under 'x'", "definite": True}
    code, out, _ = run("get", "x", "--json")
    assert (code, json.loads(out)) == (1, {"error": error})
    assert json.loads(run("delete", "k", "--json")[1]) == {"key": "k", "deleted": True}


def test_bytes_are_printed_as_they_are(cluster: local.Lease, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with anna.connect() as kvs:
        kvs.put("raw", b"\xff\x00\n")
    assert main(["get", "raw"]) == 0
    assert capfdbinary.readouterr() == (b"\xff\x00\n", b"")
    assert main(["get", "raw", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr()[0])["value"] == {"base64": "/wAK"}


def test_a_pickle_is_loaded_only_when_asked(cluster: local.Lease, run: Run) -> None:
    with anna.connect() as kvs:
        kvs.put("p", PurePosixPath("/x"))
    code, out, error = run("get", "p")
    assert (code, out) == (1, "")
    assert error.endswith("(NeedsPickle)\n")
    assert run("get", "p", "--allow-pickle") == (0, "\"PurePosixPath('/x')\"\n", "")


@pytest.mark.parametrize(
    ("writes", "printed"),
    [
        ([["--type", "counter", "+5"], ["--type", "counter", "-2"]], "3"),
        ([["b", "a", "--type", "set"], ["--type", "set", "1", '"1"']], '["1", "a", "b", 1]'),
        ([["milk", "eggs", "--type", "or-set"], ["--type", "ORSet", "--remove", "eggs", "tea"]], '["milk", "tea"]'),
        ([["3", "9", "5", "--type", "ordered_set", "--limit", "2"]], "[5, 9]"),
        ([["17.5", "far", "--type", "priority"], ["3", "near", "--type", "priority"]], "near"),
        ([["3", "--type", "max"], ["2", "--type", "max"]], "3"),
        ([["3", "--type", "min"], ["2", "--type", "min"]], "2"),
        ([["false", "--type", "bool"], ["--type", "bool"]], "true"),
        ([["a=1", "b=x", "--type", "map"], ["--type", "map", "a=2"]], '{"a": 2, "b": "x"}'),
        ([["1=3", "0x2=1", "--type", "vector-clock"]], '{"1": 3, "2": 1}'),
        ([["draft", "--type", "causal"]], '["draft"]'),
        ([["first", "--type", "lww"], ["second", "--type", "lww"]], "second"),
    ],
    ids=lambda case: case[0][-2] if isinstance(case, list) else "",
)
def test_every_lattice_can_be_merged_and_printed(
    cluster: local.Lease, run: Run, writes: list[list[str]], printed: str
) -> None:
    for words in writes[:-1]:
        assert run("put", "k", *words) == (0, "", "")
    assert run("merge", "k", *writes[-1]) == (0, f"{printed}\n", "")
    assert run("get", "k") == (0, f"{printed}\n", "")


def test_a_write_of_another_type_is_refused_in_one_line(cluster: local.Lease, run: Run) -> None:
    run("put", "n", "1", "--type", "counter")
    assert run("put", "n", "7") == (1, "", "anna put: 'n' holds a Counter, got a LWW (LatticeTypeMismatch)\n")
    assert run("get", "n")[1] == "1\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["put", "k"], "give one value, not 0"),
        (["put", "k", "a", "b"], "give one value, not 2"),
        (["put", "k", "x", "--type", "counter"], "cannot make a counter of 'x': invalid literal"),
        (["put", "k", "1", "2", "--type", "counter"], "give one amount, such as +3 or -1, not 2"),
        (["put", "k", "x", "--type", "bool"], "a bool is true or false, not 'x'"),
        (["put", "k", "x", "--type", "priority"], "a priority is spelled PRIORITY VALUE, got 1 words"),
        (["put", "k", "x", "--type", "map"], "spell it NAME=VALUE, not 'x'"),
        (["put", "k", "x", "--remove", "y"], "only an orset can have elements removed, not a lww"),
        (["put", "k", "x", "--type", "set", "--limit", "3"], "only an orderedset has a limit, not a set"),
        (["put", "k", "x", "--type", "tree"], "invalid choice: 'tree'"),
        (["put", "k", "x", "--nope"], "unrecognized arguments: --nope"),
        (["get", "k", "extra"], "unrecognized arguments: extra"),
        (["get"], "required: key"),
        (["get", "k", "--timeout", "0"], "0 is not a positive number"),
        (["get", "k", "--at", "k:6450"], "address 'k:6450' is neither unix:PATH nor tcp://HOST:PORT"),
        (["bench", "--clients", "0"], "0 is not 1 or more"),
        (["merge", "k", "1"], "required: --type"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_reason(
    cluster: local.Lease, run: Run, words: list[str], complaint: str
) -> None:
    code, out, errors = run(*words)
    assert (code, out) == (2, "")
    assert complaint in errors


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "router", "backup", "restore", "get", "put", "merge", "delete", "scan", "watch"),
        *("status", "where", "bench"),
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert re.search(rf"example:\n  anna {command} ?", out)
    assert "--json" in out


def test_where_names_the_owner(cluster: local.Lease, run: Run) -> None:
    code, out, _ = run("where", "greeting", "--json")
    found = json.loads(out)
    with anna.connect() as kvs:
        expected = kvs.where("greeting")
    assert (code, found["key"], found["hash"]) == (0, "greeting", "e7c5ca42cd4bed7f")
    assert [(o["seat"], o["addresses"]) for o in found["owners"]] == [(expected["place"], expected["addresses"])]
    code, out, _ = run("where", "greeting")
    assert code == 0
    said = "under view 1 it is to have 1 copy in memory, the default; its owner is"
    assert f"'greeting' has hash e7c5ca42cd4bed7f; {said}" in out
    assert expected["addresses"][0] in out


def test_where_says_who_holds_the_key_now(cluster: local.Lease, run: Run) -> None:
    """D42: the command line misprinted what was missing."""
    assert json.loads(run("where", "k", "--json")[1])["owners"][0]["held"] is False
    assert "memory, alive: holds nothing" in run("where", "k")[1]
    stamp = json.loads(run("put", "k", "v", "--json")[1])["stamp"]
    found = json.loads(run("where", "k", "--json")[1])
    owner = found["owners"][0]
    assert (found["factor"], owner["tier"], owner["status"]) == (1, "memory", "alive")
    assert (owner["held"], owner["type"]) == (True, "lww")
    assert owner["stamp"] <= stamp
    assert f"holds a lww of stamp {owner['stamp']}" in run("where", "k")[1]


def test_a_key_is_given_copies_and_the_default_again(cluster: local.Lease, run: Run) -> None:
    """The embedded cluster has two workers with memory, and no more copies than that."""
    run("put", "k", "v")

    def found() -> dict[str, Any]:
        return dict(json.loads(run("where", "k", "--json")[1]))

    default = {"memory": 1, "disk": 0}
    where = found()
    assert (where["vector"], where["own"], where["copies"], where["moving_to"]) == (default, False, default, None)
    code, out, _ = run("replicate", "k", "--memory", "3", "--disk", "1", "--json")
    told = json.loads(out)
    assert (code, told["keys"], told["vector"]) == (0, ["k"], {"memory": 3, "disk": 1})
    eventually(lambda: found()["own"], "its copies have moved")
    where = found()
    assert (where["vector"], where["copies"]) == ({"memory": 3, "disk": 1}, {"memory": 2, "disk": 0})
    assert [owner["held"] for owner in where["owners"]] == [True, True]
    words = "it is to have 3 copies in memory and 1 on disk, its own number; there are workers for 2 copies in memory"
    assert f"{words}; its owners are" in run("where", "k")[1]
    assert run("status")[1].splitlines()[0].endswith(", 1 key with other numbers")
    assert run("replicate", "k", "--default")[0] == 0
    eventually(lambda: not found()["own"], "it is as all others again")
    assert len(found()["owners"]) == 1
    assert run("get", "k")[:2] == (0, "v\n")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("k",), "a key has at least one copy"),
        (("k", "--memory", "1", "--default"), "a key has at least one copy"),
        (("k", "--memory", "17"), "number of copies in memory is 17; it must be 0 to 16"),
        (("k", "--disk", "-1"), "-1 is not 0 or more"),
    ],
)
def test_copies_that_cannot_be_are_refused(words: tuple[str, ...], why: str, cluster: local.Lease, run: Run) -> None:
    code, _, err = run("replicate", *words)
    assert (code, why in err) == (2, True)


def test_scan_prints_keys_in_order(cluster: local.Lease, run: Run) -> None:
    for number in range(12):
        run("put", f"user:{number:02}", "v")
    run("put", "other", "v")
    assert run("scan", "user:")[1].split() == [f"user:{n:02}" for n in range(12)]
    assert run("scan", "user:", "--limit", "2")[1].split() == ["user:00", "user:01"]
    assert [json.loads(line) for line in run("scan", "--json")[1].splitlines()][:1] == [{"key": "other"}]
    assert run("scan", "nothing") == (0, "", "")


def test_watch_prints_the_present_value_and_ends_when_nothing_changes(cluster: local.Lease, run: Run) -> None:
    run("put", "best", "7")
    assert run("watch", "best", "--until", "0.05") == (0, "7\n", "")
    assert run("watch", "best", "--count", "1", "--json") == (0, '{"key": "best", "value": 7}\n', "")
    assert run("watch", "nothing", "--until", "0.05") == (0, "", "")


def test_put_with_conditions(cluster: local.Lease, run: Run) -> None:
    assert run("put", "seat", "mine", "--if-stamp", "0", "--ttl", "60", "--ack", "memory")[0] == 0
    code, out, errors = run("put", "seat", "yours", "--if-stamp", "0")
    assert (code, out) == (1, "")
    assert errors.endswith("(Changed)\n")
    assert run("put", "seat", "x", "--ack", "2")[2].endswith("the key has 1 owner now (UnavailableError)\n")
    assert run("put", "seat", "x", "--ack", "both")[0] == 2
    assert run("put", "seat", "x", "--ttl", "0")[0] == 2
    assert run("get", "seat") == (0, "mine\n", "")


def test_status_shows_each_worker(cluster: local.Lease, run: Run) -> None:
    for number in range(20):
        run("put", f"k{number}", "v")
    code, out, _ = run("status", "--json")
    workers = json.loads(out)["workers"]
    assert (code, len(workers)) == (0, 2)
    assert (sum(w["keys"] for w in workers), sum(w["puts"] for w in workers)) == (20, 20)
    code, out, _ = run("status")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "2 workers on 1 node, view 1")
    assert lines[1].split() == ["worker", "keys", "bytes", "gets", "puts", "deletes", "refused", "uptime"]
    assert sum(int(line.split()[1]) for line in lines[2:4]) == 20


def test_status_shows_the_nodes_and_whether_all_is_whole(place: Path, run: Run) -> None:
    with serving("--dir", f"{place}/a", "--workers", "1", "--factor", "2") as (_, started):
        seed = started["workers"][0][0]
        with serving("--dir", f"{place}/b", "--workers", "2", "--join", seed) as (second, _):

            def status() -> dict[str, Any]:
                return dict(json.loads(run("status", "--json", "--at", seed)[1]))

            eventually(lambda: [n["status"] for n in status()["nodes"]] == ["alive", "alive"], "both nodes serve")
            eventually(lambda: status()["whole"], "all copies are there")
            found = status()
            assert (found["factor"], sorted(node["workers"] for node in found["nodes"])) == (2, [1, 2])
            assert all(node["complete"] and node["tier"] == "memory" for node in found["nodes"])
            assert all(0 <= node["stable_lag_s"] < 5 for node in found["nodes"])
            _, out, _ = run("status", "--at", seed)
            assert out.splitlines()[0].endswith(f"view {found['view']}, 2 copies of each key")
            assert "under-replicated" not in out
            second.kill()
            second.wait(PATIENCE_S)
            assert status()["whole"] is False, "a node that does not answer is no copy"
            eventually(lambda: "dead" in [node["status"] for node in status()["nodes"]], "the node is called dead")
            _, out, _ = run("status", "--at", seed)
            assert "under-replicated" in out


def test_status_of_a_hung_worker_is_a_failure_that_shows_the_others(cluster: local.Lease, run: Run) -> None:
    hung = Family(cluster.supervisor_pid).workers[1].pid
    os.kill(hung, signal.SIGSTOP)
    try:
        code, out, _ = run("status", "--timeout", "0.2")
    finally:
        os.kill(hung, signal.SIGCONT)
    lines = out.splitlines()
    assert (code, len(lines)) == (1, 4)
    assert len(lines[2].split()) >= 8
    assert "did not answer" in lines[3]


def test_a_passed_deadline_is_exit_code_5(cluster: local.Lease, run: Run) -> None:
    workers = [worker.pid for worker in Family(cluster.supervisor_pid).workers]
    with anna.connect() as kvs:
        owner, address = kvs.where("k")["place"], kvs.view.workers[1 - kvs.where("k")["place"]].addresses[0]
    os.kill(workers[owner], signal.SIGSTOP)
    try:
        code, out, errors = run("get", "k", "--timeout", "0.2", "--at", address)
    finally:
        os.kill(workers[owner], signal.SIGCONT)
    assert (code, out) == (5, "")
    assert errors.endswith("(RequestTimeout)\n")


def test_bench_measures_puts_and_gets_and_leaves_no_keys(cluster: local.Lease, run: Run) -> None:
    shape = ("--seconds", "0.05", "--clients", "2", "--value-bytes", "10")
    for depth in ("1", "8"):
        code, out, _ = run("bench", "--json", "--depth", depth, *shape)
        rows = json.loads(out)["rows"]
        assert (code, [row["operation"] for row in rows]) == (0, ["put", "get"])
        assert all(row["ops_s"] > 0 and 0 < row["p50_us"] <= row["p99_us"] for row in rows)
    code, out, _ = run("bench", *shape)
    assert (code, out.splitlines()[0]) == (0, "2 clients, 1 at a time, values of 10 bytes, 0.05 s each")
    assert sum(w["keys"] for w in json.loads(run("status", "--json")[1])["workers"]) == 0


def test_without_a_cluster_reading_says_so_and_starts_none(directory: Path, run: Run) -> None:
    for words in (["get", "k"], ["delete", "k"], ["scan"], ["watch", "k"], ["where", "k"], ["status"]):
        told = f"anna {words[0]}: no cluster runs in {directory}; `anna serve` starts one that stays (NoWorkers)\n"
        assert run(*words) == (1, "", told)
    assert not directory.exists()


def test_without_a_cluster_writing_starts_one_and_says_that_it_passes(directory: Path, run: Run) -> None:
    code, out, errors = run("put", "k", "v")
    assert (code, out) == (0, "")
    assert "was started for this command and ends with it" in errors


def test_an_address_at_which_nobody_answers(place: Path, run: Run) -> None:
    code, out, errors = run("get", "k", "--at", f"unix:{place}/nobody.sock")
    assert (code, out) == (1, "")
    assert errors.endswith("(NoWorkers)\n")


def test_a_directory_that_others_can_reach_is_exit_code_3(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.chmod(0o755)
    monkeypatch.setenv("ANNA_DIR", str(place))
    code, out, errors = run("put", "k", "v")
    assert (code, out) == (3, "")
    assert f"{place} has mode 0755" in errors


def test_the_address_can_come_from_the_environment(
    cluster: local.Lease, run: Run, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    run("put", "k", "v")
    monkeypatch.setenv("ANNA_DIR", str(place / "elsewhere"))
    monkeypatch.setenv("ANNA_ADDRESS", cluster.address)
    assert run("get", "k") == (0, "v\n", "")


def test_a_reader_that_goes_away_is_no_error(cluster: local.Lease, run: Run) -> None:
    with anna.connect() as kvs:
        kvs.put("long", "x" * 1_000_000)
    got = subprocess.Popen(
        [sys.executable, "-m", "anna.cli", "get", "long"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert got.stdout is not None
    assert got.stderr is not None
    with got:
        assert got.stdout.read(10) == b"x" * 10
        got.stdout.close()
        assert got.stderr.read() == b""
        assert got.wait(PATIENCE_S) == 0
