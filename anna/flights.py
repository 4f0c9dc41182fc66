"""How the asyncio client's requests find their workers: channels to the addresses of the view, and the next owner.

The one rule: no call waits for one worker alone. To be reached, an owner gets a share of the call's time, so that there
is some left to look for a newer view and to ask another; to answer a read, too. A write that was sent is waited for to
the end: nobody else may be asked for it. The blocking client's counterpart is `anna.connections`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import msgpack

from anna.channels import Answer, Channel, dial
from anna.commits import Commit, Message, Verdict
from anna.config import OWNER_SHARE_MIN_NS, VIEW_LOOK_MIN_NS
from anna.errors import AnnaError, ConnectionLost, NotAdmitted, NoWorkers, RequestTimeout, StaleReplica
from anna.keys import Keys
from anna.messages import View
from anna.requester import Requester
from anna.routes import Route, may_ask_again, time_to_reach
from anna.wire import OK, STALE, VIEW, WRONG_WORKER

Key = str | bytes

RETRY_PAUSE_S: Final = 0.005
RETRY_PAUSE_NS: Final = 5_000_000
GRACE_S: Final = 0.1
"""How long after its deadline a call is ended from outside, should it not have ended by itself."""


@dataclass(slots=True)
class Batch:
    """Many keys under way together: until when, and what has kept some of them from their answers."""

    keys: list[Key]
    reads: bool
    deadline: int
    rounds: int = 0
    stale: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Flight:
    """One worker's part of a round of `batch`: the indexes of its keys, and until when it may be reached and answer.

    `place` is one of `view`.
    """

    batch: Batch
    view: View
    place: int
    strict: int
    indexes: list[int]
    reach: int
    limit: int


class Flights:
    """What `AsyncClient` builds its operations on. Its view is the requester's."""

    def __init__(
        self,
        seeds: Iterable[str],
        timeout: float,
        requester: Requester,
        now: Callable[[], int],
        keys: Keys | None = None,
    ) -> None:
        self.seeds = tuple(seeds)
        self.keys = keys
        self.timeout = timeout
        self.closed = False
        self._requester = requester
        self._now = now
        self._channels: dict[str, Channel] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0

    @property
    def view(self) -> View:
        """The workers as this client knows them."""
        return self._requester.view

    async def reach(self) -> None:
        """Learn who is in the cluster from the first seed that answers. Raises NoWorkers."""
        await self._refresh(self._until(None))

    # -- one key

    async def _ask(
        self,
        key: Key,
        timeout: float | None,
        reads: bool,
        frame: Callable[[int], tuple[int, bytes]],
        connect: Callable[[int, int], Awaitable[Channel]] | None = None,
    ) -> Answer:
        """Send one single-key request on its route; `frame` makes it from the stamp up to which to be current."""
        now = self._now()
        deadline = self._until(timeout)
        # The route knows the key before any wait, so a bad key is refused at once.
        route = self._requester.route(key, reads, now, deadline)
        error: Exception | None = None
        async with self._ended_by(deadline):
            while (now := self._now()) + OWNER_SHARE_MIN_NS // 50 < deadline:
                step, view = route.step(now), self.view
                if step is None:
                    await self._look_around(route, deadline)
                    continue
                sent = False
                try:
                    channel = await (connect or self._channel)(step.place, min(step.limit, self._reach(deadline)))
                    if self.view is not view:
                        continue  # the place may be another worker's by now
                    sent = True
                    async with self._limited(step.limit):
                        answer: Answer = await channel.ask(*frame(step.strict))
                except (ConnectionLost, NoWorkers, TimeoutError) as problem:
                    if self.closed or not may_ask_again(reads, sent):
                        raise
                    if sent or error is None:
                        error = problem  # not the one that was not sent, once one was: what was sent may still arrive
                    self._missed(view, step.place)
                    continue
                self._heard(view, step.place, [key], answer)
                if answer.status == STALE:
                    route.stale = True
                elif answer.status != WRONG_WORKER:
                    return answer
                else:
                    if not self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload))):
                        await self._pause()
                    route.restart(self._now())
            raise self._given_up(repr(key), route.stale, error)

    async def _look_around(self, route: Route, deadline: int) -> None:
        """All owners were tried: pause, look for a newer view, and begin again."""
        await self._pause()
        if not route.stale:
            with contextlib.suppress(NoWorkers):
                await self._refresh(self._share(deadline, 2))
        route.restart(self._now())

    # -- many keys

    async def _rounds(self, batch: Batch, fly: Callable[[Flight], Awaitable[list[int]]]) -> None:
        """Ask for the keys in flights, one to each worker, until none is left over: `fly` returns those that are."""
        async with self._ended_by(batch.deadline):
            wanted = list(range(len(batch.keys)))
            while wanted:
                copies = self._requester.copies
                reach, limit = self._reach(batch.deadline), batch.deadline
                if batch.reads:
                    limit = self._share(batch.deadline, max(copies - batch.rounds, 1))
                flights = [
                    Flight(batch, self.view, place, strict, some, min(reach, limit), limit)
                    for (place, strict), some in self._group(batch, wanted).items()
                ]
                left = await _all_of([asyncio.ensure_future(fly(flight)) for flight in flights])
                wanted = sorted(index for some in left for index in some)
                if wanted:
                    await self._turn(batch, len(wanted))

    async def _turn(self, batch: Batch, count: int) -> None:
        """Get ready for one more round: at once while there are owners that were not asked."""
        batch.rounds += 1
        now = self._now()
        if batch.error is not None and batch.rounds < self._requester.copies and now < batch.deadline:
            return
        if self.closed or now + RETRY_PAUSE_NS >= batch.deadline:
            raise self._given_up(f"{count:,} of {len(batch.keys):,} keys", batch.stale, batch.error)
        await self._pause()
        try:
            await self._refresh(self._share(batch.deadline, 2))
        except NoWorkers as nobody:
            batch.error = batch.error or nobody

    async def _fly(self, flight: Flight, request: Callable[[], tuple[int, bytes]]) -> Answer | None:
        """Return a worker's answer; None when others are to be asked. Raises what nobody can know the outcome of."""
        batch, sent = flight.batch, False
        try:
            channel = await self._channel(flight.place, flight.reach)
            if self.view is not flight.view:
                return None  # the place may be another worker's by now
            sent = True
            async with self._limited(flight.limit):
                answer: Answer = await channel.ask(*request())
        except (ConnectionLost, NoWorkers, TimeoutError) as error:
            if self.closed or not may_ask_again(batch.reads, sent):
                raise
            batch.error = error
            self._missed(flight.view, flight.place)
            return None
        self._heard(flight.view, flight.place, [batch.keys[index] for index in flight.indexes], answer)
        if answer.status == STALE:
            batch.stale = True
            return None
        return answer

    def _group(self, batch: Batch, wanted: list[int]) -> dict[tuple[int, int], list[int]]:
        """Return {(place, stamp up to which it must be current): indexes of its keys}."""
        groups: dict[tuple[int, int], list[int]] = {}
        requester, now = self._requester, self._now()
        for index in wanted:
            key = batch.keys[index]
            if not requester.troubled:
                groups.setdefault((requester.owner(key), 0), []).append(index)
                continue
            place = requester.trusted_owner(key, now)
            strict = requester.strict_stamp(key, place) if batch.reads and place >= 0 else 0
            groups.setdefault((place, strict), []).append(index)
        return groups

    # -- writes that take effect together

    async def _commit(self, commit: Commit, ack: str | int | None, deadline: int) -> int:
        """Drive a transaction until its end is known; return its stamp."""
        async with self._ended_by(deadline):
            while self._now() + OWNER_SHARE_MIN_NS // 50 < deadline:
                try:
                    messages = commit.begin(self._owner_of, self._requester.first_at)
                except NoWorkers:
                    await self._look_for_view(deadline)
                    continue
                await self._tell_each(commit, messages, ack, self._share(deadline, 2))
                while commit.verdict is Verdict.UNKNOWN and self._now() < deadline:
                    await self._look_for_view(deadline)
                    with contextlib.suppress(NoWorkers):
                        questions = commit.ask(self._owner_of, self._requester.first_at)
                        await self._tell_each(commit, questions, ack, self._share(deadline, 2))
                for message in commit.ending():
                    await self._announce(message, deadline)
                if commit.verdict is Verdict.COMMITTED:
                    self._requester.note(commit.stamp)
                    return commit.stamp
                if commit.refusal is not None:
                    raise self._requester.failure(commit.refusal[0], commit.refusal[1].encode())
                if commit.verdict is Verdict.UNKNOWN:
                    raise RequestTimeout("nobody knew by the deadline whether the transaction was committed")
                if commit.view is None or not self._requester.adopt(View.from_wire(msgpack.unpackb(commit.view))):
                    await self._look_for_view(deadline)
            raise NoWorkers("the owners of the keys did not all prepare the transaction before the deadline")

    def _owner_of(self, key: bytes) -> int:
        """Return the id of the worker that is asked to prepare a write of `key`. Raises NoWorkers."""
        requester = self._requester
        place = requester.trusted_owner(key, self._now()) if requester.troubled else requester.owner(key)
        if not 0 <= place < len(self.view.workers):
            raise NoWorkers("the view names no worker")
        return self.view.workers[place].worker_id

    async def _tell_each(self, commit: Commit, messages: list[Message], ack: str | int | None, limit: int) -> None:
        """Send messages, and take what comes back by `limit`."""

        async def tell(message: Message) -> None:
            sent = False
            try:
                channel = await self._channel(self._place_of(message.worker_id), limit)
                sent = True
                async with self._limited(limit):
                    answer: Answer = await channel.ask(
                        *self._requester.transaction_request(message.op, message.payload, ack)
                    )
            except (ConnectionLost, NoWorkers, TimeoutError):
                self._requester.suspect_worker(message.worker_id, self._now())
                commit.missed(message.worker_id, sent)
                return
            self._requester.note(answer.stamp, self._place_of(message.worker_id))
            commit.answered(message.worker_id, answer.status, answer.payload)

        await asyncio.gather(*(tell(message) for message in messages))

    async def _announce(self, message: Message, deadline: int) -> None:
        """Tell an owner how a transaction has ended; it finds out by itself if it does not hear."""
        with contextlib.suppress(NoWorkers):
            channel = await self._channel(self._place_of(message.worker_id), self._share(deadline, 2))
            channel.tell(self._requester.announcement(message.op, message.payload))

    def _place_of(self, worker_id: int) -> int:
        """Return the place of a worker in the view of now, -1 when it has none."""
        return next((place for place, worker in enumerate(self.view.workers) if worker.worker_id == worker_id), -1)

    async def _look_for_view(self, deadline: int) -> None:
        """Pause, and see whether there is a newer view."""
        await self._pause()
        with contextlib.suppress(NoWorkers):
            await self._refresh(self._share(deadline, 2))

    # -- what was heard

    def _given_up(self, what: str, stale: bool, error: Exception | None) -> Exception:
        """Return the error of a call that went round until its deadline; `error` is the last that it met."""
        if stale:
            return StaleReplica(f"no owner of {what} had all that this client has seen before the deadline")
        if isinstance(error, NoWorkers):
            return error
        if error is None:
            return NoWorkers(f"no worker took {what} for its own before the deadline")
        return RequestTimeout(f"no owner of {what} answered before the deadline, though each was tried again")

    def _missed(self, view: View, place: int) -> None:
        """The worker at a place of `view` was not reached or did not answer: others are asked first for a while."""
        if view is self.view:
            self._requester.suspect(place, self._now())

    def _heard(self, view: View, place: int, keys: list[Key], answer: Answer) -> None:
        """The worker at a place of `view` has answered about these keys. By now, the view may be another one."""
        by, moved = view.workers[place].worker_id, view is not self.view
        if moved:
            place = next((index for index, worker in enumerate(self.view.workers) if worker.worker_id == by), -1)
        self._requester.note(answer.stamp, place)
        if self._requester.troubled or moved:
            stable = max((channel.replies.stable for channel in self._channels.values()), default=0)
            for key in keys:
                self._requester.answered_by(key, by, answer.stamp, stable)
        if self._requester.behind:
            self._look_again()

    # -- time

    def _until(self, timeout: float | None) -> int:
        """Return the deadline of a call that begins now, in monotonic ns."""
        seconds = self.timeout if timeout is None else timeout
        if not seconds > 0:
            raise ValueError(f"timeout is {seconds} s; it must be positive")
        return self._now() + int(seconds * 1e9)

    def _reach(self, deadline: int) -> int:
        """Return until when an owner may take to be reached: others, or a newer view, are looked for after it."""
        return time_to_reach(self._now(), deadline, self._requester.copies)

    def _share(self, deadline: int, count: int) -> int:
        """Return until when the first of `count` may take, so that each has its share, and not too little."""
        now = self._now()
        return min(deadline, now + max((deadline - now) // count, OWNER_SHARE_MIN_NS))

    def _limited(self, limit: int) -> asyncio.Timeout:
        """Return what raises TimeoutError in its context at `limit`."""
        return asyncio.timeout((limit - self._now()) / 1e9)

    @contextlib.asynccontextmanager
    async def _ended_by(self, deadline: int) -> AsyncIterator[None]:
        """Raise RequestTimeout instead of a bare TimeoutError, at the latest a little after the deadline."""
        try:
            async with asyncio.timeout((deadline - self._now()) / 1e9 + GRACE_S):
                yield
        except AnnaError:
            raise
        except TimeoutError:
            raise RequestTimeout("no answer came by the deadline") from None

    async def _pause(self) -> None:
        await asyncio.sleep(RETRY_PAUSE_S)

    # -- channels

    async def _channel(self, place: int, reach: int) -> Channel:
        """Return the channel to the worker at `place`, opening it when needed. Raises NoWorkers, by `reach`."""
        if self.closed:
            raise NoWorkers("this client is closed")
        if not 0 <= place < len(self.view.workers):
            raise NoWorkers("the view names no worker")
        addresses = self._requester.addresses(place)
        if (channel := self._open_channel(addresses)) is not None:
            return channel
        try:
            async with self._limited(reach), self._opening.setdefault(addresses[0], asyncio.Lock()):
                channel = self._open_channel(addresses) or await self._open(place, reach)
                if self.closed:
                    channel.close()
                    raise NoWorkers("this client is closed")
                self._channels[channel.address] = channel
                return channel
        except TimeoutError:
            raise NoWorkers(f"worker {place} could not be reached: another call tries still") from None

    def _open_channel(self, addresses: list[str]) -> Channel | None:
        channels = (self._channels.get(address) for address in addresses)
        return next((channel for channel in channels if channel is not None and channel.failure is None), None)

    async def _open(self, place: int, reach: int) -> Channel:
        """Return a new connection to the worker at `place`, trying its addresses in turn, once. Raises NoWorkers."""
        reasons = []
        addresses = self._requester.addresses(place)
        for number, address in enumerate(addresses):
            try:
                async with self._limited(self._share(reach, len(addresses) - number)):
                    return await dial(address, self._requester, self.keys)
            except OSError as error:
                reasons.append(f"{address}: {error.strerror or str(error) or 'no answer in time'}")
                if isinstance(error, NotAdmitted) and len(reasons) == len(addresses):
                    raise
        raise NoWorkers(f"worker {place} could not be reached ({'; '.join(reasons)})")

    def _drop_channels(self) -> None:
        """End every connection, with whatever waits on it."""
        if self._looking is not None:
            self._looking.cancel()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(ConnectionLost("this client was closed"))

    # -- the view

    def _look_again(self) -> None:
        """An answer told of another view: see beside the calls whether it is a newer one; not too often."""
        now = self._now()
        if self.closed or self._looking is not None or now - self._looked_at < VIEW_LOOK_MIN_NS:
            return
        self._looked_at, self._requester.behind = now, False
        self._looking = asyncio.get_running_loop().create_task(self._look())
        self._looking.add_done_callback(self._have_looked)

    async def _look(self) -> None:
        with contextlib.suppress(NoWorkers):
            await self._refresh(self._until(None))

    def _have_looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled():
            looking.result()

    async def _refresh(self, deadline: int) -> None:
        """Ask the workers that are known, then the seeds, for the view. Raises NoWorkers when none answers.

        Each gets its share of the time, and those that did not answer lately come last.
        """
        reasons = []
        requester, workers = self._requester, self.view.workers
        known = [(w.worker_id in requester.suspects, requester.addresses(i)) for i, w in enumerate(workers)]
        likely = [address for suspected, addresses in known if not suspected for address in addresses]
        addresses = list(dict.fromkeys([*likely, *self.seeds, *(a for _, some in known for a in some)]))
        for number, address in enumerate(addresses):
            try:
                async with self._limited(self._share(deadline, len(addresses) - number)):
                    await self._learn_view(address)
                return
            except (AnnaError, OSError, ValueError) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or str(error) or 'no answer in time'}")
                if isinstance(error, NotAdmitted) and len(addresses) == 1:
                    raise
        raise NoWorkers(f"no worker answered at {'; '.join(reasons) or 'any address: none was given'}")

    async def _learn_view(self, address: str) -> None:
        channel = await dial(address, self._requester, self.keys)
        try:
            answer = await channel.ask(*self._requester.request(VIEW))
            if answer.status != OK:
                raise self._requester.failure(answer.status, answer.payload)
            self._requester.settle(channel.replies.stable)
            self._requester.adopt(View.from_wire(msgpack.unpackb(answer.payload)))
            self._requester.reached(address)
        finally:
            channel.close()


async def _all_of(flights: list[asyncio.Future[list[int]]]) -> list[list[int]]:
    """Return what all flights give. When one fails, the others end before its error is raised."""
    try:
        return await asyncio.gather(*flights)
    except BaseException:
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        raise
