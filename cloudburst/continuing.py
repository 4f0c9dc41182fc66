"""A function's last act may be a call: it returns `Continue`, and the other function's result is its caller's.

The executor does not wait: it answers with what comes next, and whoever called sends that on, as the same invocation
with the same deadline. So a chain of a thousand costs no more executors than one, and cancelling the future stops
whichever function it has come to. Source: hydro-stack (continuations of DAGs); decision record 0022.
"""

from __future__ import annotations

from typing import Any


class Continue:
    """The call that a function ends with: `return Continue("other", x)`.

    >>> Continue("score", 3, level="strict")
    Continue('score', 3, level='strict')
    """

    __slots__ = ("args", "kwargs", "name")

    def __init__(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        self.name = name
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"Continue({', '.join([repr(self.name), *given])})"


class Continuing(BaseException):
    """Ends a call in its executor: `payload` says what comes next."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self.payload = payload


def continuing(one: Continue, extras: dict[str, Any]) -> Continuing:
    """Return what ends a call that returned `one`; `extras` are the call's. Raises CloudburstError. May block."""
    from cloudburst.entry import default
    from cloudburst.errors import CloudburstError, RequestError

    if "id" in extras:
        words = f"a call with an id has its result at once; it cannot continue with {one.name!r}"
        raise RequestError(words, definite=False)
    try:
        return Continuing(default().continuation(one))
    except CloudburstError as fault:
        fault.definite = False
        raise fault.with_traceback(None) from None
