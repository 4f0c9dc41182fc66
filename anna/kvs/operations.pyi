from anna.kvs.pushes import Pushes
from anna.kvs.snapshot import Snapshot

class Operations(Pushes):
    snapshot: Snapshot | None
    gets: int
    puts: int
    deletes: int
    stale: int
