class Snapshot:
    epoch: int
    spoiled: bool
