"""What is shipped is the same for the same files, is there whole or not at all, and a hosts.toml says what is wrong."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloudburst import config
from cloudburst.burst import agent, bootstrap, hostfile, shipping
from cloudburst.burst.loadable import loadable
from cloudburst.burst.remote import SOABI
from cloudburst.errors import EnvironmentMismatch, RequestError


def test_equal_files_make_equal_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = shipping.pack([("a.py", tmp_path / "a.py")])
    os.utime(tmp_path / "a.py", (1, 1))
    assert shipping.pack([("a.py", tmp_path / "a.py")]) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    assert shipping.pack([("a.py", tmp_path / "a.py")]) != first


def test_what_a_node_needs_is_shipped_and_what_only_typists_need_is_not() -> None:
    names = {name for name, _ in shipping.files()}
    assert {"cloudburst/node.py", "anna/cli.py", "cloudpickle/__init__.py"} <= names
    assert any(name.startswith("cloudburst/page.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.endswith((".pyx", ".c")) or name.startswith("rich/")]


def test_keys_that_lie_among_our_files_are_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("key.pem", "secret", "id_ed25519", "keys.py"):
        (tmp_path / "demos" / "mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "demos" / "mine" / name).write_text("x = 1\n")
    monkeypatch.setattr(shipping, "__file__", str(tmp_path / "cloudburst" / "burst" / "shipping.py"))
    assert [name for name, _ in shipping.files() if name.startswith("demos/")] == ["demos/mine/keys.py"]


def test_what_is_shipped_is_whole_with_what_depends_on_the_kind_of_python() -> None:
    """What stands behind a condition had been left out, and with it half of a library that nodes with keys need."""
    found = shipping.dependencies("cryptography")
    assert {"cffi", "pycparser"} <= found
    assert "bcrypt" not in found, "it is of an extra"
    with pytest.raises(EnvironmentMismatch, match="'no-such-thing' is not installed here"):
        shipping.dependencies("no-such-thing")


def modules() -> list[Path]:
    """Return the compiled modules that are shipped."""
    return [path for name, path in shipping.files() if shipping.SHARED_OBJECT.search(name)]


def test_what_only_debuggers_read_is_not_shipped_and_what_is_mapped_is_the_same(tmp_path: Path) -> None:
    whole = {path: path.read_bytes() for path in modules()}
    cut = {path: loadable(data) for path, data in whole.items()}
    assert sum(map(len, cut.values())) < sum(map(len, whole.values()))
    for path, data in cut.items():
        before = whole[path]
        same = [place for place in range(64) if data[place] == before[place]]
        assert set(range(64)) - set(same) <= {*range(40, 48), *range(60, 64)}, "only where the sections are"
        assert data[64:] == before[64 : len(data)]
        assert loadable(data) == data
    for name in ("anna", "cloudburst", "uvloop", "msgpack"):
        (tmp_path / name).mkdir()
        for path in (one for one in cut if f"/{name}/" in str(one)):
            (tmp_path / name / path.name).write_bytes(cut[path])
    load = "import ctypes, pathlib, sys; [ctypes.CDLL(str(one)) for one in pathlib.Path(sys.argv[1]).rglob('*.so')]"
    subprocess.run([sys.executable, "-c", load, str(tmp_path)], check=True, timeout=60)


def test_what_is_no_shared_object_or_has_something_appended_is_left_alone() -> None:
    data = max((path.read_bytes() for path in modules()), key=lambda data: len(data) - len(loadable(data)))
    program = data[:16] + b"\x02" + data[17:]
    for other in (b"", b"#!/bin/sh\n", data[:100], data[:-1], data + b"what somebody looks for at the end", program):
        assert loadable(other) == other


def boot(home: Path, digest: str, data: bytes) -> list[dict[str, object]]:
    """Run the first program of a host up to the agent; return what it says."""
    said = json.dumps({"digest": digest}).encode() + b"\n%d\n" % len(data) + data
    done = subprocess.run(
        [sys.executable, "-I", bootstrap.__file__], input=said, capture_output=True, timeout=60,
        env={**os.environ, "XDG_CACHE_HOME": str(home)},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_host_takes_only_what_has_the_digest_and_only_once(tmp_path: Path) -> None:
    package = tmp_path / "agent.py"
    package.write_text("def main():\n    print('{\"here\": true}')\n")
    (tmp_path / "empty.py").write_text("")
    data = shipping.pack([
        ("cloudburst/__init__.py", tmp_path / "empty.py"), ("cloudburst/burst/__init__.py", tmp_path / "empty.py"),
        ("cloudburst/burst/agent.py", package),
    ])  # fmt: skip
    digest = hashlib.sha256(data).hexdigest()
    kept = tmp_path / "cache" / "cloudburst"
    changed = bytearray(data)
    changed[-1] ^= 1
    hello, refused = boot(tmp_path / "cache", digest, bytes(changed))
    assert (hello["soabi"], hello["have"]) == (SOABI, False)
    assert "what came has the SHA-256" in str(refused["fault"])
    assert list(kept.glob("*")) == []
    assert boot(tmp_path / "cache", digest, data)[0]["have"] is False
    assert [path.name for path in kept.iterdir()] == [digest]
    again = boot(tmp_path / "cache", digest, b"")
    assert (again[0]["have"], again[1]) == (True, {"here": True})


def kept_with(home: Path, ages: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Make what was shipped so many seconds ago, by name; return where each is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    places = {}
    for name, age_s in ages.items():
        places[name] = bootstrap.home() / (name if "." in name else name * 64)
        places[name].mkdir(parents=True)
        (places[name] / "file").write_text(name)
        os.utime(places[name], (time.time() - age_s,) * 2)
    return places


def test_what_is_old_is_removed_unless_somebody_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, begun = f"{'a' * 64}.17", f"{'b' * 64}.18"
    ages = {"a": 900.0, "b": 800.0, "c": 700.0, "d": 600.0, "e": 500.0, left: 1e5, begun: 1.0}
    places = kept_with(tmp_path, ages, monkeypatch)
    (bootstrap.home() / "shipped").mkdir()
    used = bootstrap.taken(places["b"])
    old = bootstrap.taken(places["a"])
    assert used is not None
    assert old is not None
    os.close(old)
    for name in ("a", "b"):
        os.utime(places[name], (time.time() - ages[name],) * 2)
    bootstrap.prune()
    there = {name for name, place in places.items() if place.is_dir()}
    assert there == {"b", "c", "d", "e", begun}
    assert (places["b"] / "file").read_text() == "b"
    os.close(used)
    bootstrap.prune()
    assert not places["b"].exists()
    assert sorted(path.name[0] for path in bootstrap.home().iterdir()) == ["b", "c", "d", "e", "s"]


def test_what_was_used_last_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = kept_with(tmp_path, {"a": 900.0, "b": 800.0, "c": 700.0, "d": 600.0}, monkeypatch)
    lock = bootstrap.taken(places["a"])
    assert lock is not None
    os.close(lock)
    bootstrap.prune()
    assert [name for name, place in places.items() if place.is_dir()] == ["a", "c", "d"]


def test_what_is_removed_while_somebody_asks_for_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of its lock and the locking, another one moves it away."""
    place = kept_with(tmp_path, {"a": 900.0}, monkeypatch)["a"]
    real = fcntl.flock

    def late(lock: int, how: int) -> None:
        place.rename(tmp_path / "moved")
        real(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert bootstrap.taken(place) is None


def test_input_that_ends_half_way_leaves_nothing(tmp_path: Path) -> None:
    said = json.dumps({"digest": "d"}).encode() + b"\n1000\nonly this"
    subprocess.run([sys.executable, "-I", bootstrap.__file__], input=said, stdout=subprocess.DEVNULL, timeout=60,
                   env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_agent_that_hears_nothing_takes_its_client_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "AGENT_LEASE_S", 0.2)
    heard, saying = os.pipe()
    try:
        orders = agent.Orders(heard)
        os.write(saying, b'{"beat": 1}\n{"end": "now"}\n')
        assert (orders.next(1.0), orders.next(1.0)) == ({"beat": 1}, {"end": "now"})
        assert not orders.lost
        assert orders.next(0.3) is None
        assert orders.lost
    finally:
        os.close(heard)
        os.close(saying)


def test_agent_whose_input_ends_takes_its_client_for_lost_at_once() -> None:
    heard, saying = os.pipe()
    orders = agent.Orders(heard)
    os.close(saying)
    assert orders.next(1.0) is None
    assert orders.lost
    os.close(heard)


GOOD = '[defaults]\nuser = "me"\n[[host]]\nhost = "10.0.0.5"\n[[host]]\nhost = "b"\nport = 2222\nuser = "you"\n'


def test_hosts_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "hosts.toml").write_text(GOOD)
    assert [one.place for one in hostfile.read(str(tmp_path / "hosts.toml"))] == ["me@10.0.0.5", "you@b:2222"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[host]]\nport = 1\n", r'host 1 \(unnamed\): host = "…" is missing'),
        ('[[host]]\nhost = "a"\nports = 1\n', r"host 1 \(a\): ports is not known; there are host, port, user, key"),
        ('[[host]]\nhost = "a"\nport = "22"\n', "port is '22'; it is a number"),
        ("[hosts]\n", r"has hosts; it has \[defaults\] and one \[\[host\]\] for each host"),
        ("", "lists no hosts"),
        ("[[host", "is no TOML"),
    ],
)
def test_what_is_wrong_with_a_file_of_hosts_is_said_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hosts.toml").write_text(text)
    with pytest.raises(RequestError, match=said):
        hostfile.read(str(tmp_path / "hosts.toml"))


def test_file_of_hosts_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match=r"No such file.*--on ssh:FILE names a file like hosts.toml"):
        hostfile.read("/nowhere/hosts.toml")
