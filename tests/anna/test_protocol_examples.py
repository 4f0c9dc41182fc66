"""What docs/protocol.md says is what a worker does, to the byte.

The page is the only source here: its exchanges are replayed, its tables are read, and its Python, which knows nothing
of `anna`, makes messages that a real worker takes, and understands those that it sends.
"""

from __future__ import annotations

import doctest
import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import ORSet, Set, config, errors, wire
from anna.kvs.cells import read_cells
from anna.kvs.clock import Clock
from anna.kvs.digest import bucket_of, cell_hash
from anna.kvs.worker import Connection, Worker
from anna.messages import Heartbeat, NodeInfo, View, WorkerInfo
from anna.requester import Requester
from anna.routing.hash import key_hash
from anna.routing.placement import Placement
from anna.routing.router import Connection as RouterConnection
from anna.routing.router import Router
from tests.anna.frames import HEADER, REPLY, Reply, joined, replies
from tests.anna.kvs.workers import Workers, view_of
from tests.anna.routing.test_tiers import tiered
from tests.anna.routing.views import KEYS, shapes
from tests.anna.routing.views import view_of as view_of_shape

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
TEXT = PAGE.read_text()
WALL_US = 2**40
NOW = 5_000_000_000
EPOCH_NS = 10_000_000
U8 = {1: "B", 2: "H", 4: "I", 8: "Q"}

Rows = list[list[str]]


def table(*heading: str) -> Rows:
    """Return the cells of the table whose first heading cells are these."""
    lines = iter(TEXT.splitlines())
    begin = "| " + " | ".join(heading) + " |"
    next(line for line in lines if line.startswith(begin))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][1:]


def number(text: str) -> int:
    return int(text.replace(",", ""))


# -- exchanges


def told(line: str) -> bytes:
    """Return the bytes of a line: hex, or text in quotes, up to a comment."""
    tokens = re.findall(r'"[^"]*"|[0-9a-f]+', line[1:].split("  |")[0])
    return b"".join(t[1:-1].encode() if t.startswith('"') else bytes.fromhex(t) for t in tokens)


class OneWorker:
    """A node of one worker, one epoch old."""

    def __init__(self) -> None:
        node = NodeInfo(1, (WorkerInfo(100, ("unix:/run/0.sock",), 0),))
        self.now = NOW
        self.worker = Worker(View(1, (node,)), 0, Clock(WALL_US, NOW // 1000))
        self.connection = Connection()
        self.worker.tick(NOW)

    def send(self, data: bytes) -> bytes:
        return joined(self.worker.receive(self.connection, data, self.now))

    def wait(self, what: str) -> bytes:
        heard = b""
        for _ in range(int(what.removesuffix(" ms")) // 10):
            self.now += EPOCH_NS
            heard += b"".join(joined(data) for _, data in self.worker.tick(self.now))
            heard += b"".join(joined(data) for _, data in self.worker.take_released())
        self.worker.check()
        return heard


class TwoNodes:
    """Two nodes with one worker each, `factor` owners of a key. The client asks the first; strictly, the second."""

    def __init__(self, factor: int) -> None:
        self.workers = Workers(view_of(2, factor))
        self.asked = 100

    def send(self, data: bytes) -> bytes:
        if struct.unpack_from("<IBBBB", data)[4] & wire.STRICT:
            self.asked = 200
        worker, connection = self.workers.workers[self.asked], self.workers.connections[self.asked]
        return joined(worker.receive(connection, data, self.workers.now))

    def wait(self, what: str) -> bytes:
        if what.endswith(" ms"):
            self.workers.pass_epochs(int(what.removesuffix(" ms")) // 10)
        else:
            self.workers.deliver()
        return b"".join(joined(data) for _, data in self.workers.workers[self.asked].take_released())


class NewRouter:
    """A router that nobody has answered yet."""

    def __init__(self) -> None:
        self.router, self.connection = Router(("unix:/run/0.sock",), NOW), RouterConnection()

    def send(self, data: bytes) -> bytes:
        return self.router.receive(self.connection, data)

    def wait(self, what: str) -> bytes:
        raise AssertionError(what)


MAKE: dict[str, Callable[[], OneWorker | TwoNodes | NewRouter]] = {
    "one worker": OneWorker,
    "two nodes": lambda: TwoNodes(1),
    "two owners": lambda: TwoNodes(2),
    "a new router": NewRouter,
}
EXCHANGES = re.findall(r"^```exchange (.*?)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("who", "lines"), EXCHANGES, ids=[f"{n}" for n in range(len(EXCHANGES))])
def test_every_exchange_is_what_a_worker_does(who: str, lines: str) -> None:
    other = MAKE[who]()
    for (is_request, words), (_, answers) in turns(lines):
        heard = other.send(b"".join(map(told, words))) if is_request else other.wait(words[0][1:].strip())
        assert heard.hex(" ", -4) == b"".join(map(told, answers)).hex(" ", -4), words


def turns(lines: str) -> list[tuple[tuple[bool, list[str]], tuple[bool, list[str]]]]:
    """Return what is sent, or waited for, each with the answers to it."""
    found: list[tuple[tuple[bool, list[str]], tuple[bool, list[str]]]] = []
    for sign, run in itertools.groupby(lines.splitlines(), lambda line: line[0]):
        assert sign in "><~", sign
        if sign == "<":
            found[-1][1][1].extend(run)
        else:
            found.append(((sign == ">", list(run)), (False, [])))
    return found


def test_there_are_exchanges_of_every_operation_that_clients_have() -> None:
    lines = [told(line) for _, lines in EXCHANGES for line in lines.splitlines() if line[0] == ">"]
    sent = {line[5] for line in lines if len(line) >= HEADER.size}
    names = {row[1]: int(row[0]) for row in table("number", "operation")}
    silent = {names[name] for name in ("STATUS", "UNSUBSCRIBE", "PUSH", "BACKUP", "PEER", "MARK")}
    assert sent >= set(names.values()) - silent


# -- tables


@pytest.mark.parametrize(("what", "layout"), [("request", HEADER), ("reply", REPLY)])
def test_the_tables_of_headers_are_their_layout(what: str, layout: struct.Struct) -> None:
    rows = table("offset", "bytes", f"field of a {what}")
    sizes = [int(size) for _, size, *_ in rows]
    assert [int(offset) for offset, *_ in rows] == list(itertools.accumulate(sizes, initial=0))[:-1]
    assert "<" + "".join(U8[size] for size in sizes) == layout.format


def test_the_numbers_of_operations_flags_and_statuses_are_those_of_the_wire() -> None:
    operations = {row[1]: int(row[0]) for row in table("number", "operation")}
    assert operations == {name: getattr(wire, name) for name in operations}
    assert {int(row[0]): getattr(wire, row[1]) for row in table("bit", "flag")} == {1: 1, 2: 2, 4: 4, 8: 8}
    statuses = {row[1]: int(row[0]) for row in table("number", "status")}
    known = {name: number for name, number in statuses.items() if hasattr(wire, name)}
    assert known == {name: getattr(wire, name) for name in known}
    assert len(known) >= 8


def test_a_client_takes_every_error_for_as_definite_as_the_page_says() -> None:
    requester = Requester(View(0, ()))
    for value, name, definite, _ in table("number", "status"):
        if int(value) < 16:
            continue
        error = requester.failure(int(value), b"why")
        assert isinstance(error, errors.AnnaError)
        assert "unknown status" not in str(error), name
        assert error.definite == (definite == "yes"), name


def test_the_limits_are_those_that_hold() -> None:
    assert {name: number(value) for name, value in table("limit", "value")} == {
        name: getattr(config, name) for name, _ in table("limit", "value")
    }


# -- the page's own program


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """Run the Python of the page, as one session, and return its names."""
    names: dict[str, Any] = {"__name__": "protocol"}
    runner = doctest.DocTestRunner(verbose=False)
    blocks = re.findall(r"^```(python|pycon)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for count, (kind, code) in enumerate(blocks):
        if kind == "python":
            exec(compile(code, f"{PAGE.name}:{count}", "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, f"block {count}", str(PAGE), 0)
            test.globs = names
            runner.run(test, clear_globs=False)
    assert runner.failures == 0
    return names


def test_the_python_of_the_page_runs_without_anna(page: dict[str, Any]) -> None:
    assert not re.search(r"^(?:>>> )?(?:from|import) anna", TEXT, re.MULTILINE)
    assert page["REQUEST"].format == HEADER.format
    assert page["REPLY"].format == REPLY.format


@given(shapes(nodes_max=4), KEYS, st.integers(1, 5))
def test_owners_by_the_page_are_those_of_the_placement(
    page: dict[str, Any], shape: dict[int, set[int]], key: bytes, count: int
) -> None:
    view = view_of_shape(shape)
    placed = [view.workers[index] for index in Placement(view).owners_of(key, count)]
    assert page["owners"](shape, key, count) == [(view.node_of(w.worker_id).node_id, w.seat) for w in placed]


@given(tiered(), KEYS)
def test_holders_by_the_page_are_those_of_the_placement(page: dict[str, Any], view: View, key: bytes) -> None:
    nodes = {n.node_id: (n.tier, [worker.seat for worker in n.workers]) for n in view.serving}
    vector = view.vector_at(key_hash(key))
    placed = [view.workers[index] for index in Placement(view).owners_of(key)]
    found = page["holders"](nodes, key, vector.memory, vector.disk)
    assert found == [(view.node_of(w.worker_id).node_id, w.seat) for w in placed]


@given(KEYS, st.sampled_from([Set({"a"}), ORSet({"b"})]), st.integers(0, 2**63), st.integers(0, 2**63))
def test_cells_by_the_page_are_read_as_they_were_meant(
    page: dict[str, Any], key: bytes, state: Set | ORSet, reset: int, last: int
) -> None:
    data = page["cell"](key, state.NUMBER, state.encode(), reset, last, 1)
    assert read_cells(data) == [(key, state.NUMBER, 1, reset, last, 0, state.encode())]
    assert page["bucket"](key) == bucket_of(key_hash(key))
    assert page["cell_hash"](key, state.NUMBER, state.encode()) == cell_hash(key, state.NUMBER, 0, 0, state.encode())
    timed = page["cell_hash"](key, state.NUMBER, state.encode(), expires=last)
    assert timed == cell_hash(key, state.NUMBER, 0, 0, state.encode(), last)
    assert page["cell_hash"](key, 0, b"", reset, ended=last) == cell_hash(key, 0, reset, last, b"")


class Stranger:
    """A worker that is made of the page alone: worker 200, of node 2, whose peer is the real worker 100."""

    def __init__(self, page: dict[str, Any]) -> None:
        self.page = page
        self.view = view_of(2, factor=2).to_wire()
        self.cells: dict[bytes, tuple[int, bytes]] = {}
        self.sequence = self.sent = self.taken = self.confirmed = 0
        self.closings: list[int] = []
        self.out: list[bytes] = []

    def hear(self, frame: bytes) -> None:
        """Take a message of the real worker's, and answer what must be answered."""
        kind = frame[6]
        assert (frame[5], struct.unpack_from("<QQ", frame, 24)) == (17, (100, 200))
        if kind == 3:
            self.closings.append(struct.unpack_from("<QQQB", frame, 40)[1])
        if kind == 1:
            _, _, count, self.confirmed, body = self.page["read_link"](frame)
            if count == self.taken + 1:
                self.taken = count
                self.take(body)
            self.out.append(self.page["link"](200, 100, 1, 1, 0, self.taken))

    def take(self, body: bytes) -> None:
        if body[0] == 1:
            self.take_cell(body[9:])
        elif body[0] == 3:
            self.say(self.page["repair"](3, self.view, 1, self.page["digests"](self.cells)))
            for key, (kind, state) in self.cells.items():
                (theirs,) = struct.unpack_from("<I", body, 21 + 12 * self.page["bucket"](key) + 8)
                assert theirs == 0, "this stranger has no key in common with anybody"
                self.say(self.page["repair"](5, self.view, 1, self.page["cell"](key, kind, state, flags=1)))
        elif body[0] == 5:
            self.take_cell(body[21:])
        elif body[0] == 6:
            self.say(self.page["repair"](6, self.view, 1))

    def take_cell(self, data: bytes) -> None:
        """Take one cell without a time to live."""
        key_bytes, kind, _, size, _, _ = self.page["CELL"].unpack_from(data)
        end = 24 + key_bytes
        assert len(data) == end + size
        self.cells[data[24:end]] = (kind, data[end:])

    def say(self, body: bytes) -> None:
        self.sent += 1
        self.out.append(self.page["link"](200, 100, 1, 1, self.sent, self.taken, body))

    def beat(self, complete_for: int) -> None:
        self.sequence += 1
        beats = [(2, 0, self.sequence)]
        whose = 200, 2, "unix:/run/2-0.sock", self.sequence, self.view, complete_for
        self.out.append(self.page["heartbeat"](*whose, receiver=100, beats=beats))


class Talk:
    """The real worker 100 and the stranger, message by message."""

    def __init__(self, page: dict[str, Any]) -> None:
        self.now = NOW
        self.worker = Worker(view_of(2, factor=2), 0, Clock(WALL_US, NOW // 1000))
        self.client, self.inbound = Connection(), Connection()
        self.stranger = Stranger(page)

    def ask(self, data: bytes) -> list[Reply]:
        return replies(self.worker.receive(self.client, data, self.now))

    def released(self) -> list[Reply]:
        return replies(b"".join(data for _, data in self.worker.take_released()))

    def go_on(self, epochs: int = 1) -> None:
        for _ in range(epochs):
            self.now += EPOCH_NS
            self.worker.tick(self.now)
            self.deliver()

    def deliver(self) -> None:
        while (frames := self.worker.outgoing()) or self.stranger.out:
            for target, frame in frames:
                assert target == 200
                self.stranger.hear(joined(frame))
            out, self.stranger.out = self.stranger.out, []
            for frame in out:
                assert self.worker.receive(self.inbound, frame, self.now) == b""
                assert self.inbound.failure is None
        self.worker.check()


@pytest.fixture
def talk(page: dict[str, Any]) -> Talk:
    """The two after their first repair."""
    talk = Talk(page)
    talk.stranger.beat(0)
    talk.go_on(3)
    assert talk.worker.is_complete
    return talk


def put(page: dict[str, Any], key: bytes, value: bytes, ack: int) -> bytes:
    return cast(bytes, page["request"](2, key, bytes(16) + b"\x06" + value, type=1, ack=ack))


def test_a_write_is_answered_when_a_worker_made_of_the_page_confirms_it(page: dict[str, Any], talk: Talk) -> None:
    assert talk.ask(put(page, b"k", b"v", ack=2)) == []
    assert talk.released() == []
    talk.deliver()
    (answer,) = talk.released()
    assert (answer.status, answer.type) == (wire.OK, 1)
    assert talk.stranger.cells[b"k"] == (1, struct.pack("<QQ", answer.stamp, 100) + b"\x06v")


def test_what_a_worker_made_of_the_page_writes_is_read_at_the_other(page: dict[str, Any], talk: Talk) -> None:
    stamp = (WALL_US + 100_000) << 10
    state = struct.pack("<QQ", stamp, 200) + b"\x06theirs"
    cells = page["cell"](b"r", 1, state) + page["cell"](b"s", 6, Set({"x"}).encode(), last=stamp)
    talk.stranger.say(struct.pack("<BQ", 1, page["epoch"](stamp)) + cells)
    talk.go_on()
    register, members = talk.ask(page["request"](1, b"r") + page["request"](1, b"s"))
    assert register.payload == state
    assert (members.type, members.payload) == (6, Set({"x"}).encode())
    talk.stranger.say(struct.pack("<BQ", 1, page["epoch"](stamp)) + page["cell"](b"s", 0, b"", reset=stamp + 1))
    talk.go_on()
    assert [answer.status for answer in talk.ask(page["request"](1, b"s"))] == [wire.MISSING]


def test_the_stable_epoch_is_what_a_worker_made_of_the_page_has_closed(page: dict[str, Any], talk: Talk) -> None:
    talk.ask(put(page, b"k", b"v", ack=1))
    talk.go_on(3)
    before = talk.worker.replication.stable
    closed = talk.stranger.closings[-1]
    talk.stranger.out.append(page["closed"](200, 100, talk.stranger.view, closed, 3))
    talk.go_on(2)
    assert before < closed == talk.worker.replication.stable


def test_keys_that_a_worker_made_of_the_page_has_are_filled_up_with_by_repair(page: dict[str, Any]) -> None:
    talk = Talk(page)
    for n in range(100):
        talk.stranger.cells[b"%d" % n] = (1, struct.pack("<QQ", WALL_US << 10, 200) + b"\x06old")
    talk.stranger.beat(0)
    talk.go_on(4)
    assert talk.worker.is_complete
    for key, (_, state) in talk.stranger.cells.items():
        assert [answer.payload for answer in talk.ask(page["request"](1, key))] == [state]


def test_heartbeats_of_the_page_are_heartbeats_and_the_other_way_round(page: dict[str, Any]) -> None:
    view = view_of(2, factor=2)
    frame = page["heartbeat"](200, 2, "unix:/run/2-0.sock", 7, view.to_wire(), 1, 100, beats=[(2, 0, 3)])
    ours = Heartbeat("anna", 200, 2, "unix:/run/2-0.sock", 7, 0, view.version, view.digest, 1, ((2, 0, 3),), view)
    assert Heartbeat.decode(frame[40:]) == ours
    assert msgpack.unpackb(ours.encode()) == msgpack.unpackb(frame[40:])
