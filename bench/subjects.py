"""Which subjects take part in which table, and how their servers are started and stopped together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.harness import Settings
from bench.peers import StorePeer, StoreServer
from bench.peers.memcached import Memcached
from bench.peers.ours import Ours
from bench.peers.redis_server import Redis
from bench.peers.thin_redis import ThinRedis
from bench.report import Report

STORES: tuple[StorePeer, ...] = (Ours(), Redis(), Memcached(), ThinRedis())


def available(peers: Sequence[StorePeer], settings: Settings, report: Report) -> list[StorePeer]:
    """Return the wanted `peers` that are installed; say in `report` how to get the others."""
    found = []
    for peer in peers:
        if not settings.wants(peer.name):
            report.skip(peer.name, "not among --only")
        elif (how := peer.missing()) is not None:
            report.skip(peer.name, how)
        else:
            report.versions.setdefault(peer.name, peer.version())
            found.append(peer)
    return found


@contextmanager
def started(
    names: Iterable[str], settings: Settings, report: Report, cpus: Iterable[int]
) -> Iterator[dict[str, StoreServer]]:
    """Run the servers of the stores called `names` on `cpus`, by name, and stop them at the end."""
    wanted = set(names)
    where = list(cpus)
    with ExitStack() as stack:
        servers: dict[str, StoreServer] = {}
        for number, peer in enumerate(available([p for p in STORES if p.name in wanted], settings, report)):
            directory = settings.directory / f"{len(list(settings.directory.iterdir()))}-{number}"
            server = peer.start(directory, where)
            stack.callback(server.stop)
            servers[peer.name] = server
        yield servers
