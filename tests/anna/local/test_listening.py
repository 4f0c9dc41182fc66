"""The sockets of the seats are bound all or not at all, and only where this machine alone can reach them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from anna.address import TcpAddress, UnixAddress
from anna.listening import LAB, CannotListen, NotLocal, SeatSockets, bind_seats, check_local

LOOPBACK = "127.0.0.1"


def closed(seats: list[SeatSockets]) -> None:
    for seat in seats:
        seat.unlink()
        seat.close()


def test_ports_count_up_from_the_one_that_was_given(place: Path) -> None:
    paths = [str(place / "w0"), str(place / "w1")]
    for _ in range(100):
        with socket.create_server((LOOPBACK, 0)) as chosen:
            port: int = chosen.getsockname()[1]
        try:
            seats = bind_seats(paths, [TcpAddress(LOOPBACK, port)])
        except CannotListen:
            continue  # somebody else has one of the two ports: take others
        assert [seat.addresses[1] for seat in seats] == [f"tcp://{LOOPBACK}:{port + n}" for n in (0, 1)]
        closed(seats)
        break
    else:
        pytest.fail("a hundred pairs of ports were taken")
    assert list(place.iterdir()) == []


def test_nothing_is_left_when_one_address_of_many_is_taken(place: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"cannot listen on tcp://{LOOPBACK}:{port}: Address already in use"):
            bind_seats([str(place / "w0")], [UnixAddress(str(place / "seed")), TcpAddress(LOOPBACK, port)])
    assert list(place.iterdir()) == []


def test_a_port_beyond_the_last_is_refused(place: Path) -> None:
    with pytest.raises(CannotListen, match=r"cannot listen on tcp://127\.0\.0\.1:65536"):
        closed(bind_seats([str(place / "w0"), str(place / "w1")], [TcpAddress(LOOPBACK, 65535)]))
    assert list(place.iterdir()) == []


def test_sockets_are_their_owners_alone_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        seats = bind_seats([str(place / "w0")], [])
    finally:
        os.umask(before)
    assert (place / "w0").stat().st_mode & 0o777 == 0o600
    closed(seats)


def test_a_socket_that_another_has_put_in_its_place_is_not_removed(place: Path) -> None:
    first = bind_seats([str(place / "w0")], [])
    (place / "w0").unlink()
    second = bind_seats([str(place / "w0")], [])
    closed(first)
    assert (place / "w0").exists()
    closed(second)
    assert list(place.iterdir()) == []


def test_an_abandoned_socket_is_replaced_and_one_in_use_is_not(place: Path) -> None:
    abandoned = bind_seats([str(place / "w0")], [])
    with pytest.raises(CannotListen, match="Address already in use"):
        bind_seats([str(place / "w0")], [])
    for seat in abandoned:
        seat.close()
    closed(bind_seats([str(place / "w0")], []))


@pytest.mark.parametrize("host", ["10.0.0.1", "203.0.113.5", "2001:db8::5", "db.example", "localhost.example"])
def test_reachable_addresses_need_insecure_in_a_lab_and_are_warned_of(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = TcpAddress(host, 6450)
    monkeypatch.delenv(LAB, raising=False)
    with pytest.raises(NotLocal, match="can be reached from other machines: --insecure takes CLOUDBURST_LAB=1 there"):
        check_local([address], insecure=True)
    assert check_local([address], insecure=False, keyed=True) == []
    monkeypatch.setenv(LAB, "1")
    with pytest.raises(NotLocal, match="can be reached from other machines: make keys"):
        check_local([address], insecure=False)
    assert check_local([address], insecure=True) == [f"{address} is open to everyone who can reach it: --insecure"]


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_wildcard_is_never_accepted(host: str, insecure: bool) -> None:
    with pytest.raises(NotLocal, match="name the interface that clients connect to"):
        check_local([TcpAddress(host, 6450)], insecure)


@pytest.mark.parametrize("address", [TcpAddress(LOOPBACK, 1), TcpAddress("::1", 1), UnixAddress("/x")])
def test_local_addresses_need_nothing(address: TcpAddress | UnixAddress) -> None:
    assert check_local([address], insecure=False) == []
