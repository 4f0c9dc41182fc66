"""Several nodes on one machine: calls, DAGs, messages and registrations among them, and what happens when one dies."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloudburst as cb
from anna.errors import UnavailableError
from cloudburst import local
from cloudburst.client import Client
from cloudburst.cluster import Cluster
from cloudburst.control import node_identity
from cloudburst.membership import Membership
from cloudburst.messages import ClientLeft
from cloudburst.neighbourhood import Neighbourhood
from cloudburst.neighbours import Neighbours, NodeRecord
from cloudburst.segments.mapping import Mapping
from cloudburst.segments.shelf import home_of
from tests.anna.local.processes import eventually
from tests.cloudburst.conftest import Post, wait_until_gone
from tests.cloudburst.test_segments import mapped_by
from tests.cloudburst.test_segments import names as segment_names

WAIT_S = 20.0


def place() -> str:
    """The node that this runs on."""
    import os

    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2]


def place_after(seconds: float) -> str:
    import os
    import time

    time.sleep(seconds)
    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2]


def increment(number: int) -> int:
    return number + 1


def add(*numbers: int) -> int:
    return sum(numbers)


def names(*found: str) -> list[str]:
    return list(found)


def held(address: str) -> str:
    """Say who runs this and where, and end when told to."""
    import os
    import time

    from tests.cloudburst.conftest import release

    release(address, f"{os.getpid()} {os.environ['CLOUDBURST_DIR'].rpartition('/')[2]}")
    time.sleep(60)
    return ""




def listener(address: str) -> Any:
    """Take one message."""
    import cloudburst
    from tests.cloudburst.conftest import release

    me = cloudburst.ctx()
    release(address, me.id)
    return me.recv(timeout=10)


def speaker(to: str) -> str:
    import os

    import cloudburst

    cloudburst.ctx().send(to, "from " + os.environ["CLOUDBURST_DIR"].rpartition("/")[2])
    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2]


def grown(array: Any, by: float, seconds: float = 0.0) -> tuple[str, Any]:
    """Say where this ran, and return a large array."""
    import os
    import time

    time.sleep(seconds)
    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2], array + by


def joined(*grown: tuple[str, Any]) -> tuple[list[str], Any]:
    return [place for place, _ in grown], sum(array for _, array in grown)


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    place, place_after, increment, add, names, held, listener, speaker, grown, joined,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes with one executor each."""
    started = Cluster(3, 1, 1)
    for function in FUNCTIONS:
        started.client.register(function)
    yield started
    started.down()


@pytest.fixture
def own(directory: Path) -> Iterator[Callable[[int], Cluster]]:
    """Makes clusters that a test may break."""
    made: list[Cluster] = []

    def make(hosts: int) -> Cluster:
        made.append(Cluster(hosts, 1, 1))
        for function in FUNCTIONS:
            made[-1].client.register(function)
        return made[-1]

    yield make
    for one in made:
        one.down()


def names_of(client: Client) -> list[str]:
    """Return the large values that belong to clients of a client's node, after it has let go of its own."""
    gc.collect()
    return segment_names(client._joined().shelf())


def client_of(host: cb.Host) -> Client:
    lease = local.join(host.address.removeprefix("unix:"))
    assert lease is not None
    return Client(lambda: Membership(lease))


def test_calls_are_spread_over_the_nodes(cluster: Cluster) -> None:
    found = Counter(cluster.client.map("place_after", [0.02] * 60))
    assert set(found) == {host.name for host in cluster.hosts}


def test_single_call_stays_on_the_callers_node_while_that_is_idle(cluster: Cluster) -> None:
    cluster.client.call("place")
    assert {cluster.client.call("place") for _ in range(20)} == {"host-0"}


def test_each_node_serves_its_own_clients(cluster: Cluster) -> None:
    for host in cluster.hosts:
        with client_of(host) as client:
            assert client.call("place") == host.name
            assert len(client.status()["nodes"]) == 2


def test_registration_is_known_on_every_node_when_it_returns(cluster: Cluster) -> None:
    clients = [client_of(host) for host in cluster.hosts]
    try:
        for version in range(1, 6):
            clients[version % 3].register(lambda version=version: version, name="versioned")
            assert [client.call("versioned") for client in clients] == [version] * 3
            found = {one.result() for one in [clients[0].spawn("versioned") for _ in range(12)]}
            assert found == {version}, "an executor of another node ran what was registered before"
    finally:
        for client in clients:
            client.close()


def test_dag_runs_across_nodes(cluster: Cluster) -> None:
    client = cluster.client
    branches = {f"b{number}": ["a"] for number in range(6)}
    functions = {"a": "increment", **dict.fromkeys(branches, "increment"), "c": "add"}
    client.dag("fan", {"a": [], **branches, "c": list(branches)}, functions=functions)
    client.dag("where", {f"w{number}": [] for number in range(3)} | {"all": [f"w{number}" for number in range(3)]},
               functions={**{f"w{number}": "place_after" for number in range(3)}, "all": "names"})  # fmt: skip
    assert [client.call("fan", {"a": (number,)}) for number in range(20)] == [6 * (number + 2) for number in range(20)]
    found = client.call("where", {f"w{number}": (0.05,) for number in range(3)})
    assert sorted(found) == ["host-0", "host-1", "host-2"], "its branches ran beside each other"


N = 100_000
HOSTS = {"host-0", "host-1", "host-2"}


def test_large_values_go_between_nodes_of_one_machine_in_shared_memory(cluster: Cluster) -> None:
    found = [future.result() for future in [cluster.client.spawn("grown", np.ones(N), n, 0.05) for n in range(9)]]
    assert {place for place, _ in found} == HOSTS
    assert [array[-1] for _, array in found] == [n + 1 for n in range(9)]
    assert all(isinstance(mapped_by(array), Mapping) for _, array in found)
    assert names_of(cluster.client) == []


def test_large_values_travel_along_a_dag_across_nodes(cluster: Cluster) -> None:
    branches = [f"b{number}" for number in range(3)]
    steps = {**{branch: [] for branch in branches}, "all": branches}
    cluster.client.dag("large", steps, functions={**dict.fromkeys(branches, "grown"), "all": "joined"})
    seen: set[str] = set()
    for calls in range(30):  # a branch that is begun late, on a busy machine, may find another's executor free again
        places, array = cluster.client.call("large", {branch: (np.ones(N), 1.0, 0.05) for branch in branches})
        assert array[-1] == 6.0
        seen |= set(places)
        if calls >= 2 and seen == HOSTS:
            break
    assert seen == HOSTS
    assert names_of(cluster.client) == []


def test_large_values_are_sent_where_the_memory_of_the_caller_is_out_of_sight(cluster: Cluster) -> None:
    """As between machines: here, by a path that leads there from the caller's process alone."""
    with client_of(cluster.hosts[1]) as client:
        shelf = client._joined().shelf()
        place = os.open(shelf.path, os.O_RDONLY | os.O_DIRECTORY)
        shelf.path = Path(f"/proc/self/fd/{place}")
        found = [future.result() for future in [client.spawn("grown", np.ones(N), n, 0.05) for n in range(9)]]
        assert [array[-1] for _, array in found] == [n + 1 for n in range(9)]
        assert {place for place, _ in found} == HOSTS
        assert all(isinstance(mapped_by(array), Mapping) == (place == "host-1") for place, array in found)
        assert not any(array.flags.writeable for _, array in found)
        assert names_of(client) == []
        os.close(place)


def test_message_reaches_an_invocation_on_another_node(cluster: Cluster, post: Post) -> None:
    busy = [cluster.client.spawn("place_after", 1.0) for _ in range(2)]
    with client_of(cluster.hosts[2]) as far:
        future = cluster.client.spawn("listener", post.address)
        [id] = post.wait()
        where = far.call("speaker", id)
        assert future.result(timeout=WAIT_S) == f"from {where}"
    for one in busy:
        one.result()


def hold_all(cluster: Cluster, post: Post) -> tuple[list[cb.Future], dict[str, int]]:
    """Have every executor of every node run a call that does not end; return the futures, and one process of each."""
    count = len(_executors(cluster))
    futures = [cluster.client.options(retries=0).spawn("held", post.address) for _ in range(count)]
    running = {words[1]: int(words[0]) for words in (post.wait() for _ in range(count))}
    assert set(running) == {"host-0", "host-1", "host-2"}
    return futures, running


def where(*_: Any) -> str:
    import os

    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2]


def test_call_goes_to_the_node_whose_cache_has_its_arguments(cluster: Cluster) -> None:
    cluster.client.register(where)
    keys = [f"local-{number}" for number in range(10)]
    cluster.client.mput({key: bytes(1000) for key in keys})
    with client_of(cluster.hosts[2]) as far:
        assert len(far.mget(keys)) == 10
    refs = [cb.Ref(key) for key in keys]
    eventually(lambda: cluster.client._joined().near(keys) != 0, "it is known where the arguments are")
    assert {cluster.client.call("where", *refs) for _ in range(5)} == {"host-2"}
    assert cluster.client.spawn("where", *refs).result(timeout=WAIT_S) == "host-2"
    assert cluster.client.call("where") == "host-0", "without arguments"
    cluster.client.register(lambda *found: found[:2], name="places")
    cluster.client.dag("around", {"where": [], "other": [], "places": ["where", "other"]}, functions={"other": "where"})
    assert cluster.client.call("around", {"where": tuple(refs)})[0] == "host-2"
    assert cluster.client.call("around", {"other": tuple(refs)})[1] == "host-2"
    cluster.client.dag("alone", {"where": []})
    assert cluster.client.call("alone", {"where": tuple(refs)}) == "host-2"
    assert cluster.client.spawn("alone", {"where": tuple(refs)}).result(timeout=WAIT_S) == "host-2"


def test_call_on_another_node_is_cancelled_there(cluster: Cluster, post: Post) -> None:
    futures, _ = hold_all(cluster, post)
    begun = time.monotonic()
    assert all(future.cancel() for future in futures)
    while any(row["state"] != "idle" for row in _executors(cluster)):
        assert time.monotonic() - begun < WAIT_S, "what was cancelled still runs"
        time.sleep(0.02)


def _executors(cluster: Cluster) -> list[dict[str, Any]]:
    rows = []
    for host in cluster.hosts:
        with client_of(host) as client:
            rows += client.status()["executors"]
    return rows


def test_executor_that_is_killed_on_another_node_costs_an_attempt_and_is_described(
    cluster: Cluster, post: Post
) -> None:
    futures, running = hold_all(cluster, post)
    os.kill(running["host-2"], signal.SIGKILL)
    [failed], _ = cb.wait(futures, return_when="FIRST_COMPLETED")
    with pytest.raises(cb.ExecutorLost, match=f"pid {running['host-2']}.*SIGKILL") as lost:
        failed.result()
    assert lost.value.definite is False
    for future in futures:
        future.cancel()


def test_calls_of_a_node_that_is_killed_are_begun_again_elsewhere(own: Callable[[int], Cluster]) -> None:
    cluster = own(3)
    futures = [cluster.client.spawn("place_after", 0.05) for _ in range(30)]
    os.kill(cluster.hosts[2].pid, signal.SIGKILL)
    found = Counter(future.result(timeout=WAIT_S) for future in futures)
    assert sum(found.values()) == 30
    assert cluster.client.call("increment", 1) == 2
    # Those who had calls there know at once; the list follows what the nodes say to each other.
    eventually(lambda: len(cluster.client.status()["nodes"]) == 1, "the node that was killed is not in the list")


def test_node_that_is_killed_leaves_no_segments_though_its_directory_is_gone(own: Callable[[int], Cluster]) -> None:
    """Its zygote gave up when there was no directory any more, and what lay in shared memory stayed for ever."""
    cluster = own(1)
    shelf = home_of(Path(cluster.hosts[0].address.removeprefix("unix:")))
    assert shelf.is_dir()
    node = cluster.hosts[0].pid
    zygotes = list(map(int, Path(f"/proc/{node}/task/{node}/children").read_text().split()))
    for pid in zygotes:
        os.kill(pid, signal.SIGSTOP)
    os.kill(cluster.hosts[0].pid, signal.SIGKILL)
    cluster.down()
    for pid in zygotes:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: not shelf.exists(), "the segments are gone")


def test_client_whose_node_is_killed_goes_on_at_another(own: Callable[[int], Cluster]) -> None:
    """Registrations are in the store, of which another node has a copy: no scheduler's end loses them."""
    cluster = own(2)
    client = cluster.client
    assert client.call("place") == "host-0"
    futures = [client.spawn("place_after", 0.05) for _ in range(20)]
    large = [client.spawn("grown", np.ones(N), n, 0.05) for n in range(6)]
    os.kill(cluster.hosts[0].pid, signal.SIGKILL)
    assert sum(Counter(future.result(timeout=WAIT_S) for future in futures).values()) == 20
    assert [future.result(timeout=WAIT_S)[1][-1] for future in large] == [n + 1 for n in range(6)]
    assert client.call("place") == "host-1"
    client.register(lambda: "new", name="registered_later")
    assert client.call("registered_later") == "new"


def test_cluster_grows_and_shrinks(own: Callable[[int], Cluster]) -> None:
    cluster = own(1)
    cluster.scale(3)
    assert set(cluster.client.map("place_after", [0.02] * 30)) == {"host-0", "host-1", "host-2"}
    pids = [host.pid for host in cluster.hosts]
    cluster.scale(1)
    assert [host.name for host in cluster.hosts] == ["host-0"]
    for pid in pids[1:]:
        wait_until_gone(pid)
    assert set(cluster.client.map("place_after", [0.01] * 10)) == {"host-0"}


def marked(number: int, seconds: float, file: str) -> str:
    """Leave a mark of having begun."""
    import os
    import time

    with open(file, "a") as marks:
        marks.write(f"{number}\n")
    time.sleep(seconds)
    return os.environ["CLOUDBURST_DIR"].rpartition("/")[2]


def asks_another(number: int, file: str) -> str:
    import cloudburst

    return str(cloudburst.call("marked", number, 0.1, file))


def test_calls_run_once_while_nodes_stop(own: Callable[[int], Cluster], directory: Path) -> None:
    """They had been begun again elsewhere, with all that they do to the world."""
    cluster, file = own(3), directory / "marks"
    cluster.client.register(marked)
    cluster.client.register(asks_another)
    futures = [cluster.client.spawn("marked", n, 0.2, str(file)) for n in range(40)]
    futures += [cluster.client.spawn("asks_another", n, str(file)) for n in range(40, 60)]
    eventually(lambda: file.exists() and len(file.read_text().split()) >= 6, "calls run on all nodes")
    cluster.scale(1)
    places = [future.result(timeout=WAIT_S) for future in futures]
    assert Counter(map(int, file.read_text().split())) == Counter(range(60))
    assert [future.attempts for future in futures] == [1] * 60
    assert set(places) == HOSTS


def test_calls_of_a_client_whose_own_node_stops_run_once(own: Callable[[int], Cluster], directory: Path) -> None:
    """Those that ran on other nodes had been begun again when their client went on at one of these."""
    cluster, file = own(2), directory / "marks"
    cluster.client.register(marked)
    with client_of(cluster.hosts[1]) as client:
        futures = [client.spawn("marked", n, 0.4, str(file)) for n in range(12)]
        eventually(lambda: file.exists() and len(file.read_text().split()) >= 3, "calls run")
        cluster.scale(1)
        assert all(future.result(timeout=WAIT_S) for future in futures)
    assert Counter(map(int, file.read_text().split())) == Counter(range(12))


def test_node_that_stops_gives_a_call_its_time_and_no_more(
    own: Callable[[int], Cluster], post: Post
) -> None:
    cluster = own(2)
    futures = [cluster.client.options(retries=0).spawn("held", post.address) for _ in range(2)]
    running = {words[1]: int(words[0]) for words in (post.wait() for _ in range(2))}
    node = cluster.hosts[1].pid
    os.kill(node, signal.SIGTERM)
    eventually(lambda: cluster.provider.leases["host-1"].page.ready().get(0) is None, "it takes no more calls")
    assert not any(future.done() for future in futures)
    os.kill(node, signal.SIGTERM)
    [lost], _ = cb.wait(futures, return_when="FIRST_COMPLETED")
    assert isinstance(lost.exception(), cb.ExecutorLost)
    wait_until_gone(running["host-1"])
    wait_until_gone(node)
    for future in futures:
        future.cancel()


def test_cluster_grows_while_calls_that_wait_have_others_stand_in_for_them(
    own: Callable[[int], Cluster], post: Post
) -> None:
    """More executors than were asked for were taken for nodes that do not know each other."""
    cluster = own(2)
    listening = [cluster.client.spawn("listener", post.address) for _ in range(4)]
    for _ in listening:
        post.wait()
    assert any(lease.page.foreign() > 1 for lease in cluster.provider.leases.values())
    cluster.scale(3)
    assert len(cluster.hosts) == 3
    for one in listening:
        one.cancel()


def test_node_that_parts_is_no_client_any_more() -> None:
    """Each node that had left stayed in the scheduler of every other one."""
    node = Neighbourhood.__new__(Neighbourhood)
    told: list[Any] = []
    node.core = Neighbours(1, "here", 4, 8)
    node.core.found([NodeRecord(2, "here", "/run/2", ("ipc:///run/2/control.sock",))], 0)
    node._met, node._links, node._key_places, node._tell = {2: node_identity(2, 1, "ipc:")}, {}, {}, told.append
    node.hear(node_identity(2, 1, "ipc:"), "part", {})
    assert told == [ClientLeft(2)]


def test_values_stay_while_nodes_come_go_and_die(own: Callable[[int], Cluster]) -> None:
    """A cache asked for ever the owners that it had first heard of."""
    cluster = own(1)
    keys = [f"key-{number}" for number in range(60)]
    cluster.client.mput({key: place for place, key in enumerate(keys)})
    cluster.scale(3)
    for host in cluster.hosts:
        with client_of(host) as client:
            assert client.mget(keys) == list(range(60))
            client.mput({f"{key}-{host.name}": host.name for key in keys})
    cluster.scale(2)
    assert cluster.client.mget([f"{key}-host-2" for key in keys]) == ["host-2"] * 60
    os.kill(cluster.hosts[1].pid, signal.SIGKILL)
    end = time.monotonic() + WAIT_S
    while True:
        try:
            assert cluster.client.mget(keys) == list(range(60))
            cluster.client.mput({key: -place for place, key in enumerate(keys)})
            break
        except UnavailableError:
            assert time.monotonic() < end
    assert cluster.client.mget(keys) == [-place for place in range(60)]


@pytest.mark.parametrize(
    ("verb", "body", "kind"),
    [
        ("meet", {}, cb.RequestError),
        ("meet", {"record": b"junk"}, cb.ProtocolError),
        ("meet", {"record": 5}, cb.RequestError),
        ("fate", {"slot": "x"}, cb.RequestError),
        ("fate", {"slot": 10**9, "incarnation": 1}, cb.RequestError),
        ("cancel", {"slot": None, "high": 1, "low": 1}, cb.RequestError),
        ("cancel", {"slot": 2**62, "high": [], "low": {}}, cb.RequestError),
    ],
)
def test_request_that_is_garbage_is_answered_and_harms_nobody(
    node: cb.Client, verb: str, body: dict[str, Any], kind: type[Exception]
) -> None:
    """The node ended with a KeyError, and with it all of its executors."""
    membership = node._joined()
    with pytest.raises(kind):
        membership.ask(verb, body, 5.0)
    assert node.call("square", 3) == 9


def test_nodes_end_with_the_program_that_started_them(directory: Path) -> None:
    code = (
        "import cloudburst as cb, os, sys\n"
        "cluster = cb.up(hosts=2, executors=1)\n"
        "print(*(host.pid for host in cluster.hosts), flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(1)\n"
    )
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert program.stdout is not None
    pids = [int(word) for word in program.stdout.readline().split()]
    assert len(pids) == 2
    program.kill()
    program.communicate()
    for pid in pids:
        wait_until_gone(pid)
    eventually(lambda: list(directory.iterdir()) == [], "the directory that it had made is gone, too")


def test_default_client_is_the_clusters_while_it_runs(client: cb.Client) -> None:
    assert cb.default() is client
    with cb.up(hosts=1, executors=1) as cluster:
        assert cb.default() is cluster.client
        cb.register(place)
        assert cb.call("place") == "host-0"
    assert cb.default() is client
    assert cb.call("square", 3) == 9


def test_hosts_of_another_kind_are_refused_by_name() -> None:
    with pytest.raises(cb.NotSupported, match="'moon'"):
        cb.up(hosts=2, on="moon")
    with pytest.raises(cb.RequestError, match="0 hosts"):
        cb.up(hosts=0)
