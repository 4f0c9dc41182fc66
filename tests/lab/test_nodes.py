"""A node on a host of the lab serves other hosts, and what happens to its host happens to it."""

from __future__ import annotations

import time

import pytest

import anna
from tests.lab.hosts import Lab
from tests.lab.nodes import nodes, status
from tests.lab.setfull import Clients, judge, read_all


def test_a_node_serves_a_client_on_another_host(three_hosts: Lab) -> None:
    clients = three_hosts["clients"]
    with nodes([three_hosts["h1"]], workers=2) as (node,), node.client(at=clients) as kvs:
        kvs.put("k", 1)
        assert kvs.get("k") == 1
        assert len(status(clients, node.address)) == 2


def test_a_client_that_is_cut_off_is_told_by_its_deadline_and_served_after_the_cut(three_hosts: Lab) -> None:
    h1, clients = three_hosts["h1"], three_hosts["clients"]
    with nodes([h1]) as (node,), node.client(at=clients, timeout=0.5) as kvs:
        kvs.put("k", 1)
        three_hosts.cut(h1, clients)
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(anna.UnavailableError):
                kvs.get("k")
            assert time.monotonic() - begun <= 1.0
        three_hosts.heal()
        assert kvs.get("k", timeout=5) == 1


def test_clients_on_a_lossy_link_lose_nothing(three_hosts: Lab) -> None:
    h1, clients = three_hosts["h1"], three_hosts["clients"]
    with nodes([h1]) as (node,):
        three_hosts.lose(0.05, [(h1, clients), (clients, h1)])
        load = Clients(clients.start, node.addresses, keys=2, timeout=2.0)
        time.sleep(2)
        history = load.stop()
        three_hosts.heal()
        with clients.entered():
            verdict = judge(history, read_all(node.addresses, 2))
    assert (verdict.lost, verdict.vanished, verdict.made_up) == ((), (), ())
    assert verdict.acknowledged > 20


def test_a_node_that_was_stopped_can_be_started_again_at_its_address(three_hosts: Lab) -> None:
    clients = three_hosts["clients"]
    with nodes([three_hosts["h1"]]) as (node,):
        node.stop()
        assert three_hosts["h1"].pids() == []
        node.start()
        with node.client(at=clients) as kvs:
            kvs.put("k", 2)
        three_hosts["h1"].crash()
        node.start()
        with node.client(at=clients) as kvs:
            assert kvs.get("k", None) is None  # memory alone
