"""No wake-up is lost: every order in which processors may do what both sides do is looked at, and real processes try.

The model has two processes with a store buffer each, as x86 has: stores become visible later, in their order; a fence
waits for them; an atomic exchange is a fence, too. Weaker machines reorder more, and are kept to this order by the
acquires, releases and fences of `anna/shared/rings.pyx`, of which the programs below are the lines.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from anna.shared.rings import Rings, memory_bytes

Instruction = tuple[str, ...]
Program = tuple[Instruction, ...]

DATA = 1
MESSAGES = 3

MOVER: Program = (
    ("move",),  # put: bytes, then the tail
    ("fence",),  # must_wake
    ("jump unless flag", "next"),
    ("clear flag and ring",),
    ("next",),
)
SLEEPER: Program = (
    ("take all",),
    ("set flag",),  # sleep
    ("fence",),
    ("clear flag and go if there is something", "0"),
    ("wait for the bell",),
    ("clear flag",),  # wake
    ("go", "0"),
)


class State(NamedTuple):
    tail: int = 0
    flag: int = 0
    bell: int = 0
    taken: int = 0
    moved: int = 0
    at: tuple[int, int] = (0, 0)
    buffers: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] = ((), ())

    def seen(self, who: int, name: str) -> int:
        """Return what a process reads: its own latest store, else memory."""
        return next((value for at, value in reversed(self.buffers[who]) if at == name), getattr(self, name))

    def with_buffer(self, who: int, buffer: tuple[tuple[str, int], ...]) -> State:
        return self._replace(buffers=(buffer, self.buffers[1]) if who == 0 else (self.buffers[0], buffer))

    def go(self, who: int, at: int) -> State:
        return self._replace(at=(at, self.at[1]) if who == 0 else (self.at[0], at))

    def put(self, who: int, name: str, value: int) -> State:
        return self.with_buffer(who, (*self.buffers[who], (name, value)))


def flushed(state: State, who: int) -> Iterator[State]:
    """Let the oldest store of a process become visible."""
    if state.buffers[who]:
        (name, value), *rest = state.buffers[who]
        yield state.with_buffer(who, tuple(rest))._replace(**{name: value})


def steps(state: State, who: int, program: Program) -> Iterator[State]:
    """Give what a process's next instruction can come to; nothing when it has to wait."""
    at = state.at[who]
    if who == 0 and state.moved == MESSAGES and at == 0:
        return
    what, after = program[at], state.go(who, at + 1)
    match what[0]:
        case "move":
            yield after._replace(moved=state.moved + 1).put(who, "tail", state.moved + 1)
        case "fence":
            if not state.buffers[who]:
                yield after
        case "jump unless flag":
            yield after if state.seen(who, "flag") else state.go(who, len(program) - 1)
        case "clear flag and ring":
            if not state.buffers[who]:
                yield after._replace(flag=0, bell=1) if state.flag else after
        case "next":
            yield state.go(who, 0)
        case "take all":
            yield after._replace(taken=state.seen(who, "tail"))
        case "set flag":
            yield after.put(who, "flag", 1)
        case "clear flag and go if there is something":
            yield state.put(who, "flag", 0).go(who, 0) if state.seen(who, "tail") != state.taken else after
        case "wait for the bell":
            if state.bell:
                yield after._replace(bell=0)
        case "clear flag":
            yield after.put(who, "flag", 0) if state.seen(who, "flag") else after
        case "go":
            yield state.go(who, 0)
        case _:
            raise AssertionError(what)


def stuck(mover: Program, sleeper: Program) -> State | None:
    """Return a state in which nothing can happen any more though not all was taken; None when there is none."""
    seen, open_ = {State()}, [State()]
    while open_:
        state = open_.pop()
        following = [
            *steps(state, 0, mover), *steps(state, 1, sleeper), *flushed(state, 0), *flushed(state, 1)
        ]  # fmt: skip
        if not following and state.taken != MESSAGES:
            return state
        for new in following:
            if new not in seen:
                seen.add(new)
                open_.append(new)
    assert len(seen) > 100
    return None


def without(program: Program, what: str) -> Program:
    """Return a program without one of its instructions."""
    assert any(step[0] == what for step in program)
    return tuple(step for step in program if step[0] != what)


def test_no_order_of_events_loses_a_wake_up() -> None:
    assert stuck(MOVER, SLEEPER) is None


@pytest.mark.parametrize(("who", "what"), [("mover", "fence"), ("sleeper", "fence")])
def test_the_model_finds_the_wake_up_that_is_lost_without_a_fence(who: str, what: str) -> None:
    mover = without(MOVER, what) if who == "mover" else MOVER
    sleeper = without(SLEEPER, what) if who == "sleeper" else SLEEPER
    assert stuck(mover, sleeper) is not None


def test_the_model_finds_the_wake_up_that_is_lost_without_a_second_look() -> None:
    assert stuck(MOVER, without(SLEEPER, "clear flag and go if there is something")) is not None


def test_two_processes_that_sleep_whenever_they_can_never_miss_each_other() -> None:
    """A thousand messages of changing lengths there and back; who sleeps waits for its bell and for nothing else."""
    size, rounds = 64, 1000
    memory = mmap.mmap(-1, memory_bytes(size))
    bells = [os.eventfd(0), os.eventfd(0)]

    def receive(rings: Rings, bell: int, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if got := rings.read(count - len(data)):
                data += got
            elif rings.fall_asleep(DATA):
                assert select.select([bell], [], [], 60)[0], "a wake-up was lost"
                os.eventfd_read(bell)
        return data

    def send(rings: Rings, bell: int, data: bytes) -> None:
        assert rings.write(data) == len(data)
        if rings.has_to_wake(DATA):
            os.eventfd_write(bell, 1)

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            worker = Rings(memory, size, worker=True)
            for number in range(rounds):
                send(worker, bells[0], receive(worker, bells[1], 1 + number % size))
            code = 0
        finally:
            os._exit(code)
    client = Rings(memory, size, worker=False)
    for number in range(rounds):
        message = bytes([number % 251]) * (1 + number % size)
        send(client, bells[1], message)
        assert receive(client, bells[0], len(message)) == message
    assert os.waitpid(pid, 0)[1] == 0
    for bell in bells:
        os.close(bell)
