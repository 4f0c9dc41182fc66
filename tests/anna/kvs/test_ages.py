"""How old the stable epoch is, as `anna status` says it."""

from __future__ import annotations

from anna.config import AGE_EPOCHS_MAX, AGE_WINDOW_EPOCHS
from anna.kvs.ages import REST_EPOCHS, Ages
from tests.anna.frames import put
from tests.anna.kvs.workers import Workers, view_of


def noted(*ages: int) -> Ages:
    """Return the ages of a worker that has had work for a while."""
    kept = Ages()
    for age in (*[50] * REST_EPOCHS, *ages):
        kept.note(age, True)
    return kept


def test_half_of_the_ages_and_nearly_all_of_them_are_told() -> None:
    kept = noted(*[1] * 60, *[2] * 38, 9, 9)
    assert (kept.percentile(50), kept.percentile(98), kept.percentile(99)) == (1, 2, 9)


def test_nothing_is_told_before_there_was_work() -> None:
    kept = Ages()
    kept.note(7, False)
    assert (kept.percentile(50), kept.percentile(99)) == (0, 0)


def test_what_is_old_because_nobody_wrote_is_not_counted() -> None:
    kept = noted(1)
    for _ in range(100):
        kept.note(70, False)
    for age in (71, 72, 3, 2):
        kept.note(age, True)
    assert (kept.percentile(50), kept.percentile(99)) == (1, 2)


def test_ages_of_long_ago_are_forgotten_and_great_ones_counted_alike() -> None:
    kept = noted(*[AGE_EPOCHS_MAX + 800] * 100)
    assert kept.percentile(99) == AGE_EPOCHS_MAX
    for _ in range(2 * AGE_WINDOW_EPOCHS):
        kept.note(1, True)
    assert kept.percentile(100) == 1


def test_while_one_client_writes_the_stable_epoch_is_at_most_three_epochs_old() -> None:
    workers = Workers(view_of(1, workers=2), skew_us=4_000)
    for number in range(200):
        for ids in workers.workers:
            workers.ask(ids, put(b"%d" % number, b"v", ack=1))
        workers.pass_epochs()
    for worker in workers.workers.values():
        figures = worker.status()
        assert 1 <= figures["stable_age_p50"] <= figures["stable_age_p99"] <= 3
    workers.check()


def test_a_worker_that_is_silent_shows_in_the_ages_of_the_other() -> None:
    workers = Workers(view_of(2, factor=2))
    workers.stop(200)
    for number in range(100):
        workers.ask(100, put(b"%d" % number, b"v", ack=1))
        workers.pass_epochs()
    assert workers.workers[100].status()["stable_age_p99"] > 50
