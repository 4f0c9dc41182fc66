"""The stores that the clone's tests share: each is private to the test run and gone with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from demos.retwis import on_anna, on_redis


@pytest.fixture(scope="module")
def ours() -> Iterator[on_anna.NodeStore]:
    """A store with a node in which the functions are registered."""
    with on_anna.NodeStore() as store:
        yield store


@pytest.fixture(scope="module")
def plain() -> Iterator[on_anna.AnnaStore]:
    """A store alone."""
    with on_anna.AnnaStore() as store:
        yield store


@pytest.fixture(scope="module")
def redis(ours: on_anna.NodeStore) -> Iterator[on_redis.RedisStore]:
    """A private Redis server beside it."""
    if why := on_redis.missing():
        pytest.skip(f"Redis is not compared: {why}")
    with on_redis.RedisStore() as store:
        yield store


_people = itertools.count(10_000, 1_000)


@pytest.fixture
def me() -> int:
    """The first of a thousand people whom no other test knows."""
    return next(_people)
