"""Measures this project against named peers, in the same run and the same placement, and prints ratios.

Read in this order: `harness` (placement, interleaving, statistics), `report` (rows and bars), `peers` (what
is compared, one file each), then one file per table: `store`, `batch`, `server`, `startup`; and `runtime`, which
names the tables of the function runtime.
"""
