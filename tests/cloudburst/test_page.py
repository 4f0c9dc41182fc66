"""The node's page: one writer for each word, and enough in it to know what a dead executor had begun."""

from __future__ import annotations

import mmap
import random

import pytest

from cloudburst.page import BLOCKED, IDLE, READY, RUNNING, Chooser, Page, page_bytes, summary_of


def page(slots: int = 4) -> Page:
    buffer = mmap.mmap(-1, page_bytes(slots))
    Page.format(buffer, slots, 99, 0x030B)
    return Page(buffer)


def settled(page: Page, number: int, invocation: int) -> None:
    page.begin(number, 1, invocation, 1000, b"f", 0)
    page.end(number)
    page.settle(number, False)


def test_what_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="4096 bytes that are no node page"):
        Page(mmap.mmap(-1, 4096))
    short = bytearray(page_bytes(4))
    Page.format(short, 4, 1, 1)
    with pytest.raises(ValueError, match="no node page"):
        Page(bytes(short[:-1]))


def test_reader_of_a_page_cannot_write_it() -> None:
    buffer = bytearray(page_bytes(1))
    Page.format(buffer, 1, 5, 0x030B)
    reader = Page(bytes(buffer))
    assert (reader.incarnation, reader.python, reader.slots) == (5, 0x030B, 1)
    for write in (reader.bump, lambda: reader.set_pid(0, 1), lambda: reader.set_store("a", "b")):
        with pytest.raises(PermissionError):
            write()


def test_the_node_that_has_most_of_some_keys_is_found() -> None:
    one = page()
    ours, theirs = [b"a%d" % number for number in range(100)], [b"b%d" % number for number in range(100)]
    assert one.near(ours) == 0, "nobody has said anything"
    one.summarize(0, 99, summary_of(ours))
    one.summarize(3, 55, summary_of(theirs))
    assert [one.near(ours), one.near(theirs), one.near([b"c1"])] == [99, 55, 0]
    assert [one.near([*ours[:2], theirs[0]]), one.near([ours[0], *theirs[:2]])] == [99, 55]
    assert one.near([ours[0], theirs[0]]) == 99, "the node's own where no other has more"
    assert one.summary_at(3)[:2] == (55, 1)
    one.summarize(3, 0, b"")
    assert one.near(theirs) == 0
    wrong = sum(one.near([b"d%d" % number]) != 0 for number in range(1000))
    assert wrong <= 2, "hardly ever a key that is not there"
    with pytest.raises(ValueError, match="8192"):
        one.summarize(1, 5, b"short")


def test_an_idle_executor_of_the_nearer_node_is_chosen_first() -> None:
    buffer = mmap.mmap(-1, page_bytes(4))
    Page.format(buffer, 4, 99, 0x030B, 2)
    one = Page(buffer)
    one.occupy(0, 1)
    one.mirror(2, 8, 100, 55, 0, 1, "unix:/a")
    one.mirror(3, 9, 101, 66, 0, 1, "unix:/b")
    choose = Chooser(one)
    for slot, life in one.ready().items():
        choose.grant(slot, life)
    assert [choose.claim(0), choose.claim(0, 66), choose.claim(0, 66)] == [0, 3, 3]
    assert choose.claim(0, 66) == 2, "whoever is idle, where two are before it"


def test_slot_out_of_range_is_refused() -> None:
    with pytest.raises(IndexError, match="slot 4; the page has 4"):
        page().state(4)


def test_new_executor_starts_over_in_its_slot() -> None:
    one = page()
    one.occupy(0, 7)
    one.begin(0, 1, 2, 1000, b"f", 10)
    one.occupy(0, 8)
    assert one.state(0) == (READY, 8, 0)
    assert one.activity(0) == (IDLE, 0, 0, 0, 0, 0)
    assert one.unsettled(0) == []


def test_running_call_is_shown_with_its_deadline_name_and_progress() -> None:
    one = page()
    one.occupy(0, 7)
    one.begin(0, 2**64 - 1, 2, 5000, b"name", 10)
    one.progress(0, 3, 4)
    activity, waiting, high, low, started_us, deadline_us = one.activity(0)
    assert (activity, waiting, high, low, deadline_us) == (RUNNING, 0, 2**64 - 1, 2, 5000)
    assert started_us > 0
    assert one.describe(0) == ("name", 3, 4, 1, 10)
    assert one.end(0) >= 0
    assert one.activity(0)[0] == IDLE


def test_begun_calls_are_unsettled_until_their_replies_are_sent() -> None:
    one = page()
    one.occupy(0, 7)
    for number in range(3):
        one.begin(0, 1, number, 1000, b"f", 0)
        one.end(0)
    assert one.unsettled(0) == [(1, 0), (1, 1), (1, 2)]
    one.begin(0, 1, 3, 1000, b"f", 0)
    one.settle(0, True)
    assert one.unsettled(0) == [(1, 3)], "the one that runs has sent nothing yet"
    one.end(0)
    one.settle(0, False)
    assert one.unsettled(0) == []


def test_more_unsettled_calls_than_fit_are_not_made_up() -> None:
    one = page()
    one.occupy(0, 7)
    for number in range(64):
        one.begin(0, 1, number, 1000, b"f", 0)
    unsettled = one.unsettled(0)
    assert unsettled is not None
    assert len(unsettled) == 64
    one.begin(0, 1, 64, 1000, b"f", 0)
    assert one.unsettled(0) is None


@pytest.mark.parametrize("seed", range(20))
def test_calls_that_end_in_any_order_leave_the_list_exact(seed: int) -> None:
    """Up to 50 run beside each other, some of them for very long; replies are handed over now and then."""
    choose = random.Random(seed)
    one = page()
    one.occupy(0, 7)
    running: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    for number in range(1, 2000):
        if len(running) < 50 and len(running) + len(ended) < 60:
            running.append((9, number))
            one.enlist(0, 9, number)
        for _ in range(choose.choice((0, 0, 1, 2))):
            if running:
                ended.append(running.pop(choose.randrange(len(running) // 2 + 1)))
        unsettled = one.unsettled(0)
        assert unsettled is not None
        assert sorted(unsettled) == sorted(running + ended)
        if choose.random() < 0.3 or len(running) + len(ended) >= 60:
            ended.clear()
            one.settle_but(0, running)
            unsettled = one.unsettled(0)
            assert unsettled is not None
            assert sorted(unsettled) == sorted(running)
        one.check()


def test_list_that_was_too_long_is_exact_again_once_replies_are_sent() -> None:
    one = page()
    one.occupy(0, 7)
    for number in range(1, 70):
        one.enlist(0, 9, number)
    assert one.unsettled(0) is None
    one.settle_but(0, [(9, 1), (9, 50)])
    assert one.unsettled(0) == [(9, 1), (9, 50)]


def test_one_of_several_that_run_is_shown() -> None:
    one = page()
    one.occupy(0, 7)
    one.enlist(0, 9, 1)
    one.enlist(0, 9, 2)
    one.show(0, 9, 2, 5000, b"name", 77, False)
    assert one.activity(0) == (RUNNING, 0, 9, 2, 77, 5000)
    assert one.describe(0) == ("name", 0, 0, 2, 0)


def test_only_the_doomed_invocation_is_doomed() -> None:
    one = page()
    one.occupy(0, 7)
    assert not one.doomed(0), "nothing runs, nothing is doomed"
    one.begin(0, 1, 2, 1000, b"f", 0)
    one.doom(0, 1, 2)
    assert one.doomed(0)
    one.end(0)
    one.begin(0, 1, 3, 1000, b"f", 0)
    assert not one.doomed(0)


def test_versions_tell_when_to_look_again() -> None:
    one = page()
    functions, executors = one.functions_version, one.executors_version
    one.bump()
    one.occupy(0, 1)
    assert one.functions_version > functions
    assert one.executors_version > executors


def test_store_is_unknown_until_it_is_set() -> None:
    one = page()
    assert one.store == ()
    one.set_store("unix:/a b", "tcp://x:1")
    assert one.store == ("unix:/a b", "tcp://x:1")


def chooser(one: Page, *slots: int) -> Chooser:
    made = Chooser(one)
    for slot in slots:
        one.occupy(slot, 10 + slot)
        made.grant(slot, 10 + slot)
    return made


def test_idle_executor_is_chosen_the_preferred_first() -> None:
    one = page()
    choose = chooser(one, 0, 1, 2)
    assert choose.claim(1) == 1
    assert choose.claim(1) == 2, "1 has this one's own call, though the page does not show it yet"
    one.begin(0, 1, 1, 1000, b"f", 0)
    choose.release(2)
    assert choose.claim(0) == 2


def test_least_loaded_is_chosen_when_all_are_busy() -> None:
    one = page()
    choose = chooser(one, 0, 1)
    one.set_waiting(0, 3)
    one.set_waiting(1, 2)
    assert choose.claim(0) == 1


def test_executors_without_a_lease_blocked_or_replaced_are_not_chosen() -> None:
    one = page()
    choose = chooser(one, 0, 1)
    one.occupy(3, 13)
    one.begin(0, 1, 1, 1000, b"f", 0)
    one.block(0, True)
    assert one.activity(0)[0] == BLOCKED
    one.occupy(1, 99)
    assert choose.claim(0) == -1
    choose.grant(1, 99)
    assert choose.claim(0) == 1
    one.leave(1)
    assert choose.claim(0) == -1


def test_idle_counts_the_others_only() -> None:
    one = page()
    chooser(one, 0, 1, 2)
    settled(one, 0, 1)
    assert one.idle() == 3
    assert one.idle(0) == 2
    one.begin(1, 1, 1, 1000, b"f", 0)
    one.set_waiting(2, 1)
    assert one.idle() == 1
    one.check()
