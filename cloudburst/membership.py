"""What a client shares with its node: the lease, the page, lanes, and the ways to ask.

A client makes one when it first needs the node, and a new one after a fork. When the node ends under it, it moves to
another of the same cluster, or to the one that is started in its place: what was under way is begun there again, like
a call whose executor died. It is safe from any number of threads. Inside an executor it stands on the executor's own
membership of the node: the page is inherited, the siblings' sockets are known by name, and no lease is asked for.
Source: DESIGN §6.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloudburst import config, context, frames, local
from cloudburst.addresses import executor_address, is_far
from cloudburst.attempts import Task
from cloudburst.control import CONTROL_SOCKET, Control
from cloudburst.errors import NodeLost, Overloaded, UnavailableError, ValueTooLarge
from cloudburst.holdings import Holdings
from cloudburst.keyring import lesser_keys_in, signatures_with
from cloudburst.lanes import Lane
from cloudburst.outcomes import Outcome
from cloudburst.page import BLOCKED, EMPTY, READY, Chooser, monotonic_us
from cloudburst.pickling import python_tag
from cloudburst.records import FunctionRecord, FunctionStore
from cloudburst.secret import lane_key_of
from cloudburst.segments.descriptors import SegmentGone
from cloudburst.segments.held import Held
from cloudburst.segments.shelf import Shelf
from cloudburst.segments.values import install
from cloudburst.spawning import Spawner

if TYPE_CHECKING:
    from cloudburst.consistency.session import Past
    from cloudburst.futures import Future
    from cloudburst.publishing import Publisher, Shared
    from cloudburst.recorder import Recorder
    from cloudburst.segments.layout import Parts

LANES_IDLE_MAX: Final = 64
CACHE_ANSWER_S: Final = 1.0
CACHE_FIGURES: Final = (
    "keys", "bytes", "hits", "misses", "evicted", "dated", "versions", "bytes_at", "hits_at", "misses_at",
    "sessions", "session_age_p50", "session_age_p99", "pins", "transactions",
)  # fmt: skip
PAUSES_S: Final = (0.0003, 0.01)
REPEATABLE: Final = frozenset(("lease", "homes", "status", "functions", "versions"))
"""Requests that mean the same to any node, and may be made twice."""


class Membership:
    """One process's share in one node. `lease` None means that this process is one of the node's executors.

    `again` gives a lease on the node that is there when this one has ended, and None when there is none.
    """

    def __init__(self, lease: local.Lease | None, again: Callable[[int], local.Lease | None] | None = None) -> None:
        inside = context.executing
        if lease is None:
            assert inside is not None
            self.page, self.directory = inside.page, Path(inside.directory)
            self.client = inside.client
            self._control_endpoint = f"ipc://{self.directory / CONTROL_SOCKET}"
        else:
            self.page, self.directory, self.client = lease.page, lease.directory, lease.client
            self._control_endpoint = lease.control
        self.lease = lease
        self.life = 0
        """Grows when the client moves to another node: slots mean other executors from then on."""
        self.moved: Callable[[], object] = lambda: None
        self._again = again
        self._inside = inside if lease is None else None
        self.sharing: Callable[[Future], object] = self.share
        """`share`: each future has it, and a new object for each would be one more for the garbage collector."""
        self.chooser = Chooser(self.page)
        self.numbers = itertools.count(1)
        self._hello = b""
        self._lanes: dict[int, list[Lane]] = {}
        self._lock = threading.RLock()
        self._control: Control | None = None
        self._closed = False
        self._spawner: Spawner | None = None
        self._publisher: Publisher | None = None
        self._stores: dict[bool, Any] = {}
        self._past: Past | None = None
        self.recorder: Recorder | None = None
        """Writes a history of this process's sessions, if somebody wants one."""
        self.wrote = 0
        """The stamp of this process's last write outside of sessions."""
        self._shelf: Shelf | None = None
        self._holdings = Holdings(self, self._tell_node)
        self._executors_version = 0
        self._renew_us = 0
        if lease is not None:
            self._grant(lease.executors, lease.lease_us, self.page.executors_version)

    # -- executors

    def near(self, keys: Sequence[str | bytes]) -> int:
        """Return the node whose cache holds most of `keys`; 0 for none, or when there is no other node."""
        if not self.page.foreign():
            return 0
        return self.page.near([key.encode() if isinstance(key, str) else key for key in keys])

    def claim(self, prefer: int, deadline_us: int, now_us: int, near: int = 0) -> int:
        """Return the slot to send a call to, waiting until there is one. Raises Overloaded (definite), NodeLost."""
        if now_us >= self._renew_us or self.page.executors_version != self._executors_version:
            self.executors(now_us)
        slot = self.chooser.claim(prefer, near)
        return slot if slot >= 0 else self._wait_for_executor(deadline_us)

    def _wait_for_executor(self, deadline_us: int) -> int:
        """Every executor is blocked or just ending: have another started, and wait for whichever comes first."""
        pause = PAUSES_S[0]
        while monotonic_us() < deadline_us:
            if not self.want_executor():
                break
            self._require_node()
            time.sleep(pause)
            pause = min(1.2 * pause, PAUSES_S[1])
            self.executors(monotonic_us())
            slot = self.chooser.claim(0)
            if slot >= 0:
                return slot
        blocked = sum(self.page.activity(slot)[0] == BLOCKED for slot in range(self.page.own))
        raise Overloaded(
            f"no executor can take this call: {blocked} wait for nested calls; executors_max is {self.page.own}"
        )

    def want_executor(self) -> bool:
        """Ask for one more executor if this process may; False when the node has no slot left for it."""
        if self._inside is None:
            return True  # those that are blocked have asked themselves
        if not any(self.page.state(slot)[0] == EMPTY for slot in range(self.page.own)):
            return False
        self._inside.ask_for_executor()
        return True

    def executors(self, now_us: int) -> dict[int, int]:
        """Return {slot: incarnation} of the executors that this process may use, renewing its leases as needed."""
        with self._lock:
            version = self.page.executors_version
            granted = self.chooser.granted()
            if granted and now_us < self._renew_us and version == self._executors_version:
                return granted
            if self._inside is not None:
                ready = self.page.ready()
                ready.pop(self._inside.number, None)  # a nested call never waits for its own executor
                self._grant(ready, 1 << 60, version)
            else:
                answer = self.ask("lease", {}, config.CONTROL_TIMEOUT_S + 1)  # the node itself answers in time
                self._grant(dict(answer["leases"]), answer["lease_us"], version)
            return self.chooser.granted()

    def _grant(self, leases: dict[int, int], lease_us: int, version: int) -> None:
        for slot, incarnation in self.chooser.granted().items():
            if leases.get(slot) != incarnation:
                self.chooser.grant(slot, 0)
                for lane in self._lanes.pop(slot, ()):
                    lane.close()
        for slot, incarnation in leases.items():
            self.chooser.grant(slot, incarnation)
        self._executors_version = version
        self._renew_us = monotonic_us() + lease_us // 2

    def lane(self, slot: int) -> Lane:
        """Return an idle lane to an executor, connecting one if there is none. Raises LaneLost."""
        incarnation = self.page.state(slot)[1]
        idle = self._lanes.get(slot)
        while idle:
            try:
                lane = idle.pop()
            except IndexError:
                break  # another thread took it
            if lane.incarnation == incarnation:
                return lane
            lane.close()
        return Lane(self.address(slot, incarnation), slot, incarnation, self.hello(), self.directory)

    def forget(self, slot: int) -> None:
        """Use an executor no more until leases are renewed: nothing listens there."""
        self.chooser.grant(slot, 0)
        with self._lock:
            self._executors_version = 0

    def give_back(self, lane: Lane) -> None:
        """Keep a lane for the next call, unless many are kept already."""
        idle = self._lanes.setdefault(lane.slot, [])
        if len(idle) < LANES_IDLE_MAX:
            idle.append(lane)
        else:
            lane.close()

    def address(self, slot: int, incarnation: int) -> str:
        """Return where an executor listens."""
        if slot >= self.page.own:
            node, _, life, _ = self.page.home(slot)
            self._holdings.meet(incarnation, node, life)
        return executor_address(self.page, self.directory, slot, incarnation)

    def hello(self) -> bytes:
        """Return what opens a lane."""
        if not self._hello:
            shelf = self.shelf()
            key = lane_key_of(self.directory)
            self._hello = frames.hello(self.client, python_tag(), key, (shelf.token, str(shelf.path)))
        return self._hello

    # -- the node

    def ask(
        self, verb: str, body: dict[str, Any], timeout_s: float = config.CONTROL_TIMEOUT_S,
        given_up: Callable[[], bool] | None = None,
    ) -> Any:  # fmt: skip
        """Return the node's answer to a request. Raises its error, or NodeLost, also once it is `given_up`.

        One that may be made twice is made again when the node ends before it answers, at the next one.
        """
        while True:
            self._require_node()
            lease = self.lease
            try:
                return self._controller().ask(verb, body, timeout_s, _either(lease, given_up))
            except NodeLost:
                if verb not in REPEATABLE or lease is None or not lease.lost():
                    raise

    def _controller(self) -> Control:
        with self._lock:
            self._require_open()
            if self._control is None:
                self._control = Control(self._control_endpoint, self.client)
            return self._control

    def _require_open(self) -> None:
        """Raise NodeLost once this has been closed: what would be opened now, nobody would close."""
        if self._closed:
            raise NodeLost("this client is closed")

    def _require_node(self) -> None:
        """See to it that there is a node. Raises NodeLost."""
        if self.lease is None or not self.lease.lost():
            return
        with self._lock:
            self._require_open()
            if not self.lease.lost():
                return
            lease = self._find_another() if self.lease.held else None
            if lease is None:
                raise NodeLost(f"the node in {self.directory} has ended", definite=False)
            self._move(lease)

    def _find_another(self) -> local.Lease | None:
        """Return a lease on a neighbour of the node that has ended, or on its successor."""
        for slot in range(self.page.own, self.page.slots):
            if self.page.state(slot)[0] == READY:
                scheme, _, path = self.page.home(slot)[3].partition(":")
                try:
                    found = local.join(Path(path).parent, client=self.client) if scheme == "unix" else None
                except NodeLost:
                    continue
                if found is not None:
                    return found
        return None if self._again is None else self._again(self.client)

    def _move(self, lease: local.Lease) -> None:
        """Use another node from now on."""
        assert self.lease is not None
        before, control, stores = self.lease, self._control, self._stores
        for slot in list(self._lanes):
            for lane in self._lanes.pop(slot):
                lane.close()
        self.lease, self.page, self.directory = lease, lease.page, lease.directory
        self._control_endpoint, self._control, self._stores = lease.control, None, {}
        self._shelf, self._hello = None, b""
        self.chooser = Chooser(self.page)
        self._grant(lease.executors, lease.lease_us, self.page.executors_version)
        self.life += 1
        self.moved()
        before.close()
        if control is not None:
            control.close()
        for store in stores.values():
            store.close()

    def fate(self, slot: int, incarnation: int) -> dict[str, Any] | None:
        """Return how an executor ended; None when it has not, or nobody knows."""
        life = self.life
        self._require_node()
        if self.life != life:
            return None
        found: dict[str, Any] | None = self.ask("fate", {"slot": slot, "incarnation": incarnation}, 3.0)
        return found

    def stop(self, slot: int, task: Task) -> None:
        """Have the node see to it that a cancelled call ends."""
        try:
            self._controller().tell("cancel", {"slot": slot, "high": task.high, "low": task.low})
        except NodeLost:
            pass  # then its executors are gone too

    def spawner(self) -> Spawner:
        """Return what runs this process's spawned calls."""
        if self._spawner is not None:
            return self._spawner
        with self._lock:
            self._require_open()
            if self._spawner is None:
                self._spawner = Spawner(self)
            return self._spawner

    def share(self, future: Future, whole: bool = True) -> Shared:
        """Publish the outcome of a future when it is there, for those whom it is passed to.

        Not `whole`: they need it only while the future is kept here, so of a large one it is said where it is.
        """
        with self._lock:
            if self._publisher is None:
                from cloudburst.publishing import Publisher
                from cloudburst.results import Results

                self._publisher = Publisher(lambda: Results(self.store(system=True)), self._holdings.lend)
        return self._publisher.share(future, whole)

    @property
    def past(self) -> Past:
        """What this process's causal sessions come after: those before, and what it has written outside of any."""
        if self._past is None:
            from cloudburst.consistency.session import Past

            self._past = Past()
        if self.wrote > self._past.last:
            self._past.wrote(self.wrote)
        return self._past

    def store(self, system: bool = False) -> Any:
        """Return this process's client of the store; with `system`, the one that may use reserved keys."""
        with self._lock:
            found = self._stores.get(system)
            if found is None:
                if self._inside is not None and not system:
                    return self._inside.store()
                self._require_open()
                import anna

                if not system:
                    self.shelf()
                    install()
                keys = lesser_keys_in(self.directory)
                found = self._stores[system] = anna.connect(self._wait_for_store()[system], system=system, keys=keys)
            return found

    def shelf(self) -> Shelf:
        """Return the node's segments."""
        if self._shelf is None:
            self._shelf = Shelf.find(self.directory, self.page.incarnation)
        return self._shelf

    def must_send(self, size: int) -> bool:
        """Whether arguments of a graph go in frames: they may be needed where nobody can map or fetch them.

        Raises ValueTooLarge when they are too long for that, and another host may need them.
        """
        others = [slot for slot in self.page.ready() if slot >= self.page.own]
        if self.shelf().address or not others:
            return False
        fits = size <= config.FRAME_BYTES_MAX - config.FRAME_HEAD_BYTES_MAX
        if not fits and any(slot >= self.page.own and is_far(self.page.home(slot)[3]) for slot in others):
            limit = f"frame_bytes_max, for a graph's that cannot be fetched from here, is {config.FRAME_BYTES_MAX:,}"
            raise ValueTooLarge(f"arguments of {size:,} bytes; {limit}")
        return fits

    def hold(self, parts: Parts) -> Held:
        """Put arguments into shared memory, for as long as the returned object is kept. Raises NoRoom, NodeLost."""
        shelf = self.shelf()
        try:
            held = Held(shelf.put(shelf.argument_name(self.client), parts), claim=False)
            held.keep_bytes()
            return held
        except SegmentGone:
            raise NodeLost(f"the node in {self.directory} has ended") from None

    def take(self, task: Task, outcome: Outcome, descriptor: memoryview) -> Outcome:
        """Take over the segment that an answer describes: `outcome` owns it from now on."""
        return self._holdings.take(task, outcome, descriptor)

    def fetch(self, task: Task, outcome: Outcome) -> Outcome | None:
        """Have a result here that somebody waits for; None when the call must be sent again."""
        return self._holdings.fetch(task, outcome)

    def withdraw(self, task: Task | None, reply: bytes) -> None:
        """Remove the segment of an answer that came too late, or of a call that was cancelled."""
        self._holdings.withdraw(task, reply)

    def clear_after(self, task: Task, incarnation: int) -> None:
        """Remove what an executor that has ended may have made for a call without telling."""
        if self._shelf is not None:
            self._holdings.clear_after(task, incarnation)

    def _tell_node(self, verb: str, body: dict[str, Any]) -> None:
        self._controller().tell(verb, body)

    def reads(self) -> dict[str, Any]:
        """Return the figures of the node's cache, {} when it does not answer.

        Among them, while sessions read: how many epochs what they read was behind when they began (`session_age_p50`,
        `session_age_p99`).
        """
        if not self.page.store:
            return {}
        import anna
        from anna.errors import AnnaError

        # Not by `store()`: who only looks has no shelf, and closing one has this process map all that it holds there.
        try:
            with anna.connect(self.page.store[0]) as looking:
                figures: dict[str, Any] = looking.status(timeout=CACHE_ANSWER_S)[0]
        except AnnaError:
            return {}
        return {} if "error" in figures else {name: figures[name] for name in CACHE_FIGURES}

    def functions(self) -> FunctionStore:
        """Return the table of functions."""
        return FunctionStore(self.store(system=True), signatures_with(lesser_keys_in(self.directory)))

    def record(self, name: str, version: int) -> FunctionRecord:
        """Return the record of the function that `name` means. Raises FunctionNotFound, NodeLost, UnavailableError."""
        return self.resolve(name, version)[0]

    def resolve(self, name: str, version: int) -> tuple[FunctionRecord, str]:
        """Return the same, and the method when `name` means one of a class."""
        from anna.errors import AnnaError

        self._require_node()
        try:
            return self.functions().resolve(name, version)
        except AnnaError as fault:
            self._require_node()
            raise UnavailableError(f"function {name!r} cannot be looked up: {type(fault).__name__}: {fault}") from fault

    def _wait_for_store(self) -> tuple[str, str]:
        """Return the store's addresses: through the node's cache, and of an owner."""
        end = time.monotonic() + config.CONTROL_TIMEOUT_S
        while not (addresses := self.page.store):
            self._require_node()
            if time.monotonic() > end:
                raise NodeLost(f"the node has had no store for {config.CONTROL_TIMEOUT_S} s; its log says why")
            time.sleep(0.001)
        return addresses

    # -- the end

    def close(self) -> None:
        """Cancel what is under way and give everything back."""
        with self._lock:
            self._closed = True
            spawner, self._spawner = self._spawner, None
            control, self._control = self._control, None
            stores, self._stores = self._stores, {}
            publisher = self._publisher
        if spawner is not None:
            spawner.close()
        if publisher is not None:
            publisher.close()
        self._holdings.close()
        for lanes in self._lanes.values():
            while lanes:
                lanes.pop().close()
        if control is not None:
            control.close()
        for store in stores.values():
            store.close()
        if self._shelf is not None:
            self._shelf.part()
        if self.lease is not None:
            self.lease.close()

    def abandon(self) -> None:
        """In a forked child: part with the parent's connections without a word to the other side."""
        for lanes in self._lanes.values():
            while lanes:
                lanes.pop().close()
        if self._spawner is not None:
            self._spawner.abandon()
        if self.lease is not None:
            self.lease.close()

    def __repr__(self) -> str:
        return f"<client {self.client:016x} of the node in {self.directory}, process {os.getpid()}>"


def _either(lease: local.Lease | None, given_up: Callable[[], bool] | None) -> Callable[[], bool] | None:
    """Return what says that nobody waits for an answer any more, or that none can come."""
    if lease is None or given_up is None:
        return given_up if lease is None else lease.lost
    return lambda: given_up() or lease.lost()
