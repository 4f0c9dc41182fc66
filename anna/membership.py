"""Who is in the cluster: each worker's own opinion, and how all opinions become one.

The one rule: nobody is asked and nobody decides for others. A worker publishes what it knows by joining it to
its view; views spread by heartbeats, and since they are a lattice all workers that hear each other end with the
same one. Only a node itself takes back that it is dead, by its next refutation.

Heartbeats. Each HEARTBEAT_US a worker tells every other: W workers make W² messages a period. From
HEARTBEAT_TARGETS_MAX on it tells as many, the next ones each time. A heartbeat carries the beats of all nodes
(van Renesse, Minsky, Hayden 1998): a beat rises only while a worker of its node lives, and everybody passes on
the greatest that he knows. So a node is silent for me only when it is silent for all whom I hear, directly or
by way of others; a cut between two nodes kills neither. A node that is silent for DEAD_AFTER_US is dead. Beats
are counts, and the ages of beats are measured by the one clock of the worker that judges: clocks of two
machines are never compared, and a report that was on the way for long makes nobody younger (ages would).

Versions. A worker's view has one content at each version (see `View.join`), so a worker that says "complete for
version v" and has my version and digest is complete for my view. A node becomes ALIVE, a leaving one has LEFT, and
the copies of keys that were given another vector have moved, when all workers say so: until then somebody may still
move keys by another view.

A pause. A worker that was stopped hears, when it goes on, what was sent long ago. It counts as back once others
echo a number that it sent afterwards.

Pure: `now` is the worker's monotonic clock in ns, and frames come and go as bytes.
Source: DESIGN §4 (a dead worker), §5 (membership); SWIM (Das, Gupta, Motivala 2002) for refutation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from anna import config
from anna.errors import NoWorkers, ProtocolError
from anna.messages import ALIVE, DEAD, JOINING, LEAVING, LEFT, Heartbeat, NodeInfo, View
from anna.seeds import DEAD_AFTER_NS, NEVER, Seeds

HEARTBEAT_NS: Final = config.HEARTBEAT_US * 1000
PAUSE_NS: Final = config.PAUSE_US * 1000

Target = int | str
"""Whom a heartbeat is for: a worker of the view, or an address."""


@dataclass(slots=True)
class Peer:
    """What a worker last said of itself."""

    sequence: int = 0
    version: int = 0
    digest: int = 0
    complete_for: int = 0


@dataclass(slots=True)
class Sign:
    """The last sign of life of a node that can be talked to."""

    heard_at: int
    generation: int
    beat: int = 0


@dataclass(slots=True)
class Grave:
    """A node that was called dead, until it is back and whole, or forgotten."""

    died_at: int
    stable: int


@dataclass(slots=True)
class Counts:
    """What came and was not believed: `foreign` from another cluster, `stale` from a past or a repeated message."""

    foreign: int = 0
    stale: int = 0


@dataclass(slots=True)
class Pause:
    """The last time that this worker was stopped: whom it has not heard since."""

    ended_at: int = 0
    sequence: int = 0
    unheard: set[int] = field(default_factory=set)


class Membership:
    """The opinion of the worker `mine` of node `node_id`, which `view` must name.

    Give it every peer message (`hear`, `alive`), poll it when `due` says so, send what `poll` returns, and take up
    the view that `take_change` returns. `rider` goes along with each heartbeat.
    """

    def __init__(
        self,
        mine: int,
        node_id: int,
        view: View,
        seeds: tuple[str, ...],
        now: int,
        cluster: str = "anna",
        tombstone_us: int = config.TOMBSTONE_US,
    ) -> None:
        self.mine = mine
        self.node_id = node_id
        self.view = view
        self.cluster = cluster
        self.rider = b""
        self.counts = Counts()
        own = view.node_of(mine)
        if own.node_id != node_id:
            raise KeyError(f"view {view.version} names worker {mine:#x} at node {own.node_id:#x}, not {node_id:#x}")
        self._address = next(w.addresses[-1] for w in own.workers if w.worker_id == mine)
        self._tombstone_ns = tombstone_us * 1000
        self._status = own.status
        self._leaves_once_joined = False
        self._complete_for = 0
        self._changed = False
        self._peers: dict[int, Peer] = {}
        self._signs: dict[int, Sign] = {}
        self._graves: dict[int, Grave] = {}
        self._owed: dict[str, int] = {}
        self._seeds = Seeds(seeds, now if seeds else NEVER)
        self._pause = Pause()
        self._stable = 0
        self._sequence = 0
        self._round = 0
        self._beat_due = now
        self._last_call = now
        self._alone = True
        self._survey(now)

    # -- what the worker asks

    @property
    def superseded(self) -> bool:
        """Whether this worker must stop: its seat is another's, or its node was forgotten while it was away.

        It may only come back as a node's next generation, without what it held in memory.
        """
        own = self._own
        if own is None or all(worker.worker_id != self.mine for worker in own.workers):
            return True
        return own.status == LEFT and self._status != LEAVING

    @property
    def has_left(self) -> bool:
        """Whether the node has left, and another node knows it: the process may stop."""
        if self._own is not None and self._own.status != LEFT:
            return False
        theirs = (p for w, p in self._peers.items() if self.view.node_of(w).node_id != self.node_id)
        return any(peer.digest == self.view.digest for peer in theirs)

    @property
    def handing_over(self) -> bool:
        """Whether this node is leaving."""
        return self._own is not None and self._own.status == LEAVING

    @property
    def handed_over(self) -> bool:
        """Whether this node is leaving, and those who take its keys have all that it had when they were complete.

        Its workers are to take no write from now on, and to say that they are `completed` when what they took
        meanwhile has arrived, too: only then has the node left.
        """
        return self.handing_over and self._has_handed_over()

    @property
    def all_complete(self) -> bool:
        """Whether all workers agree on the view, and each has what it should have under it."""
        return all(self._whole(node) for node in self.view.nodes if node.reachable)

    def take_change(self) -> View | None:
        """Return the view if it is newer than at the last call."""
        changed, self._changed = self._changed, False
        return self.view if changed else None

    def due(self) -> int:
        """Return when `poll` has something to do."""
        if self._owed:
            return self._last_call
        return min(self._seeds.due, NEVER if self._alone else self._beat_due)

    def was_paused(self, now: int) -> bool:
        """Whether this worker was stopped, and has not heard yet from all others what happened meanwhile.

        At most DEAD_AFTER_US long: who cannot be heard by then is not waited for.
        """
        self._notice(now)
        return now < self._pause.ended_at + DEAD_AFTER_NS and not self._pause.unheard.isdisjoint(self._signs)

    def gc_floor(self, stable: int) -> int:
        """Return the epoch up to which deletes may be forgotten, given the stable epoch.

        It is held back by each node that is dead, or was and is not whole again, to the stable epoch of when
        it died: it must not bring back what was deleted since. After the tombstone time it may not come back.
        """
        self._stable = max(self._stable, stable)
        return min((grave.stable for grave in self._graves.values()), default=stable)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The seeds that are asked for their cluster, while this worker knows of none."""
        return () if self._knows_a_cluster() else self._seeds.addresses

    @property
    def tries(self) -> int:
        """How often seeds were asked since a cluster was heard last."""
        return self._seeds.tried

    # -- what the worker tells

    def completed(self, version: int) -> None:
        """Note that this worker holds all that it should under the view of this version, if it knows its cluster."""
        if not self._seeds.addresses or self._knows_a_cluster():
            self._complete_for = max(self._complete_for, version)

    def learn(self, view: View, now: int) -> None:
        """Join what somebody other than a peer knows: the supervisor, of a replaced worker."""
        self._notice(now)
        if self._adopt(self.view.join(view), now):
            self._beat_due = now

    def leave(self, now: int) -> None:
        """Begin to leave: hand over all keys, then be gone. Raises NoWorkers when nobody could take them over."""
        self._notice(now)
        own = self._own
        if own is None or own.status >= LEAVING:
            self._status = LEAVING  # another worker of this node was told so first, perhaps
            return
        if not any(node is not own for node in self.view.target):
            raise NoWorkers("no other node could take over the keys")
        if own.status == JOINING and own.returns:
            self._leaves_once_joined = True  # its disks may have what nobody else has
            return
        self._status = LEAVING
        # A newcomer still answers for nothing, so it has nothing to hand over.
        self._publish(own.left(self.view.version) if own.status == JOINING else replace(own, status=LEAVING), now)

    def alive(self, worker_id: int, now: int) -> None:
        """Note that a message of any kind came from a worker."""
        self._notice(now)
        if worker_id != self.mine and worker_id in self._peers:
            self._heard(self.view.node_of(worker_id), now)

    def hear(self, sender: int, data: bytes, now: int) -> bytes:
        """Take a heartbeat from a peer; return its rider, empty when it is not to be believed.

        Raises ProtocolError, and knows nothing more than before, when it is malformed.
        """
        self._notice(now)
        heartbeat = Heartbeat.decode(data, self.view.digest)
        if heartbeat.sender != sender:
            raise ProtocolError(f"a heartbeat of {heartbeat.sender:#x} came in a message of {sender:#x}")
        if heartbeat.cluster != self.cluster:
            self.counts.foreign += 1
            return b""
        if sender == self.mine:
            return b""
        self._learn_from(heartbeat, now)
        return self._believe(heartbeat, now)

    def poll(self, now: int) -> list[tuple[Target, bytes]]:
        """Judge who is dead, and return the heartbeats that are due."""
        self._notice(now)
        if self.superseded:
            return []
        self._judge(now)
        targets: list[Target] = []
        if now >= self._beat_due:
            self._signs[self.node_id].beat += 1
            self._beat_due = now + HEARTBEAT_NS
            targets += self._next_workers()
            targets += self._next_dead()
            self._round += 1
        if now >= self._seeds.due:
            targets.append(self._seeds.next(now))
        targets += (address for address in self._owed if address not in targets)
        if targets:
            self._sequence += 1
        frames = [(target, self._heartbeat_for(target).encode()) for target in targets]
        self._owed.clear()
        return frames

    def check(self) -> None:
        """Assert the invariants."""
        assert self.superseded or self.view.node_of(self.mine).node_id == self.node_id
        reachable = {node.node_id for node in self.view.nodes if node.reachable}
        assert self._signs.keys() == reachable | ({self.node_id} if self._own is not None else set())
        assert self._peers.keys() <= {worker.worker_id for worker in self.view.workers} - {self.mine}
        assert all(node.node_id in self._graves for node in self._others() if node.status == DEAD)
        assert self.superseded or self.view.node(self.node_id).status != DEAD
        assert self._complete_for <= self.view.version

    # -- taking in

    def _learn_from(self, heartbeat: Heartbeat, now: int) -> None:
        """Join the view that came along. An equal view may at least have a greater version."""
        if heartbeat.view is not None:
            try:
                self._adopt(self.view.join(heartbeat.view), now)
            except ValueError as error:
                raise ProtocolError(str(error)) from None
        elif heartbeat.digest == self.view.digest and heartbeat.version > self.view.version:
            self._adopt(replace(self.view, version=heartbeat.version), now)

    def _believe(self, heartbeat: Heartbeat, now: int) -> bytes:
        """Take a heartbeat as a sign of life, if its sender has a place in the view; else tell it the view."""
        node = self._reachable_node_of(heartbeat.sender)
        if node is None or node.node_id != heartbeat.node_id:
            self.counts.stale += 1
            if len(self._owed) < config.HEARTBEAT_TARGETS_MAX:
                self._owed[heartbeat.address] = heartbeat.sequence
            return b""
        peer = self._peers.setdefault(heartbeat.sender, Peer())
        if heartbeat.sequence <= peer.sequence:
            self.counts.stale += 1
            return b""
        if not peer.sequence and node.node_id != self.node_id and not self._has_company(heartbeat.sender):
            self._beat_due = now
        peer.sequence, peer.complete_for = heartbeat.sequence, heartbeat.complete_for
        peer.version, peer.digest = heartbeat.version, heartbeat.digest
        self._heard(node, now)
        self._take_beats(heartbeat, now)
        if heartbeat.echo >= self._pause.sequence:
            self._pause.unheard.discard(node.node_id)
        return heartbeat.rider

    def _take_beats(self, heartbeat: Heartbeat, now: int) -> None:
        for node_id, generation, beat in heartbeat.beats:
            sign = self._signs.get(node_id)
            if sign is not None and generation == sign.generation and beat > sign.beat:
                sign.beat, sign.heard_at = beat, now

    def _heard(self, node: NodeInfo, now: int) -> None:
        self._signs[node.node_id].heard_at = now
        if node.node_id != self.node_id and self._knows_a_cluster():
            self._seeds.heard(now)

    def _notice(self, now: int) -> None:
        """Notice that this worker was stopped: then its silence is no sign that others died."""
        if now - self._last_call > PAUSE_NS:
            others = {node_id for node_id in self._signs if node_id != self.node_id}
            self._pause = Pause(now, self._sequence + 1, others)
            self._beat_due = now
            for sign in self._signs.values():
                sign.heard_at = now
        self._last_call = max(self._last_call, now)

    # -- judging

    def _judge(self, now: int) -> None:
        """Publish what is to be said of others, and of this node."""
        for node in self._others():
            if node.reachable and now - self._signs[node.node_id].heard_at >= DEAD_AFTER_NS:
                self._publish(replace(node, status=DEAD), now)
            elif node.status == DEAD and now - self._graves[node.node_id].died_at >= self._tombstone_ns:
                self._publish(node.left(self.view.version), now)
        own = self.view.node(self.node_id)
        if own.status == JOINING and self._has_joined(own):
            self._publish(replace(own, status=ALIVE), now)
        elif own.status == ALIVE and self._leaves_once_joined and len(self.view.target) > 1:
            self.leave(now)
        elif own.status == LEAVING and self._has_handed_over() and self._whole(own):
            self._publish(own.left(self.view.version), now)
        if self.view.vectors.moving and self.all_complete:
            self._adopt(self.view.with_vectors(self.view.vectors.settled()), now)
            self._beat_due = now
        for node_id in list(self._graves):
            if self.view.node(node_id).reachable and self._whole(self.view.node(node_id)):
                del self._graves[node_id]

    def _has_joined(self, own: NodeInfo) -> bool:
        """Whether all workers of this node hold all that they should; where nobody serves yet, all of all nodes."""
        return self._whole(own) and (bool(self.view.serving) or all(self._whole(node) for node in self.view.target))

    def _knows_a_cluster(self) -> bool:
        """Whether some node serves or has served. All that are new begin a cluster when every seed of each is there.

        Some that join at one moment and hear each other first would otherwise answer without what the cluster has.
        """
        if any(node.status > JOINING for node in self.view.nodes):
            return True
        known = {address for worker in self.view.workers for address in worker.addresses}
        return len(self.view.nodes) > 1 and known.issuperset(self._seeds.addresses)

    def _has_handed_over(self) -> bool:
        """Whether there are nodes to take the keys, and they all have them."""
        return bool(self.view.target) and all(self._whole(node) for node in self.view.target)

    def _whole(self, node: NodeInfo) -> bool:
        """Whether a node's workers are complete for my view, and all workers agree that it is the view."""
        mine = self.view.version, self.view.digest
        for worker in self.view.workers:
            peer = self._peers.get(worker.worker_id)
            if worker.worker_id != self.mine and (peer is None or (peer.version, peer.digest) != mine):
                return False
        complete = {worker_id: peer.complete_for for worker_id, peer in self._peers.items()}
        complete[self.mine] = self._complete_for
        return all(complete[worker.worker_id] == self.view.version for worker in node.workers)

    def _publish(self, node: NodeInfo, now: int) -> None:
        """Say something new of a node, and tell everybody at once."""
        self._adopt(self.view.with_node(node), now)
        self._beat_due = now

    def _adopt(self, view: View, now: int) -> bool:
        """Take up a view that is at least the present one; refute that this node is dead."""
        if view == self.view:
            return False
        self.view = view
        self._changed = True
        own = self._own
        if own is not None and own.status < DEAD:
            self._status = max(self._status, own.status)
        elif own is not None and own.status == DEAD and not self.superseded:
            self.view = view.with_node(replace(own, refutation=own.refutation + 1, status=self._status))
            self._beat_due = now
        self._survey(now)
        return True

    def _survey(self, now: int) -> None:
        """Watch the nodes that can be talked to, remember the workers, and note who died."""
        watched = {node.node_id: node for node in self.view.nodes if node.reachable or node.node_id == self.node_id}
        for gone in self._signs.keys() - watched.keys():
            del self._signs[gone]
        for node_id, node in watched.items():
            sign = self._signs.get(node_id)
            if sign is None or sign.generation != node.generation:
                self._signs[node_id] = Sign(now, node.generation)
        for stranger in self._peers.keys() - {worker.worker_id for worker in self.view.workers}:
            del self._peers[stranger]
        self._alone = all(node.status == LEFT for node in self._others()) and len(self.view.workers) <= 1
        for forgotten in self._graves.keys() - {node.node_id for node in self.view.nodes}:
            del self._graves[forgotten]
        for node in self._others():
            if node.status == DEAD:
                self._graves.setdefault(node.node_id, Grave(now, self._stable))
            elif node.status == LEFT:
                self._graves.pop(node.node_id, None)

    # -- telling

    def _heartbeat_for(self, target: Target) -> Heartbeat:
        """Return what a worker of the view, or whoever listens at an address, is to be told."""
        peer = self._peers.get(target) if isinstance(target, int) else None
        echo = peer.sequence if peer is not None else self._owed.get(str(target), 0)
        return Heartbeat(
            self.cluster,
            self.mine,
            self.node_id,
            self._address,
            self._sequence,
            echo,
            self.view.version,
            self.view.digest,
            self._complete_for,
            tuple((node_id, sign.generation, sign.beat) for node_id, sign in self._signs.items()),
            None if peer is not None and peer.digest == self.view.digest else self.view,
            self.rider,
        )

    def _next_workers(self) -> list[int]:
        """Return whom this heartbeat goes to: all other workers, or those whose turn it is."""
        ids = [worker.worker_id for worker in self.view.workers]
        place = ids.index(self.mine) if self.mine in ids else 0
        others = [worker_id for worker_id in ids[place:] + ids[:place] if worker_id != self.mine]
        most = config.HEARTBEAT_TARGETS_MAX
        if len(others) <= most:
            return others
        return [others[(self._round * most + turn) % len(others)] for turn in range(most)]

    def _next_dead(self) -> list[str]:
        """Return the address of one worker that is called dead, the next one each time, to find that it is not."""
        dead = [worker for node in self._others() if node.status == DEAD for worker in node.workers]
        return [dead[(self.mine + self._round) % len(dead)].addresses[-1]] if dead else []

    # -- looking up

    @property
    def _own(self) -> NodeInfo | None:
        """This node's record; None when so many have left after it that it was forgotten."""
        return next((node for node in self.view.nodes if node.node_id == self.node_id), None)

    def _others(self) -> list[NodeInfo]:
        return [node for node in self.view.nodes if node.node_id != self.node_id]

    def _reachable_node_of(self, worker_id: int) -> NodeInfo | None:
        try:
            node = self.view.node_of(worker_id)
        except KeyError:
            return None
        return node if node.reachable else None

    def _has_company(self, newcomer: int) -> bool:
        """Whether a worker of another node was heard before `newcomer`."""
        known = self._peers.keys() - {newcomer}
        return any(self.view.node_of(worker_id).node_id != self.node_id for worker_id in known)
