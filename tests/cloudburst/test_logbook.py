"""The lines of a node: cut from any bytes, kept up to a limit, and handed to those who wait, when there are some."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloudburst import config
from cloudburst.logbook import MAGIC, NOBODY, READERS_MAX, Author, LogBook, Unpacker, record

ANN = Author(1, 2, b"ann")
BOB = Author(3, 4, b"bob")
PIECE = st.tuples(st.sampled_from([ANN, BOB, NOBODY, None]), st.text("ab\n", min_size=1, max_size=30))


def texts(answer: dict[str, Any] | None) -> list[str]:
    assert answer is not None
    return [line[5] for line in answer["lines"]]


@given(st.lists(PIECE, max_size=12), st.lists(st.integers(1, 90), max_size=20))
def test_what_was_printed_is_found_however_it_is_cut(pieces: list[tuple[Author | None, str]], cuts: list[int]) -> None:
    """Text by text: each author's in its order, and what was written past the records in its own."""
    stream = b"".join(
        record(float(n), author, text.encode()) if author is not None else text.encode()
        for n, (author, text) in enumerate(pieces)
    )
    unpacker, found = Unpacker(), []
    for cut in [*cuts, len(stream)]:
        found += unpacker.feed(stream[:cut])
        stream = stream[cut:]
    found += unpacker.finish()
    for author in (ANN, BOB, NOBODY, None):
        wanted = "".join(text for who, text in pieces if who == author)
        assert b"".join(piece.text for piece in found if piece.author == author).decode() == wanted


def test_a_moments_lines_are_one_piece_with_the_time_of_the_first() -> None:
    data = record(5.0, ANN, b"a\n") + record(5.0004, ANN, b"b\n") + record(6.0, ANN, b"c\n") + record(6.0, BOB, b"d\n")
    found = Unpacker().feed(data)
    assert [(one.author, one.time_s, one.text) for one in found] == [
        (ANN, 5.0, b"a\nb\n"), (ANN, 6.0, b"c\n"), (BOB, 6.0, b"d\n"),
    ]  # fmt: skip


def test_a_record_that_nobody_finishes_is_no_output_and_holds_no_more_than_one() -> None:
    unpacker = Unpacker()
    assert unpacker.feed(record(1.0, ANN, b"whole") [:-1]) == []
    assert unpacker.finish() == []
    assert [len(one.text) for one in Unpacker().feed(b"x" * 9000)] == [9000 - len(MAGIC)]


def test_lines_are_numbered_named_and_chosen_from() -> None:
    book = LogBook()
    book.add(0, ANN, 5.0, b"one\ntwo\n", 0)
    book.add(1, BOB, 6.0, b"three", 0)
    book.add(1, NOBODY, 7.0, b"four\n", 0)
    answer = book.ask(b"r", {}, 0)
    assert answer == {
        "lines": [
            [1, 5.0, 0, f"{1:016x}{2:016x}", "ann", "one"],
            [2, 5.0, 0, f"{1:016x}{2:016x}", "ann", "two"],
            [3, 6.0, 1, f"{3:016x}{4:016x}", "bob", "three"],
            [4, 7.0, 1, "", "", "four"],
        ],
        "last": 4, "newest": 4, "dropped": 0,
    }  # fmt: skip
    assert texts(book.ask(b"r", {"after": 1, "function": "ann"}, 0)) == ["two"]
    assert texts(book.ask(b"r", {"invocation": f"{3:016x}{4:016x}"}, 0)) == ["three"]
    assert book.said_by(1, 2, 100) == b"one\ntwo\n"
    book.check()


def test_a_reader_waits_until_lines_have_gathered_and_is_told_once() -> None:
    book = LogBook()
    assert book.ask(b"r", {"after": 0, "wait_s": 5}, 1_000) is None
    assert book.next_due_us == 5_001_000
    book.add(0, ANN, 5.0, b"one\n", 2_000)
    book.add(0, ANN, 5.0, b"two\n", 3_000)
    assert book.next_due_us == 2_000 + config.LOG_GATHER_US
    assert book.due(3_000) == []
    [(request, answer)] = book.due(2_000 + config.LOG_GATHER_US)
    assert (request, texts(answer)) == (b"r", ["one", "two"])
    assert book.next_due_us is None


def test_a_reader_of_other_lines_waits_on_and_is_answered_with_none_in_the_end() -> None:
    book = LogBook()
    assert book.ask(b"r", {"function": "bob", "wait_s": 5}, 0) is None
    book.add(0, ANN, 5.0, b"one\n", 10)
    assert book.due(10 + config.LOG_GATHER_US) == []
    assert book.next_due_us == 5_000_000
    [(_, answer)] = book.due(5_000_000)
    assert (answer["lines"], answer["last"]) == ([], 1)


def test_old_lines_are_dropped_and_readers_are_told_how_many() -> None:
    book = LogBook(limit_bytes=2_000)
    book.add(0, ANN, 5.0, b"first\n", 0)
    for n in range(100):
        book.add(0, ANN, 5.0, b"line %d\n" % n, 0)
        book.check()
    answer = book.ask(b"r", {"after": 1}, 0)
    assert answer is not None
    assert texts(answer)[-1] == "line 99"
    assert answer["dropped"] == 100 - len(answer["lines"]) > 80
    fresh = book.ask(b"r", {}, 0)
    assert fresh is not None
    assert fresh["dropped"] == 0, "who has read nothing has missed nothing"


def test_an_answer_is_bounded_and_the_next_goes_on_where_it_ended() -> None:
    book = LogBook()
    for n in range(3_000):
        book.add(0, ANN, 5.0, b"%d" % n + b" " * 200 + b"\n", 0)
    after, seen, sizes = 0, [], []
    while after < 3_000:
        answer = book.ask(b"r", {"after": after}, 0)
        assert answer is not None
        sizes.append(sum(len(text) for text in texts(answer)))
        seen += [int(text) for text in texts(answer)]
        after = answer["last"]
    assert seen == list(range(3_000))
    assert max(sizes) <= config.LOG_ANSWER_BYTES_MAX


def test_readers_beyond_the_limit_are_answered_at_once() -> None:
    book = LogBook()
    for _ in range(READERS_MAX):
        assert book.ask(b"r", {"wait_s": 5}, 0) is None
    assert texts(book.ask(b"r", {"wait_s": 5}, 0)) == []
    book.check()
