"""What one call asks for besides its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cloudburst.errors import RequestError

if TYPE_CHECKING:
    from cloudburst.transactions import Transaction


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What one call asks for besides its arguments; None leaves it to the function or the default."""

    timeout: float | None = None
    retries: int | None = None
    key: str | bytes | None = None
    version: int = 0
    id: str | None = None
    hedge: float | str | None = None
    session: str | Transaction | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise RequestError(f"timeout is {self.timeout} s; it must be positive")
        if self.retries is not None and self.retries < 0:
            raise RequestError(f"retries is {self.retries}; it must be 0 or more")
        if self.session is not None:
            self._check_session(self.session)
        if self.hedge is not None:
            from cloudburst.hedging import after_us_of

            after_us_of(self.hedge)

    def _check_session(self, session: str | Transaction) -> None:
        from cloudburst.consistency.levels import level_of

        if isinstance(session, str):
            level_of(session)
        if self.hedge is not None and session != "eventual":
            raise RequestError("a hedged call may run twice at a time; in a session it runs once")


NO_OPTIONS: Final = CallOptions()


def options_of(chosen: dict[str, Any], others: CallOptions = NO_OPTIONS) -> CallOptions:
    """Return `others` with what was chosen instead. Raises RequestError."""
    known = CallOptions.__dataclass_fields__
    for name in chosen:
        if name not in known:
            raise RequestError(f"{name!r} is no option; there are {', '.join(known)}")
    return replace(others, **chosen)
