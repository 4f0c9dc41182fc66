"""Our own function runtime: the embedded local cluster that `cloudburst` starts by itself."""

from __future__ import annotations

import importlib
import os
import random
import signal
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, Final

from bench import work
from bench.driver import Work, equal, serve

NAME = "ours"
DRILL_US: Final = 2_000
"""Processor time of one call of the drill."""
DRILL_TIMEOUT_S: Final = 60.0


def missing() -> str | None:
    """Return how to build it."""
    try:
        runtime = importlib.import_module("cloudburst")
    except ImportError as error:
        return f"cloudburst is not built ({error}): make build"
    return None if hasattr(runtime, "call") else "cloudburst has no `call`: make build"


def version() -> str:
    """Return the version of the distribution."""
    return "cloudburst of this tree"


def environment(directory: Path) -> dict[str, str]:
    """Return what makes the embedded clusters private to `directory`."""
    return {"ANNA_DIR": str(directory / "anna"), "CLOUDBURST_DIR": str(directory / "cloudburst")}


class Embedded:
    """The cluster of the directories that the environment names."""

    def start(self) -> None:
        """Start it and register the no-op."""
        self.runtime: Any = importlib.import_module("cloudburst")
        self.runtime.connect()
        self.runtime.register(work.nothing)
        self.numbers = count()

    def nothing(self) -> Work:
        """Call and wait."""
        call = self.runtime.call
        return Work(lambda: call("nothing"))

    def method(self) -> Work:
        """Call a method of a class that has state."""
        self.runtime.register(work.Counter)
        call = self.runtime.call
        return Work(lambda: call("Counter.touch"), lambda found: found > 0)

    def burst(self, calls: int, microseconds: int) -> Work:
        """Spawn all, then wait for all."""
        spawn = self.runtime.spawn
        if not microseconds:
            return Work(lambda: [one.result() for one in [spawn("nothing") for _ in range(calls)]])
        self.runtime.register(work.spin)
        return Work(lambda: [one.result() for one in [spawn("spin", microseconds) for _ in range(calls)]])

    def composition(self) -> Work:
        """Call the graph increment → square."""
        self.runtime.register(work.increment)
        self.runtime.register(work.square)
        self.runtime.dag("composition", {"increment": [], "square": ["increment"]})
        call = self.runtime.call
        return Work(lambda: call("composition", {"increment": (5,)}), equal(36))

    def chain(self, length: int) -> Work:
        """Call a graph in which one step follows the other."""
        self.runtime.register(work.increment)
        steps = {f"step{n}": [f"step{n - 1}"] if n else [] for n in range(length)}
        name = f"chain{length}"
        self.runtime.dag(name, steps, functions=dict.fromkeys(steps, "increment"))
        call = self.runtime.call
        return Work(lambda: call(name, {"step0": (0,)}), equal(length))

    def fan(self, width: int) -> Work:
        """Call a graph of one step, `width` beside each other, and one that adds."""
        for function in (work.increment, work.square, work.add):
            self.runtime.register(function)
        middle = [f"square{n}" for n in range(width)]
        steps: dict[str, list[str]] = {"increment": [], **{name: ["increment"] for name in middle}, "add": middle}
        name = f"fan{width}"
        self.runtime.dag(name, steps, functions=dict.fromkeys(middle, "square"))
        call = self.runtime.call
        return Work(lambda: call(name, {"increment": (1,)}), equal(4 * width))

    def hot(self, all_bytes: int) -> Work:
        """Sum ten stored arrays that have been read before."""
        self.load()
        refs = self.store(work.arrays(all_bytes), f"hot/{all_bytes}")
        call = self.runtime.call
        return Work(lambda: call("total", *refs), equal(work.total_of(all_bytes)))

    def cold(self, all_bytes: int) -> Work:
        """Sum ten stored arrays under keys that nobody on this node has read."""
        self.load()
        arrays = work.arrays(all_bytes)
        refs: list[Any] = []

        def prepare() -> None:
            for ref in refs:
                self.runtime.default().store.delete(ref.key)
            refs[:] = self.store(arrays, f"cold/{all_bytes}/{next(self.numbers)}")

        call = self.runtime.call
        return Work(lambda: call("total", *refs), equal(work.total_of(all_bytes)), prepare)

    def load(self) -> None:
        """Have every executor load numpy."""
        self.runtime.register(work.total)
        self.runtime.register(work.load_numpy)
        self.runtime.gather(*[self.runtime.spawn("load_numpy", work.LOAD_S) for _ in os.sched_getaffinity(0)])

    def store(self, arrays: list[Any], name: str) -> list[Any]:
        """Write the arrays into the store; return references."""
        keys = [f"{name}/{number}" for number in range(len(arrays))]
        for key, array in zip(keys, arrays):
            self.runtime.put(key, array)
        return [self.runtime.Ref(key) for key in keys]

    def gather(self, actors: int) -> Work:
        """Have actors write what they measured into the store, and one function read it all."""
        return self.aggregate("gather", actors)

    def gossip(self, actors: int) -> Work:
        """Have actors come to the mean among themselves; right when each is within 5 % of it."""
        return self.aggregate("gossip", actors)

    def aggregate(self, way: str, actors: int) -> Work:
        """Return one of the ways of the demonstration."""
        functions = importlib.import_module("demos.aggregation.functions")
        for function in functions.ALL:
            self.runtime.register(function)
        values = [100.0 + number for number in range(actors)]
        mean = sum(values) / actors
        call, chance = self.runtime.call, random.Random(1)
        if way == "gather":
            return Work(
                lambda: call("gather", values, f"gather/{next(self.numbers)}"), lambda found: abs(found - mean) < 1e-6
            )
        return Work(
            lambda: call("gossip", values, 1e-3, chance.getrandbits(32)),
            lambda found: all(abs(one - mean) / mean < 0.05 for one in found),
        )

    def drill(self, calls: int, kill_every_s: float) -> Work:
        """Spawn calls while executors are killed, 0: none; return how each ended."""
        self.runtime.register(work.spin)
        self.runtime.call("spin", 1)
        return Work(lambda: Drill(self.runtime, calls, kill_every_s).run())

    def stop(self) -> None:
        """Leave the cluster; with its last user it stops."""


class Drill:
    """Many calls, and somebody who kills an executor at regular times, one after the other."""

    def __init__(self, runtime: Any, calls: int, kill_every_s: float) -> None:
        self.runtime, self.calls, self.kill_every_s = runtime, calls, kill_every_s
        self.over = threading.Event()
        self.kills: list[float] = []

    def run(self) -> dict[str, Any]:
        """Return what became of the calls: when each ended, in s, what went wrong, and when somebody was killed."""
        ended: list[float] = []
        begun = time.perf_counter()
        killer = threading.Thread(target=self.kill, args=(begun,))
        if self.kill_every_s:
            killer.start()
        spawn = self.runtime.options(timeout=DRILL_TIMEOUT_S).spawn
        try:
            futures = [spawn("spin", DRILL_US, number) for number in range(self.calls)]
            for future in futures:
                future.add_done_callback(lambda _: ended.append(time.perf_counter() - begun))
            found = [self.outcome(future, number) for number, future in enumerate(futures)]
        finally:
            self.over.set()
            if self.kill_every_s:
                killer.join()
        return {
            "seconds": max(ended),
            "ended": sorted(ended),
            "kills": self.kills,
            "wrong": found.count("wrong"),
            "errors": sorted({one for one in found if one not in ("right", "wrong")}),
            "failed": sum(one not in ("right", "wrong") for one in found),
            "attempts": max(future.attempts for future in futures),
            "again": sum(future.attempts > 1 for future in futures),
        }

    def outcome(self, future: Any, number: int) -> str:
        """Return "right", "wrong", or the name of the error."""
        try:
            return "right" if future.result() == number else "wrong"
        except self.runtime.CloudburstError as error:
            return f"{type(error).__name__}: {str(error)[:100]}"

    def kill(self, begun: float) -> None:
        """Kill an executor at each time, the slots in turn, until all calls have ended."""
        due = begun
        for turn in count():
            due += self.kill_every_s
            if self.over.wait(max(0.0, due - time.perf_counter())):
                return
            alive = [row for row in self.runtime.status()["executors"] if row["pid"] > 0]
            if not alive:
                continue
            try:
                os.kill(alive[turn % len(alive)]["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.kills.append(time.perf_counter() - begun)


RUNTIME = Embedded

if __name__ == "__main__":
    serve(Embedded())
