class Ack:
    replicas: int
    durable: int
    stamp: int
    def __init__(self, replicas: int, durable: int, stamp: int) -> None: ...
