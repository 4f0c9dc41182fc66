"""A link hands on each body once, in order, whatever becomes of its frames."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anna import config
from anna.errors import ProtocolError, ValueTooLarge
from anna.kvs.link import HEADER, MORE, Frame, Link

MS: Final = 1_000_000
FIRST: Final = config.LINK_RESEND_FIRST_US * 1000
LONGEST: Final = config.LINK_RESEND_MAX_US * 1000
SEEDS: Final = st.integers(0, 2**32)


def pair() -> tuple[Link, Link]:
    return Link(1, 2, session=1), Link(2, 1, session=1)


def carry(source: Link, target: Link, now: int = 0) -> list[bytes]:
    """Carry all that `source` has to send now; return what comes out."""
    return [body for frame in source.poll(now) for body in target.receive(frame, now)]


class Network:
    """Two links over a wire that loses, repeats and reorders, as its dice fall. Time goes on 5 ms with each step."""

    def __init__(self, dice: Random, loss: float = 0.3) -> None:
        self.dice = dice
        self.loss = loss
        self.now = 0
        self.links = list(pair())
        self.wire: list[tuple[int, Frame]] = []
        self.sent: list[list[bytes]] = [[], []]
        self.taken: list[list[bytes]] = [[], []]

    def send(self, end: int, body: bytes) -> None:
        self.sent[end].append(body)
        self.links[end].send(body)

    def step(self) -> None:
        """Let both ends poll, and a few frames of the wire arrive."""
        self.now += 5 * MS
        for end, link in enumerate(self.links):
            for frame in link.poll(self.now):
                copies = 0 if self.dice.random() < self.loss else self.dice.choice((1, 1, 1, 2))
                self.wire += [(1 - end, frame)] * copies
        for _ in range(self.dice.randint(0, len(self.wire)) if self.loss else len(self.wire)):
            end, frame = self.wire.pop(self.dice.randrange(len(self.wire)) if self.loss else 0)
            self.taken[1 - end] += self.links[end].receive(frame, self.now)
        for link in self.links:
            link.check()

    def replace_broken(self, sessions: int) -> int:
        """Give ends that are broken their successors, which say what is to be said at last; return the last session."""
        for end, link in enumerate(self.links):
            if link.broken:
                sessions += 1
                self.links[end] = link.successor(sessions)
                self.links[end].send(b"at last %d" % end)
        return sessions

    def heal(self) -> None:
        """No frame is lost any more, nor overtaken."""
        self.loss = 0.0


@given(SEEDS, st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=20)), max_size=60))
def test_bodies_come_out_once_and_in_order(seed: int, sends: list[tuple[int, bytes]]) -> None:
    """D13: what is lost is sent again until it has arrived, and has an effect once."""
    dice = Random(seed)
    network = Network(dice)
    for end, body in sends:
        network.send(end, body)
        for _ in range(dice.randint(0, 3)):
            network.step()
    for end in (0, 1):
        assert network.taken[end] == network.sent[end][: len(network.taken[end])]
    network.heal()
    healed_at = network.now
    while not all(link.idle for link in network.links):
        network.step()
        assert network.now < healed_at + 2 * LONGEST
    assert network.taken == network.sent


@given(SEEDS, st.integers(1, 40))
def test_long_bodies_arrive_whole(seed: int, kibibytes: int) -> None:
    dice = Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "LINK_FRAGMENT_BYTES", 1024)
        patch.setattr(config, "LINK_WINDOW_BYTES", 8 * 1024)
        network = Network(dice)
        for size in (3, kibibytes * 1024, 0, kibibytes * 1024 + 1, 5):
            network.send(0, dice.randbytes(size))
        for _ in range(20):
            network.step()
        network.heal()
        while not network.links[0].idle:
            network.step()
            assert network.now < 10 * LONGEST
        assert network.taken[0] == network.sent[0]


def test_a_body_goes_out_at_once_and_its_number_is_confirmed() -> None:
    here, there = pair()
    assert here.due() is None
    numbers = [here.send(b"first"), here.send(b"x" * (config.LINK_FRAGMENT_BYTES + 1)), here.send(b"last")]
    assert numbers == [1, 3, 4]
    assert here.due() == 0
    assert carry(here, there) == [b"first", b"x" * (config.LINK_FRAGMENT_BYTES + 1), b"last"]
    assert (here.acked, here.idle) == (0, False)
    assert carry(there, here) == []
    assert (here.acked, here.idle, here.queued_bytes) == (4, True, 0)
    assert (here.due(), there.due()) == (None, None)


def test_a_lost_frame_is_sent_again_with_pauses_that_double() -> None:
    here, _ = pair()
    here.send(b"lost")
    sent_at = [now for now in range(0, 8_000 * MS, 50 * MS) if here.poll(now)]
    pauses = [b - a for a, b in pairwise(sent_at)]
    assert pauses == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, LONGEST, LONGEST]


def test_a_sign_of_life_ends_the_long_pauses() -> None:
    here, there = pair()
    here.send(b"lost")
    for _ in range(8):
        here.poll(here.due() or 0)
    now = here.due()
    assert now is not None
    there.send(b"I am back")
    assert carry(there, here, now - LONGEST + FIRST) == [b"I am back"]
    assert carry(here, there, now - LONGEST + FIRST) == [b"lost"]


def test_the_pause_follows_the_measured_round_trip() -> None:
    here, there = pair()
    now = 0
    for _ in range(50):
        here.send(b"ping")
        carry(here, there, now)
        now += 40 * MS
        carry(there, here, now)
    here.send(b"lost")
    here.poll(now)
    assert here.due() == now + 80 * MS


def test_a_fast_peer_is_given_time_all_the_same() -> None:
    here, there = pair()
    here.send(b"ping")
    carry(here, there, 0)
    carry(there, here, 1000)
    here.send(b"lost")
    here.poll(1000)
    assert here.due() == 1000 + config.LINK_RESEND_MIN_US * 1000


def test_a_frame_that_was_sent_twice_measures_no_round_trip() -> None:
    here, there = pair()
    here.send(b"ping")
    frames = here.poll(0) + here.poll(FIRST)
    there.receive(frames[0], FIRST)
    carry(there, here, FIRST + 1)
    here.send(b"lost")
    here.poll(FIRST + 1)
    assert here.due() == 2 * FIRST + 1


def test_after_a_broken_connection_everything_is_sent_again_as_confirmations_come() -> None:
    here, there = pair()
    bodies = [b"%d" % i + bytes(8000) for i in range(400)]
    for body in bodies:
        here.send(body)
    assert len(here.poll(0)) == 400
    now, taken = FIRST, []
    for _ in range(8):
        taken += carry(here, there, now)
        carry(there, here, now)
        now += MS
    assert taken == bodies
    assert here.repeats == 400


def test_one_lost_frame_of_many_is_all_that_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = pair()
    for i in range(500):
        here.send(b"%d" % i)
    taken = [body for frame in here.poll(0)[1:] for body in there.receive(frame, 0)]
    assert taken == []
    monkeypatch.setattr(config, "LINK_RESEND_BYTES", 1)
    assert carry(here, there, FIRST) == [b"%d" % i for i in range(500)]
    carry(there, here, FIRST)
    assert (here.idle, here.repeats) == (True, 1)


def test_the_window_bounds_bytes_and_frames_on_the_way() -> None:
    here, there = pair()
    for _ in range(64):
        here.send(bytes(200_000))
    first = here.poll(0)
    assert sum(len(fragment) for _, fragment in first) <= config.LINK_WINDOW_BYTES
    assert len(first) == config.LINK_WINDOW_BYTES // 200_000
    assert here.queued_bytes == 64 * 200_000
    for frame in first:
        there.receive(frame, 0)
    carry(there, here)
    assert len(here.poll(0)) == len(first)
    many, _ = pair()
    for _ in range(5000):
        many.send(b"x")
    assert len(many.poll(0)) == config.LINK_WINDOW_FRAMES


def test_frames_that_come_too_early_are_held_within_the_window() -> None:
    _, there = pair()
    far = HEADER.pack(1, 2, 1, 0, config.LINK_WINDOW_FRAMES + 1, 0, 3), b"far"
    near = HEADER.pack(1, 2, 1, 0, config.LINK_WINDOW_FRAMES, 0, 4), b"near"
    assert there.receive(far, 0) == there.receive(near, 0) == []
    there.check()
    assert len(there.poll(0)) == 1


def test_nothing_is_taken_from_or_for_another_incarnation() -> None:
    """D13: the process that took a dead one's place has none of its memory, so it starts its own link."""
    here, _ = pair()
    other, successor = Link(3, 1, session=1), Link(2, 4, session=1)
    other.send(b"from another")
    successor.send(b"for another")
    assert carry(other, here) == carry(successor, here) == []
    assert here.strangers == 2
    assert here.poll(0) == []


def test_a_peer_that_forgot_the_link_breaks_it_and_both_begin_anew() -> None:
    """D13: were the numbers of the new end taken for repeats, what it sends would be lost without a trace."""
    here, there = pair()
    for body in (b"a", b"b"):
        here.send(body)
        there.send(body)
    carry(here, there)
    carry(there, here)
    carry(here, there)
    anew = Link(2, 1, session=2)
    anew.send(b"c")
    assert carry(anew, here) == []
    assert here.broken
    assert (here.poll(FIRST), here.due()) == ([], None)
    here = here.successor(session=2)
    here.send(b"d")
    assert carry(here, anew) == [b"d"]
    assert carry(anew, here, FIRST) == [b"c"]
    assert not anew.broken
    carry(here, anew, FIRST)
    assert anew.idle
    assert here.idle


@given(SEEDS)
def test_ends_that_are_forgotten_at_any_time_find_each_other_again(seed: int) -> None:
    dice = Random(seed)
    network = Network(dice, loss=0.2)
    sessions = 1
    for number in range(60):
        network.links[dice.randint(0, 1)].send(b"%d" % number)
        network.step()
        if dice.random() < 0.1:
            end = dice.randint(0, 1)
            sessions += 1
            network.links[end] = Link(end + 1, 2 - end, session=sessions)
        sessions = network.replace_broken(sessions)
    network.heal()
    healed_at, sessions_then = network.now, sessions
    for end, link in enumerate(network.links):
        link.send(b"at last %d" % end)
    while not all(link.idle for link in network.links):
        network.step()
        sessions = network.replace_broken(sessions)
        assert network.now < healed_at + 3 * LONGEST
    assert sessions <= sessions_then + 2
    assert [taken[-1] for taken in network.taken] == [b"at last 0", b"at last 1"]


def test_a_body_longer_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = pair()
    monkeypatch.setattr(config, "LINK_BODY_BYTES_MAX", 10)
    with pytest.raises(ValueTooLarge, match=r"11 bytes; link_body_bytes_max is 10"):
        here.send(bytes(11))
    assert here.idle


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ((b"short", b""), "at least 44 bytes"),
        ((HEADER.pack(1, 2, 1, 0, 1, 0, 4), b"abc"), "says 4 bytes, has 3"),
        ((HEADER.pack(1, 2, 1, 0, 0, 0, 3), b"abc"), "frame 0 of session 1"),
        ((HEADER.pack(1, 2, 0, 0, 1, 0, 3), b"abc"), "frame 1 of session 0"),
        ((HEADER.pack(1, 2, 1, 1, 0, 9, 0), b""), "confirms frame 9 of a link; 0 were sent"),
    ],
)
def test_what_no_link_sends_is_a_protocol_error(frame: Frame, why: str) -> None:
    _, there = pair()
    with pytest.raises(ProtocolError, match=why):
        there.receive(frame, 0)


def test_a_body_that_never_ends_is_a_protocol_error_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    _, there = pair()
    monkeypatch.setattr(config, "LINK_BODY_BYTES_MAX", 10)
    parts = [(HEADER.pack(1, 2, 1, 0, number, 0, 4 | MORE), b"part") for number in (1, 2, 3)]
    assert there.receive(parts[0], 0) == there.receive(parts[1], 0) == []
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        there.receive(parts[2], 0)
    assert there.broken
