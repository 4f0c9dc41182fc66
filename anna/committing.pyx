"""Transactions of the blocking client: what its coordinator says goes to all owners before any answer is awaited.

The one rule: the caller is told that a transaction is committed when its owners have been told, though they have not answered; and is told
that it was refused only when it surely was. The asyncio client's counterpart is in `anna.flights`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t

from anna.client cimport Client
from anna.stream cimport Stream, now_ns

import time

import msgpack

from anna.commits import Verdict
from anna.config import OWNER_SHARE_MIN_NS
from anna.errors import ConnectionLost, NoWorkers, RequestTimeout
from anna.messages import View

cdef enum:
    PAUSE_NS = 5_000_000

cdef int64_t SHARE_MIN_NS = OWNER_SHARE_MIN_NS


def run(Client client, commit, ack, int64_t deadline):
    """Drive a transaction (`anna.commits.Commit`) until its end is known; return its stamp.

    Raises what an owner refused it with; NoWorkers when the owners could not be reached; RequestTimeout (indefinite) when nobody knew by
    the deadline.
    """
    cdef dict streams = {}
    try:
        while True:
            if attempt(client, commit, ack, streams, deadline):
                for message in commit.ending():
                    announce(client, message, streams, deadline)
                if commit.verdict is Verdict.COMMITTED:
                    client.requester.note(commit.stamp)
                    return commit.stamp
                if commit.refusal is not None:
                    raise client.requester.failure(commit.refusal[0], commit.refusal[1].encode())
                if commit.verdict is Verdict.UNKNOWN:
                    raise RequestTimeout("nobody knew by the deadline whether the transaction was committed")
            if client.closed:
                raise NoWorkers("this client is closed")
            if now_ns() + PAUSE_NS >= deadline:
                raise NoWorkers("the owners of the keys did not all prepare the transaction before the deadline")
            if commit.view is None or not client.adopt(View.from_wire(msgpack.unpackb(commit.view))):
                look_for_view(client, deadline)
    finally:
        for stream in streams.values():
            client.give_back(stream)


cdef bint attempt(Client client, commit, ack, dict streams, int64_t deadline) except -1:
    """Make one attempt, and ask for its end until somebody knows; False when there is nobody to ask."""
    try:
        messages = commit.begin(lambda key: owner_of(client, key), lambda place: guard_at(client, place))
    except NoWorkers:
        return False
    fly(client, commit, messages, ack, streams, share(deadline))
    while commit.verdict is Verdict.UNKNOWN and now_ns() + PAUSE_NS < deadline:
        look_for_view(client, deadline)
        try:
            messages = commit.ask(lambda key: owner_of(client, key), lambda place: guard_at(client, place))
        except NoWorkers:
            continue
        fly(client, commit, messages, ack, streams, share(deadline))
    return True


cdef int64_t share(int64_t deadline) noexcept:
    """Return until when owners may take to answer: time is left to ask others."""
    cdef int64_t now = now_ns()
    return min(deadline, now + max((deadline - now) // 2, SHARE_MIN_NS))


def owner_of(Client client, bytes key):
    """Return the id of the worker that is asked to prepare a write of `key`. Raises NoWorkers."""
    workers = client.workers
    cdef int place
    if client.requester.troubled:
        place = client.requester.trusted_owner(key, now_ns())
    else:
        place = client.requester.placement.owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    if not 0 <= place < len(workers):
        raise NoWorkers("the view names no worker")
    return workers[place].worker_id


def guard_at(Client client, place):
    """Return the id of the first owner of a place on the rings. Raises NoWorkers."""
    return client.requester.first_at(place)


cdef int fly(Client client, commit, messages, ack, dict streams, int64_t limit) except -1:
    """Send messages to their workers, then take what each answers by `limit`."""
    cdef Stream stream
    cdef list asked = []
    try:
        send_all(client, commit, messages, ack, streams, asked, limit)
        receive_all(client, commit, streams, asked, limit)
    except BaseException:
        # Answers may be under way on all of them.
        for stream in streams.values():
            stream.close()
        streams.clear()
        raise
    return 0


cdef int send_all(Client client, commit, messages, ack, dict streams, list asked, int64_t limit) except -1:
    cdef Stream stream
    cdef uint32_t request
    cdef bytes frame
    for worker, op, payload in messages:
        stream = stream_to(client, worker, streams, limit)
        if stream is None:
            commit.missed(worker, False)
            continue
        request, frame = client.requester.transaction_request(op, payload, ack)
        try:
            stream.out.append(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
            stream.send(limit)
            asked.append((worker, stream, request))
        except (ConnectionLost, RequestTimeout):
            drop(client, worker, streams)
            commit.missed(worker, True)
    return 0


cdef int receive_all(Client client, commit, dict streams, list asked, int64_t limit) except -1:
    cdef Stream stream
    cdef uint32_t request
    for worker, stream, request in asked:
        try:
            stream.receive(limit)
            if stream.reply.request != request:
                raise client.out_of_step(stream, request)
        except (ConnectionLost, RequestTimeout):
            drop(client, worker, streams)
            commit.missed(worker, True)
            continue
        client.credit(stream)
        commit.answered(worker, stream.reply.status, PyBytes_FromStringAndSize(stream.payload, stream.payload_bytes))
    return 0


cdef Stream stream_to(Client client, worker, dict streams, int64_t limit):
    """Return the stream to a worker, None when it cannot be reached."""
    cdef Stream stream = streams.get(worker)
    cdef int place
    if stream is None:
        place = client.requester.place_of(worker)
        try:
            stream = client.take(place, limit, limit)
        except NoWorkers:
            return None
        streams[worker] = stream
    return stream


cdef int drop(Client client, worker, dict streams) except -1:
    """A stream has failed: others are asked first for a while."""
    cdef Stream stream = streams.pop(worker)
    stream.close()
    client.suspect(stream)
    return 0


cdef int announce(Client client, message, dict streams, int64_t deadline) except -1:
    """Tell an owner how a transaction has ended; it finds out by itself if it does not hear."""
    cdef Stream stream = stream_to(client, message.worker_id, streams, share(deadline))
    cdef bytes frame
    if stream is None:
        return 0
    frame = client.requester.announcement(message.op, message.payload)
    try:
        stream.out.append(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        stream.send(deadline)
    except (ConnectionLost, RequestTimeout):
        drop(client, message.worker_id, streams)
    return 0


cdef int look_for_view(Client client, int64_t deadline) except -1:
    """Pause, and see whether there is a newer view."""
    time.sleep(PAUSE_NS / 1e9)
    try:
        client.refresh(client.refresh_limit(deadline))
    except NoWorkers:
        pass
    return 0
