"""What a node says that waits for a cluster: pure, by a clock of the test's own."""

from __future__ import annotations

import itertools

from anna.waiting import Waiting


def test_it_is_said_after_two_seconds_and_then_ever_more_seldom() -> None:
    waiting = Waiting(begun=100.0)
    said = []
    for tenths in range(1000, 5000):
        if waiting.is_due(tenths / 10):
            waiting.say(tenths / 10, 1, {"tcp://h:1": "Connection refused"}, 0)
            said.append(tenths / 10 - 100.0)
    assert said[:6] == [2, 6, 14, 30, 62, 122]
    assert {later - earlier for earlier, later in itertools.pairwise(said[5:])} == {60}


def test_it_names_the_seeds_the_time_the_tries_and_what_came_of_them() -> None:
    reasons = {"tcp://h:1": "Connection refused", "unix:/run/w0.sock": "connected, without an answer"}
    assert Waiting(0.0).say(12.4, 1234, reasons, 2) == (
        "waiting to join: none of the 2 seeds has answered for a cluster in 12 s, asked 1,234 times: "
        "tcp://h:1 (Connection refused), unix:/run/w0.sock (connected, without an answer); "
        "2 messages came from a cluster of another name. "
        "It serves no key until one does, and goes on asking, at most 5 s apart"
    )


def test_one_seed_that_was_asked_once_is_spoken_of_in_the_singular() -> None:
    said = Waiting(0.0).say(2.0, 1, {"tcp://h:1": "Connection refused"}, 0)
    assert said.startswith("waiting to join: the seed has not answered for a cluster in 2 s, asked 1 time: tcp://h:1 (")
