"""`anna serve --metrics`: every figure of this node's workers, in Prometheus' text format.

The one rule: the workers' hot path knows nothing of it. A process of its own asks them, as `anna status` does, when
it is asked itself, and shows a worker that does not answer in time as down instead of waiting for it. It ends with
its node: its standard input is a pipe whose other end the node holds. Should it end before, the node starts another.

    python -m anna.metrics FD NODE_ID KEYS ADDRESS...

(FD is the listening socket, ADDRESS a worker's, by seats.) With keys it is HTTPS, for who shows keys of the cluster.
"""

from __future__ import annotations

import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

from anna.address import TcpAddress, parse_address
from anna.asking import figures_of
from anna.companion import Companion
from anna.config import EPOCH_US
from anna.keys import Keys
from anna.kvs.clock import EPOCH_2020_S
from anna.listening import check_local
from anna.sealed import HANDSHAKE_S

ANSWER_S: Final = 1.0
"""How long a worker may take to give its figures."""


@dataclass(frozen=True, slots=True)
class Figure:
    """How one figure of `Worker.status` is shown; `scale` gives it the unit of the name, then `offset` is added."""

    figure: str
    name: str
    help: str
    scale: float = 1.0
    offset: float = 0.0


LABELS: Final = ("node", "worker", "seat")

IDENTITY: Final = {"worker_id", "place", "cluster", "view_digest"}
"""What of a worker's figures is no figure, but says whose they are."""

COUNTERS: Final = (
    Figure("gets", "anna_gets", "Keys that clients asked for."),
    Figure("gets_at", "anna_gets_at_epochs", "Keys that sessions asked for as of an epoch."),
    Figure("marks", "anna_epoch_marks", "Epochs of which nodes' caches were told what they hold."),
    Figure("commits", "anna_commits", "Transactions that were committed here."),
    Figure("finished", "anna_transactions_finished", "Those that their owners ended, without their coordinator."),
    Figure("puts", "anna_puts", "Keys that clients wrote."),
    Figure("deletes", "anna_deletes", "Keys that clients deleted, or tried to."),
    Figure("scans", "anna_scans", "Pages of scans."),
    Figure("frames", "anna_frames", "Requests of clients."),
    Figure("refused", "anna_refused", "Requests that were answered with an error of the client's."),
    Figure("malformed", "anna_malformed", "Connections that were closed for their bytes."),
    Figure("stale", "anna_stale_reads", "Reads that were sent on to another owner."),
    Figure("peer_frames", "anna_peer_frames", "Messages of other workers."),
    Figure("deltas_sent", "anna_deltas_sent", "Changed keys that were sent to other owners."),
    Figure("deltas_taken", "anna_deltas_taken", "Changed keys that came from other owners."),
)

GAUGES: Final = (
    Figure("view", "anna_view_version", "Version of the view that this worker goes by."),
    Figure("keys", "anna_keys", "Keys that are stored here."),
    Figure("bytes", "anna_stored_bytes", "Bytes of the keys and states that are stored here."),
    Figure("memory_bytes", "anna_memory_bytes", "Memory that keys and states take, about."),
    Figure("memory_limit", "anna_memory_limit_bytes", "What they may take; 0: there is no limit."),
    Figure("cold", "anna_cold_keys", "Keys whose states are on the disk alone."),
    Figure("lost", "anna_lost_keys", "Keys whose states the disk did not give back: they are waited for."),
    Figure("uptime_us", "anna_uptime_seconds", "Since the worker began.", 1e-6),
    Figure("stamp", "anna_stamp_seconds", "The greatest stamp given or seen, since 1970.", 1e-6 / 1024, EPOCH_2020_S),
    Figure("factor", "anna_replication_factor", "Copies of each key, as far as there are workers for them."),
    Figure("own_vectors", "anna_own_vectors", "Keys that have numbers of copies of their own."),
    Figure("epoch", "anna_epoch", "The epoch that runs."),
    Figure("closed", "anna_closed_epoch", "The last epoch whose writes here are on all their replicas."),
    Figure("stable", "anna_stable_epoch", "The last epoch of which everything is on all its replicas."),
    Figure("stable_age_p50", "anna_stable_age_p50_epochs", "How old the stable epoch was while clients wrote: half."),
    Figure("stable_age_p99", "anna_stable_age_p99_epochs", "How old the stable epoch was while clients wrote: 99 %."),
    Figure("history_from", "anna_history_from_epoch", "The oldest epoch that can be read; 0: nobody reads at epochs."),
    Figure("history_keys", "anna_history_keys", "Keys of which former states are kept for sessions."),
    Figure("history_bytes", "anna_history_bytes", "Bytes of the former states that are kept for sessions."),
    Figure("pins", "anna_pinned_epochs", "Epochs that sessions keep readable."),
    Figure("prepared", "anna_prepared_transactions", "Transactions that are prepared here and not decided yet."),
    Figure("listeners", "anna_epoch_listeners", "Nodes' caches that are told what keys hold at epochs."),
    Figure("listened", "anna_epoch_listened_keys", "Keys of which they are told."),
    Figure("complete", "anna_complete", "1: this worker has all keys that it should have under its view."),
    Figure("held", "anna_held_connections", "Connections with answers that wait for copies or the disk."),
    Figure("quarantined", "anna_quarantined_keys", "Keys that two owners began with different types: see to them."),
    Figure("tombstones", "anna_tombstones", "Deletes that are remembered."),
    Figure("expiring", "anna_expiring_keys", "Keys that have a time to live."),
    Figure("snapshot", "anna_snapshot_epoch", "The epoch whose state is kept for a backup; 0: none."),
    Figure("logging", "anna_logging", "1: writes are logged (anna serve --data)."),
    Figure("disk_full", "anna_disk_full", "1: durable writes are refused until there is room on the disk."),
)


Labelled = tuple[tuple[str, ...], dict[str, Any]]
"""A worker's labels and figures."""


class Workers(Collector):
    """The figures of the workers at `addresses`, by seat, as they are when Prometheus asks."""

    def __init__(self, node: str, addresses: Sequence[str]) -> None:
        self._node = node
        self._addresses = tuple(addresses)

    def collect(self) -> Iterator[Metric]:
        """Yield every figure of every worker that answers within ANSWER_S, and which do."""
        found = figures_of([(address,) for address in self._addresses], ANSWER_S)
        up = GaugeMetricFamily("anna_worker_up", "1: the worker answered in time.", labels=("node", "seat"))
        for seat, figures in enumerate(found):
            up.add_metric((self._node, str(seat)), float("error" not in figures))
        yield up
        workers = [(self._labels(seat, has), has) for seat, has in enumerate(found) if "error" not in has]
        for figure in COUNTERS:
            yield _filled(CounterMetricFamily(figure.name, figure.help, labels=LABELS), figure, workers)
        for figure in GAUGES:
            yield _filled(GaugeMetricFamily(figure.name, figure.help, labels=LABELS), figure, workers)
        told = "How far the stable epoch is behind the one that runs."
        lag = GaugeMetricFamily("anna_stable_lag_seconds", told, labels=LABELS)
        for labels, figures in workers:
            behind = figures["epoch"] - figures["stable"] if figures["stable"] else 0
            lag.add_metric(labels, behind * EPOCH_US / 1e6)
        yield lag

    def _labels(self, seat: int, figures: dict[str, Any]) -> tuple[str, ...]:
        return (self._node, f"{figures['worker_id']:016x}", str(seat))


def _filled(family: CounterMetricFamily | GaugeMetricFamily, figure: Figure, workers: list[Labelled]) -> Metric:
    for labels, figures in workers:
        family.add_metric(labels, figures[figure.figure] * figure.scale + figure.offset)
    return family


class MetricsServer(ThreadingHTTPServer):
    """HTTP on a socket that listens already; HTTPS, for those of the cluster, with keys."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, collector: Collector, keys: Keys | None = None) -> None:
        self._keys = keys
        registry = CollectorRegistry()
        registry.register(collector)
        super().__init__(listener.getsockname()[:2], MetricsHandler.factory(registry), bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def get_request(self) -> tuple[socket.socket, Any]:
        """Return a connection; under TLS, its handshake is over when its own thread reads from it."""
        accepted, peer = super().get_request()
        if self._keys is None:
            return accepted, peer
        accepted.settimeout(HANDSHAKE_S)
        return self._keys.server.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in one line who was not served."""
        sys.stderr.write(f"anna metrics: {client_address[0]} was not served: {sys.exception()}\n")

    def server_bind(self) -> None:
        """It is bound already."""
        socketserver.TCPServer.server_bind(self)


# -- the node's side


class MetricsProcess:
    """The process that serves a node's figures at `address`, HOST:PORT; port 0 lets the system choose.

    The node keeps the socket, so that the process can be started again (`anna.companion`).
    """

    def __init__(self, address: str, insecure: bool, keys: Keys | None = None) -> None:
        """Bind the address. Raises NotLocal unless `insecure`, ValueError, and OSError."""
        place = parse_address(f"tcp://{address}")
        assert isinstance(place, TcpAddress)
        self.warnings = check_local([place], insecure, keys is not None)
        self._keys = keys
        family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        self._listener = socket.create_server((place.host, place.port), family=family)
        self.address = str(TcpAddress(place.host, self._listener.getsockname()[1])).removeprefix("tcp://")
        self._companion: Companion | None = None

    def start(self, node_id: int, addresses: Sequence[str]) -> Companion:
        """Serve the figures of the workers at `addresses`, by seat, from a process of its own."""
        descriptor = self._listener.fileno()
        keys = "" if self._keys is None else str(self._keys.directory)
        words = [str(descriptor), f"{node_id:016x}", keys, *addresses]
        command = [sys.executable, "-m", "anna.metrics", *words]
        self._companion = Companion("the metrics", command, [descriptor])
        return self._companion

    def close(self) -> None:
        """End the process."""
        self._listener.close()
        if self._companion is not None:
            self._companion.end()


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends."""
    descriptor, node, directory, *addresses = arguments
    keys = Keys(directory) if directory else None
    server = MetricsServer(socket.socket(fileno=int(descriptor)), Workers(node, addresses), keys)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.read(sys.stdin.fileno(), 4096):
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
