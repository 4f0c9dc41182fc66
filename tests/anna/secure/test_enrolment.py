"""A machine with a token gets keys of its own, once, in its time; nobody else does, and no secret goes elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from anna import authority, enrolment
from anna.address import TcpAddress
from anna.enrolment import Enrolment, Token, join, make
from anna.errors import AnnaError, NotAdmitted
from anna.gate import Right
from anna.keys import BadKeys, Keys, identity_of
from anna.sealing import Seal
from tests.anna.secure.conftest import SomeKeys

Made = Callable[..., Token]


@pytest.fixture
def place(some_keys: SomeKeys) -> Iterator[TcpAddress]:
    """Where the authority of the cluster takes tokens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=Enrolment(some_keys.admin).serve, args=(listener,), daemon=True).start()
        yield TcpAddress(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("right", Right)
def test_machine_with_a_token_gets_keys_of_its_name_and_right(
    some_keys: SomeKeys, place: TcpAddress, tmp_path: Path, right: Right
) -> None:
    token = make(some_keys.admin, place, "db3", right)
    assert join(Token.read(token.text + "\n"), tmp_path / "keys") == "db3"
    shown = authority.show(tmp_path / "keys")
    assert (shown.identity.name, shown.identity.right, shown.makes_keys) == ("db3", right, False)
    three = ["authorities.pem", "certificate.pem", "key.pem"]
    wanted = ["enrolled", *three, *(f"code/{name}" for name in three if right == Right.ADMIN)]
    assert files(tmp_path / "keys") == sorted(wanted)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").rglob("*.pem")} == {0o600}
    ours, theirs = Seal(Keys(tmp_path / "keys"), "there"), Seal(Keys(some_keys.admin))
    while not (ours.shake() & theirs.shake()):
        theirs.feed(ours.take())
        ours.feed(theirs.take())
    assert theirs.peer == shown.identity
    private = (tmp_path / "keys" / "key.pem").read_bytes()
    assert not any(private == path.read_bytes() for path in some_keys.admin.rglob("*.pem")), "it was made here"


def test_token_that_was_used_is_refused(some_keys: SomeKeys, place: TcpAddress, tmp_path: Path) -> None:
    token = make(some_keys.admin, place, "once", Right.DATA)
    join(token, tmp_path / "first")
    with pytest.raises(NotAdmitted, match="gives no keys: this token is not known, or was used"):
        join(token, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_of_many_that_use_a_token_at_once_one_gets_keys(
    some_keys: SomeKeys, place: TcpAddress, tmp_path: Path
) -> None:
    token = make(some_keys.admin, place, "raced", Right.DATA)
    begin = threading.Barrier(8)

    def attempt(number: int) -> str:
        begin.wait()
        try:
            return join(token, tmp_path / str(number))
        except NotAdmitted:
            return ""

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(8))) == [""] * 7 + ["raced"]


def test_token_is_good_for_its_time_only(some_keys: SomeKeys, place: TcpAddress, tmp_path: Path) -> None:
    assert enrolment.TOKEN_S == 600.0
    late = make(some_keys.admin, place, "late", Right.DATA, within_s=-1.0)
    with pytest.raises(NotAdmitted, match="this token is too old"):
        join(late, tmp_path / "late")


def test_secret_is_nowhere_but_in_the_token(some_keys: SomeKeys, place: TcpAddress) -> None:
    token = make(some_keys.admin, place, "kept", Right.DATA)
    kept = [path for path in some_keys.admin.rglob("*") if path.is_file()]
    assert len(token.secret) > 40
    assert token.secret not in repr(token)
    assert not any(token.secret.encode() in path.read_bytes() or token.secret in str(path) for path in kept)


def test_guess_and_nonsense_are_refused(some_keys: SomeKeys, place: TcpAddress, tmp_path: Path) -> None:
    token = make(some_keys.admin, place, "real", Right.DATA)
    with pytest.raises(NotAdmitted, match="not known"):
        join(Token(token.at, token.authority, "../authority-key.pem"), tmp_path / "keys")
    for text in ("", "cbjoin1.", "cbjoin1.e30=", "other." + token.text.partition(".")[2]):
        with pytest.raises(BadKeys, match="no join token"):
            Token.read(text)
    assert join(token, tmp_path / "keys") == "real", "nobody has used it"


def test_request_that_is_not_signed_with_its_own_key_is_refused_and_does_not_use_the_token(
    some_keys: SomeKeys, place: TcpAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make(some_keys.admin, place, "stolen", Right.ADMIN)
    genuine = enrolment._request

    def of_another(private: EllipticCurvePrivateKey) -> str:
        """Ask for a certificate of a public key whose private half somebody else has: the signature is none of it."""
        der = bytearray(x509.load_pem_x509_csr(genuine(private).encode()).public_bytes(Encoding.DER))
        der[-1] ^= 1
        return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()

    with monkeypatch.context() as changed:
        changed.setattr(enrolment, "_request", of_another)
        with pytest.raises(AnnaError):
            join(token, tmp_path / "keys")
    assert join(token, tmp_path / "keys") == "stolen"


@pytest.mark.parametrize(
    ("whose", "said"),
    [("other", "is not of the authority of this token: it was told nothing"), ("data", "told nothing")],
)
def test_who_may_not_give_keys_is_told_nothing(some_keys: SomeKeys, tmp_path: Path, whose: str, said: str) -> None:
    """Of another authority, or of the same and no node; he shows the right authority's certificate either way."""
    heard: list[bytes] = []
    shown: Path = getattr(some_keys, whose)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        token = make(some_keys.admin, TcpAddress(*listener.getsockname()[:2]), "fooled", Right.ADMIN)

        def pretend() -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(shown / "certificate.pem", shown / "key.pem")
            with context.wrap_socket(listener.accept()[0], server_side=True) as stream:
                real = (some_keys.admin / "authority.pem").read_text()
                stream.sendall(json.dumps({"authority": real}).encode() + b"\n")
                heard.append(stream.recv(1 << 16))

        pretending = threading.Thread(target=pretend)
        pretending.start()
        with pytest.raises(NotAdmitted, match=said):
            join(token, tmp_path / "keys")
        pretending.join()
    assert heard == [b""]


def test_node_joins_by_a_token_from_its_standard_input(
    some_keys: SomeKeys, place: TcpAddress, tmp_path: Path
) -> None:
    words = ["keys", "token", str(some_keys.admin), "--name", "node-7", "--right", "admin", "--at", str(place)]
    pipe, program = subprocess.PIPE, [sys.executable, "-m", "cloudburst"]
    made = subprocess.run([*program, *words], stdout=pipe, text=True, timeout=60, check=True)
    home = Path(f"/tmp/cb-{tmp_path.parent.name[-6:]}-{os.getpid()}")
    command = [*program, "node", "--dir", str(home), "--executors", "1", "--workers", "1"]
    node = subprocess.Popen(
        [*command, "--listen", "tcp://127.0.0.1:0", "--token-file", "-"], stdin=pipe, stderr=pipe, text=True
    )
    assert node.stdin is not None
    assert node.stderr is not None
    node.stdin.write(made.stdout)
    node.stdin.close()
    said = ""
    while "--keys DIR" not in said:
        line = node.stderr.readline()
        assert line, said
        said += line
    shown = authority.show(home / "code")
    assert (shown.identity.name, shown.identity.right) == ("node-7", Right.CODE)
    assert not (home / "key.pem").exists(), "the node's own are in its memory alone"
    [(host, port)] = re.findall(r"--join tcp://([\d.]+):(\d+) --keys", said)
    context = Keys(home / "code").client
    with socket.create_connection((host, int(port)), 60) as stream, context.wrap_socket(stream) as node_there:
        assert identity_of(node_there.getpeercert() or {}) == shown.identity._replace(right=Right.ADMIN)
    node.send_signal(signal.SIGINT)
    with node.stderr:
        rest = node.stderr.read()
    assert node.wait(60) == 0, rest
    assert not home.exists(), "its keys go with it"
    assert made.stdout.strip() not in said + rest
