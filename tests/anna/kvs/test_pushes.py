"""What subscribers are told, and when: behind the answers that were given before."""

from __future__ import annotations

from anna.kvs.worker import Connection
from tests.anna.frames import MISSING, OK, PUSH, SUBSCRIBE, put, replies, request
from tests.anna.kvs.workers import EPOCH_NS, Workers, view_of


def test_a_push_does_not_overtake_the_answer_to_its_subscription() -> None:
    """That waits behind a write for its copies. Who took it for the newer of the two kept it until the key changed."""
    workers = Workers(view_of(2, factor=2))
    subscriber = Connection()
    asked = put(b"written", b"v", id=1) + request(SUBSCRIBE, b"k", id=2)
    assert workers.ask(100, asked, connection=subscriber) == []
    workers.ask(100, put(b"k", b"new", ack=1), connection=Connection())
    workers.now += EPOCH_NS
    heard = b"".join(data for connection, data in workers.workers[100].tick(workers.now) if connection is subscriber)
    workers.deliver()
    for _ in range(3):
        heard += b"".join(data for to, data in workers.workers[100].take_released() if to is subscriber)
        workers.pass_epochs()
        heard += b"".join(data for ids, to, data in workers.pushed if to is subscriber)
        workers.pushed.clear()
    told = [(reply.request, reply.status, reply.payload[-3:]) for reply in replies(heard)]
    assert told == [(1, OK, b""), (2, MISSING, b""), (0, OK, b"new")], told
    assert replies(heard)[2].flags == PUSH
    workers.check()
