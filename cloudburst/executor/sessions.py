"""The session that one function, or one stage of a graph, runs in: opened before, handed on or committed after.

The one rule: a function that raises has written nothing, and neither has one whose session has lost its epoch, whatever
it returned or raised; one that is stopped is answered as stopped. Who opened a session commits it: the executor that
ends the outermost function, if the call asked for a session by itself, and otherwise whoever gets the answer. The id of
the commit is the call's, so of all its attempts one has an effect. Source: DESIGN §4; decision record 0030.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloudburst.consistency import travel
from cloudburst.consistency.session import joined_branches, writer_of
from cloudburst.continuing import Continuing
from cloudburst.executor.invoker import OURS
from cloudburst.transactions import Transaction, opened

if TYPE_CHECKING:
    from cloudburst.executor.queue import Call


class Held:
    """One call's session. `told` is what goes back with the answer."""

    def __init__(self, call: Call, contexts: Sequence[bytes], store: Callable[[], Any], run: int = 0) -> None:
        writer = writer_of(call.high, call.low)
        state = joined_branches(travel.unpack(context, writer) for context in contexts)
        identity = call.high.to_bytes(8, "big") + (run or call.low).to_bytes(8, "big")
        self.open = opened(state, store, identity)
        if state.recorded:
            OURS.add(type(self.open).get.__code__.co_filename)
        self.told = b""

    @contextmanager
    def around(self) -> Iterator[Transaction]:
        """Run a function in here. Raises SnapshotExpired in place of whatever it made of that.

        What is no Exception is not made of it: Interrupted, a coroutine's CancelledError, which end the call for good.
        """
        self.open.resume()
        try:
            yield self.open
        except Continuing:
            self.told = self.open.told(self.handed_on())
            raise
        except Exception as error:
            if self.open.expired:  # anew, for what has passed the user's code counts as the user's
                raise self.open.lost() from error
            self.told = self.open.gave_up()
            raise
        finally:
            self.open.close()

    def handed_on(self) -> bytes:
        """Return what goes along to those who go on with the session: all of them at one epoch.

        Raises SnapshotExpired if that is lost: what the function made of it is not handed on either.
        """
        self.open.require()
        context = self.open.packed(self.open.state.closes)
        self.told = self.open.told(b"")
        return context

    def end(self) -> None:
        """Commit what was written, or send it back to who will. Raises what the commit raises."""
        state = self.open.state
        self.open.require()
        if state.closes:
            self.open.commit()
        if not state.closes or state.level.carried or state.recorded or state.commit:
            self.told = self.open.told(self.open.ending())


OURS.update((__file__, Transaction.get.__code__.co_filename, contextmanager.__code__.co_filename))
