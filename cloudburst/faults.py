"""A user's exception on its way home: what is kept, and what the caller catches.

Pickling loses an exception's traceback and its cause, and some exceptions do not survive it at all. So the executor
sends the type's name, the message, the formatted traceback and, if a round trip gives the same type again, the pickled
exception. The caller raises an instance of a class that is both the exception's own and `FunctionError`; the original
is its `__cause__` and the remote traceback is a note on it. Source: decision record 0003; reliability C.
"""

from __future__ import annotations

import pickle
import traceback
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, Final

import msgpack

from cloudburst import frames
from cloudburst.errors import CloudburstError, FunctionError
from cloudburst.pickling import dumps

TRACEBACK_CHARS_MAX: Final = 64 * 1024
MESSAGE_CHARS_MAX: Final = 16 * 1024

_LOST_IN_TRANSIT: Final = (StopIteration, StopAsyncIteration)
"""Exceptions that change meaning when they are raised through a generator: only ever a cause."""

_classes: dict[type[BaseException], type[FunctionError] | None] = {}


def pack(error: BaseException, start: TracebackType | None, function: str = "") -> bytes:
    """Return `error` as the payload of a RAISED reply; its traceback begins at `start`, after the runtime's frames.

    `function` says which one raised, when the caller cannot know it.
    """
    if isinstance(error, FunctionError) and error.__cause__ is not None:
        shown: BaseException = error.__cause__  # what a nested call raised goes on as what it was
    else:
        shown = error
    text = format_traceback(error, start)
    name = type(shown).__qualname__
    return bytes(msgpack.packb([name, _message(shown), text, _travelling(shown), function]))


def format_traceback(error: BaseException, start: TracebackType | None) -> str:
    """Return the traceback of `error` as text, its own frames from `start` on."""
    try:
        return _clip("".join(traceback.format_exception(type(error), error, start)), TRACEBACK_CHARS_MAX)
    except Exception as fault:  # a user's exception may raise another in its own str()
        return f"<the traceback cannot be formatted: {type(fault).__name__}>"


def _travelling(error: BaseException) -> bytes | None:
    """Return `error` pickled, or None unless unpickling it gives the same type again."""
    try:
        data = dumps(error)
        if type(pickle.loads(data)) is type(error) and len(data) <= MESSAGE_CHARS_MAX * 64:
            return data
    except Exception:  # a user's exception may raise anything in its own pickling
        pass
    return None


def _message(error: BaseException) -> str:
    try:
        return _clip(str(error), MESSAGE_CHARS_MAX)
    except Exception as fault:  # a user's exception may raise another in its own str()
        return f"<str() of it raised {type(fault).__name__}>"


def _clip(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - limit:,} characters left out ...\n{text[-half:]}"


def unpack(body: bytes | memoryview, *, function: str, invocation: str, attempts: int, where: str) -> FunctionError:
    """Return what the caller is to raise for a RAISED reply: unpickles the original, in the caller only."""
    name, message, text, pickled, raised_by = frames.unpack(body)
    function = raised_by or function
    original: BaseException | None = None
    if pickled is not None:
        try:
            original = pickle.loads(pickled)
        except Exception:  # its class is not importable here: the text says what it was
            original = None
    state = {
        "function": function, "invocation": invocation, "attempts": attempts,
        "remote_traceback": text, "exception_type": name, "definite": False,
    }  # fmt: skip
    note = f"Raised by function {function!r} {where}:\n{text.rstrip()}"
    if not isinstance(original, BaseException):
        return _fill(FunctionError(f"{name}: {message}" if message else name), state, note, None)
    both = _both(original)
    if both is None:
        return _fill(FunctionError(f"{name}: {message}" if message else name), state, note, original)
    return _fill(both, state, note, original)


def _fill(error: FunctionError, state: dict[str, Any], note: str, original: BaseException | None) -> FunctionError:
    error.__dict__.update(state)
    (error if original is None else original).add_note(note)
    error.__cause__ = original
    return error


def _both(original: BaseException) -> FunctionError | None:
    """Return an instance of both FunctionError and the original's class, equal to it in args and attributes.

    None where that cannot be: the class does not allow it, or it is not an Exception, so that a SystemExit of a
    function never ends the caller's process unnoticed.
    """
    if not isinstance(original, Exception) or isinstance(original, _LOST_IN_TRANSIT):
        return None
    if isinstance(original, CloudburstError):
        return None
    try:
        both = _class_of(type(original))
        if both is None:
            return None
        error = both.__new__(both, *original.args)
        error.args = original.args
        _copy_fields(original, error)
    except Exception:  # a user's class may refuse to be derived from, in any way
        return None
    return error


def _class_of(kind: type[Exception]) -> type[FunctionError] | None:
    if kind not in _classes:
        namespace = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "__reduce__": _reduce,
            "__init__": BaseException.__init__,
        }
        try:
            _classes[kind] = type(kind.__name__, (kind, FunctionError), namespace)
        except TypeError:
            _classes[kind] = None
    return _classes[kind]


def _copy_fields(original: Exception, error: Exception) -> None:
    """Copy what an exception keeps outside its args: its dictionary, and the fields that its C layout or slots have."""
    for kind in type(original).__mro__:
        if kind is BaseException or kind is object:
            continue
        for name, member in vars(kind).items():
            if isinstance(member, (MemberDescriptorType, GetSetDescriptorType)) and not name.startswith("__"):
                try:
                    value = getattr(original, name)
                    if getattr(error, name, None) is not value:
                        setattr(error, name, value)
                except (AttributeError, TypeError):
                    continue  # unset, or read-only and already set by __new__
    error.__dict__.update(original.__dict__)


def _reduce(error: FunctionError) -> tuple[Any, ...]:
    names = ("function", "invocation", "attempts", "remote_traceback", "exception_type")
    return _restore, (error.__cause__, {name: getattr(error, name) for name in names})


def _restore(original: BaseException, state: dict[str, Any]) -> FunctionError:
    error = _both(original) or FunctionError(str(original))
    error.__dict__.update(state)
    error.__cause__ = original
    return error
