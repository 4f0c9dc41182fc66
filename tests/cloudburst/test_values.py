"""Large values of keys on a real node: one copy in shared memory, read in place, and no older than the newest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import anna
import cloudburst as cb
from cloudburst.segments.descriptors import key_number
from cloudburst.segments.shelf import Shelf
from cloudburst.segments.values import Opened, Replaced, opened, read
from tests.cloudburst.test_segments import where

N = 100_000


def sums(*keys: str) -> list[float]:
    return [float(array.sum()) for array in cb.mget(keys)]


def first_of(array: Any) -> float:
    return float(array[0])


def bump(key: str, n: int) -> float:
    """Write a value and read it back, as any function may."""
    import numpy

    cb.put(key, numpy.full(100_000, n))
    return float(cb.get(key)[0])


@pytest.fixture(scope="module")
def functions(node: cb.Client) -> cb.Client:
    for function in (sums, first_of, bump, where):
        node.register(function)
    return node


@pytest.fixture
def shelf(client: cb.Client, functions: cb.Client) -> Shelf:
    return client._joined().shelf()


def values_on(shelf: Shelf) -> set[str]:
    return {name for name in shelf.names() if name.startswith("0/")}


def test_array_that_was_put_is_one_file_that_every_reader_maps(client: cb.Client, shelf: Shelf) -> None:
    before = values_on(shelf)
    client.put("array", np.arange(N, dtype=float))
    mine = client.get("array")
    assert len(values_on(shelf) - before) == 1
    places = {client.call("where", cb.Ref("array")) for _ in range(20)} | {where(mine)}
    assert len(places) == 1
    assert len(values_on(shelf) - before) == 1
    assert not mine.flags.writeable
    assert mine.sum() == N * (N - 1) / 2
    assert client.call("sums", "array", "array") == [mine.sum()] * 2


def test_hot_read_opens_nothing(client: cb.Client, shelf: Shelf) -> None:
    client.put("hot", np.ones(N))
    first = client.get("hot")
    assert np.shares_memory(client.get("hot"), first)
    assert np.shares_memory(client.mget(["hot"])[0], first)


def test_newer_value_is_never_hidden_and_an_array_never_changes_under_its_reader(
    client: cb.Client, shelf: Shelf
) -> None:
    kept = []
    for n in range(30):
        client.put("changing", np.full(N, n))
        kept.append(client.get("changing"))
        assert kept[-1][0] == n
        assert client.call("first_of", cb.Ref("changing")) == n
    assert [(array[0], array[-1]) for array in kept] == [(n, n) for n in range(30)]
    for n in range(100, 105):
        assert client.call("bump", "changing", n) == n
        assert client.get("changing")[0] == n


def test_values_of_all_kinds_come_back_as_they_were(client: cb.Client, shelf: Shelf) -> None:
    table = np.zeros(N // 10, dtype=[("a", "<i4"), ("b", "<f8")])
    values = {
        "bytes": b"x" * N, "text": "é" * N, "list": list(range(N)), "table": table,
        "grid": np.arange(N).reshape(10, 100, 100), "pickle": {"set": frozenset(range(N)), "range": range(3)},
        "empty": np.zeros((0, 4)), "flat": np.asfortranarray(np.arange(N).reshape(100, 1000)),
    }  # fmt: skip
    for key, value in values.items():
        client.put(f"kind:{key}", value)
        for found in (client.get(f"kind:{key}"), client.mget([f"kind:{key}"])[0]):
            assert type(found) is type(value)
            np.testing.assert_equal(found, value)


class Table:
    """What holds arrays and is pickled, as tables of columns are."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns


def total(key: str) -> tuple[float, bool]:
    import numpy

    first, again = cb.get(key).columns["x"], cb.get(key).columns["x"]
    return float(first.sum()), bool(numpy.shares_memory(first, again))


def test_arrays_in_an_object_are_read_in_place(client: cb.Client, shelf: Shelf) -> None:
    client.register(total)
    columns = {"x": np.arange(N, dtype=float), "y": np.arange(N)[::2], "few": np.arange(3)}
    client.put("table", Table(columns))
    found = client.get("table")
    assert type(found) is Table
    np.testing.assert_equal(found.columns, columns)
    assert np.shares_memory(found.columns["x"], client.get("table").columns["x"])
    assert not found.columns["x"].flags.writeable
    assert found.columns["few"].flags.writeable
    assert client.call("total", "table") == (columns["x"].sum(), True)
    with anna.connect(client.status()["store"][0]) as owner:
        own = owner.get("table").columns
        assert own["x"].flags.writeable, "who asks an owner has a copy of his own"
        np.testing.assert_equal(own, columns)


def test_shape_that_one_reader_gives_to_an_array_is_not_anothers(client: cb.Client, shelf: Shelf) -> None:
    client.put("shaped", np.arange(N))
    client.get("shaped").shape = (100, 1000)
    assert client.get("shaped").shape == (N,)


def test_lattice_of_a_large_value_is_whole_and_can_be_put_elsewhere(client: cb.Client, shelf: Shelf) -> None:
    client.put("whole", np.arange(N))
    client.get("whole")
    state = client.store.get_lattice("whole")
    assert state.size_bytes > 8 * N
    client.put("copy", state)
    with anna.connect(client.status()["store"][0]) as owner:
        assert owner.get("copy")[-1] == N - 1
        assert owner.get("whole").flags.writeable, "who asks an owner has a copy of his own"


def test_deleted_value_is_gone_and_its_array_is_not(client: cb.Client, shelf: Shelf) -> None:
    client.put("gone", np.arange(N))
    array = client.get("gone")
    assert client.store.delete("gone")
    assert client.get("gone", None) is None
    assert array[-1] == N - 1


def test_cache_that_is_killed_leaves_nothing_and_the_next_one_serves(client: cb.Client, shelf: Shelf) -> None:
    client.put("survives", np.arange(N))
    array = client.get("survives")
    before = values_on(shelf)
    assert before
    os.kill(client.status()["cache_pid"], signal.SIGKILL)
    again = client.get("survives")
    assert (array[-1], again[-1]) == (N - 1, N - 1)
    assert not values_on(shelf) & before
    assert client.call("first_of", cb.Ref("survives")) == 0


@pytest.fixture
def own(tmp_path: Any) -> Iterator[Shelf]:
    made = Shelf.make(tmp_path, 31)
    yield made
    made.remove_all()


def write(shelf: Shelf, key: int, number: int, size: int = 1000) -> bytes:
    where = shelf.write_value(key, number, b"\6" + bytes(size - 1))
    assert where is not None
    assert key_number(where) == key
    return where


def test_process_keeps_the_last_value_of_a_key_and_what_fits(own: Shelf) -> None:
    some = Opened(bytes_max=3000)
    for number in range(5):
        assert len(some.value(write(own, 1, number), True)) == 999
    assert some.bytes == 1000
    places = [write(own, key, 9) for key in range(2, 6)]
    for place in places:
        some.value(place, True)
    assert some.bytes == 3000
    some.value(places[1], True)
    some.value(write(own, 7, 1), True)
    assert [key_number(place) for place in some._kept] == [5, 3, 7]


def test_value_that_is_gone_before_it_is_opened_is_asked_for_again(own: Shelf) -> None:
    gone, there = write(own, 1, 1), write(own, 1, 2)
    own.remove("0/v1.1")
    answers = iter([gone, there])
    assert len(read(lambda: opened.value(next(answers), True))) == 999
    with pytest.raises(Replaced):
        read(lambda: opened.value(gone, True))
