from anna.server import WorkerServer

class Poller:
    count: int
    def __init__(self, server: WorkerServer, most: int) -> None: ...
