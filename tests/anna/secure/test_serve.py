"""`anna serve --keys`: what it refuses to do without, what it lets others see, and what its log says."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest

import anna
from anna.cli import main
from anna.errors import NotAdmitted
from anna.keys import Keys
from anna.logs import EVENTS
from tests.anna.local.processes import PATIENCE_S, children_of, eventually, serving
from tests.anna.secure.conftest import SomeKeys

LISTEN = ("--workers", "1", "--listen", "tcp://127.0.0.1:0")

COUNTING = """
import os, sys
def hook(event, args):
    if event == "pickle.find_class":
        with open(os.environ["COUNTED"], "a") as file:
            file.write(f"{os.getpid()}\\n")
sys.addaudithook(hook)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANNA_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def knows_the_view(address: str, keys: Path) -> bool:
    try:
        anna.connect(address, keys=keys).close()
        return True
    except anna.NoWorkers:
        return False


def test_without_keys_the_refusal_names_the_command_that_makes_them(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--listen", "tcp://203.0.113.5:6450"]) == 2
    assert "make keys with `anna keys new DIR` and give --keys DIR" in capsys.readouterr().err


def test_with_keys_an_address_that_others_can_reach_is_taken(
    directory: Path, some_keys: SomeKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--workers", "1", "--listen", "tcp://203.0.113.5:6450", "--keys", str(some_keys.admin)]
    assert main(words) == 3  # the address is not this machine's
    assert "cannot listen on tcp://203.0.113.5:6450" in capsys.readouterr().err


def test_keys_that_others_can_read_are_no_reason_to_start(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["keys", "new", str(tmp_path / "keys")])
    (tmp_path / "keys" / "key.pem").chmod(0o644)
    assert main(["serve", "--workers", "1", "--keys", str(tmp_path / "keys")]) == 2
    assert re.search(r"can be read by others \(mode 644\): chmod 600 .*/key.pem \(BadKeys\)", capsys.readouterr().err)


def test_the_shell_shows_keys_too(
    directory: Path, some_keys: SomeKeys, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(*LISTEN, "--keys", str(some_keys.admin)) as (_, started):
        at = ["--at", started["workers"][0][1]]
        assert main(["put", "k", "1", *at, "--keys", str(some_keys.data)]) == 0
        monkeypatch.setenv("ANNA_KEYS", str(some_keys.data))
        assert main(["get", "k", *at]) == 0
        assert capsys.readouterr().out.endswith("1\n")
        monkeypatch.setenv("ANNA_KEYS", str(some_keys.other))
        assert main(["get", "k", *at]) == 1
        assert "(NotBelieved)" in capsys.readouterr().err


def test_a_router_takes_only_who_shows_keys(directory: Path, some_keys: SomeKeys) -> None:
    keys = ("--keys", str(some_keys.admin))
    with serving(*LISTEN, *keys) as (_, started):
        words = ("router", "--join", started["workers"][0][1], "--listen", "tcp://127.0.0.1:0", "--json", *keys)
        command = [sys.executable, "-m", "anna.cli", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as router:
            try:
                assert router.stdout is not None
                address = re.findall(r"tcp://[\d.:]+", router.stdout.readline())[0]
                eventually(lambda: knows_the_view(address, some_keys.data), "it has asked the worker")
                with pytest.raises(NotAdmitted):
                    anna.connect(address)
            finally:
                router.terminate()


def test_a_node_of_another_cluster_cannot_join(directory: Path, some_keys: SomeKeys, tmp_path: Path) -> None:
    with serving(*LISTEN, "--keys", str(some_keys.admin)) as (_, started):
        seed = started["workers"][0][1]
        others = ("--dir", str(tmp_path / "second"), "--join", seed, "--keys", str(some_keys.other))
        with serving(*LISTEN, *others) as (process, _):
            assert process.stderr is not None
            assert next(line for line in process.stderr if "not believed" in line)
        with anna.connect(seed, keys=some_keys.data) as kvs:
            assert len(kvs.view.nodes) == 1


def test_metrics_are_read_by_who_shows_keys(directory: Path, some_keys: SomeKeys) -> None:
    words = ("--metrics", "127.0.0.1:0", "--keys", str(some_keys.admin))
    with serving("--workers", "1", *words) as (_, started):
        url = f"https://{started['metrics']}/metrics"
        with urllib.request.urlopen(url, context=Keys(some_keys.data).client, timeout=PATIENCE_S) as answer:
            assert b"anna_worker_up" in answer.read()
        nobody = ssl.create_default_context()
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((URLError, OSError)):
            urllib.request.urlopen(url, context=nobody, timeout=PATIENCE_S)
        with pytest.raises((URLError, OSError)):
            urllib.request.urlopen(url.replace("https", "http"), timeout=PATIENCE_S)


def test_no_argument_environment_or_log_holds_a_key_and_nothing_is_unpickled(
    directory: Path, some_keys: SomeKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    probe = "import pickle, fractions; pickle.loads(pickle.dumps(fractions.Fraction(1, 2)))"
    subprocess.run([sys.executable, "-c", probe], check=True)
    assert (tmp_path / "counted").read_text().count("\n") == 1  # so the hook counts
    files = (some_keys.admin / name for name in ("key.pem", "authority-key.pem"))
    lines = [line for file in files for line in file.read_text().split("\n")]
    secrets = [line.encode() for line in lines if len(line) > 20 and "PRIVATE" not in line]
    assert len(secrets) >= 4
    with serving(*LISTEN, "--keys", str(some_keys.admin)) as (process, begun):
        address = begun["workers"][0][1]
        with anna.connect(address, keys=some_keys.data) as kvs:
            kvs.put("pickled", {1, "mixed", None, frozenset({2.5})})
            assert kvs.get("pickled") == {1, "mixed", None, frozenset({2.5})}
        with pytest.raises(NotAdmitted):
            anna.connect(address, keys=some_keys.other)
        log = []
        assert process.stderr is not None
        while not log or "did not admit 1 connection(s); the last, from 127.0.0.1:" not in log[-1]:
            log.append(process.stderr.readline())
        for pid in (process.pid, *children_of(process.pid)):
            seen = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
            assert not [secret for secret in secrets if secret in seen]
    assert not [secret for secret in secrets if secret in "".join(log).encode()]
    assert (tmp_path / "counted").read_text().count("\n") == 1
    assert "not-admitted" in EVENTS
