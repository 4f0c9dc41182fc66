"""Keys as files: who may read them, what they say, and that one authority follows another without a gap."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from anna import authority, keys
from anna.cli import main
from anna.errors import NotAdmitted
from anna.gate import Right
from anna.keys import FILES, BadKeys, Identity, Keys
from anna.sealing import Seal
from tests.anna.secure.conftest import SomeKeys


def meet(server: Path, client: Path) -> tuple[Identity | None, Identity | None]:
    """Return who the server and the client take each other for. Raises NotAdmitted of the first that refuses."""
    there, here = Seal(Keys(server)), Seal(Keys(client), "tcp://127.0.0.1:1")
    over = [False, False]
    while not all(over):
        for number, (side, other) in enumerate(((here, there), (there, here))):
            over[number] = over[number] or side.shake()
            other.feed(side.take())
    return here.peer, there.peer


def test_keys_can_be_read_by_their_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", str(tmp_path / "keys"), "--name", "db1"]) == 0
    assert main(["keys", "issue", str(tmp_path / "keys"), str(tmp_path / "alice")]) == 0
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o600}
    assert {path.name for path in (tmp_path / "alice").iterdir()} == set(FILES)
    assert "PRIVATE" not in capsys.readouterr().out


def test_what_keys_are_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "new", str(tmp_path / "keys"), "--json"])
    first = json.loads(capsys.readouterr().out)
    assert main(["keys", "issue", str(tmp_path / "keys"), str(tmp_path / "carl"), "--right", "code", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cluster"], found["name"], found["right"]) == (first["cluster"], "carl", "code")
    assert (first["makes_keys"], found["makes_keys"], found["authorities"]) == (True, False, 1)


@pytest.mark.parametrize("name", FILES)
def test_keys_that_others_can_read_are_refused_and_the_error_names_the_fix(
    some_keys: SomeKeys, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(some_keys.data, tmp_path / "copy"))
    (copy / name).chmod(0o640)
    with pytest.raises(BadKeys, match=f"mode 640.*chmod 600 {copy / name}"):
        Keys(copy)


def test_a_directory_without_keys_names_the_command_that_makes_some(tmp_path: Path) -> None:
    with pytest.raises(BadKeys, match="anna keys new DIR"):
        Keys(tmp_path)


def test_a_private_key_of_another_certificate_is_refused(some_keys: SomeKeys, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(some_keys.data, tmp_path / "copy"))
    shutil.copy(some_keys.code / "key.pem", copy / "key.pem")
    with pytest.raises(BadKeys, match="cannot be used"):
        Keys(copy)


def test_an_authority_is_not_made_over_another(some_keys: SomeKeys) -> None:
    before = (some_keys.admin / "authority.pem").read_bytes()
    with pytest.raises(BadKeys, match="holds keys already"):
        authority.found(some_keys.admin)
    assert (some_keys.admin / "authority.pem").read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b", "é"])
def test_a_name_that_is_none_is_refused(some_keys: SomeKeys, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadKeys, match="names nobody"):
        authority.issue(some_keys.admin, tmp_path / "out", name, Right.DATA)


def test_both_sides_know_the_other_by_name_and_right(some_keys: SomeKeys) -> None:
    server, client = meet(some_keys.admin, some_keys.data)
    assert server is not None
    assert client == Identity(server.cluster, "data", Right.DATA)
    assert (server.name, server.right) == ("admin", Right.ADMIN)


@pytest.mark.parametrize("right", ["data", "code"])
def test_who_is_no_node_cannot_listen(some_keys: SomeKeys, right: str) -> None:
    with pytest.raises(NotAdmitted, match=r"who listens at tcp://127\.0\.0\.1:1 shows keys that are not believed"):
        meet(getattr(some_keys, right), some_keys.admin)


def test_keys_of_another_cluster_are_not_believed(some_keys: SomeKeys) -> None:
    with pytest.raises(NotAdmitted, match="not believed"):
        meet(some_keys.admin, some_keys.other)


def test_keys_that_claim_the_same_cluster_are_not_believed(
    some_keys: SomeKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster is its authority's key: its name can be copied."""
    cluster = Keys(some_keys.admin).cluster
    monkeypatch.setattr("secrets.token_hex", lambda _: cluster)
    authority.found(tmp_path / "forged")
    assert Keys(tmp_path / "forged").cluster == cluster
    for server, client in ((some_keys.admin, tmp_path / "forged"), (tmp_path / "forged", some_keys.admin)):
        with pytest.raises(NotAdmitted, match="not believed"):
            meet(server, client)


def test_hosts_get_the_keys_of_a_new_authority_in_any_order(tmp_path: Path) -> None:
    authority.found(tmp_path / "keys")
    old = authority.issue(tmp_path / "keys", tmp_path / "old", "host", Right.ADMIN)
    authority.rotate(tmp_path / "keys")
    new = authority.issue(tmp_path / "keys", tmp_path / "new", "host", Right.ADMIN)
    assert (old.identity.cluster, old.authorities, new.authorities) == (new.identity.cluster, 1, 2)
    for server, client in (("old", "new"), ("new", "old"), ("new", "new"), ("keys", "old")):
        assert None not in meet(tmp_path / server, tmp_path / client)


def test_keys_of_an_authority_that_has_retired_are_refused(tmp_path: Path) -> None:
    authority.found(tmp_path / "keys")
    authority.issue(tmp_path / "keys", tmp_path / "old", "host", Right.ADMIN)
    authority.rotate(tmp_path / "keys")
    with pytest.raises(BadKeys, match="two authorities already"):
        authority.rotate(tmp_path / "keys")
    authority.retire(tmp_path / "keys")
    authority.issue(tmp_path / "keys", tmp_path / "new", "host", Right.ADMIN)
    for server, client in (("old", "new"), ("new", "old")):
        with pytest.raises(NotAdmitted, match="not believed"):
            meet(tmp_path / server, tmp_path / client)


def test_a_handshake_is_followed_by_nothing_that_nobody_asked_for(some_keys: SomeKeys) -> None:
    """TLS sessions to be resumed would make a stream that rests look out of step."""
    server, client = Seal(Keys(some_keys.admin)), Seal(Keys(some_keys.data), "tcp://127.0.0.1:1")
    while not client.shake():
        server.feed(client.take())
        server.shake()
        client.feed(server.take())
    server.feed(client.take())
    assert server.shake()
    assert server.take() == b""


def test_keys_are_renewed_under_a_running_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0.0)
    authority.found(tmp_path / "keys")
    authority.issue(tmp_path / "keys", tmp_path / "host", "host", Right.ADMIN)
    running = Keys(tmp_path / "host")
    before = running.server
    assert running.server is before
    authority.issue(tmp_path / "keys", tmp_path / "host", "host", Right.ADMIN)
    assert running.server is not before
    renewed = running.server
    (tmp_path / "host" / "key.pem").write_text("spoilt")
    assert running.server is renewed
