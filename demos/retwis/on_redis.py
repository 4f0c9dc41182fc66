"""The same clone on Redis, the way that Redis wants it: the peer, and the referee of what our functions
answer.

Sets for the two ends of a follow, one string per post, sorted sets cut to 200 entries for timelines, counters
for likes. Everything that can share a round trip does: a timeline is ZREVRANGE and one MGET, a post is one
pipeline for its body and its author's followers and one for the fan-out. `RedisRetwis` is used as it is
("bare"), and from inside registered functions, where it pays for the call that ours pay for too. `RedisStore`
runs a server for as long as it is needed, on a Unix socket in a directory of its own, without a TCP port and
without files.
"""

from __future__ import annotations

import functools
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack

from demos.retwis import on_anna
from demos.retwis.people import Graph, handle
from demos.retwis.workload import OPERATIONS, OpenBackend, Operations

HOW_TO_GET = "apt install redis-server, and pip install redis hiredis"
START_SECONDS_MAX = 5.0
ENTRIES_KEPT = 200
PAGE_ENTRIES = 10
LOAD_PEOPLE = 100
PREFIX = "redis_"  # of the names of the registered functions


def missing() -> str | None:
    """Return why the Redis rows cannot be had, or None when they can."""
    if shutil.which("redis-server") is None:
        return f"redis-server is not installed ({HOW_TO_GET})"
    try:
        import redis  # noqa: F401
    except ImportError:
        return f"Python's redis client is not installed ({HOW_TO_GET})"
    return None


@functools.cache
def connection(path: str) -> Any:
    """Return this process's client of the server at the Unix socket `path`."""
    import redis

    return redis.Redis(unix_socket_path=path)


class RedisRetwis:
    """The eight operations, on the server at a Unix socket. Pickles as the path, connects on first use."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def redis(self) -> Any:
        """The connection of the process that asks."""
        return connection(self.path)

    def sign_up(self, user: int, name: str) -> None:
        """Write the user's record."""
        self.redis.hset(f"user:{user}", mapping={"name": name, "since": time.time_ns() // 1000})

    def follow(self, user: int, other: int) -> None:
        """Make `user` follow `other`."""
        with self.redis.pipeline(transaction=True) as p:
            p.sadd(f"following:{user}", other).sadd(f"followers:{other}", user).execute()

    def unfollow(self, user: int, other: int) -> None:
        """Make `user` no longer follow `other`."""
        with self.redis.pipeline(transaction=True) as p:
            p.srem(f"following:{user}", other).srem(f"followers:{other}", user).execute()

    def post(self, user: int, text: str) -> str:
        """Publish `text`; return the post's id."""
        return self._publish(user, text, time.time_ns() // 1000, "")

    def reply(self, user: int, parent: str, text: str) -> str:
        """Publish `text` as a reply to the post `parent`; return its id."""
        answered = msgpack.unpackb(self.redis.get(f"post:{parent}"))
        return self._publish(user, text, max(time.time_ns() // 1000, answered["stamp"] + 1), parent)

    def _publish(self, user: int, text: str, stamp: int, parent: str) -> str:
        post = secrets.token_hex(8)
        body = {"id": post, "author": user, "text": text, "stamp": stamp, "parent": parent}
        with self.redis.pipeline(transaction=False) as p:
            _, readers = p.set(f"post:{post}", msgpack.packb(body)).smembers(f"followers:{user}").execute()
        member = f"{post}|{parent}"
        with self.redis.pipeline(transaction=False) as p:
            for key in (
                f"wall:{user}",
                f"timeline:{user}",
                *(f"timeline:{int(reader)}" for reader in readers),
            ):
                p.zadd(key, {member: stamp}).zremrangebyrank(key, 0, -ENTRIES_KEPT - 1)
            p.execute()
        return post

    def like(self, user: int, post: str) -> None:
        """Count the user's like, once."""
        if self.redis.sadd(f"liked:{user}", post):
            self.redis.incr(f"likes:{post}")

    def timeline(self, user: int) -> list[dict[str, Any]]:
        """Return the newest posts of those whom `user` follows, newest first, replies with the post they
        answer.
        """
        entries = [m.decode().split("|") for m in self.redis.zrevrange(f"timeline:{user}", 0, PAGE_ENTRIES - 1)]
        if not entries:
            return []
        keys = [f"post:{post}" for post, _ in entries] + [f"likes:{post}" for post, _ in entries]
        keys += [f"post:{parent}" for _, parent in entries if parent]
        values = dict(zip(keys, self.redis.mget(keys)))
        bodies = {key: msgpack.unpackb(value) for key, value in values.items() if value and key.startswith("post:")}
        return [
            bodies.get(f"post:{post}", {"id": post, "parent": parent})
            | {"likes": int(values[f"likes:{post}"] or 0), "reply_to": bodies.get(f"post:{parent}")}
            for post, parent in entries
        ]

    def profile(self, user: int) -> dict[str, Any]:
        """Return the user's record, how many they follow, how many follow them, and how many posts their wall
        has.
        """
        with self.redis.pipeline(transaction=False) as p:
            p.hgetall(f"user:{user}").scard(f"following:{user}").scard(f"followers:{user}").zcard(f"wall:{user}")
            record, following, followers, posts = p.execute()
        counts = {"following": following, "followers": followers, "posts": posts}
        return {"name": record[b"name"].decode(), "since": int(record[b"since"]), **counts}

    def load(self, graph: Graph) -> Iterable[int]:
        """Sign everybody up with all their follows; yield how many people each batch had."""
        since, following, followers = time.time_ns() // 1000, graph.following(), graph.followers()
        for start in range(0, graph.people, LOAD_PEOPLE):
            batch = range(start, min(start + LOAD_PEOPLE, graph.people))
            with self.redis.pipeline(transaction=False) as p:
                for person in batch:
                    p.hset(f"user:{person}", mapping={"name": handle(person), "since": since})
                    if following[person]:
                        p.sadd(f"following:{person}", *following[person])
                    if followers[person]:
                        p.sadd(f"followers:{person}", *followers[person])
                p.execute()
            yield len(batch)


class RedisStore:
    """A Redis server that nobody else sees, as a `workload.Store`; a context manager.

    Raises `RuntimeError` when the server does not come up. Our runtime must be connected before `backends` is
    asked.
    """

    title = "Redis"

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="retwis-redis-")
        self.path = str(Path(self._directory.name) / "redis.sock")
        self._log = Path(self._directory.name) / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        directory = self._directory.name
        arguments = ["--port", "0", "--unixsocket", self.path, "--unixsocketperm", "700", "--dir", directory]
        arguments += ["--save", "", "--appendonly", "no"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["redis-server", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            self._await_start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _await_start(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self._log.read_text(errors="replace").strip()[-500:]
                raise RuntimeError(f"redis-server is not up after {START_SECONDS_MAX:g} s or ended; it said: {words}")
            time.sleep(0.002)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as attempt:
            return attempt.connect_ex(self.path) == 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(START_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._directory.cleanup()

    def load(self, graph: Graph) -> Iterable[int]:
        """Sign everybody up with all their follows; yield how many people each batch had."""
        return RedisRetwis(self.path).load(graph)

    def operations(self) -> Operations:
        """Return the eight operations as a client of Redis does them."""
        return bare(self.path)

    def backends(self) -> dict[str, OpenBackend]:
        """Return the two ways in which clients are to use this server."""
        on_anna.register(bare(self.path), PREFIX)
        return {
            "redis-bare": functools.partial(bare, self.path),
            "redis-functions": functools.partial(on_anna.called, PREFIX),
        }

    def keys(self) -> int:
        """Return how many keys the server holds."""
        return int(connection(self.path).dbsize())

    def memory_bytes(self) -> int:
        """Return the memory of the server's process."""
        assert self._process is not None
        return on_anna.anonymous_bytes([self._process.pid])

    def versions(self) -> dict[str, str]:
        """Return the server's version."""
        return {"redis-server": str(connection(self.path).info("server")["redis_version"])}


def bare(path: str) -> Operations:
    """Return the eight operations of the server at `path`; picklable, as a partial of this function is."""
    retwis = RedisRetwis(path)
    return {name: getattr(retwis, name) for name in OPERATIONS}
