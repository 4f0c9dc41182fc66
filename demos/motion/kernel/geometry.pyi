from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

EDGE_METRES: float

def enclosing(spheres: Numbers, rounds: int = ...) -> Numbers: ...

class Robot:
    name: str
    joints: int
    frames: int
    spheres: int
    joint_names: tuple[str, ...]
    links: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    limits: Numbers
    local: Numbers
    body: NDArray[np.int32]
    frame_of: NDArray[np.int32]
    poses: Numbers
    parents: NDArray[np.int32]
    turning: NDArray[np.int32]
    reaches: Numbers
    cover: Numbers
    cover_frame: NDArray[np.int32]
    clumps: Numbers
    def __init__(self, description: dict[str, Any]) -> None: ...
    @staticmethod
    def named(name: str) -> Robot: ...

class Obstacles:
    spheres: Numbers
    boxes: Numbers
    cylinders: Numbers
    capsules: Numbers
    def __init__(
        self,
        spheres: ArrayLike = ...,
        boxes: ArrayLike = ...,
        cylinders: ArrayLike = ...,
        capsules: ArrayLike = ...,
    ) -> None: ...

class Checker:
    robot: Robot
    obstacles: Obstacles
    blocked: bool
    around: Numbers
    def __init__(self, robot: Robot, obstacles: Obstacles, cover: bool = False) -> None: ...
    def fit(self, q: ArrayLike, margin: float = 0.0) -> int: ...
    def collides(self, q: ArrayLike, margin: float = 0.0) -> bool: ...
    def collisions(self, configurations: ArrayLike, margin: float = 0.0) -> int: ...
    def path_collides(self, path: ArrayLike, margin: float = 0.0, closely: bool = False) -> bool: ...
    def placed(self, q: ArrayLike) -> Numbers: ...
    def configuration(self, q: ArrayLike) -> Numbers: ...
