"""Messages between invocations: who gets them, in which order, and what is said when nobody is there."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloudburst as cb
from cloudburst import frames
from cloudburst.errors import InvocationGone, Overloaded
from cloudburst.executor.mailbox import Mailbox, Message
from cloudburst.executor.talking import parse_id
from demos.aggregation.__main__ import run
from demos.aggregation.functions import ALL
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import Post


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 2), st.binary(max_size=4)))))
def test_an_inbox_gives_what_was_sent_to_its_owner_in_order_and_nothing_else(
    events: list[tuple[int, bytes] | None],
) -> None:
    box, owner, expected = Mailbox(messages_max=4, bytes_max=8), (1, 0), []
    box.open(owner)
    for event in events:
        if event is None:
            message = box.take()
            assert (None if message is None else bytes(message.payload)) == (expected.pop(0) if expected else None)
        else:
            to, data = event
            fault = box.offer((1, to), Message((9, 9), data))
            if fault is None:
                assert to == 0
                expected.append(data)
            else:
                assert isinstance(fault, Overloaded if to == 0 else InvocationGone)
                assert fault.definite
        box.check()
    box.open((1, 1))
    assert box.take() is None


def test_a_new_invocation_does_not_get_what_was_sent_to_the_one_before() -> None:
    """D59: messages were addressed to executors."""
    box = Mailbox()
    box.open((1, 1))
    assert box.offer((1, 1), Message((2, 2), b"x")) is None
    box.open((1, 2))
    assert len(box) == 0
    assert isinstance(box.offer((1, 1), Message((2, 2), b"y")), InvocationGone)
    box.check()


def echo_back() -> int:
    """Send back to each sender what it sent, until one says stop; return how many there were."""
    me, count = cb.ctx(), 0
    while True:
        sender, message = me.recv_from(timeout=30)
        if message == "stop":
            return count
        count += 1
        me.send(sender, [message])


def send_many(to: str, count: int) -> list[Any]:
    me = cb.ctx()
    for n in range(count):
        me.send(to, n)
    return [me.recv(timeout=30) for _ in range(count)]


def stop(to: str) -> None:
    cb.ctx().send(to, "stop")


@pytest.fixture
def talkers(client: cb.Client) -> cb.Client:
    for function in (echo_back, send_many, stop):
        client.register(function)
    return client


def test_messages_reach_an_invocation_in_their_order_and_come_back(talkers: cb.Client) -> None:
    echoing = talkers.spawn("echo_back")
    assert talkers.call("send_many", echoing.id, 200) == [[n] for n in range(200)]
    talkers.call("stop", echoing.id)
    assert echoing.result(timeout=20) == 200


def test_several_senders_each_keep_their_order(talkers: cb.Client) -> None:
    echoing = talkers.spawn("echo_back")
    senders = [talkers.spawn("send_many", echoing.id, 50) for _ in range(3)]
    for sender in senders:
        assert sender.result(timeout=60) == [[n] for n in range(50)]
    talkers.call("stop", echoing.id)
    assert echoing.result(timeout=20) == 150


def test_call_that_reaches_an_executor_whose_invocation_waits_for_messages_is_handed_back_at_once(
    talkers: cb.Client,
) -> None:
    """It stayed there until the invocation ended, when it was this that read the lane, and not the attendant."""
    echoing = talkers.spawn("echo_back")
    assert talkers.call("send_many", echoing.id, 1) == [[0]]
    membership = talkers._joined()
    slot = membership.page.find(*parse_id(echoing.id))
    assert slot >= 0
    address = membership.address(slot, membership.page.state(slot)[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lane:
        lane.settimeout(20)
        lane.connect(address.removeprefix("unix:"))
        lane.sendall(membership.hello())
        for request in range(100):
            lane.sendall(frames.call(request, b"stop", b"", invocation=(5, request), timeout_us=10**8))
            assert lane.recv(1000)[4] == frames.BOUNCED
    talkers.call("stop", echoing.id)
    assert echoing.result(timeout=20) == 1


def test_two_that_send_to_each_other_at_once_both_go_on(client: cb.Client) -> None:
    def talk(other: str, count: int) -> int:
        me = cb.ctx()
        if other:
            me.send(other, "hello", timeout=20)
        else:
            other, _ = me.recv_from(timeout=30)
        total = 0
        for n in range(count):
            me.send(other, n)
            total += me.recv(timeout=30)
        return total

    client.register(talk, name="talk")
    one = client.spawn("talk", "", 100)
    two = client.spawn("talk", one.id, 100)
    assert (one.result(timeout=60), two.result(timeout=60)) == (4950, 4950)


def test_one_may_send_to_itself(client: cb.Client) -> None:
    def alone() -> list[str]:
        me = cb.ctx()
        me.send(me.id, "a")
        me.send(me.id, "b")
        return [me.recv(), me.recv()]

    client.register(alone, name="alone")
    assert client.call("alone") == ["a", "b"]


def test_a_target_that_is_gone_is_an_error_and_so_is_one_that_never_was(talkers: cb.Client) -> None:
    ended = talkers.spawn("square", 3)
    ended.result(timeout=20)

    def send_to(to: str) -> None:
        cb.ctx().send(to, "x", timeout=0.05)

    talkers.register(send_to, name="send_to")
    with pytest.raises(cb.FunctionError, match=ended.id) as caught:
        talkers.call("send_to", ended.id)
    assert isinstance(caught.value.__cause__, cb.InvocationGone)
    with pytest.raises(cb.FunctionError, match="'abc' is no invocation's id"):
        talkers.call("send_to", "abc")


def test_a_message_waits_for_an_invocation_that_has_not_begun(talkers: cb.Client) -> None:
    def send_first(to: str) -> str:
        cb.ctx().send(to, "early", timeout=20)
        return "sent"

    def later() -> Any:
        return cb.ctx().recv(timeout=20)

    def both() -> Any:
        waiting = cb.spawn("later")
        return cb.call("send_first", waiting.id), waiting.result()

    for name, function in (("send_first", send_first), ("later", later), ("both", both)):
        talkers.register(function, name=name)
    assert talkers.call("both") == ("sent", "early")


def test_waiting_ends_in_time_and_can_be_cancelled(talkers: cb.Client, post: Post) -> None:
    def wait_for(seconds: float) -> None:
        cb.ctx().recv(timeout=seconds)

    talkers.register(wait_for, name="wait_for")
    with pytest.raises(TimeoutError, match="no message came in time"):
        talkers.call("wait_for", 0.05)
    future = talkers.spawn("wait_for", 100)
    eventually(lambda: future.id in {row.get("invocation") for row in talkers.status()["executors"]}, "it waits")
    assert future.cancel()
    assert talkers.call("square", 3) == 9


def test_a_full_inbox_is_said_to_the_sender(client: cb.Client) -> None:
    def fill() -> int:
        me, sent = cb.ctx(), 0
        try:
            while True:
                me.send(me.id, bytes(1000))
                sent += 1
        except cb.Overloaded:
            return sent

    client.register(fill, name="fill")
    assert client.call("fill") == 10_000


def test_what_cannot_be_pickled_is_no_message(client: cb.Client) -> None:
    def send_generator() -> None:
        me = cb.ctx()
        me.send(me.id, (n for n in range(3)))

    client.register(send_generator, name="send_generator")
    with pytest.raises(cb.FunctionError, match="NotSerializable: a generator cannot be sent as a message"):
        client.call("send_generator")


def test_gossip_and_gather_come_to_the_mean(client: cb.Client) -> None:
    """The aggregation of the Cloudburst paper: actors that only talk to each other all come to know the mean."""
    for function in ALL:
        client.register(function)
    values = [float(n) for n in range(100, 108)]
    for found in client.call("gossip", values, 1e-3, 5), [client.call("gather", values, "gathering")]:
        assert all(abs(one - 103.5) < 1.0 for one in found)


def test_the_demonstration_runs_and_says_what_it_found(client: cb.Client) -> None:
    found = run(client, actors=5, times=2, tolerance=1e-3, seed=3)
    assert set(found) == {"gossip", "gather"}
    assert found["gather"]["error"] < 1e-9
    assert found["gossip"]["error"] < 0.02
