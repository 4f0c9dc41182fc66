"""When it pays to stay awake: experience, on a clock of the test's own."""

from __future__ import annotations

from anna.shared.patience import Patience

MOST = 50_000


def test_a_moment_in_vain_is_followed_by_a_rest_that_doubles() -> None:
    patience, now, rests = Patience(MOST), 0, []
    for _ in range(6):
        assert patience.is_worth_it(now)
        now += MOST
        patience.learn(now, MOST, False)
        rest = 0
        while not patience.is_worth_it(now + rest):
            rest += MOST
        rests.append(rest // MOST)
        now += rest
    assert rests == [32, 64, 128, 256, 512, 1024]


def test_a_moment_that_has_paid_ends_the_rests() -> None:
    patience = Patience(MOST)
    patience.learn(0, MOST, False)
    patience.learn(10**9, MOST, False)
    patience.learn(2 * 10**9, 1000, True)
    assert patience.is_worth_it(2 * 10**9)
    patience.learn(3 * 10**9, MOST, False)
    assert patience.is_worth_it(3 * 10**9 + 32 * MOST)


def test_what_came_much_later_than_one_would_wait_has_not_paid() -> None:
    patience = Patience(MOST)
    patience.learn(0, 60 * MOST, True)
    assert not patience.is_worth_it(31 * 60 * MOST)
    assert patience.is_worth_it(32 * 60 * MOST)


def test_at_most_a_thirtieth_of_the_time_goes_by_in_vain() -> None:
    patience, now, wasted = Patience(MOST), 0, 0
    while now < 60 * 10**9:
        if patience.is_worth_it(now):
            wasted += 3_000_000  # somebody else had the processor meanwhile
            now += 3_000_000
            patience.learn(now, 3_000_000, False)
        now += 100_000
    assert wasted < now / 30


def test_nobody_stays_awake_for_a_moment_of_no_length() -> None:
    assert not Patience(0).is_worth_it(0)
