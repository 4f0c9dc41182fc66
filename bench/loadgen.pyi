from dataclasses import dataclass

RESP: int
ANNA: int

@dataclass(frozen=True, slots=True)
class Outcome:
    ops: int
    seconds: float
    misses: int
    errors: int
    p50_us: float
    p99_us: float
    generator_cpu: float
    @property
    def rate(self) -> float: ...

def bucket_floor(index: int) -> int: ...
def percentile_us(counts: list[int], share: float) -> float: ...
def run(
    fds: list[int],
    template: bytes,
    digits_at: int,
    protocol: int,
    depth: int,
    keys: int,
    seconds: float,
    *,
    stamp_at: int = -1,
    seed: int = 1,
    sequential: bool = False,
    pools: list[bytes] | None = None,
    reply_bytes_max: int = ...,
) -> Outcome: ...
