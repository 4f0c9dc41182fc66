from anna.kvs.clock import Clock

class Connection:
    failure: str | None
    subscriptions: set[bytes]

class Answers:
    clock: Clock
    malformed: int
