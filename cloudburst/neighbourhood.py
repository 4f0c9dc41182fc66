"""What drives `cloudburst.neighbours`: the connections between nodes, their news, and what one asks of another.

Each node connects to each other and asks there as a client asks its node; what a node has to tell goes back over the
connections of those who have met it. A node without neighbours does nothing here. Source: DESIGN §5 (control by
ZeroMQ, heartbeats of our own), §6.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack
import zmq

from cloudburst import config
from cloudburst.control import NEWS, encrypt, is_guest, node_identity, node_of, pack_request, unpack_answer
from cloudburst.errors import CloudburstError, ProtocolError, RequestError
from cloudburst.loop import Loop
from cloudburst.messages import (
    ClientJoined,
    ClientLeft,
    Lose,
    Meet,
    Mirror,
    NeighbourInstruction,
    NeighboursChanged,
    Part,
    Reflect,
    Vacate,
)
from cloudburst.neighbours import ExecutorRow, Neighbours, NodeRecord
from cloudburst.openings import GUESTS, NODES
from cloudburst.page import Page, monotonic_us
from cloudburst.secret import Secret
from cloudburst.ways import Way

log = logging.getLogger("cloudburst.neighbourhood")

BEAT_US: Final = int(config.NODE_BEAT_S * 1e6)
NEWS_US: Final = int(config.NODE_NEWS_S * 1e6)
KEYS_US: Final = 250_000
"""How often, at most, a node tells which keys its cache has."""
SUMMARIES: Final = 32
"""Nodes whose keys the page has room for."""
SUMMARY_BYTES: Final = 8192
LOOK_US: Final = int(config.NODE_LOOK_S * 1e6)
STAY_US: Final = int(config.NODE_STAY_S * 1e6)
SILENCE_US: Final = int(config.NODE_SILENCE_S * 1e6)

PART_US: Final = 200_000
"""How long a node that ends waits at most until those on other hosts have heard of that."""
WAY_MS: Final = 20
"""How often a connection through the relay is tried until there is one."""

Then = Callable[[Any], None]
"""Takes the answer to a request, or the error; None when nobody can tell."""


class _Link:
    """A connection to one neighbour, by a `way` through relays if there is one, and what has been asked over it."""

    def __init__(
        self, context: zmq.Context[Any], endpoint: str, identity: bytes, secret: Secret | None, way: Way | None
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, identity)
        self.way = way
        if way is None:
            encrypt(self.socket, endpoint, secret)
            self.socket.connect(endpoint)
        else:
            self.socket.setsockopt(zmq.RECONNECT_IVL, WAY_MS)
            self.socket.connect(way.endpoint)
        self.pidfd = -1
        """Of the neighbour's process, when it runs on this host: its end need not be waited for."""
        self.asked: dict[bytes, tuple[int, Then]] = {}
        self.changes = -1
        """How many changes of the table of functions it has told of."""
        self.met = False
        """Whether it has said what its executors do."""


@dataclass(slots=True)
class _Guest:
    """A node that has met this one, and the socket on which it asks."""

    routing_id: bytes
    heard_us: int


class Neighbourhood:
    """The neighbours of the node of `record`.

    `send` gives a neighbour something over the socket on which it asks, `rows` says what this node's executors do,
    and `tell` takes events for the scheduler. `sealed`: a relay with keys leads to those on other hosts.
    """

    def __init__(
        self, page: Page, record: NodeRecord, send: Callable[[bytes, bytes, bytes], None],
        rows: Callable[[], list[ExecutorRow]], tell: Callable[[Any], None], sealed: bool = False,
    ) -> None:  # fmt: skip
        self.page = page
        self.record = record
        self.core = Neighbours(record.id, record.host, page.own, page.slots, sealed)
        self._sealed = sealed
        self.active = False
        """Whether this node shows itself to others in the store."""
        self.look_us: int | None = None
        self._send, self._rows, self._tell = send, rows, tell
        self._links: dict[int, _Link] = {}
        self._met: dict[int, _Guest] = {}
        self._stay_us: int | None = None
        self._numbers = itertools.count(1)
        self._changes = 0
        self._said: tuple[int, list[list[Any]]] = (-1, [])
        self._said_us = 0
        self._keys_said = 0
        self._keys_said_us = 0
        self._key_places: dict[int, int] = {}
        self._news_us: int | None = None

    def attach(self, loop: Loop, context: zmq.Context[Any], secret: Secret | None) -> None:
        """Begin, once there are sockets; without a secret, with nodes of this host only."""
        self._loop, self._context, self._secret = loop, context, secret

    def know_store(self, addresses: tuple[str, ...]) -> None:
        """Take in where this node's store is."""
        self.record = replace(self.record, store=addresses)

    def show(self) -> None:
        """Show this node in the store to those who look for nodes, and look for them."""
        if not self.active:
            self.active, self.look_us = True, monotonic_us()

    # -- time

    @property
    def next_due_us(self) -> int | None:
        """When `do_due` next has something to do."""
        times = [self.core.next_tick_us, self._news_us, self.look_us, self._stay_us]
        times += [self._met[node].heard_us + SILENCE_US for node in self._one_sided()]
        times += [until_us for link in self._links.values() for until_us, _ in link.asked.values()]
        return min((at_us for at_us in times if at_us is not None), default=None)

    def do_due(self, now_us: int) -> bool:
        """Do what is due; return whether it is time to look into the store for other nodes."""
        tick_us = self.core.next_tick_us
        if tick_us is not None and tick_us <= now_us:
            self._obey(self.core.tick(now_us))
        for link in list(self._links.values()):
            for number in [number for number, (until_us, _) in link.asked.items() if until_us <= now_us]:
                link.asked.pop(number)[1](None)
        for node in [node for node in self._one_sided() if self._met[node].heard_us + SILENCE_US <= now_us]:
            self._close(node)
        if self._stay_us is not None and self._stay_us <= now_us:
            self._stay_us = now_us + STAY_US
            for node in list(self._links):
                self._stay(node)
        if self._news_us is not None and self._news_us <= now_us:
            self._say_news(now_us)
        if self.look_us is None or self.look_us > now_us:
            return False
        self.look_us = now_us + LOOK_US
        return True

    def _one_sided(self) -> list[int]:
        """Return the nodes that have met this one and cannot be met in return: their word alone says they are there."""
        return [node for node in self._met if node not in self._links]

    def _stay(self, node: int) -> None:
        """Say to a node that has not met this one in return that this is there; meet it anew if it has forgotten."""

        def answered(known: Any) -> None:
            if known is False:
                self._introduce(node)

        self._ask(node, "stay", {}, answered, config.NODE_SILENCE_S)

    # -- others

    def describe(self) -> list[dict[str, Any]]:
        """Return what is known of each neighbour."""
        now_us = monotonic_us()
        return [
            {
                "node": f"{id:016x}", "name": node.record.name(self.record.host),
                "directory": node.record.directory, "pid": node.record.pid,
                "executors": len(node.places), "heard_s": (now_us - node.heard_us) / 1e6,
                "met": id in self._links and self._links[id].met,
            }
            for id, node in sorted(self.core.nodes.items())
        ]  # fmt: skip

    def guests(self) -> list[str]:
        """Return the nodes that use this one's executors, and have none for it: gateways."""
        return [f"{node:016x}" for node in sorted(self._one_sided())]

    def found(self, records: Iterable[NodeRecord]) -> None:
        """Meet those that are not known yet."""
        self._obey(self.core.found(records, monotonic_us()))

    def hear(self, routing_id: bytes, verb: str, body: dict[str, Any]) -> Any:
        """Return the answer to what a node asks of another; NotImplemented for what is asked of its scheduler."""
        if verb == "record":
            return self.record.pack()
        if is_guest(routing_id):
            self._check_guest(node_of(routing_id), verb, body)
        if verb == "meet":
            return self._meet(routing_id, NodeRecord.unpack(body["record"]))
        if verb == "changed":
            self.page.bump()
            return None
        if verb == "stay":
            return self._hear_guest(node_of(routing_id))
        if verb == "part":
            self._obey(self.core.parted(node_of(routing_id), monotonic_us()))
            self._close(node_of(routing_id))
            return None
        return NotImplemented

    def _check_guest(self, node: int, verb: str, body: dict[str, Any]) -> None:
        """Raise RequestError unless a guest speaks for itself, and is a gateway."""
        if node in self.core.nodes:
            raise RequestError(f"a guest is not node {node:016x}")
        if verb == "meet":
            record = NodeRecord.unpack(body["record"])
            if record.control or record.id != node:
                raise RequestError("a guest is not one of the nodes: that takes keys with the right admin")

    def _meet(self, routing_id: bytes, record: NodeRecord) -> Any:
        """Let a neighbour use this node's executors, and tell it what they do from now on."""
        now_us = monotonic_us()
        if record.id not in self._met:
            self._tell(ClientJoined(record.id, 0))
        self._met[record.id] = _Guest(routing_id, now_us)
        self.show()
        self._obey(self.core.found([record], now_us))
        if self._news_us is None:
            self._news_us = now_us + NEWS_US
        others = [node.record.pack() for id, node in self.core.nodes.items() if id != record.id]
        return {"record": self.record.pack(), "news": self._news(with_keys=True), "others": others}

    def _hear_guest(self, node: int) -> bool:
        guest = self._met.get(node)
        if guest is not None:
            guest.heard_us = monotonic_us()
        return guest is not None

    def ask(self, slot: int, verb: str, body: dict[str, Any], then: Then, timeout_s: float) -> None:
        """Ask the node of the executor in a slot of the page; `body` then says how that is called there."""
        node, there, life, _ = self.page.home(slot)
        self._ask(node, verb, {**body, "slot": there, "incarnation": life}, then, timeout_s)

    def ask_node(self, node: int, verb: str, body: dict[str, Any], then: Then, timeout_s: float) -> None:
        """Ask a neighbour as one of its clients would."""
        self._ask(node, verb, body, then, timeout_s)

    def ask_all(
        self, verb: str, body: dict[str, Any], then: Callable[[dict[int, Any]], None], timeout_s: float
    ) -> None:
        """Ask every neighbour; `then` takes what they have answered, by node, when all have or time is over."""
        waiting, answers = set(self._links), dict[int, Any]()
        if not waiting:
            then(answers)

        def take(node: int, answer: Any) -> None:
            waiting.discard(node)
            if answer is not None and not isinstance(answer, CloudburstError):
                answers[node] = answer
            if not waiting:
                then(answers)

        for node in list(waiting):
            self._ask(node, verb, body, lambda answer, node=node: take(node, answer), timeout_s)  # type: ignore[misc]

    def tell_hosts(self, verb: str, body: dict[str, Any]) -> None:
        """Tell every neighbour on another host."""
        for node, neighbour in list(self.core.nodes.items()):
            if neighbour.record.host != self.record.host:
                self.tell(node, verb, body)

    def tell(self, node: int, verb: str, body: dict[str, Any]) -> None:
        """Tell one neighbour, if it is there."""
        self._ask(node, verb, body, lambda _: None, config.CONTROL_TIMEOUT_S)

    def announce_functions(self, then: Callable[[], None]) -> None:
        """Have the neighbours look up functions anew; `then` is called when all do, or cannot be waited for."""
        self._changes += 1
        self.ask_all("changed", {}, lambda _: then(), config.FUNCTIONS_KNOWN_S)

    def part(self) -> None:
        """Say that this node ends, and drop every connection."""
        for node, link in self._links.items():
            self._ask(node, "part", {}, lambda _: None, 0)
            link.socket.setsockopt(zmq.LINGER, 100)
        self._wait_for_relay()
        for node in list(self._links):
            self._close(node)

    def _wait_for_relay(self) -> None:
        """Wait until those on other hosts have answered, or a moment: the relay that takes them the word ends next."""
        waiting = {link.socket: len(link.asked) for link in self._links.values() if link.way is not None}
        end_us = monotonic_us() + PART_US
        while waiting and (left_us := end_us - monotonic_us()) > 0:
            for ready in zmq.select(list(waiting), [], [], left_us / 1e6)[0]:
                waiting[ready] -= ready.recv_multipart()[0] != NEWS
                if waiting[ready] <= 0:
                    del waiting[ready]

    def _ask(self, node: int, verb: str, body: dict[str, Any], then: Then, timeout_s: float) -> None:
        link = self._links.get(node)
        if link is None:
            then(None)
            return
        number = next(self._numbers).to_bytes(8, "big")
        link.asked[number] = monotonic_us() + int(timeout_s * 1e6), then
        try:
            link.socket.send_multipart([number, pack_request(verb, body)], zmq.NOBLOCK)
        except zmq.Again:
            link.asked.pop(number)[1](None)

    def _hear_link(self, node: int, link: _Link) -> None:
        while self._links.get(node) is link:
            try:
                parts = link.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) != 2:
                continue
            number, data = parts
            if number == NEWS:
                self._take_news(node, link, data)
                continue
            asked = link.asked.pop(number, None)
            if asked is not None:
                try:
                    asked[1](unpack_answer(data))
                except CloudburstError as fault:
                    asked[1](fault)

    # -- news

    def _news(self, with_keys: bool) -> bytes:
        keys = self.page.summary_at(0)[2] if with_keys and self.page.summary_at(0)[0] else b""
        return bytes(msgpack.packb([self._changes, [row.plain() for row in self._rows()], keys]))

    def _say_news(self, now_us: int) -> None:
        """Tell those who have met this node what has changed, or that it is there."""
        if not self._met:
            self._news_us = None
            return
        self._news_us = now_us + NEWS_US
        keys_version = self.page.summary_at(0)[1]
        with_keys = keys_version != self._keys_said and now_us >= self._keys_said_us + KEYS_US
        current = (self._changes, [row.plain() for row in self._rows()])
        if current == self._said and not with_keys and now_us < self._said_us + BEAT_US:
            return
        if with_keys:
            self._keys_said, self._keys_said_us = keys_version, now_us
        self._said, self._said_us = current, now_us
        data = self._news(with_keys)
        for guest in self._met.values():
            self._send(guest.routing_id, NEWS, data)

    def _take_news(self, node: int, link: _Link, data: bytes) -> None:
        try:
            changes, rows, keys = msgpack.unpackb(data)
            told = [ExecutorRow.of(row) for row in rows]
            if not isinstance(keys, bytes) or len(keys) not in (0, SUMMARY_BYTES):
                raise ProtocolError("not a summary of keys")
        except (TypeError, ValueError, ProtocolError) as fault:
            log.warning("node %016x tells what cannot be understood: %s", node, fault)
            return
        if changes != link.changes:
            link.changes = changes
            self.page.bump()
        self._obey(self.core.told(node, told, monotonic_us()))
        if keys:
            self._take_keys(node, keys)

    def _take_keys(self, node: int, keys: bytes) -> None:
        """Show in the page which keys a neighbour's cache has, while there is a place for it."""
        place = self._key_places.get(node)
        if place is None:
            free = set(range(1, SUMMARIES)) - set(self._key_places.values())
            if not free:
                return
            place = self._key_places[node] = min(free)
        self.page.summarize(place, node, keys)

    # -- what follows

    def _obey(self, instructions: list[NeighbourInstruction]) -> None:
        for one in instructions:
            match one:
                case Reflect(slot, state, activity, waiting, high, low):
                    self.page.reflect(slot, state, activity, waiting, high, low)
                case Mirror(slot, incarnation, pid, node, there, life, address):
                    self.page.mirror(slot, incarnation, pid, node, there, life, address)
                case Vacate(slot):
                    self.page.vacate(slot)
                case Lose(slot):
                    self.page.lose(slot)
                case Meet(node, endpoint):
                    self._open(node, endpoint)
                case Part(node):
                    log.info("node %016x is no longer heard of", node)
                    self._close(node)
        if any(isinstance(one, (Mirror, Vacate, Lose)) for one in instructions):
            self._tell(NeighboursChanged(self.core.executors))

    def _open(self, node: int, endpoint: str) -> None:
        try:
            number = next(self._numbers)
            guest = self._sealed and not self.record.control
            identity = node_identity(self.record.id, number, endpoint, guest)
            link = _Link(self._context, endpoint, identity, self._secret, self._way(endpoint, number, guest))
        except (RequestError, OSError) as fault:
            log.warning("node %016x cannot be met: %s", node, fault)
            return
        self._links[node] = link
        self._loop.watch(link.socket, lambda: self._hear_link(node, link))
        self._watch_process(node, link)

        self._introduce(node)
        if not self.record.control and self._stay_us is None:
            self._stay_us = monotonic_us() + STAY_US

    def _way(self, endpoint: str, number: int, guest: bool) -> Way | None:
        """Have the relay lead to a node on another host, if it is the relay's to do so."""
        if not self._sealed or not endpoint.startswith("tcp:"):
            return None
        return Way(self._loop, self.record.directory, endpoint, GUESTS if guest else NODES, f"f{number}.sock")

    def _introduce(self, node: int) -> None:
        """Tell a node who this one is, and hear from then on what its executors do."""
        link = self._links[node]

        def introduced(answer: Any) -> None:
            if isinstance(answer, dict) and self._links.get(node) is link:
                log.info("met node %016x", node)
                link.met = True
                self._take_news(node, link, answer["news"])
                self._take_others(answer.get("others", ()))

        self._ask(node, "meet", {"record": self.record.pack()}, introduced, config.NODE_SILENCE_S)

    def _take_others(self, packed: Iterable[bytes]) -> None:
        """Meet those whom a neighbour knows: of two that join at the same time, the later one is told of the other,
        and need not wait until it looks into the store again.
        """
        try:
            self.found([NodeRecord.unpack(one) for one in packed])
        except (TypeError, ProtocolError) as fault:
            log.warning("a node tells of others what cannot be understood: %s", fault)

    def _watch_process(self, node: int, link: _Link) -> None:
        record = self.core.nodes[node].record
        if record.host != self.record.host or not record.pid:
            return
        try:
            link.pidfd = os.pidfd_open(record.pid)
        except OSError:
            return  # it is gone, or its processes are not seen from here; then its silence tells
        self._loop.watch(link.pidfd, lambda: self._obey(self.core.parted(node, monotonic_us())))

    def _close(self, node: int) -> None:
        if self._met.pop(node, None) is not None:
            self._tell(ClientLeft(node))
        place = self._key_places.pop(node, None)
        if place is not None:
            self.page.summarize(place, 0, b"")
        link = self._links.pop(node, None)
        if link is not None:
            self._loop.forget(link.socket)
            if link.pidfd >= 0:
                self._loop.forget(link.pidfd)
                os.close(link.pidfd)
            for _, then in link.asked.values():
                then(None)
            link.socket.close()
            if link.way is not None:
                link.way.close()

