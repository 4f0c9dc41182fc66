"""The stores that the clone's tests share: each is private to the test run and gone with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from demos.retwis import on_anna, on_redis


@pytest.fixture(scope="module")
def ours() -> Iterator[on_anna.OurStore]:
    """An embedded cluster with the functions registered."""
    with on_anna.OurStore() as store:
        yield store


@pytest.fixture(scope="module")
def redis(ours: on_anna.OurStore) -> Iterator[on_redis.RedisStore]:
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
