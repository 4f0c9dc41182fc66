from anna.kvs.epochs import Epochs

class Commits(Epochs):
    prepares: int
    def state_of_transaction(self, transaction: bytes, attempt: int) -> tuple[int, int]: ...
