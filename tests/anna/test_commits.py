"""The coordinator's side of a transaction: when it is committed, when it never will be, and when nobody knows."""

from __future__ import annotations

import struct

import pytest
from xxhash import xxh64_intdigest as hash64

from anna.commits import COMMITTED_STATE, PREPARED, REFUSED_STATE, STATE, STRANGE, Commit, Message, Verdict, Write
from anna.config import TRANSACTION_KEYS_MAX
from anna.errors import ProtocolError, ValueTooLarge
from anna.wire import COMMIT, FINISH, OK, PREPARE, STALE, WRONG_WORKER

ID = b"sixteen bytes id"
TYPE_MISMATCH = 16
WRITES = (Write(b"a", 1, b"one"), Write(b"b", 6, b"two"), Write(b"c", 1, b""))
OWNERS = {b"a": 100, b"b": 200, b"c": 100}


def begun(nonce: int = 7) -> Commit:
    commit = Commit(ID, WRITES, nonce)
    assert [message.worker_id for message in commit.begin(OWNERS.__getitem__)] == [100, 200]
    return commit


def state(kind: int, stamp: int = 0, attempt: int = 7) -> bytes:
    return STATE.pack(kind, stamp, attempt)


def ending(worker: int, stamp: int, attempt: int = 7) -> Message:
    return Message(worker, COMMIT, struct.pack("<16sQQ", ID, attempt, stamp))


def test_each_owner_is_asked_to_prepare_its_own_writes_and_told_who_else_is() -> None:
    first, second = Commit(ID, WRITES, 7).begin(OWNERS.__getitem__)
    places = b"".join(struct.pack("<QQ", hash64(write.key), OWNERS[write.key]) for write in WRITES)
    head, count = ID + struct.pack("<Q", 7), struct.pack("<I", 3)
    a_and_c = struct.pack("<HBBI", 1, 1, 0, 3) + b"aone" + struct.pack("<HBBI", 1, 1, 0, 0) + b"c"
    a_and_c = struct.pack("<I", 2) + a_and_c
    assert first == Message(100, PREPARE, head + struct.pack("<Q", 100) + count + places + a_and_c)
    b = struct.pack("<I", 1) + struct.pack("<HBBI", 1, 6, 0, 3) + b"btwo"
    assert second == Message(200, PREPARE, head + struct.pack("<Q", 200) + count + places + b)


def test_it_is_committed_at_the_greatest_proposal_once_all_have_prepared() -> None:
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    assert (commit.verdict, commit.ending()) == (Verdict.OPEN, [])
    commit.answered(200, OK, state(PREPARED, 20))
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, 30)
    assert commit.ending() == [ending(100, 30), ending(200, 30)]


def test_it_is_refused_when_one_refuses_and_the_others_are_told_to_drop_it() -> None:
    commit = begun()
    commit.answered(200, TYPE_MISMATCH, b"'b' holds a LWW, got a Set")
    assert commit.verdict is Verdict.OPEN
    commit.answered(100, OK, state(PREPARED, 30))
    assert (commit.verdict, commit.refusal) == (Verdict.REFUSED, (TYPE_MISMATCH, "'b' holds a LWW, got a Set"))
    assert commit.ending() == [ending(100, 0)]


@pytest.mark.parametrize(("status", "payload", "view"), [(WRONG_WORKER, b"a view", b"a view"), (STALE, b"busy", None)])
def test_it_is_tried_again_as_another_attempt_when_an_owner_is_not_ready(
    status: int, payload: bytes, view: bytes | None
) -> None:
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    commit.answered(200, status, payload)
    assert (commit.verdict, commit.view, commit.ending()) == (Verdict.AGAIN, view, [ending(100, 0)])
    again = commit.begin(lambda key: 300)
    assert [(message.worker_id, message.payload[16:24]) for message in again] == [(300, struct.pack("<Q", 8))]


def test_an_owner_that_was_not_reached_has_not_prepared_and_one_that_was_may_have() -> None:
    commit = begun()
    commit.missed(100, False)
    commit.missed(200, True)
    assert commit.verdict is Verdict.AGAIN
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    commit.missed(200, True)
    assert (commit.verdict, commit.ending()) == (Verdict.UNKNOWN, [])


def test_while_nobody_knows_the_owners_are_asked_until_one_does() -> None:
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    commit.missed(200, True)
    asked = commit.ask(lambda key: 300)
    assert [(message.worker_id, message.op) for message in asked] == [(100, FINISH), (200, FINISH), (300, FINISH)]
    commit.answered(300, OK, state(STRANGE))
    commit.missed(200, False)
    commit.answered(100, OK, state(PREPARED, 30))
    assert commit.verdict is Verdict.UNKNOWN
    commit.ask(lambda key: 300)
    commit.answered(100, OK, state(COMMITTED_STATE, 30))
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, 30)


def test_an_owner_whose_answer_was_lost_tells_that_it_has_prepared_when_it_is_asked() -> None:
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    commit.missed(200, True)
    commit.ask(OWNERS.__getitem__)
    commit.answered(100, OK, state(PREPARED, 30))
    commit.answered(200, OK, state(PREPARED, 50))
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, 50)


def test_one_that_refuses_when_it_is_asked_makes_room_for_the_next_attempt() -> None:
    commit = begun()
    commit.answered(100, OK, state(PREPARED, 30))
    commit.missed(200, True)
    commit.ask(OWNERS.__getitem__)
    commit.answered(200, OK, state(REFUSED_STATE))
    commit.answered(100, OK, state(PREPARED, 30))
    assert (commit.verdict, commit.ending()) == (Verdict.AGAIN, [ending(100, 0)])


def test_what_was_committed_before_is_said_again_and_this_attempt_dropped() -> None:
    commit = begun(nonce=9)
    commit.answered(200, OK, state(COMMITTED_STATE, 11, attempt=3))
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, 11)
    commit.answered(100, OK, state(PREPARED, 30, attempt=9))
    assert (commit.verdict, commit.stamp) == (Verdict.COMMITTED, 11)
    assert commit.ending() == [ending(100, 0, attempt=9), ending(200, 0, attempt=9)]


def test_what_is_no_transaction_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="a transaction's id has 16 bytes, got 5"):
        Commit(b"short", WRITES, 1)
    with pytest.raises(ValueError, match="writes each of its keys once"):
        Commit(ID, (WRITES[0], WRITES[0]), 1)
    with pytest.raises(ValueTooLarge):
        Commit(ID, [Write(b"%d" % n, 1, b"") for n in range(TRANSACTION_KEYS_MAX + 1)], 1)
    with pytest.raises(ProtocolError):
        begun().answered(100, OK, b"short")
