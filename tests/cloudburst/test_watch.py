"""What functions watch is pushed to them by their node's cache, and looking at it does not wait."""

from __future__ import annotations

import cloudburst as cb
from anna.lattices import Bool, Priority
from cloudburst.errors import NotSupported


def look(best: str, stop: str) -> list[float]:
    """Look at a key until told to stop; return each priority that it was seen at."""
    import cloudburst

    watched, stopped = cloudburst.watch(best), cloudburst.watch(stop)
    seen: list[float] = []
    while not stopped.value and cloudburst.ctx().remaining > 1:
        found = watched.lattice
        if found is not None and (not seen or found.priority != seen[-1]):
            seen.append(found.priority)
            cloudburst.put(f"{best}/seen", Priority(found.priority, "seen"))
    return seen


def test_a_running_function_sees_what_is_offered_meanwhile_and_it_only_falls(client: cb.Client) -> None:
    client.register(look)
    looking = client.options(timeout=30).spawn("look", "watch/best", "watch/stop")
    with client.watch("watch/best/seen", timeout=20) as seen:
        for cost in (9.0, 4.0, 6.0, 2.0):
            client.put("watch/best", Priority(cost, "a path"))
            if cost != 6.0:
                next(seen)  # so each of them was there for a while
    client.put("watch/stop", Bool(True))
    assert looking.result() == [9.0, 4.0, 2.0]


def watch_in_session(key: str) -> object:
    import cloudburst

    try:
        return cloudburst.watch(key).value
    except cloudburst.NotSupported as fault:
        return str(fault)


def test_a_session_sees_one_moment_and_watches_nothing(client: cb.Client) -> None:
    client.register(watch_in_session)
    assert "cannot be watched in a session" in client.options(session="repeatable").call("watch_in_session", "k")
    assert client.call("watch_in_session", "nothing-here") is None
    assert issubclass(NotSupported, cb.CloudburstError)
