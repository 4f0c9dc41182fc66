"""Two ways to a mean, as functions: what the Cloudburst paper compares (its figure 7).

Gossip is push-sum (Kempe, Dobra, Gehrke, FOCS 2003): each actor has a sum and a weight, sends half of both to somebody
at random, and adds what comes; sum over weight comes to the mean everywhere. Nothing is lost on the way: what could not
be delivered is taken back. Gathering writes every measurement into the store, from where one function reads them all.
"""

from __future__ import annotations

import random

import cloudburst as cb

STABLE_ROUNDS = 8
"""An actor says that it has the mean when its estimate has moved by less than the tolerance for so many rounds."""
HEAR_S = 0.002
STOP = "stop"


def gossip_actor(value: float, tolerance: float, seed: int) -> float:
    """Talk to the peers whom the starter names until it says stop; return the estimate."""
    me, chance = cb.ctx(), random.Random(seed)
    total, weight, stable, told = value, 1.0, 0, False
    starter, peers = me.recv_from()
    while not isinstance(peers, list):  # a peer that has been started before has spoken first
        total, weight = total + peers[0], weight + peers[1]
        starter, peers = me.recv_from()
    while True:
        before = total / weight
        try:
            me.send(chance.choice(peers), (total / 2, weight / 2), timeout=0.1)
            total, weight = total / 2, weight / 2
        except cb.InvocationGone:
            pass  # that one has ended: its half stays here
        try:
            while True:
                message = me.recv(timeout=HEAR_S)
                if message == STOP:
                    return total / weight
                total, weight = total + message[0], weight + message[1]
        except TimeoutError:
            pass
        stable = stable + 1 if abs(total / weight - before) <= tolerance * max(1.0, abs(before)) else 0
        if stable >= STABLE_ROUNDS and not told:
            told = True
            me.send(starter, "stable")


def gossip(values: list[float], tolerance: float = 1e-3, seed: int = 0) -> list[float]:
    """Return what each of the actors, one for each value, takes for the mean at the end."""
    me = cb.ctx()
    actors = [cb.spawn("gossip_actor", value, tolerance, seed + n) for n, value in enumerate(values)]
    ids = [actor.id for actor in actors]
    for one in ids:
        me.send(one, [other for other in ids if other != one])
    for _ in actors:
        me.recv()
    for one in ids:
        me.send(one, STOP)
    return [actor.result() for actor in actors]


def measure(key: str, value: float) -> None:
    """Write one measurement into the store."""
    cb.put(key, value)


def gather(values: list[float], prefix: str) -> float:
    """Have every measurement written, read them all, and return their mean."""
    keys = [f"{prefix}/{n}" for n in range(len(values))]
    cb.gather(*(cb.spawn("measure", key, value) for key, value in zip(keys, values, strict=True)))
    found = cb.mget(keys)
    return float(sum(found)) / len(found)


ALL = (gossip_actor, gossip, measure, gather)
