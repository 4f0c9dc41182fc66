"""An open session over this process's client of the store: reads at its epoch, writes that wait, one commit.

The same for an interactive session of a program and for one that a function runs in. The one rule: nothing that was
read or written in a session is anybody else's before its commit, and what cannot be told any more as it was (the epoch
is kept no longer) ends the session with `SnapshotExpired`, never with another value. Safe from threads.
Source: DESIGN §4; decision record 0030.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from anna.config import KEY_BYTES_MAX, TTL_S_MAX
from anna.errors import AnnaError
from anna.errors import SnapshotExpired as Expired
from anna.errors import UnavailableError as Unavailable
from cloudburst import config
from cloudburst.consistency import travel
from cloudburst.consistency.faults import PLANTED
from cloudburst.consistency.session import Session, Snapshot, epoch_of, writer_in_store
from cloudburst.errors import CloudburstError, NotSupported, RequestError, SnapshotExpired, UnavailableError
from cloudburst.keeping import keeper
from cloudburst.segments.values import Replaced, read

if TYPE_CHECKING:
    from collections.abc import Iterator

Key = str | bytes
_RAISE: Final = object()
_ABSENT: Final = object()
KEPT_S: Final = 0.12
"""For so long after it was begun the epoch of a session is readable without a pin; a store keeps it for 0.3 s."""
OLD_EPOCHS: Final = 10
"""An epoch that is older when a session begins, because nobody writes or a worker is late, is pinned at once."""
FIRST_PAUSE_S: Final = 0.002
"""How long is waited between questions while a store's history begins."""


class Transaction:
    """One open session. `store` gives this process's client of the store; `identity` is the commit's id, 16 bytes."""

    def __init__(self, state: Session, store: Callable[[], Any], identity: bytes) -> None:
        self.state = state
        self.identity = identity
        self.expired = ""
        """Why what it read at is not known any more, so that it can only begin again; "" as long as it is."""
        self.shared = False
        """Whether something has been read, here or in a call, so that its epoch cannot be another any more."""
        self._sent = 0
        self._store = store
        self._lock = threading.RLock()
        self._kept_until = 0.0

    # -- where it reads

    def begin(self) -> Snapshot:
        """Choose the epoch, unless it is chosen. Raises UnavailableError when there is none in time."""
        with self._lock:
            if self.state.begun:
                return self.state.snapshot
            store, end = self._store(), time.monotonic() + config.SESSION_BEGIN_S
            least = self.state.snapshot.epoch
            while True:
                why: AnnaError | None = None
                try:
                    found = store.pin(least=least, timeout=max(end - time.monotonic(), 1e-3))
                    if found.view and found.running - found.epoch > OLD_EPOCHS:
                        store.pin(found.epoch, lease=config.SESSION_LEASE_S)
                    if found.view:
                        break
                except Expired as fault:
                    why, least = fault, found.epoch + 1
                except Unavailable as fault:
                    why = fault  # a cache that has just begun, or an owner that is about to be another
                if time.monotonic() >= end:
                    said = f": {type(why).__name__}: {why}" if why else ""
                    limit = f"session_begin_s is {config.SESSION_BEGIN_S:g}"
                    raise UnavailableError(f"no epoch could be read at in time, {limit}{said}") from why
                time.sleep(FIRST_PAUSE_S)
            self.state.begin(Snapshot(*found.snapshot))
            self._keep()
            return self.state.snapshot

    def resume(self) -> None:
        """Go on with a session that was begun elsewhere: its epoch is kept readable from here, too."""
        if self.state.begun:
            self.shared = True
            self._keep()

    def _keep(self) -> None:
        self._kept_until = time.monotonic() + KEPT_S
        keeper.keep(self)

    def renew(self) -> None:
        """Have its epoch kept readable: what the keeper does for sessions that are open for long."""
        try:
            self._store().pin(self.state.snapshot.epoch, lease=config.SESSION_LEASE_S)
            self._kept_until = time.monotonic() + config.SESSION_LEASE_S / 2
        except (AnnaError, CloudburstError):
            pass  # a read will tell; and the sessions of other clients are to be kept, whatever this one's has become

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell in the session's words that its epoch is not known any more."""
        try:
            yield
        except Expired as fault:
            self.expired = f"it reads at epoch {self.state.snapshot.epoch}; {fault}"
            raise self.lost() from None

    def lost(self) -> SnapshotExpired:
        """Return what is raised when what it has read is not known any more: only at a later epoch it can be begun."""
        fault = SnapshotExpired(f"the epoch of a session was lost under it; nothing was committed: {self.expired}")
        fault.epoch = self.state.snapshot.epoch + 1
        return fault

    def _ask(self, ask: Callable[[Snapshot], Any]) -> Any:
        """Return what is read at its epoch; a session that has read nothing yet begins again if it must."""
        if not self.state.begun:
            self.begin()
        if time.monotonic() > self._kept_until:
            self.renew()
        if self.shared:
            with self._reading():
                return read(lambda: ask(self._at))
        for _ in range(config.ATTEMPTS_MAX):
            try:
                found = read(lambda: ask(self._at))
                self.shared = True
                return found
            except Expired:
                self._begin_later()
        with self._reading():
            return read(lambda: ask(self._at))

    def _begin_later(self) -> None:
        """Choose an epoch after the one that is lost, which nobody has read at yet."""
        with self._lock:
            epoch, view = self.state.snapshot
            self.state.snapshot, self.state.begun = Snapshot(epoch + 1, view), False
            self.begin()

    @property
    def _at(self) -> Snapshot:
        """Where it reads."""
        if "own-epoch" in PLANTED:
            return Snapshot(*self._store().pin().snapshot)
        return self.state.snapshot

    # -- the store, as it is in this session

    def get(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the value under `key`, as `anna.Client.get`, in this session."""
        state, name = self.state, _name(key)
        if not state.level.at_epoch:
            return read(lambda: self._store().get(key, *(() if default is _RAISE else (default,)), timeout=timeout))
        if (state.buffered or state.carried) and state.owns(name):
            found = self._own(name, timeout)
            value = _ABSENT if found is None else found.value
        else:
            value = self._at_epoch(key, timeout)
        if value is not _ABSENT:
            return value
        if default is _RAISE:
            from anna.errors import KeyNotFound

            raise KeyNotFound(f"no value is stored under {key!r}, in this session")
        return default

    def _at_epoch(self, key: Key, timeout: float | None) -> Any:
        """Return the value of a key at the session's epoch, _ABSENT for none."""
        if self.shared and not PLANTED:  # nearly always, and then there is nothing to be done but to ask
            try:
                return self._store().get_at(key, self.state.snapshot, _ABSENT, timeout=timeout)
            except (Replaced, Expired):
                pass  # asked again, with all that belongs to it
        found = self._ask(lambda at: self._store().get_at(key, at, _ABSENT, timeout=timeout))
        if found is _ABSENT and "forget-absent" in PLANTED:
            return self._store().get(key, _ABSENT)
        return found

    def get_lattice(self, key: Key, default: Any = _RAISE, *, timeout: float | None = None) -> Any:
        """Return the lattice under `key`, in this session."""
        if not self.state.level.at_epoch:
            return self._store().get_lattice(key, *(() if default is _RAISE else (default,)), timeout=timeout)
        found = self._own(_name(key), timeout)
        if found is not None:
            return found
        return self.get(key, default, timeout=timeout)

    def _own(self, name: bytes, timeout: float | None = None) -> Any:
        """Return the lattice under a key in this session, None for none."""
        state = None
        if not self.state.hides(name):
            state = self._ask(lambda at: self._store().get_at(name, at, None, lattice=True, timeout=timeout))
            if state is None and "forget-absent" in PLANTED:
                state = self._store().get_lattice(name, None)
        with self._lock:
            return self.state.value(name, state)

    def mget(self, keys: Iterable[Key], default: Any = None, *, timeout: float | None = None) -> list[Any]:
        """Return the values of `keys`, in their order, in this session: all at one epoch."""
        names = list(keys)
        if not self.state.level.at_epoch:
            return list(read(lambda: self._store().mget(names, default, timeout=timeout)))
        own = [self.state.owns(_name(key)) for key in names]
        if not any(own):
            return list(self._ask(lambda at: self._store().mget_at(names, at, default, timeout=timeout)))
        return [self.get(key, default, timeout=timeout) for key in names]

    def put(self, key: Key, value: Any, **options: Any) -> Any:
        """Write, when the session commits; until then, for its own reads. At level eventual, at once."""
        from anna.lattices import LWW, Lattice

        if not self.state.level.at_epoch:
            return self._store().put(key, value, **options)
        lives_us = _lives_us(options)
        written, name = value if isinstance(value, Lattice) else LWW.of(value), _name(key)
        seen = None
        if self.state.must_see(written) and not self.state.hides(name):
            seen = self._ask(lambda at: self._store().get_at(name, at, None, lattice=True))
        with self._lock:
            self.state.put(name, written, seen, lives_us)
        return None

    def mput(self, items: Mapping[Any, Any] | Iterable[tuple[Key, Any]], **options: Any) -> Any:
        """Write each value of a mapping, or of pairs, when the session commits."""
        if not self.state.level.at_epoch:
            return self._store().mput(items, **options)
        for key, value in list(items.items() if isinstance(items, Mapping) else items):
            self.put(key, value, **options)
        return None

    def delete(self, key: Key, **options: Any) -> bool:
        """Forget `key`, when the session commits; return whether it was there. In this session it is gone at once."""
        if not self.state.level.at_epoch:
            return bool(self._store().delete(key, **options))
        if options:
            raise RequestError(f"a delete in a session has no {', '.join(options)}")
        was_there = self._own(_name(key)) is not None
        with self._lock:
            self.state.delete(_name(key))
        return was_there

    # -- calls in it

    def context(self) -> bytes:
        """Return what goes along with a call in this session, which reads at the same epoch and commits nothing."""
        return self.packed(closes=False)

    def packed(self, closes: bool) -> bytes:
        """Return the session as it goes on elsewhere; `closes`: whoever ends that part of it commits it."""
        if self.state.level.at_epoch:
            self.begin()
            if time.monotonic() > self._kept_until:
                self.renew()
        with self._lock:
            self._sent += 1
            return travel.sent.note(travel.pack(replace(self.state, closes=closes)))

    def renewed(self, at: tuple[int, int]) -> bytes | None:
        """Return what goes along once more with a call that found the epoch lost; None if it must be that one."""
        with self._lock:
            if not self.shared and self._sent == 1:  # nobody has read in this session but that call, which begins again
                self._sent = 0
                self._begin_later()
                return self.context()
        self.expired = self.expired or "a call in it has found that"
        return None

    def identify(self, high: int, low: int) -> None:
        """Take in which call it is that takes part."""

    def returned(self, context: bytes) -> None:
        """Take in what a call in this session has written."""
        self.shared = True
        with self._lock:
            self.state.absorb(travel.unpack(context, self.state.writer))

    def continued(self, context: bytes) -> bytes:
        """Return what goes along with the call that a function in this session has ended with."""
        return context

    # -- the end

    def ending(self) -> bytes:
        """Return the session as it goes back to the caller."""
        return travel.pack(self.state)

    def failed(self, context: bytes, tries: int) -> None:
        """Take in what a call in this session has told that raised."""

    def gave_up(self) -> bytes:
        """Return what a function in this session that has raised answers besides its exception."""
        return b""

    def told(self, context: bytes) -> bytes:
        """Return what a function in this session answers besides its result: what goes on, if anything does."""
        return context

    def commit(self) -> int:
        """Write what waits to be written; return the stamp of the commit, 0 when there was nothing."""
        with self._lock:
            self.require()
            if not self.state.buffered:
                return 0
            stamp = writer = 0
            try:
                if self.state.level.atomic:
                    writes = [own.write(key) for key, own in self.state.buffered.items()]
                    stamp = self._store().commit(writes, id=self.identity, after=self.state.after)
                    writer = writer_in_store(self.identity)
                    self._require_first(stamp)
                else:
                    stamp = self._written_plainly()
            except Unavailable as fault:
                words = f"the commit of a session: {type(fault).__name__}: {fault}"
                raise UnavailableError(words, definite=fault.definite) from fault
            self.state.committed(stamp, writer)
            return stamp

    @property
    def stamp(self) -> int:
        """The stamp of its commit, which a call in it has none of."""
        return 0

    def _require_first(self, stamp: int) -> None:
        """Raise SnapshotExpired if it was an earlier attempt that has committed, and this one has read what that wrote.

        It can be begun again at the epoch before that commit: then it answers as if it had been the one.
        """
        epoch, view = self.state.snapshot
        if self.state.begun and epoch_of(stamp) <= epoch:
            fault = SnapshotExpired("an earlier attempt at this session has committed", definite=False)
            fault.epoch, fault.view = epoch_of(stamp) - 1, view
            raise fault

    def require(self) -> None:
        """Raise SnapshotExpired if what it has read is not known any more: it cannot be ended well."""
        if self.expired:
            raise self.lost()

    def _written_plainly(self) -> int:
        """Write key by key: at level repeatable others may see some of it before the rest."""
        store, stamp, puts = self._store(), 0, {}
        for key, own in self.state.buffered.items():
            gone, request = own.requests()
            if gone:
                store.delete(key)
            if request is not None and own.lives_us:
                stamp = max(stamp, store.put(key, request, ttl=own.lives_us / 1e6).stamp)
            elif request is not None:
                puts[key] = request
        if puts:
            stamp = max(stamp, store.mput(puts).stamp)
        return int(stamp or store.stamp)

    def close(self) -> None:
        """End it: its epoch is held no longer."""
        keeper.release(self)


def _lives_us(options: dict[str, Any]) -> int:
    """Return for how many microseconds a put with these options lives, 0: for ever.

    Raises RequestError, NotSupported or ValueError.
    """
    if "if_stamp" in options:
        raise NotSupported("a put in a session does not compare: the owners of a key would have to agree until it ends")
    if options.keys() - {"ttl"}:
        raise RequestError(f"a put in a session has no {', '.join(options)}: it is written when the session ends")
    ttl: float | None = options.get("ttl")
    if ttl is None:
        return 0
    if not 0 < ttl <= TTL_S_MAX:
        raise ValueError(f"ttl is {ttl} s; it must be more than 0 and at most {TTL_S_MAX:,.0f}")
    return max(1, round(ttl * 1e6))


def _name(key: Key) -> bytes:
    """Return a key as bytes. Raises BadKey."""
    name = key.encode() if isinstance(key, str) else key
    if type(name) is not bytes or not 1 <= len(name) <= KEY_BYTES_MAX or name[0] == 0:
        from anna.errors import BadKey

        raise BadKey(f"a key is text or bytes, 1 to {KEY_BYTES_MAX:,} of them, the first no zero byte; got {key!r:.80}")
    return name


def opened(state: Session, store: Callable[[], Any], identity: bytes, node: str = "") -> Transaction:
    """Return an open session, which notes what is done in it if its client records that."""
    if not state.recorded:
        return Transaction(state, store, identity)
    from cloudburst.recording import Recorded

    return Recorded(state, store, identity, node)
