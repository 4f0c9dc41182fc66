"""Keys of a node's cache that its executors watch: one push of the owner, one to each of them, at once."""

from __future__ import annotations

import random

import anna
from anna.kvs.worker import Connection
from anna.lattices import Priority
from tests.anna import frames
from tests.anna.frames import Reply, put, request
from tests.cloudburst.cache.nodes import Node, value, view_of

PRIORITY = 10


def offer(key: bytes, cost: float, path: str = "") -> bytes:
    return request(frames.PUT, key, Priority(cost, path).encode(), type=PRIORITY)


def pushed(replies: list[Reply], key: bytes) -> list[Reply]:
    """The pushes of a key among what a connection was sent."""
    prefix = len(key).to_bytes(2, "little") + key
    return [one for one in replies if one.request == 0 and one.flags == frames.PUSH and one.payload.startswith(prefix)]


def costs(replies: list[Reply], key: bytes) -> list[float]:
    return [
        anna.lattices.REGISTRY[one.type].decode(one.payload[2 + len(key) :]).priority
        for one in pushed(replies, key)
        if one.status == frames.OK
    ]


def watchers(node: Node, key: bytes, count: int) -> list[Connection]:
    clients = [node.client() for _ in range(count)]
    for client in clients:
        assert node.answer(client, request(frames.SUBSCRIBE, key)).status <= frames.MISSING
        node.answers[client].clear()
    return clients


def test_one_push_of_the_owner_becomes_one_to_each_who_watches_however_many() -> None:
    for count in (1, 4, 16):
        node = Node(owners=1)
        clients = watchers(node, b"best", count)
        before = node.cache.status()
        node.workers[0].receive(Connection(), offer(b"best", 9.0), node.now)
        node.settle()
        after = node.cache.status()
        assert after["pushed"] - before["pushed"] == 1
        assert after["passed_on"] - before["passed_on"] == count
        assert [costs(node.answers[client], b"best") for client in clients] == [[9.0]] * count
        node.check()


def test_what_one_executor_writes_the_others_of_its_node_are_told_before_the_owner_pushes_it() -> None:
    node = Node(owners=1)
    writer, watcher = node.client(), *watchers(node, b"best", 1)
    node.ask(writer, offer(b"best", 7.0))
    node.deliver_to_owner(0)
    node.deliver_to_cache(0)  # the answer to the write, before any epoch of the owner has ended
    assert costs(node.answers[watcher], b"best") == [7.0]
    node.settle()
    node.answer(writer, offer(b"best", 8.0))  # no news to anybody, nor is what the owner says of either write
    assert costs(node.answers[watcher], b"best") == [7.0]
    node.check()


def test_a_delete_and_what_follows_it_are_told() -> None:
    node = Node()
    client = node.client()
    (watcher,) = watchers(node, b"k", 1)
    node.answer(client, put(b"k", b"old"))
    node.answer(client, request(frames.DELETE, b"k"))
    node.answer(client, put(b"k", b"new"))
    states = [one.status for one in pushed(node.answers[watcher], b"k")]
    assert frames.MISSING in states
    assert states[-1] == frames.OK
    assert pushed(node.answers[watcher], b"k")[-1].payload.endswith(b"new")
    node.check()


def test_who_has_ended_is_told_nothing_more() -> None:
    node = Node(owners=1)
    client = node.client()
    first, second = watchers(node, b"k", 2)
    node.answer(first, request(frames.UNSUBSCRIBE, b"k"))
    node.answers[first].clear()
    node.cache.leave(second)
    node.answer(client, put(b"k", b"v"))
    assert not pushed(node.answers[first] + node.answers[second], b"k")
    assert node.cache.status()["watched"] == 0
    node.check()


def test_a_watched_key_is_asked_for_again_when_its_owner_is_lost_or_it_has_moved() -> None:
    node = Node(owners=2)
    (watcher,) = watchers(node, b"best", 1)
    place = node.view.index_of(node.cache_owner(b"best"))
    node.crash(place)
    node.settle()
    node.workers[place].receive(Connection(), offer(b"best", 5.0), node.now)
    node.settle()
    assert costs(node.answers[watcher], b"best")[-1] == 5.0
    node.cache.adopt_owners(view_of(2, version=2))
    node.flush()
    node.settle()
    node.workers[place].receive(Connection(), offer(b"best", 4.0), node.now)
    node.settle()
    assert costs(node.answers[watcher], b"best")[-1] == 4.0
    node.check()


def test_a_counter_that_this_node_adds_to_is_told_though_only_its_owner_knows_what_it_became() -> None:
    node = Node(owners=1)
    client = node.client()
    (watcher,) = watchers(node, b"n", 1)
    for _ in range(3):
        node.answer(client, request(frames.PUT, b"n", anna.Counter(+2).encode(), type=anna.Counter.NUMBER))
    last = pushed(node.answers[watcher], b"n")[-1]
    assert anna.Counter.decode(last.payload[3:]).value == 6
    node.check()


def test_reordered_and_repeated_offers_never_raise_what_a_watcher_sees_and_lose_none() -> None:
    """Offers of many planners over two streams in any order, some twice: what is told falls, to the least of all."""
    for seed in range(20):
        chance = random.Random(seed)
        node = Node(owners=2)
        clients = [node.client() for _ in range(3)]
        (watcher,) = watchers(node, b"best", 1)
        offers = [round(chance.uniform(10, 99), 3) for _ in range(30)]
        for cost in [*offers, *chance.sample(offers, 10)]:
            place = node.view.index_of(node.cache_owner(b"best"))
            if chance.random() < 0.5:
                node.ask(chance.choice(clients), offer(b"best", cost))
            else:
                node.workers[place].receive(Connection(), offer(b"best", cost), node.now)
            for step in chance.choices(
                (node.deliver_to_owner, node.deliver_to_cache, node.tick), k=chance.randrange(4)
            ):
                step(chance.randrange(2))
        node.settle()
        told = costs(node.answers[watcher], b"best")
        assert told == sorted(told, reverse=True)
        assert told[-1] == min(offers)
        node.check()


def test_a_read_and_a_watch_of_one_connection_are_answered_in_order() -> None:
    node = Node(owners=1)
    client = node.client()
    node.answer(client, put(b"k", b"v"))
    node.ask(client, request(frames.SUBSCRIBE, b"k", id=1))
    node.ask(client, request(frames.GET, b"k", id=2))
    node.settle()
    answered = [one for one in node.answers[client] if one.request in (1, 2)]
    assert [one.request for one in answered] == [1, 2]
    assert {value(one) for one in answered} == {b"v"}
