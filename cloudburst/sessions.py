"""Sessions as a program has them: `with cb.session("causal") as s`, and calls that ask for one by themselves.

The one rule: who opened a session commits it. A `with` block commits when it is left without an exception, once all
calls in it have ended; a call with `options(session=…)` is committed where it ends. What causal sessions saw and wrote
is known to the next one of the same client, whichever of the two it is. Source: SURFACE; decision record 0030.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cloudburst import config, context
from cloudburst.calloptions import CallOptions, options_of
from cloudburst.consistency import travel
from cloudburst.consistency.levels import Level, level_of
from cloudburst.consistency.session import NOWHERE, Past, Snapshot, writer_of
from cloudburst.consistency.session import Session as State
from cloudburst.consistency.token import Token, token_of
from cloudburst.errors import RequestError
from cloudburst.optioned import Calls
from cloudburst.transactions import Transaction, opened

if TYPE_CHECKING:
    from cloudburst.attempts import Joined
    from cloudburst.catalog import Known
    from cloudburst.client import Client
    from cloudburst.futures import Future
    from cloudburst.membership import Membership
    from cloudburst.recorder import CallRecord, SessionRecord

Key = str | bytes


def joined_by(membership: Membership, known: Known, options: CallOptions, apart: bool = False) -> Joined | None:
    """Return the session that a call is in: the one that surrounds it, else one of its own, if it asks for any.

    `apart`: it begins in several places at once, so its epoch is chosen here. Raises RequestError.
    """
    asked = options.session
    around = asked if isinstance(asked, Transaction) else None
    if around is None:
        around = context.session()
    wanted = [one for one in (asked, known.session) if isinstance(one, str)]
    level = max((level_of(one) for one in wanted), key=lambda one: one.number, default=None)
    if around is None:
        needed = level is not None and (level.at_epoch or membership.recorder is not None)
        return Alone(membership, level, apart) if needed and level is not None else None
    if level is not None and level.number > around.state.level.number:
        have = around.state.level.name
        raise RequestError(f"{known.function!r} asks for a session at {level.name!r}; it is called in one at {have!r}")
    if options.id is not None or options.hedge is not None:
        raise RequestError("a call with an id, or a hedged one, has an effect of its own; it cannot be in a session")
    return around if around.state.level.at_epoch or around.state.recorded else None


def opened_by(membership: Membership, state: State, number: int) -> Transaction:
    """Return a session of this process; `number` is of its invocations'."""
    identity = membership.client.to_bytes(8, "big") + number.to_bytes(8, "big")
    state.recorded = membership.recorder is not None
    return opened(state, membership.store, identity, node="client")


class Alone:
    """The session of one call, which is opened and committed where that runs."""

    def __init__(self, membership: Membership, level: Level, apart: bool) -> None:
        self._membership = membership
        self._level = level
        self._apart = apart and level.at_epoch
        self._writer = writer_of(membership.client, 0)
        self._record: CallRecord | None = None
        self.stamp = 0
        """The stamp of its commit; 0 before that, and when it has written nothing, or keys at several stamps."""
        if membership.recorder is not None:
            from cloudburst.recorder import CallRecord

            self._record = CallRecord(membership.recorder, level)

    def context(self) -> bytes:
        """Return what goes along with the call: the least epoch that it may begin at, and its client's last writes."""
        return self._packed(NOWHERE)

    def _packed(self, least: Snapshot) -> bytes:
        state = self._membership.past.next(self._level, self._writer)
        state.wait_for(least)
        state.closes, state.recorded = True, self._record is not None
        if self._apart:
            chosen = opened_by(self._membership, state, 0)
            chosen.begin()
            chosen.renew()
            chosen.close()
        return travel.sent.note(travel.pack(state))

    def renewed(self, at: tuple[int, int]) -> bytes | None:
        """Return the same for the next attempt: at a later epoch than the lost one, or at the one that is named.

        Who begins it anyhow may be given the lost one until a later one is stable: for a second, when a node has died.
        """
        named = Snapshot(*at)
        if not named.view:
            return self._packed(named)
        state = travel.unpack(self.context(), self._writer)
        state.begin(named)
        return travel.pack(state)

    def continued(self, context: bytes) -> bytes:
        """Return what goes along with the call that the function has ended with."""
        return context if self._record is None else self._record.told(context)

    def identify(self, high: int, low: int) -> None:
        """Take in which call it is."""
        if self._record is not None:
            self._record.identity = high.to_bytes(8, "big") + low.to_bytes(8, "big")

    def failed(self, context: bytes, tries: int) -> None:
        """Take in what is recorded of a try that has raised."""
        if self._record is not None:
            self._record.raised(context, tries)

    def returned(self, context: bytes) -> None:
        """Take in what it has seen and committed."""
        context = self.continued(context)
        if not context:
            return
        state = travel.unpack(context, self._writer)
        self.stamp = state.commit
        if self._level.carried:
            self._membership.past.learn(state)
        if self._record is not None:
            self._record.end(state)


class Session:
    """One session of a program, for a `with` block. Made by `Client.session`."""

    def __init__(self, client: Client, join: Callable[[], Membership], level: str, token: str | None) -> None:
        self._client = client
        self._join = join
        self._level = level_of(level)
        if token is not None and not self._level.carried:
            raise RequestError(f"a token is for a session at 'causal'; this one is at {level!r}")
        self._token = None if token is None else token_of(token)
        self._open: Transaction | None = None
        self._membership: Membership | None = None
        self._futures: list[Future] = []
        self._record: SessionRecord | None = None
        self._ended = False

    # -- its life

    def __enter__(self) -> Session:
        if self._membership is not None:
            raise RequestError("a session is entered once; make another with cb.session(…)")
        if context.session() is not None:
            raise RequestError("this function runs in a session already; what it does is a part of that")
        self._membership = membership = self._join()
        number = next(membership.numbers)
        state = self._past(membership).next(self._level, writer_of(membership.client, number))
        self._open = opened_by(membership, state, number)
        if membership.recorder is not None:
            from cloudburst.recorder import SessionRecord

            token = None if self._token is None else self._token.text()
            self._record = SessionRecord(membership.recorder, self._level, token)
        return self

    def _past(self, membership: Membership) -> Past:
        """Return what it comes after: the client's sessions, and the one whose token it was given."""
        if self._token is not None:
            membership.past.join(self._token.past())
        return membership.past

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._open is None or self._ended:
            return
        if kind is not None:
            self.abort()
            return
        try:
            self._wait()
            self._open.commit()
            self._close(learn=True)
            if self._record is not None:
                self._record.end(self._open)
        except BaseException as fault:
            self._give_up(fault)
            raise

    def _wait(self) -> None:
        """Wait for the calls that have begun in it. Raises what one of them raised that nobody has asked for."""
        for future in self._futures:
            if future.cancelled():
                continue
            asked, fault = future.asked, future.exception()
            if fault is not None and not asked:
                raise fault

    def abort(self) -> None:
        """End it without an effect: what it has written is gone. At level eventual, what was written stays."""
        self._give_up(None)

    def _give_up(self, fault: BaseException | None) -> None:
        """End it without an effect, or with one that nobody knows, as `fault` says."""
        if self._open is None or self._ended:
            return
        for future in self._futures:
            future.cancel()
        self._close(learn=False)
        if self._record is not None:
            self._record.give_up(self._open, fault)

    def _close(self, learn: bool) -> None:
        assert self._open is not None
        assert self._membership is not None
        self._ended = True
        self._open.close()
        state = self._open.state
        if state.level.carried:
            if learn:
                self._membership.past.learn(state)
            else:
                self._membership.past.saw(state.snapshot)

    @property
    def token(self) -> str:
        """What a session somewhere else has to be given (`token=`) to see all that this one has seen and committed."""
        state = self._now() if not self._ended else self._open
        if not self._level.carried or state is None:
            raise RequestError(f"a session at {self._level.name!r} has no token; one at 'causal' has")
        return Token(state.state.snapshot, state.state.last).text()

    @property
    def stamp(self) -> int:
        """The stamp of its commit; 0 before its end, and when it has written nothing, or keys at several stamps.

        Of two sessions that have written a key, the one with the later stamp has written over the other's.
        """
        return 0 if self._open is None else self._open.state.commit

    def _now(self) -> Transaction:
        if self._open is None or self._ended:
            raise RequestError("a session is used in its with block, before it has ended")
        return self._open

    def __repr__(self) -> str:
        state = "ended" if self._ended else "new" if self._open is None else "open"
        return f"<session at {self._level.name!r}, {state}>"

    # -- the store

    def get(self, key: Key, *default: Any) -> Any:
        """Return the value under `key` in this session. Raises KeyNotFound unless a default is given."""
        return self._now().get(key, *default)

    def get_lattice(self, key: Key, *default: Any) -> Any:
        """Return the lattice under `key` in this session."""
        return self._now().get_lattice(key, *default)

    def mget(self, keys: Iterable[Key], default: Any = None) -> list[Any]:
        """Return the values of `keys`, in their order."""
        return self._now().mget(keys, default)

    def put(self, key: Key, value: Any, *, ttl: float | None = None) -> None:
        """Join `value` into `key` when the session commits; it reads it from now on.

        `ttl`: the write lives for so many seconds, from the commit on.
        """
        self._now().put(key, value, **({} if ttl is None else {"ttl": ttl}))

    def mput(self, items: Mapping[Any, Any] | Iterable[tuple[Key, Any]], *, ttl: float | None = None) -> None:
        """Join each value into its key when the session commits; `ttl` as for `put`."""
        self._now().mput(items, **({} if ttl is None else {"ttl": ttl}))

    def delete(self, key: Key) -> bool:
        """Forget `key` when the session commits; return whether it was there. In this session it is gone at once."""
        return self._now().delete(key)

    # -- calls

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a function or a DAG in this session and return its value; if it raises, it has written nothing."""
        return self.run(name, args, kwargs, self._options({}))

    def spawn(self, name: str, /, *args: Any, **kwargs: Any) -> Future:
        """Start a call in this session and return its Future; leaving the session waits for it."""
        return self.start(name, args, kwargs, self._options({}))

    def map(self, name: str, /, *iterables: Any) -> Iterator[Any]:
        """Yield the function's results for the items of the iterables, in order."""
        return self.spread(name, iterables, self._options({}))

    def options(self, **chosen: Any) -> Calls:
        """Return `call`, `spawn` and `map` with options, in this session."""
        return Calls(self, self._options(chosen))

    def _options(self, chosen: dict[str, Any]) -> CallOptions:
        if "session" in chosen:
            raise RequestError("calls in a session are in that session")
        return options_of(chosen, CallOptions(session=self._now()))

    def run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Any:
        """`call`, with options."""
        return self._client.run(name, args, kwargs, options)

    def start(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions) -> Future:
        """`spawn`, with options."""
        if len(self._futures) >= config.SESSION_CALLS_MAX:
            self._futures = [one for one in self._futures if not (one.done() and one.asked)]
        self._futures.append(future := self._client.start(name, args, kwargs, options))
        return future

    def spread(self, name: str, iterables: tuple[Any, ...], options: CallOptions) -> Iterator[Any]:
        """`map`, with options."""
        from cloudburst.mapping import ordered

        return ordered(lambda args: self.start(name, args, {}, options), name, iterables)
