"""Whom a client asks for a key: the owners in their order, and round again until the deadline.

The one rule: a read may go on to the next owner whatever became of it, and each owner gets its share of the time that
is left; a write goes on only while it surely was not sent, for nobody can know what became of one that was. Pure:
`now` is an argument, so the simulator drives what the clients drive.

    route = requester.route(key, reads, now, deadline)
    while (step := route.step(now)) is None:        # all owners were tried: pause, look for a newer view
        ...
        route.restart(now)
    # ask the worker at step.place until step.limit; with step.strict, only if it is current up to that stamp
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from anna.address import TcpAddress, UnixAddress, parse_address
from anna.config import OWNER_SHARE_MIN_NS, SUSPECT_NS
from anna.kvs.faults import PLANTED
from anna.messages import View, WorkerInfo


class Step(NamedTuple):
    """Ask the worker at `place` until `limit` (monotonic ns), if it is current up to the stamp `strict` (0: anyway)."""

    place: int
    limit: int
    strict: int


class Suspects:
    """The workers that lately could not be reached or did not answer: others are asked before them."""

    def __init__(self) -> None:
        self._until: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def __contains__(self, worker_id: int) -> bool:
        return worker_id in self._until

    def add(self, worker_id: int, now: int) -> None:
        """Prefer others to this worker for a while."""
        self._until[worker_id] = now + SUSPECT_NS

    def discard(self, worker_id: int) -> None:
        """The worker has answered."""
        self._until.pop(worker_id, None)

    def expire(self, now: int) -> None:
        """Forget those whose time is over: the next request shows how they are."""
        for worker_id, until in list(self._until.items()):
            if until <= now:
                self._until.pop(worker_id, None)


class Asker(Protocol):
    """What a route needs to know of its requester."""

    @property
    def view(self) -> View: ...
    def owners_by_trust(self, key: bytes, now: int) -> Sequence[tuple[int, bool]]: ...
    def strict_stamp(self, key: bytes, place: int) -> int: ...


class Route:
    """The way of one request (`reads`: it changes nothing) through the owners of `key`.

    It begins again when somebody else has taken up another view meanwhile: a place is one of a view.
    """

    __slots__ = ("_asker", "_deadline", "_left", "_reads", "_view", "key", "stale")

    def __init__(
        self, asker: Asker, key: bytes, reads: bool, now: int, deadline: int, tried: Iterable[int] = ()
    ) -> None:
        self._asker = asker
        self._reads = reads
        self._deadline = deadline
        self._left: list[tuple[int, bool]] = []
        self.key = key
        self.stale = False
        """Whether an owner has answered that it may lack what this client has seen."""
        self.restart(now)
        self._left = [(place, suspected) for place, suspected in self._left if place not in tried]

    def restart(self, now: int) -> None:
        """Begin again with all owners, under the view of now."""
        self._view = self._asker.view
        self._left = list(self._asker.owners_by_trust(self.key, now))

    def step(self, now: int) -> Step | None:
        """Return whom to ask next; None when all were."""
        if self._asker.view is not self._view:
            self.restart(now)
        if not self._left:
            return None
        place, suspected = self._left.pop(0)
        limit = self._deadline
        if self._reads:
            share = max((self._deadline - now) // (len(self._left) + 1), OWNER_SHARE_MIN_NS)
            if suspected and self.stale:
                share = OWNER_SHARE_MIN_NS  # the others will be current soon
            limit = min(limit, now + share)
        return Step(place, limit, self._asker.strict_stamp(self.key, place) if self._reads else 0)


def may_ask_again(reads: bool, sent: bool) -> bool:
    """Whether a request that failed may be made once more: nobody knows what became of a write that was sent."""
    return reads or not sent or "duplicate-applied" in PLANTED


def time_to_reach(now: int, deadline: int, owners: int) -> int:
    """Return until when the first of a key's owners may take to be reached.

    Time is left to look for a newer view, and for another owner.
    """
    return min(deadline, now + max((deadline - now) // max(owners, 2), OWNER_SHARE_MIN_NS))


def addresses_of(view: View, worker: WorkerInfo, seed: str | None) -> list[str]:
    """Return the addresses to try for a worker, the best first; `seed` is the one at which the cluster was reached.

    Who came over TCP stays with it: a Unix path of another machine may exist here by accident. Who came over a Unix
    socket uses those of that node alone first, for the same reason.
    """
    if seed is None:
        return list(worker.addresses)
    reached = parse_address(seed)
    unix = [address for address in worker.addresses if isinstance(parse_address(address), UnixAddress)]
    tcp = [address for address in worker.addresses if address not in unix]
    if isinstance(reached, TcpAddress):
        return tcp + unix if reached.local or not tcp else tcp
    near = [node for node in view.nodes if any(seed in other.addresses for other in node.workers)]
    return unix + tcp if not near or view.node_of(worker.worker_id) in near else tcp + unix
