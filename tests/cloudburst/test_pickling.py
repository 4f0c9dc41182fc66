"""What cannot be sent is refused before any network, and the refusal names the culprit."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudburst import config, pickling, references
from cloudburst.errors import NotSerializable, ResultNotSerializable, ValueTooLarge
from cloudburst.references import Ref


def test_unpicklable_argument_is_named_by_its_place_or_keyword() -> None:
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match=r"argument 1 of 'f', a lock, cannot be sent"):
        pickling.dumps_arguments("f", (1, lock), {})
    with pytest.raises(NotSerializable, match=r"argument 'guard' of 'f', a dict, cannot be sent"):
        pickling.dumps_arguments("f", (), {"guard": {"deep": lock}})


def test_list_too_deep_to_pickle_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotSerializable, match="argument 0 of 'f', a list"):
        pickling.dumps_arguments("f", (deep,), {})


def test_unpicklable_closure_variable_is_named() -> None:
    lock = threading.Lock()

    def function() -> bool:
        return lock.locked()

    with pytest.raises(NotSerializable, match="closure variable 'lock' of 'guarded' is a lock"):
        pickling.dumps_function(function, "guarded")


def test_open_file_in_a_closure_is_refused_and_not_copied(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:

        def function() -> int:
            return file.write("x")

        with pytest.raises(NotSerializable, match="closure variable 'file' of 'writer' is an open file"):
            pickling.dumps_function(function, "writer")


def test_unpicklable_class_attribute_is_named() -> None:
    class Guarded:
        lock = threading.Lock()

    with pytest.raises(NotSerializable, match="class attribute 'lock' of 'Guarded'"):
        pickling.dumps_function(Guarded, "Guarded")


def test_unpicklable_default_is_named() -> None:
    def function(lock: Any = threading.Lock()) -> Any:  # noqa: B008 (that is the point)
        return lock

    with pytest.raises(NotSerializable, match="a default argument of 'f' is a lock"):
        pickling.dumps_function(function, "f")


def test_too_large_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ARGUMENT_BYTES_MAX", 1000)
    monkeypatch.setattr(config, "RESULT_BYTES_MAX", 1000)
    monkeypatch.setattr(config, "FUNCTION_BYTES_MAX", 1000)
    with pytest.raises(ValueTooLarge, match=r"arguments of 'f' have 2,0\d\d bytes; argument_bytes_max is 1,000"):
        pickling.dumps_arguments("f", (bytes(2000),), {})
    with pytest.raises(ValueTooLarge, match="result of 'f' has") as caught:
        pickling.dumps_result("f", bytes(2000))
    assert not caught.value.definite
    large = bytes(2000)
    with pytest.raises(ValueTooLarge, match="function 'f' has"):
        pickling.dumps_function(lambda: large, "f")


def test_result_that_cannot_be_sent_says_what_it_is() -> None:
    with pytest.raises(ResultNotSerializable, match="'f' returned a generator") as caught:
        pickling.dumps_result("f", (n for n in range(3)))
    assert not caught.value.definite


def test_main_modules_functions_go_by_value() -> None:
    def helper(x: int) -> int:
        return x + 1

    helper.__module__ = "__main__"
    helper.__qualname__ = "helper"
    data, _ = pickling.dumps_arguments("f", (helper,), {})
    ((function,), _) = pickling.loads(data)
    assert function is not helper
    assert function(2) == 3


def test_references_leave_their_keys_and_take_their_values_at_any_depth() -> None:
    args = (Ref("a"), [1, {"x": Ref(b"b")}], Ref("a"))
    data, collected = pickling.dumps_arguments("f", args, {"k": Ref("c")})
    assert collected.keys == ["a", b"b", "c"]
    with references.resolving(["A", "B", "C"]):
        assert pickling.loads(data) == (("A", [1, {"x": "B"}], "A"), {"k": "C"})


def test_reference_outside_of_arguments_stays_one() -> None:
    assert pickle.loads(pickle.dumps(Ref("a"))) == Ref("a")
    assert pickle.loads(pickling.dumps_result("f", [Ref("a")])) == [Ref("a")]


def test_reference_names_a_key() -> None:
    with pytest.raises(TypeError, match="a Ref names a key, text or bytes; got a int"):
        Ref(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: Ref("a"), lambda: Ref(b"a")])
def test_references_are_equal_by_key(make: Callable[[], Ref]) -> None:
    assert make() == make()
    assert len({make(), make()}) == 1
    assert make() != Ref("b")
