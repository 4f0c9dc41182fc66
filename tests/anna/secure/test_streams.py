"""Workers whose TCP streams are under TLS: who belongs to them does what he could before, and nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import anna
import anna.aio
from anna import sealed
from anna.asking import Line
from anna.errors import NotAdmitted
from anna.gate import WANTS_KEYS
from anna.handshake import shake_hands
from anna.keys import Keys
from anna.sealing import Seal
from anna.wire import BACKUP, BEGIN, NOT_ADMITTED, PEER, SYSTEM
from tests.anna import frames
from tests.anna.conftest import RunningWorkers, running_workers
from tests.anna.secure.conftest import SomeKeys

MARKER = b"a-value-that-nobody-may-see"
REFUSED_S = 5.0


@pytest.fixture(scope="module")
def workers(some_keys: SomeKeys) -> Iterator[RunningWorkers]:
    with running_workers(2, keys=some_keys.admin) as cluster:
        yield cluster


def place_of(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    return host, int(port)


@contextlib.contextmanager
def dialled(address: str) -> Iterator[socket.socket]:
    with socket.create_connection(place_of(address)) as stream:
        stream.settimeout(REFUSED_S)
        yield stream


def rest_of(stream: socket.socket) -> bytes:
    """Return what comes until the connection is closed, in whatever way."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := stream.recv(65536):
            data += more
    return data


@contextlib.contextmanager
def tapped(address: str) -> Iterator[tuple[str, list[bytes], list[bytes]]]:
    """Give an address that leads to `address`, and what passes to it and from it."""
    listener, to, back = socket.create_server(("127.0.0.1", 0)), [], []
    threads: list[threading.Thread] = []
    ends: list[socket.socket] = []

    def carry(source: socket.socket, target: socket.socket, seen: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen.append(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(place_of(address))
                ends.extend((client, server))
                for words in ((client, server, to), (server, client, back)):
                    threads.append(threading.Thread(target=carry, args=words))
                    threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", to, back
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in (*ends, listener):
            end.close()


# -- who belongs to the cluster


@pytest.mark.parametrize("right", ["data", "code", "admin"])
def test_who_has_keys_reads_and_writes_in_every_way(workers: RunningWorkers, some_keys: SomeKeys, right: str) -> None:
    with anna.connect(workers.tcp(), keys=getattr(some_keys, right)) as kvs:
        large = os.urandom(3_000_000)
        kvs.put("large", large)
        assert kvs.get("large") == large
        kvs.mput({f"k{n}": f"v{n}" for n in range(200)})
        assert kvs.mget([f"k{n}" for n in range(200)]) == [f"v{n}" for n in range(200)]
        with kvs.pipeline() as flight:
            for number in range(300):
                flight.put(f"p{number}", "x" * 5000)
                flight.get(f"p{number}")
        assert flight.results[1::2] == ["x" * 5000] * 300
        assert {"k0", "k199"} <= set(kvs.scan("k"))
        assert all("error" not in worker for worker in kvs.status())


def test_a_stream_that_rested_is_used_again(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    with anna.connect(workers.tcp(), keys=some_keys.data) as kvs:
        kvs.put("k", 1)
        before = workers_streams(kvs)
        time.sleep(0.03)  # beyond IDLE_NS a stream is looked at before it is used
        kvs.get("k")
        assert workers_streams(kvs) == before


def workers_streams(kvs: anna.Client) -> set[str]:
    """Return the local ends of this process's TCP connections to the workers of a client."""
    ports = {place_of(address)[1] for worker in kvs.view.workers for address in worker.addresses[1:]}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if int(row[2].rpartition(":")[2], 16) in ports and row[3] == "01"}


def test_a_watch_goes_on_under_tls(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    with anna.connect(workers.tcp(), keys=some_keys.data) as kvs, kvs.watch("watched", timeout=20) as values:
        kvs.put("watched", 1)
        assert next(values) == 1
        kvs.put("watched", 2)
        assert next(values) == 2


def test_the_asyncio_client_does_the_same(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    async def use() -> None:
        async with await anna.aio.connect(workers.tcp(), keys=some_keys.data) as kvs:
            large = os.urandom(1_000_000)
            await asyncio.gather(*(kvs.put(f"a{n}", n) for n in range(100)), kvs.put("large", large))
            assert await kvs.mget([f"a{n}" for n in range(100)]) == list(range(100))
            assert await kvs.get("large") == large

    asyncio.run(use())


def test_nodes_copy_keys_to_each_other_under_tls(some_keys: SomeKeys) -> None:
    with (
        running_workers(1, nodes=2, factor=2, keys=some_keys.admin) as cluster,
        anna.connect(cluster.tcp(), keys=some_keys.data) as kvs,
    ):
        assert kvs.put("k", 1, ack=2).replicas == 2


def test_the_figures_of_workers_are_asked_for_under_tls(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    line = Line([workers.tcp()], REFUSED_S, Keys(some_keys.admin))
    try:
        assert line.ask(frames.STATUS)
    finally:
        line.close()


# -- who does not


def test_who_shows_no_keys_is_told_what_to_give(workers: RunningWorkers) -> None:
    begun = time.monotonic()
    with pytest.raises(NotAdmitted, match=r"takes only who shows keys: give keys=DIR .*--keys DIR.*ANNA_KEYS"):
        anna.connect(workers.tcp())
    with pytest.raises(NotAdmitted, match="takes only who shows keys"):
        asyncio.run(anna.aio.connect(workers.tcp()))
    with pytest.raises(NotAdmitted, match="takes only who shows keys"):
        Line([workers.tcp()], REFUSED_S).ask(frames.STATUS)
    assert time.monotonic() - begun < REFUSED_S


def test_keys_of_another_cluster_are_refused_and_the_error_names_both(
    workers: RunningWorkers, some_keys: SomeKeys
) -> None:
    theirs, ours = Keys(some_keys.admin).cluster, Keys(some_keys.other).cluster
    words = f"{workers.tcp()} shows keys that are not believed.*of cluster {ours}; he is of cluster {theirs}"
    with pytest.raises(NotAdmitted, match=words):
        anna.connect(workers.tcp(), keys=some_keys.other)
    with pytest.raises(NotAdmitted, match=words):
        asyncio.run(anna.aio.connect(workers.tcp(), keys=some_keys.other))


def test_who_listens_without_keys_is_not_spoken_to(one_worker: RunningWorkers, some_keys: SomeKeys) -> None:
    with pytest.raises(anna.NotAdmitted, match="does not speak TLS: it was started without --keys"):
        anna.connect(one_worker.tcp(), keys=some_keys.data, timeout=600)  # which is not waited for


def test_who_listens_and_says_nothing_is_waited_for_until_the_deadline(some_keys: SomeKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(anna.NoWorkers, match="did not answer the handshake: it was started without --keys"):
            anna.connect(address, keys=some_keys.data, timeout=0.2)


def test_plain_bytes_are_answered_with_one_alert_and_do_nothing(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    with dialled(workers.tcp()) as stream:
        stream.sendall(frames.put(b"plain", b"v"))
        assert rest_of(stream) == WANTS_KEYS
    with anna.connect(workers.tcp(), keys=some_keys.data) as kvs:
        assert kvs.get("plain", None) is None


@pytest.mark.parametrize("count", [0, 5, 100])
def test_a_handshake_that_stops_is_ended(some_keys: SomeKeys, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(sealed, "HANDSHAKE_S", 0.2)
    with running_workers(1, keys=some_keys.admin) as cluster, dialled(cluster.tcp()) as stream:
        seal = Seal(Keys(some_keys.data), cluster.tcp())
        seal.shake()
        stream.sendall(seal.take()[:count])
        assert rest_of(stream) == b""


def written_through(address: str, keys: Keys | None, key: bytes) -> None:
    """Write MARKER under `key` and read it, on one connection."""
    with dialled(address) as stream:
        seal = None if keys is None else shake_hands(stream, keys, address)
        for frame in (frames.put(key, MARKER), frames.request(frames.GET, key)):
            if seal is not None:
                seal.write(frame)
            stream.sendall(frame if seal is None else seal.take())
            said = b""
            while len(said) < frames.REPLY.size:
                data = stream.recv(65536)
                if seal is not None:
                    seal.feed(data)
                said += data if seal is None else seal.read()
        assert said.endswith(MARKER)


def test_nothing_that_passes_can_be_read_or_said_again(some_keys: SomeKeys, one_worker: RunningWorkers) -> None:
    with tapped(one_worker.tcp()) as (address, to, back):
        written_through(address, None, b"marked-key")
    assert b"marked-key" in b"".join(to)  # so the tap sees what can be seen
    assert MARKER in b"".join(back)
    with running_workers(1, keys=some_keys.admin) as cluster:
        with tapped(cluster.tcp()) as (address, to, back):
            written_through(address, Keys(some_keys.data), b"marked-key")
        seen = b"".join(to) + b"".join(back)
        assert len(seen) > 2000
        assert MARKER not in seen
        assert b"marked-key" not in seen
        with anna.connect(cluster.tcp(), keys=some_keys.data) as kvs:
            assert kvs.delete("marked-key")
            with dialled(cluster.tcp()) as stream:
                for data in to:
                    with contextlib.suppress(OSError):
                        stream.sendall(data)
                rest_of(stream)
            assert kvs.get("marked-key", None) is None


# -- rights


@pytest.mark.parametrize(
    ("right", "frame", "needed"),
    [
        ("data", frames.put(b"\0function", b"v", flags=SYSTEM), b"the reserved keys needs code"),
        ("data", frames.request(BACKUP, type=BEGIN), b"a backup needs admin"),
        ("code", frames.request(BACKUP, type=BEGIN), b"a backup needs admin"),
        ("code", frames.request(PEER, flags=SYSTEM), b"a node's message needs admin"),
    ],
)
def test_keys_do_what_their_right_allows_and_no_more(
    workers: RunningWorkers, some_keys: SomeKeys, right: str, frame: bytes, needed: bytes
) -> None:
    with dialled(workers.tcp()) as stream:
        seal = shake_hands(stream, Keys(getattr(some_keys, right)), workers.tcp())
        seal.write(frames.request(frames.VIEW) + frame + frames.request(frames.VIEW))
        stream.sendall(seal.take())
        said: list[frames.Reply] = []
        while len(said) < 3:
            seal.feed(stream.recv(65536))
            said += frames.replies(seal.read())
    assert sorted(reply.status for reply in said) == [frames.OK, frames.OK, NOT_ADMITTED]
    assert next(reply.payload for reply in said if reply.status == NOT_ADMITTED).endswith(needed)


def test_a_client_whose_keys_lack_the_right_gets_the_error(workers: RunningWorkers, some_keys: SomeKeys) -> None:
    with anna.connect(workers.tcp(), keys=some_keys.data) as kvs:
        with pytest.raises(NotAdmitted, match="the keys of data have the right data; a number of copies needs admin"):
            kvs.replicate("k", memory=1)
        kvs.put("k", 1)
    with pytest.raises(NotAdmitted, match="the reserved keys needs code"):
        anna.connect(workers.tcp(), keys=some_keys.data, system=True)
    with anna.connect(workers.tcp(), keys=some_keys.code, system=True) as kvs:
        kvs.put(b"\0function", "v")
