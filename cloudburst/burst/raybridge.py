"""The bridge to a Ray cluster: a program of its own, the driver of one Ray job, which ends with whoever started it.

The one rule: it carries lines and knows nothing of what they say. Each place is an actor that this job owns, so Ray
ends it with the job; it starts one program on its node, hands it what is written and hands back what that says. Ray is
imported here alone: it has one connection for a process, and whoever uses us may have his own.

Lines of JSON each way, on standard input and output. `ask` numbers what is answered; `to` and `from` name a place. It
imports nothing of ours, and its actors are pickled by value: nothing of ours has to be installed in the Ray cluster.
Source: docs/decisions/0043.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

NAMESPACE: Final = "cloudburst"
CHUNK_BYTES: Final = 1 << 16
REAP_S: Final = 90.0


def engine() -> Any:
    """Return the module `ray`, which not every program of ours can have."""
    return importlib.import_module("ray")


class Place:
    """What runs on a Ray node: one program, with its pipes."""

    async def where(self) -> dict[str, str]:
        """Return the node's address, and what its Python is called."""
        return {"ip": engine().util.get_node_ip_address(), "python": sys.executable}

    async def run(self, command: str) -> None:
        """Start a program by its shell command."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_shell(command, stdin=pipe, stdout=pipe, stderr=pipe)

    async def write(self, data: bytes) -> None:
        """Hand it some bytes."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(data)
        with suppress(ConnectionError):  # it has ended, which `hear` tells
            await stdin.drain()

    async def close(self) -> None:
        """Tell it that nothing more will come."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def hear(self) -> tuple[bytes, bytes]:
        """Return what it has said next; once it says no more, nothing and what it has complained about."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        said = await self._process.stdout.read(CHUNK_BYTES)
        return said, b"" if said else (await self._process.stderr.read())[-CHUNK_BYTES:]


def run_here(program: str, words: list[str], within_s: float) -> str:
    """Run a program of text on this node, and return what it said."""
    command = [sys.executable, "-I", "-", *words]
    done = subprocess.run(command, input=program, capture_output=True, text=True, timeout=within_s)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


class Bridge:
    """Does what the lines ask for."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._actors: dict[str, Any] = {}
        self._queues: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, **said: Any) -> None:
        """Say one thing."""
        data = json.dumps(said).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def take(self, order: dict[str, Any]) -> None:
        """Begin to do what one line asks for."""
        name = order.get("to", "")
        if not name:
            self._begin(self._answer(order))
        elif "make" in order:
            self._queues[name] = asyncio.Queue()
            self._begin(self._have(name, order["make"]))
        elif "drop" in order:
            self._drop(name)
        elif name in self._queues:
            self._queues[name].put_nowait(order)

    def _begin(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- places

    async def _have(self, name: str, asked: dict[str, Any]) -> None:
        """Get a place, and do there what is asked, in its order, until it is dropped or lost."""
        ray = engine()
        options = {
            "num_cpus": asked["cpus"], "max_restarts": 0, "max_concurrency": 4, "scheduling_strategy": "SPREAD",
            "name": asked["name"], "namespace": NAMESPACE,
        }  # fmt: skip
        queue = self._queues[name]
        try:
            actor = self._actors[name] = ray.remote(Place).options(**options).remote()
            self.say(**{"from": name}, placed=await actor.where.remote())
            while (order := await queue.get()) and name in self._actors:
                await self._hand(name, actor, order)
        except Exception as fault:
            self._lost(name, fault)

    async def _hand(self, name: str, actor: Any, order: dict[str, Any]) -> None:
        ray = engine()
        if "run" in order:
            await actor.run.remote(order["run"])
            self._begin(self._relay(name, actor))
        elif "ship" in order:  # the object store brings it to each node once, from whoever has it
            data = await asyncio.to_thread(Path(order["ship"]).read_bytes)
            await actor.write.remote(await asyncio.to_thread(ray.put, data))
        elif "write" in order:
            await actor.write.remote(order["write"].encode())
        else:
            await actor.close.remote()

    async def _relay(self, name: str, actor: Any) -> None:
        """Tell what the program there says, to its end."""
        try:
            while (heard := await actor.hear.remote())[0]:
                self.say(**{"from": name}, said=heard[0].decode(errors="replace"))
            self.say(**{"from": name}, ended=heard[1].decode(errors="replace"))
        except Exception as fault:
            self._lost(name, fault)

    def _lost(self, name: str, fault: Exception) -> None:
        if name in self._actors or name in self._queues:
            self.say(**{"from": name}, ended=f"Ray has ended its actor: {' '.join(str(fault).split())[-500:]}")

    def _drop(self, name: str) -> None:
        """Give a place back."""
        ray = engine()
        queue, actor = self._queues.pop(name, None), self._actors.pop(name, None)
        if queue is not None:
            queue.put_nowait({})
        if actor is not None:
            threading.Thread(target=ray.kill, args=(actor,), daemon=True).start()

    # -- the cluster

    async def _answer(self, order: dict[str, Any]) -> None:
        try:
            if "reap" in order:
                answer = await asyncio.to_thread(self._reap, **order["reap"])
            else:
                answer = await asyncio.to_thread(nodes)
            self.say(answer=order["ask"], found=answer)
        except Exception as fault:
            self.say(answer=order["ask"], fault=f"{type(fault).__name__}: {fault}")

    def _reap(self, program: str, words: list[str]) -> list[dict[str, Any]]:
        """Run a program on each node; return what each said, or why it did not."""
        ray, affinity = (
            engine(),
            importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy,
        )

        there = nodes()
        asked = [
            ray.remote(run_here)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=affinity(one["id"], False))
            .remote(program, words, REAP_S)
            for one in there
        ]
        return [{"ip": one["ip"], **_result(ref)} for one, ref in zip(there, asked)]


def nodes() -> list[dict[str, Any]]:
    """Return the nodes of the cluster that live, with their CPUs."""
    ray = engine()
    return [
        {"id": one["NodeID"], "ip": one["NodeManagerAddress"], "cpus": int(one["Resources"].get("CPU", 0))}
        for one in ray.nodes()
        if one["Alive"]
    ]


def _result(ref: Any) -> dict[str, Any]:
    ray = engine()
    try:
        return {"said": ray.get(ref, timeout=REAP_S)}
    except Exception as fault:
        return {"fault": " ".join(str(fault).split())[-500:]}


async def serve(bridge: Bridge) -> None:
    """Do what comes over the standard input, until that ends."""
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        bridge.take(json.loads(line))


def main() -> None:
    """Connect, serve, and leave nothing."""
    out = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no line of ours
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    bridge = Bridge(out)
    try:
        ray = engine()
        ray.init(sys.argv[1], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except BaseException as fault:
        again = isinstance(fault, ConnectionAbortedError)  # it was let in, and then Ray could not start its process
        bridge.say(fault=" ".join(f"{type(fault).__name__}: {fault}".split()), again=again)
        return
    bridge.say(ready=True)
    try:
        asyncio.run(serve(bridge))
    finally:
        threading.Timer(5.0, os._exit, (1,)).start()  # Ray may wait for a cluster that is gone
        ray.shutdown()
        os._exit(0)


if __name__ == "__main__":
    main()
