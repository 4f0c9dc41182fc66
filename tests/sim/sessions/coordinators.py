"""An executor that commits a session's writes at their owners: the coordinator's core, and streams to the owners.

The one rule: it may die after any frame that it has sent or before it sends the next. Whoever commits again under the
same id finds out what became of it, or commits it: of all attempts together one has effect.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgpack

from anna.commits import Commit, Message, Verdict, Write
from anna.messages import View
from anna.routing.placement import Placement
from tests.anna.frames import Reply, replies, request
from tests.sim.network import Stream
from tests.sim.schedule import MS
from tests.sim.sessions.caches import CacheHost, Lost, Refused
from tests.sim.sessions.tasks import Promise, pause

if TYPE_CHECKING:
    from tests.sim.sessions.cluster import SessionCluster

PAUSE_NS = 5 * MS
"""How long it waits before it begins again, or asks again."""

TRIES_MAX = 40
"""How often it tries. Where all that had prepared have died, nobody will ever say; another attempt can be made then."""


class Coordinator:
    """One commit on one node."""

    def __init__(self, cluster: SessionCluster, host: CacheHost) -> None:
        self.cluster = cluster
        self.host = host
        self.incarnation = host.incarnation
        self.view = cluster.view_now()
        self.placement = Placement(self.view)
        self.streams: dict[int, Stream] = {}

    async def commit(self, transaction: bytes, writes: list[Write], after: int) -> int:
        """Return the stamp of the commit. Raises Lost when the node dies, Refused."""
        commit = Commit(transaction, writes, self.cluster.new_nonce(), guarded=True)
        messages = commit.begin(self.owner, self.guard)
        try:
            for _ in range(TRIES_MAX):
                await self.exchange(commit, messages, after)
                if commit.view is not None:
                    self.take_view(View.from_wire(msgpack.unpackb(commit.view)))
                self.send_all(commit.ending(), after)
                if commit.verdict is Verdict.COMMITTED:
                    return commit.stamp
                if commit.verdict is Verdict.REFUSED:
                    assert commit.refusal is not None
                    raise Refused(*commit.refusal)
                await pause(self.cluster.schedule, PAUSE_NS)
                self.check_alive()
                self.take_view(self.cluster.view_now())
                again = commit.verdict is Verdict.AGAIN
                messages = (commit.begin if again else commit.ask)(self.owner, self.guard)
            raise Lost("nobody says what became of a transaction")
        finally:
            for stream in self.streams.values():
                stream.hang_up()

    def owner(self, key: bytes) -> int:
        """Return the worker that is asked to prepare a key."""
        return self.view.workers[self.placement.owners_of(key)[0]].worker_id

    def guard(self, place: int) -> int:
        """Return the worker that decides between the attempts at a transaction."""
        return self.view.workers[self.placement.first_at(place)].worker_id

    def take_view(self, view: View) -> None:
        """Take up a newer view."""
        if view.version > self.view.version:
            self.view, self.placement = view, Placement(view)

    async def exchange(self, commit: Commit, messages: list[Message], after: int) -> None:
        """Send messages, and give the core all that comes back."""
        answers = [(message.worker_id, self.ask(message, after)) for message in messages]
        for worker, promise in answers:
            reply = await promise
            self.check_alive()
            if reply is None:
                commit.missed(worker, sent=True)
            else:
                commit.answered(worker, reply.status, reply.payload)

    def ask(self, message: Message, after: int) -> Promise[Reply | None]:
        """Send one message; its answer will be there, or None when the stream has ended before."""
        promise: Promise[Reply | None] = Promise(self.cluster.schedule)
        addresses = {worker.worker_id: worker.addresses[0] for worker in self.view.workers}
        address = addresses.get(message.worker_id)
        if address is None:
            promise.set(None)
            return promise
        self.step()
        stream = self.cluster.open_stream(self.host.host, address, partial(self.hear, promise))
        if message.worker_id in self.streams:
            self.streams[message.worker_id].hang_up()
        self.streams[message.worker_id] = stream
        stream.to_far(self.frame(message, after))
        return promise

    @staticmethod
    def hear(promise: Promise[Reply | None], data: bytes | None) -> None:
        """Take an answer, or the end of its stream."""
        if data is None:
            promise.set(None)
        elif data:
            (reply,) = replies(data)
            promise.set(reply)

    def send_all(self, messages: list[Message], after: int) -> None:
        """Send messages whose answers say nothing."""
        for message in messages:
            self.step()
            if message.worker_id in self.streams:
                self.streams[message.worker_id].to_far(self.frame(message, after))

    def frame(self, message: Message, after: int) -> bytes:
        return self.cluster.spoil(request(message.op, b"", message.payload, stamp=after, ack=self.cluster.ack))

    def step(self) -> None:
        """Die here, if it is to be. Raises Lost."""
        self.check_alive()
        self.host.dies_here()
        self.check_alive()

    def check_alive(self) -> None:
        if self.host.core is None or self.host.incarnation != self.incarnation:
            raise Lost("the node has died in the middle of a commit")
