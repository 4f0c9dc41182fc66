import numpy as np
from numpy.typing import ArrayLike, NDArray

class Sampler:
    direct: float
    def __init__(
        self, lower: ArrayLike, upper: ArrayLike, start: ArrayLike, goal: ArrayLike, seed: int
    ) -> None: ...
    def draw(self, bound: float, count: int) -> NDArray[np.float64]: ...
