"""The page: the arm as its published spheres, its best path replayed, and who found it.

The one rule: the page draws the planner's own numbers. One file holds all that it needs, three.js too (MIT, in
`vendor/`), so it opens from a disk without network; while a race runs, the same page is served on loopback and asks for
new numbers five times a second.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from demos.motion.functions import now_us

HERE = Path(__file__).parent
THREE = HERE / "vendor" / "three-0.160.1.min.js"
FRAMES = 32
"""Configurations that are drawn of a path, evenly spaced by what they cost."""


def frames(problem: Any, path: Any, count: int = FRAMES) -> list[list[float]]:
    """Return where the robot's spheres are along a path: x, y, z of each, for each of `count` configurations."""
    from demos.motion.kernel import Checker, Obstacles, Robot

    if len(path) < 2:
        return []
    checker = Checker(Robot.named(problem.robot), Obstacles())
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(path, axis=0)).sum(axis=1))])
    moments = np.linspace(0.0, along[-1], count)
    rows = np.stack([np.interp(moments, along, path[:, joint]) for joint in range(path.shape[1])], axis=1)
    return [np.round(checker.placed(row)[:, :3], 4).ravel().tolist() for row in rows]


def scene(problem: Any, functions: int, title: str, subtitle: str) -> dict[str, Any]:
    """Return what stays: robot, obstacles, start and goal."""
    from demos.motion.kernel import Checker, Obstacles, Robot

    checker = Checker(Robot.named(problem.robot), Obstacles())
    start, goal = checker.placed(problem.start), checker.placed(problem.goal)
    moved = np.linalg.norm(start[:, :3] - goal[:, :3], axis=1)
    return {
        "title": title,
        "subtitle": subtitle,
        "functions": functions,
        "radii": np.round(start[:, 3], 4).tolist(),
        "start": np.round(start[:, :3], 4).ravel().tolist(),
        "goal": np.round(goal[:, :3], 4).ravel().tolist(),
        "tip": int(np.argmax(moved)),
        "direct": float(np.abs(problem.goal - problem.start).sum()),
        **{kind: getattr(problem.obstacles, kind).tolist() for kind in ("spheres", "boxes", "cylinders")},
    }


def write(file: Path, data: dict[str, Any]) -> None:
    """Write the page with its numbers into one file."""
    file.write_text(document(data, live=False), encoding="utf-8")


def document(data: dict[str, Any] | None, live: bool) -> str:
    """Return the page, with three.js inside; a live one asks for its numbers."""
    text = (HERE / "page.html").read_text(encoding="utf-8")
    numbers = json.dumps(finite(data)).replace("</", "<\\/")
    parts = {"/*DATA*/null": numbers, "/*LIVE*/false": str(live).lower(), "/*THREE*/": THREE.read_text("utf-8")}
    for mark, part in parts.items():
        text = text.replace(mark, part, 1)
    return text


def finite(value: Any) -> Any:
    """Return plain data with null in the place of infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Served:
    """The live page on a free port of loopback, until closed; `numbers` is asked for each look."""

    def __init__(self, numbers: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.split("?")[0] not in ("/", "/data.json"):
                    self.send_error(404)
                    return
                live = self.path.startswith("/data.json")
                body = json.dumps(finite(numbers())) if live else document(None, live=True)
                self.send_response(200)
                self.send_header("Content-Type", "application/json" if live else "text/html; charset=utf-8")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing of each look."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def curve(members: Sequence[tuple[float, int, int]], begun_us: int) -> list[list[float]]:
    """Return [seconds, cost, planner] of each moment at which the best path became cheaper, in order."""
    lowest, points = math.inf, []
    for negated, moment_us, planner in sorted(members, key=lambda one: one[1]):
        if -negated < lowest:
            lowest = -negated
            points.append([round((moment_us - begun_us) / 1e6, 4), round(lowest, 4), planner])
    return points


class Shown:
    """What is shown of a race: its newest numbers, for the page and for the line of progress.

    `run` is a `functions.Race`, `client` has started it.
    """

    def __init__(self, problem: Any, run: Any, functions: int, client: Any) -> None:
        self._problem, self._run, self._client = problem, run, client
        subtitle = f"{problem.name}: {functions} planners as functions, one shared lattice"
        self._scene = scene(problem, functions, "Robots that share their best path", subtitle)
        self._functions = functions
        self._drawn: tuple[float, Any] = math.inf, []
        self._first: tuple[float, Any] = math.inf, []
        self._first_us = math.inf
        self.over = False
        self._end_us = 0

    def look(self) -> float:
        """Take in the newest best path; return its cost."""
        state = self._run.watch.lattice
        if state is not None and state.priority < self._drawn[0]:
            self._drawn = state.priority, frames(self._problem, state.value)
        return self._drawn[0]

    def first(self) -> tuple[float, float]:
        """Take in the first path there was, or an earlier one; return its cost and its moment in seconds."""
        state = self._client.store.get_lattice(f"plan/{self._run.task}/first", None)
        if state is not None and state.priority < self._first_us:
            from demos.motion.kernel import cost

            self._first_us, self._first = state.priority, (cost(state.value), frames(self._problem, state.value))
        return self._first[0], (self._first_us - self._run.begun_us) / 1e6

    def numbers(self) -> dict[str, Any]:
        """Return what the page shows now."""
        cost, store, task = self.look(), self._client.store, self._run.task
        members = store.get(f"plan/{task}/curve", ())
        seeds = range(self._functions)
        said = store.mget([f"plan/{task}/planner/{seed}" for seed in seeds])
        planners = [one for one in said if one]
        self._end_us = self._end_us if self.over and self._end_us else now_us()
        checks = sum(one["checks"] for one in planners)
        counts = [
            ["planners", f"{len(planners)}"],
            ["collision checks", f"{checks:,}"],
            ["cheaper paths found", f"{sum(one['found'] for one in planners):,}"],
            ["paths taken over", f"{sum(one['pruned'] for one in planners):,}"],
            ["straight line", f"{self._scene['direct']:.2f} rad"],
        ]
        elapsed = (self._end_us - self._run.begun_us) / 1e6
        first, first_s = self.first()
        points = curve(members, self._run.begun_us)
        if points and planners:  # up to now, with whoever found something last
            points.append([elapsed, min(cost, points[-1][1]), max(planners, key=lambda one: one["won_us"])["seed"]])
        said_now = "no path yet" if math.isinf(cost) else f"first: {first:.2f} at {first_s:.2f} s · {elapsed:.1f} s"
        return {
            "scene": self._scene, "cost": cost, "frames": self._drawn[1], "first": self._first[1], "firstCost": first,
            "said": said_now, "curve": points, "planners": planners,
            "elapsed": elapsed, "counts": counts, "over": self.over,
            "foot": "Drawn: the published spheres; planners keep more of the robot clear. The cost is the sum of all "
            "joints' angle changes. A dot is a function; it lights up when it found the cheapest path so far. "
            "Drag to turn.",
        }  # fmt: skip
