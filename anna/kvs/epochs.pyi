from anna.kvs.scans import Scans

class Epochs(Scans):
    gets_at: int
