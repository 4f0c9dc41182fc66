from anna.kvs.frames import Frames
from anna.membership import Membership
from anna.messages import View

class Member(Frames):
    worker_id: int
    view: View
    view_of_peers: View
    membership: Membership | None
    is_complete: bool
    superseded: bool
    has_left: bool
    epoch_left_us: int
    def adopt(self, view: View) -> None: ...
    def depart(self) -> None: ...
    def outgoing(self) -> list[tuple[int | str, bytes]]: ...
    def next_due(self) -> int | None: ...
