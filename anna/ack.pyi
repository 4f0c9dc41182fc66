class Ack:
    replicas: int
    durable: int
    stamp: int
    def __init__(self, replicas: int, durable: int, stamp: int) -> None: ...

def ack_number(ack: str | int) -> int: ...
