"""What can go wrong in a call, arranged by the two questions of a caller: whose fault is it, and may I retry?

`definite` is True when the call surely had no effect, now or later; False when it may have had one. A class gives the
usual answer and an instance may be more exact: a call whose deadline passed while it was still queued timed out
definitely. The user's own exception reaches the caller as itself *and* as a `FunctionError` (decision record 0003).
Source: STYLE (errors); reliability C and P19; the definite/indefinite split is Maelstrom's.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any


class CloudburstError(Exception):
    """The root of every error that `cloudburst` raises by itself."""

    definite: bool = True

    def __init__(self, *arguments: object, definite: bool | None = None, attempts: int = 0) -> None:
        super().__init__(*arguments)
        if definite is not None:
            self.definite = definite
        self.attempts = attempts
        """How many times the function was begun before this was raised; 0 when it never was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__.copy())


def _restore(kind: type[BaseException], arguments: tuple[object, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class RequestError(CloudburstError):
    """The request was at fault; the same request will fail again."""


class FunctionNotFound(RequestError, LookupError):
    """No function is registered under the name."""


class InvalidDag(RequestError, ValueError):
    """The graph has a cycle, an edge to nowhere, or a function that cannot take what it is given."""


class NotSerializable(RequestError, TypeError):
    """A function, an argument or a closure variable cannot be sent to another process; the message names which."""


class ValueTooLarge(RequestError, ValueError):
    """A function, the arguments of a call or a result exceed their named limit in `cloudburst.config`."""


class EnvironmentMismatch(RequestError):
    """Two sides run Pythons between which code cannot travel, and nothing was unpickled; or this machine cannot give
    what was asked for."""


class MissingDependency(EnvironmentMismatch, ModuleNotFoundError):
    """A function needs a module that the executors' environment does not have; the message says what it has."""


class NotSupported(RequestError):
    """The peer is well-formed but asked for an operation or option that this side does not have."""


class ResultNotSerializable(RequestError, TypeError):
    """The function ran to its end and returned what cannot be sent back."""

    definite = False


class Cancelled(CloudburstError, CancelledError):
    """The caller, or the loss of the caller, stopped the call."""

    definite = False


class UnavailableError(CloudburstError):
    """Nothing was wrong with the request; a retry may succeed."""


class FunctionTimeout(UnavailableError, TimeoutError):
    """The deadline of the call passed: in the queue (`definite`), or while it ran, and then it was stopped."""

    definite = False


class ExecutorLost(UnavailableError):
    """The process that ran the function ended under it: killed, crashed, or left by `os._exit`."""

    definite = False


class OutOfMemory(UnavailableError, MemoryError):
    """The function wanted more memory than its limit allows, or the kernel killed its process for want of it."""

    definite = False
    remote_traceback: str = ""


class InvocationGone(UnavailableError, LookupError):
    """Nobody is there to take a message: the invocation has ended, or has not begun in time."""


class Overloaded(UnavailableError):
    """A bounded queue is full, or every executor waits for another; the call was not begun."""


class NoRoom(UnavailableError):
    """A large value found no room: neither in the node's shared memory nor on its disk."""


class SnapshotExpired(UnavailableError):
    """What a session reads at is not kept any more, because it was cut off or a worker was replaced: begin it again.

    With an `epoch` and its `view`, an earlier attempt at it has committed after that: begin again there, and nowhere
    else. With an `epoch` alone, begin again there or later.
    """

    epoch: int = 0
    view: int = 0


class NodeLost(UnavailableError, ConnectionError):
    """The node cannot be reached, or it ended during the request."""

    definite = False


class MachinesNotObtained(UnavailableError):
    """Fewer machines became ready than were asked for; the message says which did not, and why.

    Those that did not were given back.
    """


class CostLimit(RequestError):
    """What was asked for costs more than it may."""


class ProtocolError(CloudburstError):
    """The peer's bytes are not of the protocol."""


class NotSigned(ProtocolError):
    """A record of a function is refused: nobody who may register functions in this cluster has signed it."""


class FunctionError(CloudburstError):
    """User code raised. `__cause__` is the original exception, `remote_traceback` the text from where it ran.

    What a caller catches is, wherever the original's class allows it, an instance of both this class and the
    original's: `except ValueError` and `except FunctionError` both work. When the original cannot travel, this class
    alone is raised, with `exception_type` and the text.
    """

    definite = False
    remote_traceback: str = ""
    exception_type: str = ""
    function: str = ""
    invocation: str = ""


BY_NAME: dict[str, type[CloudburstError]] = {
    kind.__name__: kind
    for kind in (
        RequestError, FunctionNotFound, InvalidDag, NotSerializable, ValueTooLarge, EnvironmentMismatch,
        MissingDependency, NotSupported, ResultNotSerializable, Cancelled, UnavailableError, FunctionTimeout,
        ExecutorLost, OutOfMemory, InvocationGone, Overloaded, NoRoom, SnapshotExpired, NodeLost, ProtocolError,
        NotSigned, FunctionError,
    )
}  # fmt: skip
"""The errors that travel between processes by name, never as a pickle."""
