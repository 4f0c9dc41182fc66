"""The page shows the planner's own numbers, and needs nothing from elsewhere."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest

from demos.motion import page, problems
from demos.motion.kernel import Checker, Obstacles, Robot

NUMBERS: dict[str, Any] = {"cost": math.inf, "frames": [[0.5, 1.0]], "said": "</script><b>", "curve": ()}


def test_frames_are_where_the_kernel_puts_the_spheres() -> None:
    problem = problems.named("panda/cage/1")
    checker = Checker(Robot.named("panda"), Obstacles())
    path = np.stack([problem.start, (problem.start + problem.goal) / 2 + 0.1, problem.goal])
    drawn = page.frames(problem, path, 9)
    assert len(drawn) == 9
    for frame, q in ((drawn[0], problem.start), (drawn[-1], problem.goal)):
        assert np.array(frame).reshape(-1, 3) == pytest.approx(checker.placed(q)[:, :3], abs=1e-4)
    assert page.frames(problem, np.empty((0, 7))) == []


def test_the_scene_has_the_planners_spheres_and_obstacles() -> None:
    problem = problems.named("panda/cage/1")
    scene = page.scene(problem, 3, "t", "s")
    assert len(scene["start"]) == 3 * len(scene["radii"])
    assert scene["boxes"] == problem.obstacles.boxes.tolist()
    assert scene["direct"] == pytest.approx(np.abs(problem.goal - problem.start).sum())


def test_a_written_page_asks_nobody_for_anything() -> None:
    text = page.document(NUMBERS, live=False)
    ours = text.replace(page.THREE.read_text("utf-8"), "")
    assert "three.js" in page.THREE.read_text("utf-8").lower()
    assert not re.search(r"""(src|href)\s*=|https?://""", ours)
    assert "</script><b>" not in ours
    found = re.search(r"let data = (\{.*\});", ours)
    assert found is not None
    assert json.loads(found[1].replace("<\\/", "</")) == NUMBERS | {"cost": None, "curve": []}


def test_a_live_page_is_served_on_loopback_and_ends() -> None:
    served = page.Served(lambda: NUMBERS)
    try:
        assert served.address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(served.address, timeout=10) as answer:
            assert b"const LIVE = true" in answer.read()
        with urllib.request.urlopen(served.address + "data.json", timeout=10) as answer:
            assert json.load(answer)["cost"] is None
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(served.address + "etc/passwd", timeout=10)
    finally:
        served.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(served.address, timeout=10)


def test_the_curve_only_falls_in_the_order_of_time() -> None:
    members = [(-9.0, 2_000_000, 1), (-7.0, 4_000_000, 2), (-8.0, 5_000_000, 3), (-12.0, 1_500_000, 4)]
    assert page.curve(members, 1_000_000) == [[0.5, 12.0, 4], [1.0, 9.0, 1], [3.0, 7.0, 2]]
