"""What a robot is to the planner: joints, spheres and the pairs of links that may touch, as plain numbers.

A URDF says which link hangs on which by which joint, its `spherized` sister covers each link by spheres, and
the SRDF names the pairs of links that need no check. Links that no joint moves against each other ride on one
frame here, so a frame is a joint, or the world. The same archive always gives the same file, byte for byte.

    python -m demos.motion.derive_robots                  # from vamp-planner's source archive, by demos.fetch

Only maintainers run this; the demo reads `data/panda.json` and `data/baxter.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tarfile
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from pathlib import Path

from demos import fetch

DATA = Path(__file__).with_name("data")
ARMS = {
    "panda": tuple(f"panda_joint{number}" for number in range(1, 8)),
    "baxter": tuple(
        f"{side}_{joint}" for side in ("left", "right") for joint in ("s0", "s1", "e0", "e1", "w0", "w1", "w2")
    ),
}
# A product of rotations by quarter turns leaves 1e-17 where 0 is meant.
DIGITS = 12

Vector = tuple[float, float, float]
Rotation = tuple[Vector, Vector, Vector]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a frame is in another: `point` of it is at `rotation · point + position` of the other."""

    rotation: Rotation
    position: Vector

    def apply(self, point: Vector) -> Vector:
        """Return where a point of this frame is in the other."""
        x, y, z = (sum(a * b for a, b in zip(row, point)) for row in self.rotation)
        return x + self.position[0], y + self.position[1], z + self.position[2]

    def then(self, inner: Pose) -> Pose:
        """Return the pose of a frame that is at `inner` in this one."""
        columns = tuple(zip(*inner.rotation))
        a, b, c = (tuple(sum(x * y for x, y in zip(row, column)) for column in columns) for row in self.rotation)
        return Pose((a, b, c), self.apply(inner.position))  # type: ignore[arg-type]  # three by three


UNMOVED = Pose(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))


def numbers(text: str | None) -> Vector:
    """Return the three numbers of a URDF attribute; a missing one is zero."""
    x, y, z = (float(word) for word in (text or "0 0 0").split())
    return x, y, z


def pose(origin: xml.Element | None) -> Pose:
    """Return a URDF `<origin>`: roll, pitch and yaw about fixed axes, in this order."""
    if origin is None:
        return UNMOVED
    roll, pitch, yaw = numbers(origin.get("rpy"))
    (cr, sr), (cp, sp), (cy, sy) = ((math.cos(angle), math.sin(angle)) for angle in (roll, pitch, yaw))
    return Pose(
        (
            (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
            (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
            (-sp, cp * sr, cp * cr),
        ),
        numbers(origin.get("xyz")),
    )


def derive(name: str, urdf: bytes, srdf: bytes) -> dict[str, object]:
    """Return the robot as `data/NAME.json` holds it; lengths in metres, angles in radians."""
    robot = xml.fromstring(urdf)
    joints = {joint.findtext("child") or joint.find("child").get("link"): joint for joint in robot.findall("joint")}  # type: ignore[union-attr]
    frames: list[dict[str, object]] = []
    limits: list[tuple[float, float]] = [(0.0, 0.0)] * len(ARMS[name])
    rides: dict[str, tuple[int, Pose]] = {}

    def ride(link: str) -> tuple[int, Pose]:
        """Return the frame that a link rides on (-1 is the world) and its pose in it."""
        if link not in rides:
            joint = joints.get(link)
            if joint is None:
                rides[link] = -1, UNMOVED
                return rides[link]
            frame, at = ride(joint.find("parent").get("link"))  # type: ignore[union-attr, arg-type]
            at = at.then(pose(joint.find("origin")))
            if (label := joint.get("name")) in ARMS[name]:
                axis, limit = joint.find("axis"), joint.find("limit")
                if joint.get("type") != "revolute" or axis is None or limit is None or axis.get("xyz") != "0 0 1":
                    raise ValueError(f"joint {label} of {name} does not turn about its own z within limits")
                number = ARMS[name].index(str(label))
                limits[number] = float(limit.get("lower", "")), float(limit.get("upper", ""))
                frames.append({"joint": number, "parent": frame, "rotation": at.rotation, "position": at.position})
                frame, at = len(frames) - 1, UNMOVED
            rides[link] = frame, at
        return rides[link]

    bodies: list[dict[str, object]] = []
    for link in robot.findall("link"):
        frame, at = ride(str(link.get("name")))
        spheres = [
            (*at.apply(pose(part.find("origin")).position), float(part.find("geometry/sphere").get("radius", "")))  # type: ignore[union-attr]
            for part in link.findall("collision")
        ]
        if spheres:
            bodies.append({"link": link.get("name"), "frame": frame, "spheres": spheres})
    quiet = {
        frozenset((pair.get("link1"), pair.get("link2"))) for pair in xml.fromstring(srdf).findall("disable_collisions")
    }
    pairs = [
        (a, b)
        for a in range(len(bodies))
        for b in range(a + 1, len(bodies))
        if bodies[a]["frame"] != bodies[b]["frame"]
        and frozenset((bodies[a]["link"], bodies[b]["link"])) not in quiet
    ]
    return {
        "name": name,
        "joints": ARMS[name],
        "limits": limits,
        "frames": frames,
        "bodies": bodies,
        "pairs": pairs,
    }


def rounded(value: object) -> object:
    """Return `value` with every number rounded to `DIGITS`, and no negative zero."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def lines(robot: dict[str, object]) -> str:
    """Return the robot as JSON with one line for each frame and body."""
    parts = []
    for key, value in robot.items():
        if key in ("frames", "bodies") and isinstance(value, list):
            inner = ",\n  ".join(json.dumps(item) for item in value)
            parts.append(f'"{key}": [\n  {inner}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main(argv: list[str] | None = None) -> int:
    """Derive both robots and write them; exit 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m demos.motion.derive_robots", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=DATA, help="default: the committed files' directory")
    options = parser.parse_args(argv)
    for name in ARMS:
        try:
            with tarfile.open(fileobj=io.BytesIO(fetch.fetch(f"{name}-model").read_bytes())) as model:
                urdf, srdf = (
                    model.extractfile(f"{name}{suffix}").read()  # type: ignore[union-attr]
                    for suffix in ("_spherized.urdf", ".srdf")
                )
        except (fetch.FetchError, OSError, KeyError) as error:
            print(f"derive_robots: {error}", file=sys.stderr)
            return 1
        robot = rounded(derive(name, urdf, srdf))
        assert isinstance(robot, dict)
        (options.out / f"{name}.json").write_text(lines(robot), encoding="ascii")
        spheres = sum(len(body["spheres"]) for body in robot["bodies"])
        counts = f"{len(robot['joints'])} joints, {spheres} spheres, {len(robot['pairs'])} pairs of links"
        print(f"{options.out / name}.json: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
