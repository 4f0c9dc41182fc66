"""What the node's cores are told and what they ask for: every noun of the control plane.

The one rule: a message is a frozen value. Events come from the driver (`cloudburst.node`), instructions go to it.
Executors are named by slot and incarnation, so that news of a dead one is never taken for news of its successor.
Source: DESIGN §2 (pure cores, thin drivers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cloudburst.errors import CloudburstError

# -- events


@dataclass(frozen=True, slots=True)
class ClientJoined:
    """A process took a lease on the node."""

    client: int
    pid: int


@dataclass(frozen=True, slots=True)
class ClientLeft:
    """Its connection ended."""

    client: int


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks for something; exactly one Reply answers it."""

    client: int
    request: bytes
    verb: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExecutorForked:
    """The zygote forked the executor of a slot."""

    slot: int
    incarnation: int
    pid: int


@dataclass(frozen=True, slots=True)
class ExecutorEnded:
    """An executor ended. `code` is its exit code, or minus the signal; `unsettled` is what `Page.unsettled` says.

    `running` is the invocation that it ran, None if it was idle or was killed for a deadline; `tail` is what has been
    printed since that began. `starved`: the kernel killed it because memory ran out.
    """

    slot: int
    incarnation: int
    pid: int
    code: int
    function: str
    running: tuple[int, int] | None
    unsettled: list[tuple[int, int]] | None
    tail: str
    starved: bool = False


@dataclass(frozen=True, slots=True)
class ExecutorAsks:
    """A call in this executor waits for another; `unblocked` executors could still run something."""

    slot: int
    unblocked: int


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What each executor is doing: slot to (idle, calls begun); how many run a call, how many calls wait in them."""

    executors: dict[int, tuple[bool, int]]
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """A store job is done: its answer for the client, or the error."""

    job: StoreJob
    answer: Any
    changed: bool


@dataclass(frozen=True, slots=True)
class NeighboursChanged:
    """Which executors of other nodes may be used: slot here to incarnation."""

    executors: dict[int, int]


@dataclass(frozen=True, slots=True)
class Stopping:
    """The node is to end: it takes no more calls."""


Event = (
    ClientJoined | ClientLeft | Request | ExecutorForked | ExecutorEnded | ExecutorAsks | Surveyed | Stored
    | NeighboursChanged | Stopping
)  # fmt: skip

# -- instructions


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a request: `answer` is plain data or an error."""

    client: int
    request: bytes
    answer: Any | CloudburstError


@dataclass(frozen=True, slots=True)
class Fork:
    """Start an executor in a slot."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Have an executor finish what it runs, take no more, and end."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class StoreJob:
    """Do something with the table of functions, then say Stored. `client` 0 asks for no reply."""

    client: int
    request: bytes
    verb: str
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnnounceFunctions:
    """Say in the page that the table of functions has changed."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Mark an invocation as doomed and send SIGTERM to the executor that runs it."""

    slot: int
    invocation: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL to an executor."""

    slot: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Say in the page when the watchdog looks at a slot next; 0 when it does not mean to."""

    slot: int
    until_us: int


# -- what follows from news of other nodes


@dataclass(frozen=True, slots=True)
class Meet:
    """Connect to a node, tell it that this one is there, and hear from then on what its executors do."""

    node: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class Part:
    """Drop the connection to a node."""

    node: int


@dataclass(frozen=True, slots=True)
class Mirror:
    """Show an executor of another node in a slot of the page.

    `incarnation` is how it is called here, `there` and `life` are its slot and incarnation at home.
    """

    slot: int
    incarnation: int
    pid: int
    node: int
    there: int
    life: int
    address: str


@dataclass(frozen=True, slots=True)
class Reflect:
    """Show what such an executor is doing."""

    slot: int
    state: int
    activity: int
    waiting: int
    high: int
    low: int


@dataclass(frozen=True, slots=True)
class Vacate:
    """Show that nobody lives in a slot any more."""

    slot: int


@dataclass(frozen=True, slots=True)
class Lose:
    """Show that the node of a slot's executor is heard of no more."""

    slot: int


NeighbourInstruction = Meet | Part | Mirror | Reflect | Vacate | Lose
Instruction = Reply | Fork | Retire | StoreJob | AnnounceFunctions | Interrupt | Kill | Watch
