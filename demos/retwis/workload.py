"""The driver: seed every backend with the same people and posts, then let clients loop and keep the time of
every call.

A closed loop: each client is a process that sends its next operation when it has the answer of the last. 90 %
are timelines, 5 % posts, 3 % replies (to what was last on that client's screen), 2 % likes, by a person drawn
uniformly for each operation. Backends take turns within each repeat, so that whatever else the machine does
falls on all of them; the first part of each turn is warm-up and is not counted. Reads and posts are reported
apart, because a mix would hide the fan-out. A timeline that shows a reply without the post it answers is an
orphan, whoever is to blame.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol, Self

from demos.retwis.people import Graph, Texts

OPERATIONS = ("sign_up", "follow", "unfollow", "post", "reply", "like", "timeline", "profile")
Operations = Mapping[str, Callable[..., Any]]  # the eight operations of one backend, by name
OpenBackend = Callable[[], Operations]  # picklable: opens the backend in the process that calls it


class Store(Protocol):
    """A store that the clone runs on, private to this run, with the ways in which clients use it."""

    title: str

    def load(self, graph: Graph) -> Iterable[int]:
        """Sign everybody up with all their follows; yield how many people each batch had."""

    def operations(self) -> Operations:
        """Return the eight operations, for this process."""

    def backends(self) -> Mapping[str, OpenBackend]:
        """Return the ways to be measured, by row."""

    def keys(self) -> int:
        """Return how many keys are held."""

    def memory_bytes(self) -> int | None:
        """Return the memory that the store's processes have written; None when they are elsewhere."""

    def versions(self) -> dict[str, str]:
        """Return what is measured, and in which version."""


TIMELINES, POSTS, REPLIES = 0.90, 0.95, 0.98  # cumulative; the rest are likes
EDITS = 0.99  # where posts can be edited, half of the likes are edits
REPORTED = ("timeline", "post")
"""What is reported apart: a turn goes on until it has some of each."""
PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Measured:
    """What one turn of one backend (all its clients together) showed; times in nanoseconds, seconds of wall
    time.
    """

    seconds: float = 0.0
    times: dict[str, array[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Measured) -> None:
        """Take in another client's part of the same turn."""
        self.seconds = max(self.seconds, other.seconds)
        self.counts.update(other.counts)
        for name, times in other.times.items():
            self.times.setdefault(name, array("q")).extend(times)


class Person:
    """One client: draws what to do next, does it, and keeps what the last timeline showed."""

    def __init__(self, operations: Operations, people: int, texts: Texts, seed: str) -> None:
        self._operations, self._people, self._texts = operations, people, texts
        self._draw = random.Random(seed)
        self._user = 0
        self._screen: list[str] = []

    def step(self) -> tuple[str, Any]:
        """Do one operation; return its name and its answer."""
        draw, kind = self._draw, self._draw.random()
        if kind < TIMELINES or (kind >= POSTS and not self._screen):
            user = draw.randrange(self._people)
            shown = self._operations["timeline"](user)
            self._user, self._screen = user, [entry["id"] for entry in shown if "text" in entry]
            return "timeline", shown
        if kind < POSTS:
            return "post", self._operations["post"](draw.randrange(self._people), draw.choice(self._texts.posts))
        post = draw.choice(self._screen)
        if kind < REPLIES:
            return "reply", self._operations["reply"](self._user, post, draw.choice(self._texts.replies))
        if "edit" in self._operations and kind < EDITS:
            return "edit", self._operations["edit"](post, draw.choice(self._texts.posts))
        return "like", self._operations["like"](self._user, post)


def run_turn(person: Person, warm_up_until: float, until: float) -> Measured:
    """Loop until `until` (of `time.monotonic`) and return what was measured after `warm_up_until`.

    Where that was too short, because machines are slow, or the warm-up took longer, it goes on until there is
    something to report. A turn of no time is warm-up only.
    """
    measured, clock = Measured(), time.perf_counter_ns
    while time.monotonic() < warm_up_until:
        person.step()
    begun = time.monotonic()
    while until > warm_up_until and (time.monotonic() < until or not all(name in measured.times for name in REPORTED)):
        before = clock()
        name, answer = person.step()
        measured.times.setdefault(name, array("q")).append(clock() - before)
        if name == "timeline":
            count_shown(answer, measured.counts)
    measured.seconds = time.monotonic() - begun
    return measured


def count_shown(timeline: Sequence[Mapping[str, Any]], counts: Counter[str]) -> None:
    """Count what is shown: entries, replies, orphans (no parent's body, or an older one than it answers), blanks."""
    counts["entries"] += len(timeline)
    for entry in timeline:
        if entry["parent"]:
            counts["replies"] += 1
            counts["orphans"] += is_orphan(entry)
        counts["blanks"] += "text" not in entry


def is_orphan(entry: Mapping[str, Any]) -> bool:
    """Return whether what is shown is a reply without the post, or the edition of it, that it answers."""
    parent = entry["reply_to"]
    return bool(entry["parent"]) and (parent is None or parent.get("edition", 0) < entry.get("answers", 0))


def seed_posts(operations: Operations, people: int, texts: Texts, count: int, seed: int) -> Iterator[int]:
    """Post `count` texts, half of them replies to earlier posts, one after another; yield 1 for each.

    The same seed gives the same posts by the same people on every backend.
    """
    draw = random.Random(f"seed {seed}")
    posts: list[str] = []
    for _ in range(count):
        user = draw.randrange(people)
        if posts and draw.random() < 1 / 2:
            posts.append(operations["reply"](user, draw.choice(posts[-50:]), draw.choice(texts.replies)))
        else:
            posts.append(operations["post"](user, draw.choice(texts.posts)))
        if draw.random() < 1 / 4:
            operations["like"](draw.randrange(people), draw.choice(posts))
        yield 1


def client_process(pipe: Connection, backends: Mapping[str, OpenBackend], people: int, texts: Texts, seed: str) -> None:
    """Be one client: run turns as `pipe` asks for them, until it asks for None. Errors travel back as
    answers.
    """
    try:
        persons = {name: Person(opened(), people, texts, f"{seed} {name}") for name, opened in backends.items()}
        pipe.send(None)
        while (turn := pipe.recv()) is not None:
            name, warm_up_until, until = turn
            pipe.send(run_turn(persons[name], warm_up_until, until))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"a client stopped: {type(error).__name__}: {error}"))


class Crowd:
    """The client processes, started once for all turns; a context manager that leaves none behind."""

    def __init__(self, clients: int, backends: Mapping[str, OpenBackend], people: int, texts: Texts, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(clients):
            ours, theirs = context.Pipe()
            arguments = (theirs, dict(backends), people, texts, f"{seed} {number}")
            process = context.Process(target=client_process, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        try:
            for pipe in self._pipes:
                self._answer(pipe)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def turn(self, backend: str, warm_up_seconds: float, seconds: float) -> Measured:
        """Let every client work on `backend` at the same time; return what they measured together."""
        warm_up_until = time.monotonic() + warm_up_seconds
        for pipe in self._pipes:
            pipe.send((backend, warm_up_until, warm_up_until + seconds))
        together = Measured()
        for pipe in self._pipes:
            together.add(self._answer(pipe))
        return together

    def _answer(self, pipe: Connection) -> Any:
        if not pipe.poll(PATIENCE_SECONDS):
            raise RuntimeError(f"a client said nothing for {PATIENCE_SECONDS:g} s")
        try:
            answer = pipe.recv()
        except EOFError:
            raise RuntimeError("a client process died") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes):
            try:
                pipe.send(None)
            except OSError:
                pass
            process.join(1.0 if kind is None else 0.0)
            if process.is_alive():
                process.terminate()
                process.join()
            pipe.close()
