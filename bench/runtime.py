"""The experiments of the function runtime: a group of tables, `python -m bench runtime`.

Each is a file of its own and can be run alone: read `functions`, then `composition` and `shapes` (graphs), `burst`
(many calls), `locality` (data), `aggregation` (messages) and `drill` (failures). `turns` is how runtimes are asked,
`driver` what a runtime in a process of its own does, `work` what it is given to run, `pictures` how it is drawn.
"""

from __future__ import annotations

from typing import Final

from bench import aggregation, burst, composition, drill, functions, locality, shapes
from bench.report import Area

EXPERIMENTS: Final[dict[str, Area]] = {
    "functions": functions.rows,
    "composition": composition.rows,
    "shapes": shapes.rows,
    "burst": burst.rows,
    "locality": locality.rows,
    "aggregation": aggregation.rows,
    "drill": drill.rows,
}
