"""The blocking client against real workers."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest

import anna
from anna import Client, config
from anna.messages import NodeInfo, View
from tests.anna import frames
from tests.anna.conftest import RunningWorkers, running_workers


@pytest.fixture(scope="module", params=["unix", "tcp", "three workers"])
def kvs(request: pytest.FixtureRequest) -> object:
    with (
        running_workers(3 if request.param == "three workers" else 1, tcp_first=request.param == "tcp") as cluster,
        Client([cluster.unix()]) as client,
    ):
        yield client


def test_values_come_back_with_their_types(kvs: Client) -> None:
    values = ["text", b"bytes", 7, -(2**70), 1.5, None, True, (1, "a"), [1, [2]], {"k": (1,)}, {1, 2}, "", b"", {}, "ü"]
    for number, value in enumerate(values):
        kvs.put(f"value {number}", value)
    got = [kvs.get(f"value {number}") for number in range(len(values))]
    assert got == values
    assert [type(v) for v in got] == [type(v) for v in values]


@pytest.mark.parametrize("size", [16_383, 16_384, 32_768, 65_536, 1_000_003])
def test_large_values_come_back_whole_alone_and_in_batches(kvs: Client, size: int) -> None:
    value, text = os.urandom(size), "é" * (size // 2)
    kvs.put("large", value)
    kvs.put("large text", text)
    assert (kvs.get("large"), kvs.get("large text")) == (value, text)
    assert kvs.mget(["large", "large text"]) == [value, text]
    assert kvs.get_lattice("large").value == value
    with kvs.pipeline() as p:
        p.put("large again", value).get("large again").get("large text")
    assert p.results[1:] == [value, text]


def test_text_and_bytes_name_the_same_key(kvs: Client) -> None:
    kvs.put("schlüssel", 1)
    assert kvs.get("schlüssel".encode()) == 1


def test_missing_keys(kvs: Client) -> None:
    with pytest.raises(KeyError, match="no value is stored under 'nothing'"):
        kvs.get("nothing")
    assert kvs.get("nothing", None) is None
    assert kvs.mget(["nothing"], default=3) == [3]
    assert kvs.delete("nothing") is False


def test_empty_values_exist(kvs: Client) -> None:
    """D05: an empty value was taken for a missing one."""
    for value in (None, b"", "", [], {}):
        kvs.put("empty", value)
        assert kvs.get("empty") == value
    assert kvs.delete("empty") is True


def test_batches_keep_their_order_over_all_workers(kvs: Client) -> None:
    items = {f"batch {n}": n for n in range(500)}
    ack = kvs.mput(items)
    assert (ack.replicas, ack.durable) == (1, 0)
    assert kvs.mget(list(items)[::-1]) == list(items.values())[::-1]
    assert kvs.mget([]) == []
    assert kvs.mput({}).replicas == 1


def test_refused_key_of_a_batch_is_raised_after_the_others_were_written(kvs: Client) -> None:
    kvs.put("typed", 1)
    counter = anna.lattices.REGISTRY[max(anna.lattices.REGISTRY)].bottom()
    with pytest.raises(anna.LatticeTypeMismatch, match="'typed' holds a LWW"):
        kvs.mput([("before", 1), ("typed", counter), ("after", 2)])
    assert kvs.mget(["before", "typed", "after"]) == [1, 1, 2]


def test_pipeline_mixes_operations_and_keeps_their_order(kvs: Client) -> None:
    with kvs.pipeline() as p:
        for n in range(300):
            p.put(f"p{n}", n).get(f"p{n}").delete(f"p{n}").get(f"p{n}", "gone")
    assert p.results[1::4] == list(range(300))
    assert p.results[2::4] == [True] * 300
    assert p.results[3::4] == ["gone"] * 300
    assert len(p) == 0


def test_pipeline_of_large_values_both_ways_does_not_lock_up(kvs: Client) -> None:
    value = b"x" * 300_000
    kvs.put("wide", value)
    with kvs.pipeline() as p:
        for n in range(60):
            p.get("wide").put(f"wide {n}", value)
    assert all(result == value for result in p.results[::2])
    kvs.mput({f"wide {n}": b"" for n in range(60)})


def test_pipeline_raises_the_first_refusal_and_has_all_results(kvs: Client) -> None:
    kvs.put("typed", 1)
    other = anna.lattices.REGISTRY[max(anna.lattices.REGISTRY)].bottom()
    p = kvs.pipeline()
    p.put("ok", 1).put("typed", other).get("ok")
    with pytest.raises(anna.LatticeTypeMismatch):
        p.execute()
    assert isinstance(p.results[1], anna.LatticeTypeMismatch)
    assert p.results[2] == 1


def test_a_pipeline_left_by_an_error_sends_nothing(kvs: Client) -> None:
    def change_my_mind() -> None:
        with kvs.pipeline() as p:
            p.put("never", 1)
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError):
        change_my_mind()
    assert kvs.get("never", None) is None


def test_bad_keys_and_values_are_refused_before_anything_is_sent(kvs: Client) -> None:
    frames_before = [w["frames"] for w in kvs.status()]
    for key in ("", b"", "\0x", "x" * (config.KEY_BYTES_MAX + 1), 7, None, "\ud800"):
        for call in (kvs.get, kvs.delete, lambda k: kvs.put(k, 1), lambda k: kvs.mget([k]), lambda k: kvs.mput({k: 1})):
            with pytest.raises(anna.BadKey):
                call(key)
    with pytest.raises(anna.ValueTooLarge, match="67,108,8"):
        kvs.put("k", bytes(config.VALUE_BYTES_MAX))
    with pytest.raises(anna.ValueTooLarge, match="batch_keys_max is 65,536"):
        kvs.mget(["k"] * 300_000)
    with pytest.raises(anna.NotSerializable):
        kvs.put("k", threading.Lock())
    assert [w["frames"] for w in kvs.status()] == [n + 1 for n in frames_before]


def test_ack_that_one_memory_cannot_give_is_refused(kvs: Client) -> None:
    assert kvs.put("k", 1, ack="memory").replicas == 1
    assert kvs.put("k", 1, ack=1).replicas == 1
    with pytest.raises(anna.UnavailableError, match="asks for 2 copies; the key has 1 owner now") as caught:
        kvs.put("k", 2, ack=2)
    assert caught.value.definite
    with pytest.raises(anna.NotSupported, match="keeps none"):
        kvs.put("k", 2, ack="disk")
    for ack in ("both", 0, 255, -1, True, 1.5):
        with pytest.raises(ValueError, match="'memory', 'disk' or a number"):
            kvs.put("k", 2, ack=ack)
    assert kvs.get("k") == 1


def test_threads_share_a_client(kvs: Client) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        try:
            for n in range(200):
                kvs.put(f"thread {number}", n)
                assert kvs.get(f"thread {number}") == n
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_stamps_of_one_client_rise_over_all_workers(kvs: Client) -> None:
    stamps = [kvs.put(f"stamp {n}", n).stamp for n in range(100)]
    assert stamps == sorted(set(stamps))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_opens_its_own_connections(kvs: Client) -> None:
    kvs.put("fork", "parent")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            ok = all(kvs.get("fork") == "parent" and kvs.put("fork child", n) for n in range(50))
            os.write(writing, b"ok" if ok else b"no")
        finally:
            os._exit(0)
    got = [kvs.get("fork") for _ in range(50)]
    os.waitpid(pid, 0)
    os.close(writing)
    assert (os.read(reading, 10), got) == (b"ok", ["parent"] * 50)
    os.close(reading)
    assert kvs.get("fork child") == 49


def test_pickles_are_refused_when_they_are_not_allowed(one_worker: RunningWorkers) -> None:
    with Client([one_worker.unix()]) as writer, Client([one_worker.unix()], allow_pickle=False) as reader:
        writer.put("k", pickle.PickleBuffer)
        with pytest.raises(anna.NeedsPickle):
            reader.get("k")
        assert reader.put("k", 1).replicas == 1


def test_a_stopped_worker_ends_calls_by_their_deadline_and_they_may_have_had_an_effect(
    one_worker: RunningWorkers,
) -> None:
    with Client([one_worker.unix()], timeout=30) as kvs:
        kvs.put("k", 1)
        os.kill(one_worker.pids[0], signal.SIGSTOP)
        for call in (
            lambda: kvs.get("k", timeout=0.05),
            lambda: kvs.put("k", 2, timeout=0.05),
            lambda: kvs.mget(["k"], timeout=0.05),
            lambda: kvs.pipeline(timeout=0.05).get("k").execute(),
        ):
            began = time.monotonic()
            with pytest.raises(anna.RequestTimeout) as caught:
                call()
            assert not caught.value.definite
            assert time.monotonic() - began < 5
        os.kill(one_worker.pids[0], signal.SIGCONT)
        assert kvs.get("k") in (1, 2)


def test_late_answer_never_meets_the_next_request(one_worker: RunningWorkers) -> None:
    """D40, D46: an answer that came after its caller had gone was given to the next."""
    with Client([one_worker.unix()]) as kvs:
        kvs.mput({"a": "A", "b": "B"})
        for _ in range(20):
            os.kill(one_worker.pids[0], signal.SIGSTOP)
            with pytest.raises(anna.RequestTimeout):
                kvs.get("a", timeout=0.001)
            os.kill(one_worker.pids[0], signal.SIGCONT)
            assert kvs.get("b") == "B"


def test_reads_go_on_when_a_killed_worker_is_replaced_and_a_lost_write_is_indefinite(
    one_worker: RunningWorkers,
) -> None:
    with Client([one_worker.unix()]) as kvs:
        kvs.put("k", 1)
        one_worker.kill(0)
        one_worker.start(0)
        assert kvs.get("k", "memory is gone") == "memory is gone"
        kvs.put("k", 2)
        one_worker.kill(0)
        with pytest.raises(anna.UnavailableError) as caught:
            kvs.put("k", 3, timeout=0.2)
        one_worker.start(0)
        assert isinstance(caught.value, anna.RequestTimeout | anna.ConnectionLost | anna.NoWorkers)
        assert kvs.put("k", 4).replicas == 1


def test_nobody_there_is_said_with_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(anna.NoWorkers, match=address):
            anna.connect(address, timeout=0.5)


def test_a_client_with_an_old_view_follows_the_wrong_workers_answer() -> None:
    """The client knows one worker of three; every key is found, and the view is learnt on the way."""
    with running_workers(3) as cluster, Client([cluster.unix()]) as kvs:
        items = {f"k{n}": n for n in range(60)}
        kvs.mput(items)
        for call in (
            lambda c: [c.get(k) for k in items],
            lambda c: c.mget(items),
            lambda c: [c.put(k, n) and n for k, n in items.items()],
            lambda c: c.mput(items) and list(items.values()),
            lambda c: [r for k in items for r in c.pipeline().get(k).execute()],
        ):
            with Client([cluster.unix()]) as late:
                old = View(0, (NodeInfo(1, cluster.view.workers[:1]),))
                late.forget_view(old)
                assert call(late) == list(items.values())
                assert late.view == cluster.view


def test_a_client_hears_of_a_newer_view_from_workers_that_do_not_turn_it_away() -> None:
    """An owner that was one before the change never said so, and whoever became one was not asked."""
    with running_workers(3) as cluster, Client([cluster.unix()]) as kvs:
        kvs.put("k", 1)
        for call in (
            lambda c: c.get("k"),
            lambda c: c.put("k", 1) and 1,
            lambda c: c.mget(["k"])[0],
            lambda c: c.mput({"k": 1}) and 1,
            lambda c: c.pipeline().get("k").execute()[0],
        ):
            with Client([cluster.unix()]) as late:
                old = replace(cluster.view, version=0, factor=2)
                late.forget_view(old)
                assert call(late) == 1
                assert late.view == cluster.view


def test_malformed_bytes_close_their_own_connection_alone(one_worker: RunningWorkers) -> None:
    with Client([one_worker.unix()]) as kvs, socket.socket(socket.AF_UNIX) as bad:
        bad.connect(one_worker.unix().removeprefix("unix:"))
        bad.settimeout(10)
        bad.sendall(b"\xff" * 100)
        data = b""
        while piece := bad.recv(4096):
            data += piece
        assert frames.replies(data)[0].status == frames.MALFORMED
        assert kvs.put("k", 1).replicas == 1
        assert kvs.status()[0]["malformed"] == 1


def test_a_closed_client_says_so(one_worker: RunningWorkers) -> None:
    kvs = Client([one_worker.unix()])
    kvs.close()
    kvs.close()
    with pytest.raises(anna.NoWorkers, match="closed"):
        kvs.get("k")


def test_where_names_the_owner(three_workers: RunningWorkers) -> None:
    with Client([three_workers.unix()]) as kvs:
        for n in range(20):
            kvs.put(f"k{n}", n)
        places = [kvs.where(f"k{n}")["place"] for n in range(20)]
        assert [places.count(p) for p in range(3)] == [w["keys"] for w in kvs.status()]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_write_with_a_time_to_live_goes_and_one_without_stays(kvs: Client, size: int) -> None:
    """Large registers take a way of their own into the store, which knows nothing of conditions."""
    value = "x" * size
    kvs.put("short", value, ttl=0.05)
    kvs.put("long", value, ttl=60)
    kvs.put("set", anna.Set({"a"}), ttl=60)
    assert (kvs.get("short", None), kvs.get("long"), kvs.get("set")) in ((value, value, {"a"}), (None, value, {"a"}))
    deadline = time.monotonic() + 20
    while kvs.get("short", None) is not None:
        assert time.monotonic() < deadline
    assert kvs.get("long") == value
    for ttl in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ttl is"):
            kvs.put("short", 1, ttl=ttl)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_put_that_compares_is_refused_when_somebody_wrote_meanwhile(kvs: Client, size: int) -> None:
    key = f"compared {size}"
    kvs.put(key, "x" * size, if_stamp=0)
    with pytest.raises(anna.Changed) as caught:
        kvs.put(key, "y", if_stamp=0)
    assert caught.value.definite
    stamp = kvs.get_lattice(key).stamp
    kvs.put(key, "y" * size, if_stamp=stamp, ttl=60)
    with pytest.raises(anna.Changed):
        kvs.put(key, "z", if_stamp=stamp)
    assert kvs.get(key) == "y" * size
    with pytest.raises(TypeError, match="a Set has none"):
        kvs.put(key, anna.Set(), if_stamp=stamp)


def test_a_watch_gives_the_present_value_and_then_each_change(kvs: Client) -> None:
    kvs.delete("watched")
    seen = []
    with kvs.watch("watched", timeout=20) as watch:
        for value in (1, 2, 3):
            kvs.put("watched", value)
            seen.append(next(watch))
        kvs.delete("watched")
        kvs.put("watched", 4)
        seen.append(next(watch))
    assert seen == [1, 2, 3, 4]
    assert list(watch) == []
    assert list(kvs.watch("watched", timeout=0.05)) == [4]
    assert list(kvs.watch("nothing at all", timeout=0.05)) == []
    with pytest.raises(ValueError, match="timeout is 0"):
        kvs.watch("watched", timeout=0)


def test_a_watch_is_ended_by_another_thread(kvs: Client) -> None:
    kvs.put("watched", 1)
    watch = kvs.watch("watched")
    assert next(watch) == 1
    timer = threading.Timer(0.05, watch.close)
    timer.start()
    assert list(watch) == []
    timer.join()


def test_a_scan_gives_keys_in_order(kvs: Client) -> None:
    keys = sorted(f"scanned:{n}" for n in range(2500))
    kvs.mput(dict.fromkeys(keys, 0))
    kvs.put(b"scanned:\xff", 0)
    assert list(kvs.scan("scanned:")) == [*keys, b"scanned:\xff"]
    assert list(kvs.scan("scanned:", 5)) == keys[:5]


def test_the_value_of_a_watch_is_the_newest_that_has_come(kvs: Client) -> None:
    kvs.put("looked-at", anna.Max(1))
    with kvs.watch("looked-at") as watch, kvs.watch("never-written") as nothing:
        assert (watch.value, nothing.value) == (1, None)
        same = watch.lattice
        assert watch.lattice is same
        kvs.put("looked-at", anna.Max(7))
        kvs.put("never-written", "now")
        until = time.monotonic() + 5
        while (watch.value, nothing.value) != (7, "now"):
            assert time.monotonic() < until
        assert watch.lattice is not same
    assert watch.value == 7
