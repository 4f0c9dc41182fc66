"""Worker cores that talk to each other in this process, without a network: what leaves arrives at once, in order."""

from __future__ import annotations

from collections.abc import Callable

from anna.kvs.clock import Clock
from anna.kvs.worker import Connection, Worker
from anna.messages import NodeInfo, NodeStatus, View, WorkerInfo
from tests.anna.frames import GET, WRONG_WORKER, Reply, joined, replies, request

EPOCH_NS = 10_000_000
STALE = 25
WALL_US = 200_000_000_000_000


def view_of(nodes: int, factor: int = 1, workers: int = 1, version: int = 1) -> View:
    """Return a view of `nodes` nodes, with ids from 1; worker ids are 100 · node + seat."""
    infos = tuple(
        NodeInfo(n, tuple(WorkerInfo(100 * n + seat, (f"unix:/run/{n}-{seat}.sock",), seat) for seat in range(workers)))
        for n in range(1, nodes + 1)
    )
    return View(version, infos, factor, 1)


class Workers:
    """The workers of one view, by id, under one clock that the test moves."""

    def __init__(self, view: View, skew_us: int = 0) -> None:
        self.view = view
        self.now = 5_000_000_000
        self.lose: Callable[[int, int, bytes], bool] = lambda source, target, frame: False
        self.workers = {
            info.worker_id: Worker(view, place, Clock(WALL_US + place * skew_us, self.now // 1000))
            for place, info in enumerate(view.workers)
        }
        self.connections = {ids: Connection() for ids in self.workers}
        self.inbound = {(a, b): Connection() for a in self.workers for b in self.workers}
        self.listening = {address: info.worker_id for info in view.workers for address in info.addresses}
        self.pushed: list[tuple[int, Connection, bytes]] = []
        self.frames = 0
        self.pass_epochs(8)
        assert all(worker.is_complete for worker in self.workers.values())

    def start(self, node_id: int, status: NodeStatus = NodeStatus.JOINING, generation: int = 0) -> int:
        """Start a node of one worker that joins through the first worker there is; return its id."""
        ids = 100 * node_id + 10 * generation
        info = WorkerInfo(ids, (f"unix:/run/{node_id}-{generation}.sock",), 0)
        own = View(1, (NodeInfo(node_id, (info,), generation, status=status),))
        self._begin(info, own, tuple(self.listening))
        return ids

    def _begin(self, info: WorkerInfo, view: View, seeds: tuple[str, ...] = ()) -> None:
        ids = info.worker_id
        self.listening[info.addresses[0]] = ids
        self.workers[ids] = Worker(view, view.index_of(ids), Clock(WALL_US, self.now // 1000), seeds)
        self.connections[ids] = Connection()
        for other in self.workers:
            self.inbound[ids, other], self.inbound[other, ids] = Connection(), Connection()

    def replace(self, ids: int) -> int:
        """Start a worker in the place of one that has ended, as the supervisor of its node does; return its id."""
        info = WorkerInfo(ids + 10, (f"unix:/run/{ids + 10}.sock",), 0)
        view = next(iter(self.workers.values())).view
        self._begin(info, view.with_worker(view.node_of(ids).node_id, info))
        return info.worker_id

    def stop(self, ids: int) -> Worker:
        """End a worker without a word; return what is left of it."""
        return self.workers.pop(ids)

    def read(self, key: bytes) -> Reply:
        """Ask the workers in turn, as a client does, until one knows."""
        for ids in self.workers:
            (answer,) = self.ask(ids, request(GET, key), connection=Connection())
            if answer.status not in (WRONG_WORKER, STALE):
                return answer
        raise AssertionError(f"nobody answers for {key!r}")

    def write(self, data: Callable[[], bytes]) -> Reply:
        """Ask the workers in turn until one that owns the key has answered. For writes that are not held back."""
        for ids in self.workers:
            answers = self.ask(ids, data(), connection=Connection())
            if answers and answers[0].status != WRONG_WORKER:
                return answers[0]
        raise AssertionError("nobody takes the write")

    def ask(self, worker: int, *requests: bytes, connection: Connection | None = None) -> list[Reply]:
        """Send frames to a worker, and return what it answers before anything else happens."""
        answers = self.workers[worker].receive(connection or self.connections[worker], b"".join(requests), self.now)
        return replies(answers)

    def released(self, worker: int) -> list[Reply]:
        """Return the answers that a worker had held back and gives now."""
        return replies(b"".join(data for _, data in self.workers[worker].take_released()))

    def deliver(self, rounds: int = 64) -> None:
        """Carry messages until there are none."""
        for _ in range(rounds):
            moved = False
            for source, worker in self.workers.items():
                for to, parts in worker.outgoing():
                    frame = joined(parts)
                    target = self.listening.get(to, 0) if isinstance(to, str) else to
                    if target not in self.workers or self.lose(source, target, frame):
                        continue
                    moved = True
                    self.frames += 1
                    assert self.workers[target].receive(self.inbound[source, target], frame, self.now) == b""
            if not moved:
                return
        raise AssertionError("the workers do not come to rest")

    def pass_epochs(self, count: int = 1) -> None:
        """Let `count` epochs end, one after the other, each with its ticks and messages."""
        for _ in range(count):
            self.now += EPOCH_NS
            for ids, worker in self.workers.items():
                for connection, data in worker.tick(self.now):
                    self.pushed.append((ids, connection, data if isinstance(data, bytes) else b"".join(data)))
            self.deliver()

    def check(self) -> None:
        """Assert every core's invariants."""
        for worker in self.workers.values():
            worker.check()
