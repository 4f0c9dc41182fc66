"""The store as a client has it: the same from outside and inside functions, and in the session that runs, if one does.

The one rule: inside a function that runs in a session, `get` and `put` are that session's; everywhere else they are the
store's own, as `anna.Client` has them. Source: SURFACE (cloudburst); decision record 0030.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from cloudburst import context, spans
from cloudburst.errors import NotSupported
from cloudburst.segments.values import read

if TYPE_CHECKING:
    from anna.watch import Watch
    from cloudburst.membership import Membership
    from cloudburst.sessions import Session

_UNTRACED: Final = nullcontext()


class Stored:
    """What a client does with the store; `_joined` is the client's."""

    def _joined(self) -> Membership:
        raise NotImplementedError

    @property
    def store(self) -> Any:
        """The store's own client, for everything that `put` and `get` do not cover; it knows nothing of sessions."""
        return self._joined().store()

    def session(self, level: str = "causal", *, token: str | None = None) -> Session:
        """Return a session for a `with` block: what is read and written in it, and in the calls that it makes.

        `level` is "eventual", "repeatable", "read-atomic" or "causal"; `token` that of a session, here or anywhere,
        all of which this one shall see. Raises NotSupported for a level that this version does not have.
        """
        from cloudburst.sessions import Session

        return Session(self, self._joined, level, token)  # type: ignore[arg-type]

    def put(self, key: str | bytes, value: Any, **options: Any) -> Any:
        """Join `value` into `key`, as `anna.Client.put` does."""
        with _recorded("put", key):
            inside = context.session()
            if inside is not None:
                return inside.put(key, value, **options)
            membership = self._joined()
            ack = membership.store().put(key, value, **options)
            membership.wrote = ack.stamp
            return ack

    def get(self, key: str | bytes, *default: Any) -> Any:
        """Return the value under `key`, as `anna.Client.get` does."""
        with _recorded("get", key):
            inside = context.session()
            if inside is not None:
                return inside.get(key, *default)
            store = self._joined().store()
            return read(lambda: store.get(key, *default))

    def watch(self, key: str | bytes, *, timeout: float | None = None) -> Watch:
        """Return the values of `key` as they change, as `anna.Client.watch` does: `value` is the newest.

        Inside a function the node's cache pushes them, told once by the key's owner for all that watch there.
        Raises NotSupported in a session, which sees one moment and nothing that comes later.
        """
        if context.session() is not None:
            raise NotSupported(f"{key!r} cannot be watched in a session, which sees one moment and nothing later")
        watched: Watch = self._joined().store().watch(key, timeout=timeout)
        return watched

    def mput(self, items: Mapping[str, Any] | Iterable[tuple[str | bytes, Any]], **options: Any) -> Any:
        """Join each value into its key in one flight, as `anna.Client.mput` does."""
        with _recorded("mput"):
            inside = context.session()
            if inside is not None:
                return inside.mput(items, **options)
            membership = self._joined()
            ack = membership.store().mput(items, **options)
            membership.wrote = ack.stamp
            return ack

    def mget(self, keys: Iterable[str | bytes], default: Any = None) -> list[Any]:
        """Return the values under `keys`, in their order, in one flight, as `anna.Client.mget` does."""
        names = list(keys)
        with _recorded("mget"):
            inside = context.session()
            if inside is not None:
                return list(inside.mget(names, default))
            store = self._joined().store()
            values: list[Any] = read(lambda: store.mget(names, default))
        return values


def _recorded(operation: str, key: str | bytes | None = None) -> AbstractContextManager[None]:
    """Record an operation of the store, where somebody traces."""
    if spans.around is None:
        return _UNTRACED
    shown = key.decode(errors="replace") if isinstance(key, bytes) else key
    return spans.around(f"store {operation}", {} if shown is None else {"cloudburst.key": shown})
