"""How code, arguments, results and exceptions are made into bytes, and what is said when they cannot be.

The one rule: only clients and executors call `loads`, on bytes from each other; node and scheduler never do. Plain
pickle is tried first, since it is ten times faster than cloudpickle; whatever it would name as a member of `__main__`,
which is another module there, goes by value instead. Source: DESIGN §7; reliability C (unpicklable things).
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from cloudburst import config
from cloudburst.errors import NotSerializable, ResultNotSerializable, ValueTooLarge
from cloudburst.references import NOTHING, Collected, Collecting
from cloudburst.segments.layout import Parts, keeper, parts_of, size_of

PROTOCOL: Final = 5
loads: Final = pickle.loads
SCALARS: Final = frozenset((bool, int, float, complex, type(None)))
STRINGS: Final = frozenset((str, bytes))
PLAIN_MAX: Final = 1_000
"""The longest string or bytes that count as a scalar: so many of them are never large enough for a segment."""
PLAIN_ARGUMENTS_MAX: Final = 8


def dumps(value: object, buffers: list[memoryview] | None = None) -> bytes:
    """Return `value` pickled, by value where plain pickle would refer to `__main__`. Raises what pickle raises.

    Large buffers are left out and put into `buffers`, if that is given.
    """
    keep = None if buffers is None else keeper(buffers)
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=keep)
    except (pickle.PicklingError, TypeError, AttributeError):
        pass
    else:
        if b"__main__" not in data:
            return data
    if buffers is not None:
        buffers.clear()
    from cloudburst.byvalue import dumps_by_value

    return dumps_by_value(value, keep)


def is_plain(value: object) -> bool:
    """Whether `value` is a short one of Python's own scalars: nothing in it needs a look before or after pickling."""
    kind = type(value)
    return kind in SCALARS or (kind in STRINGS and len(value) <= PLAIN_MAX)  # type: ignore[arg-type]


def dumps_arguments(
    name: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[bytes | Parts, Collected]:
    """Return the pickled arguments of a call to `name`, Parts when they are large, and what they refer to.

    Raises NotSerializable, which says which argument it was, and ValueTooLarge.
    """
    if not kwargs and len(args) <= PLAIN_ARGUMENTS_MAX and all(map(is_plain, args)):
        pickled = pickle.dumps((args, kwargs), PROTOCOL)
        if len(pickled) < config.SEGMENT_BYTES_MIN:  # a number may have any length
            return pickled, NOTHING
    try:
        with Collecting() as collected:
            data = parts_of((args, kwargs), dumps)
    except Exception as fault:  # a value's own code may raise anything
        raise _unsendable_argument(name, args, kwargs, fault) from fault
    if size_of(data) > config.ARGUMENT_BYTES_MAX:
        raise ValueTooLarge(
            f"the arguments of {name!r} have {size_of(data):,} bytes;"
            f" argument_bytes_max is {config.ARGUMENT_BYTES_MAX:,}"
        )
    return data, collected


def dumps_inline(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[bytes, Collected]:
    """Return the same, as bytes however large they are."""
    try:
        with Collecting() as collected:
            data = dumps((args, kwargs))
    except Exception as fault:  # a value's own code may raise anything
        raise _unsendable_argument(name, args, kwargs, fault) from fault
    if len(data) > config.ARGUMENT_BYTES_MAX:
        limit = f"argument_bytes_max is {config.ARGUMENT_BYTES_MAX:,}"
        raise ValueTooLarge(f"the arguments of {name!r} have {len(data):,} bytes; {limit}")
    return data, collected


def _unsendable_argument(
    name: str, args: tuple[object, ...], kwargs: dict[str, object], fault: Exception
) -> NotSerializable:
    named = [*((f"argument {index}", value) for index, value in enumerate(args)), *kwargs.items()]
    for where, value in named:
        try:
            dumps(value)
        except Exception as why:  # a value's own code may raise anything
            where = where if where.startswith("argument ") else f"argument {where!r}"
            return NotSerializable(f"{where} of {name!r}, a {type(value).__name__}, cannot be sent: {why}")
    return NotSerializable(f"the arguments of {name!r} cannot be sent: {fault}")


def dumps_message(value: object) -> bytes:
    """Return a pickled message. Raises NotSerializable and ValueTooLarge."""
    try:
        data = dumps(value)
    except Exception as fault:
        raise NotSerializable(f"a {type(value).__name__} cannot be sent as a message: {fault}") from fault
    if len(data) > config.INBOX_BYTES_MAX:
        raise ValueTooLarge(f"a message has {len(data):,} bytes; inbox_bytes_max is {config.INBOX_BYTES_MAX:,}")
    return data


def dumps_result(name: str, value: object) -> bytes | Parts:
    """Return a pickled result, Parts when it is large. Raises ResultNotSerializable and ValueTooLarge."""
    if is_plain(value):
        pickled = pickle.dumps(value, PROTOCOL)
        if len(pickled) < config.SEGMENT_BYTES_MIN:
            return pickled
    try:
        data = parts_of(value, dumps)
    except Exception as fault:  # a value's own code may raise anything
        raise ResultNotSerializable(
            f"{name!r} returned a {type(value).__name__}, which cannot be sent: {fault}"
        ) from fault
    if size_of(data) > config.RESULT_BYTES_MAX:
        raise ValueTooLarge(
            f"the result of {name!r} has {size_of(data):,} bytes; result_bytes_max is {config.RESULT_BYTES_MAX:,}",
            definite=False,
        )
    return data


def dumps_function(function: Callable[..., object], name: str) -> bytes:
    """Return a function or class as bytes, by value where it is local to this program.

    Raises NotSerializable, naming the closure variable at fault, and ValueTooLarge.
    """
    from cloudburst.byvalue import dumps_by_value

    for variable, value in _captured(function):
        if isinstance(value, io.IOBase):
            raise NotSerializable(f"{variable} of {name!r} is an open file, which cannot be sent to another process")
    try:
        data = dumps_by_value(function)
    except Exception as fault:  # a value's own code may raise anything
        raise _unsendable_variable(function, name, fault) from fault
    if len(data) > config.FUNCTION_BYTES_MAX:
        raise ValueTooLarge(
            f"function {name!r} has {len(data):,} bytes with all it captures;"
            f" function_bytes_max is {config.FUNCTION_BYTES_MAX:,}"
        )
    return data


def _unsendable_variable(function: Callable[..., object], name: str, fault: Exception) -> NotSerializable:
    from cloudburst.byvalue import dumps_by_value

    for variable, value in _captured(function):
        try:
            dumps_by_value(value)
        except Exception as why:  # a value's own code may raise anything
            return NotSerializable(f"{variable} of {name!r} is a {type(value).__name__}, which cannot be sent: {why}")
    return NotSerializable(f"function {name!r} cannot be sent: {fault}")


def _captured(function: Callable[..., object]) -> Iterator[tuple[str, object]]:
    """Yield what a function takes along: its closure variables, globals and defaults, each with its description."""
    members = [function]
    if inspect.isclass(function):
        members = [member for member in vars(function).values() if inspect.isfunction(member)]
        yield from ((f"class attribute {key!r}", value) for key, value in vars(function).items()
                    if not inspect.isroutine(value) and not key.startswith("__"))  # fmt: skip
    for member in members:
        member = inspect.unwrap(member)
        if not inspect.isfunction(member):
            continue
        cells = zip(member.__code__.co_freevars, member.__closure__ or ())
        for variable, cell in cells:
            try:
                yield f"closure variable {variable!r}", cell.cell_contents
            except ValueError:
                continue  # not bound yet
        if member.__module__ == "__main__" or "<locals>" in member.__qualname__:
            for variable in _global_names(member.__code__):
                if variable in member.__globals__:
                    yield f"global variable {variable!r}", member.__globals__[variable]
        defaults = (*(member.__defaults__ or ()), *(member.__kwdefaults__ or {}).values())
        yield from (("a default argument", value) for value in defaults)


def _global_names(code: Any) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _global_names(constant)


def python_tag() -> str:
    """Return what must be equal on both sides for arguments and results to travel, such as "cpython 3.11"."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def code_tag() -> str:
    """Return what must be equal on both sides for code to travel, such as "cpython 3.11, cloudpickle 3"."""
    import cloudpickle

    return f"{python_tag()}, cloudpickle {cloudpickle.__version__.partition('.')[0]}"
