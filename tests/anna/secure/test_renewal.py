"""Keys that came by a token are renewed in time by who shows them, and by nobody else; no token is needed again."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from anna import authority, renewal
from anna.address import TcpAddress
from anna.cli import main
from anna.enrolment import ENROLLED, Enrolment, join, make, renew
from anna.errors import NotAdmitted
from anna.gate import Right
from anna.keys import BadKeys, Keys, keep
from anna.renewal import AGAIN_S, Renewal, life_of, place_in, wait_s
from tests.anna.local.processes import eventually
from tests.anna.secure.conftest import SomeKeys

SECOND = 1 / 86400


@pytest.fixture
def home(tmp_path: Path) -> Path:
    authority.found(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def place(home: Path) -> Iterator[TcpAddress]:
    """Where the authority takes tokens, and renews."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=Enrolment(home).serve, args=(listener,), daemon=True).start()
        yield TcpAddress(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)


def came(home: Path, place: TcpAddress, out: Path, right: Right = Right.ADMIN, days: float = 30) -> Path:
    """Return a directory of keys that came by a token."""
    join(make(home, place, "db3", right, days=days), out)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(
    ("now", "failed", "waits"),
    [(0.0, False, 500.0), (499.0, True, 1.0), (500.0, False, 0.0), (500.0, True, 50.0), (990.0, True, 1.0)],
)
def test_nobody_is_asked_before_half_of_a_life_then_until_it_is_done(now: float, failed: bool, waits: float) -> None:
    assert wait_s(0.0, 1000.0, now, failed) == waits
    assert wait_s(0.0, 1e9, 6e8, True) == AGAIN_S
    assert wait_s(0.0, 1000.0, 2000.0, True) > 0, "nor is anybody asked without a pause"


@pytest.mark.parametrize("right", Right)
def test_keys_are_renewed_without_a_token_under_new_key_pairs(
    home: Path, place: TcpAddress, tmp_path: Path, right: Right
) -> None:
    own = came(home, place, tmp_path / "own", right)
    before, first = authority.show(own), (own / "key.pem").read_text()
    assert main(["keys", "renew", str(own)]) == 0
    after = authority.show(own)
    assert (after.identity, after.until >= before.until) == (before.identity, True)
    assert (own / "key.pem").read_text() != first
    assert (own / "code").is_dir() == (right == Right.ADMIN)
    assert Keys(own).holder == before.identity
    assert main(["keys", "renew", str(own)]) == 0, "again and again"


def test_keys_that_came_by_no_token_or_were_given_up_are_not_renewed(
    home: Path, place: TcpAddress, tmp_path: Path
) -> None:
    authority.issue(home, tmp_path / "issued", "issued", Right.ADMIN)
    with pytest.raises(NotAdmitted, match="it came by no token"):
        renew(Keys(tmp_path / "issued"), str(place))
    assert main(["keys", "renew", str(tmp_path / "issued")]) != 0
    own = came(home, place, tmp_path / "own")
    [known] = (home / ENROLLED).iterdir()
    known.unlink()
    with pytest.raises(NotAdmitted, match="is to be renewed no more"):
        renew(Keys(own), str(place))


def test_keys_that_have_expired_and_those_of_another_cluster_are_refused(
    home: Path, place: TcpAddress, tmp_path: Path, some_keys: SomeKeys
) -> None:
    late = came(home, place, tmp_path / "late", days=-60 * SECOND)
    with pytest.raises(NotAdmitted, match=r"does not take the ones shown .*EXPIRED"):
        renew(Keys(late), str(place))
    with pytest.raises(NotAdmitted, match="is not of the authority of these keys"):
        renew(Keys(some_keys.admin), str(place))


def test_who_shows_no_certificate_is_given_none(home: Path, place: TcpAddress, tmp_path: Path) -> None:
    """A stolen certificate without its private key shows nothing."""
    from anna.enrolment import _asking, _files, _hear

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _asking(str(place), context) as stream:
        _hear(stream)
        with pytest.raises(NotAdmitted, match="neither a token nor a certificate"):
            _files(stream, str(place), {})


@pytest.mark.parametrize("whose", ["data", "other"])
def test_who_may_not_renew_is_told_nothing(some_keys: SomeKeys, home: Path, tmp_path: Path, whose: str) -> None:
    heard: list[bytes] = []
    shown: Path = getattr(some_keys, whose)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(shown / "certificate.pem", shown / "key.pem")
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as stream:
                    stream.sendall(b"{}\n")
                    heard.append(stream.recv(1 << 16))
            except ssl.SSLError:
                pass

        pretending = threading.Thread(target=pretend)
        pretending.start()
        with pytest.raises(NotAdmitted, match="is not of the authority of these keys"):
            renew(Keys(some_keys.admin), str(TcpAddress(*listener.getsockname()[:2])))
        pretending.join()
    assert b"".join(heard) == b""


def test_renewed_keys_are_of_the_next_authority_once_there_is_one(
    home: Path, place: TcpAddress, tmp_path: Path
) -> None:
    own = came(home, place, tmp_path / "own")
    authority.rotate(home)
    keep(own, renew(Keys(own), str(place)))
    assert authority.show(own).authorities == 2
    authority.retire(home)
    keep(own, renew(Keys(own), str(place)))
    assert authority.show(own).authorities == 1


def test_keys_are_renewed_by_themselves_and_failures_are_overcome(
    home: Path, place: TcpAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "SKEW", timedelta())  # so half of their life is over at once
    monkeypatch.setattr(renewal, "AGAIN_S", 0.01)
    own = came(home, place, tmp_path / "own", days=200 * SECOND)
    lives = [life_of(str(own))[1]]
    aside = home / "aside"
    shutil.move(home / ENROLLED, aside)

    def put(files: Mapping[str, str]) -> None:
        keep(own, files)
        lives.append(life_of(str(own))[1])

    assert place_in(own) == str(place)
    renewing = Renewal(str(own), str(place), put)
    shutil.move(aside, home / ENROLLED)
    try:
        eventually(lambda: len(lives) > 1, "there are newer ones")
    finally:
        renewing.close()
    assert lives == sorted(lives)
    with pytest.raises(BadKeys):
        life_of(str(tmp_path))
