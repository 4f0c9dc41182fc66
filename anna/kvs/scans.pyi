from anna.kvs.batches import Batches

class Scans(Batches):
    scans: int
