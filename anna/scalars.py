"""Standard-library scalars and arrays as MessagePack extension types (codes in `anna.packing`).

The one rule: each payload is the only one of its value. The reader parses, writes what it parsed again, and refuses
bytes that differ, so there is no second form to remember. No module is imported before a value of its types turns up:
a value of type UUID cannot exist while `uuid` is not imported.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from anna.errors import ProtocolError

COMPLEX, BYTEARRAY, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, ARRAY = range(5, 14)

_MODULES = frozenset({"builtins", "datetime", "decimal", "uuid", "numpy"})


def pack_scalar(value: Any) -> tuple[int, bytes] | None:
    """Return (extension code, payload) of a complex, bytearray, datetime, Decimal, UUID, array …, or None."""
    kind = type(value)
    if kind.__module__ not in _MODULES:
        return None
    writer = _WRITERS.get((kind.__module__, kind.__qualname__))
    if writer is None:
        return _pack_array(value) if kind.__module__ == "numpy" else None
    code, write = writer
    payload = write(value)
    return None if payload is None else (code, payload)


def unpack_scalar(code: int, payload: bytes) -> Any:
    """Return the value of an extension. Raises ProtocolError unless `pack_scalar` writes it so."""
    reader = _READERS.get(code)
    if reader is None:
        raise ProtocolError(f"MessagePack extension {code} is not of this protocol")
    try:
        value = reader(payload)
        if code == ARRAY or pack_scalar(value) == (code, payload):
            return value
    except (ValueError, TypeError, ArithmeticError, LookupError, OSError, struct.error) as error:
        raise ProtocolError(f"{len(payload):,} bytes of MessagePack extension {code}: {error}") from error
    raise ProtocolError(f"{len(payload):,} bytes of MessagePack extension {code} are not its value's form")


def _pack_array(value: Any) -> tuple[int, bytes] | None:
    from anna.arrays import encode_array

    payload = encode_array(value)
    return None if payload is None else (ARRAY, payload)


def _unpack_array(payload: bytes) -> Any:
    from anna.arrays import decode_array

    return decode_array(payload)


def _unpack_complex(payload: bytes) -> complex:
    real, imaginary = struct.unpack("<dd", payload)
    return complex(real, imaginary)


BELOW_A_SECOND: Final = ("+00:00:00.", "-00:00:00.")
"""What an offset of less than a second is written as, before its six digits."""


def _pack_zoned(value: Any) -> bytes | None:
    """A fold digit and the ISO text of a datetime or time; a ZoneInfo's key in brackets (as in RFC 9557)."""
    import datetime

    zone = value.tzinfo
    if zone is None:
        return f"{value.fold}{value.isoformat()}".encode()
    if type(zone) is datetime.timezone:
        unnamed = repr(zone) == repr(datetime.timezone(zone.utcoffset(None)))
        return f"{value.fold}{value.isoformat()}".encode() if unnamed else None
    if type(zone).__module__ == "zoneinfo" and type(zone).__qualname__ == "ZoneInfo" and zone.key is not None:
        return f"{value.fold}{value.replace(tzinfo=None).isoformat()}[{zone.key}]".encode()
    return None


def _unpack_zoned(kind: Any, payload: bytes) -> Any:
    text = payload.decode()
    stamp, bracket, key = text[1:].partition("[")
    below_a_second = stamp[-16:]
    if below_a_second[:-6] in BELOW_A_SECOND:  # fromisoformat takes such an offset for none
        from datetime import timedelta, timezone

        offset = timedelta(microseconds=int(below_a_second[0] + below_a_second[-6:]))
        return kind.fromisoformat(stamp[: -len(below_a_second)]).replace(fold=int(text[0]), tzinfo=timezone(offset))
    value = kind.fromisoformat(stamp).replace(fold=int(text[0]))
    if not bracket:
        return value
    from zoneinfo import ZoneInfo

    return value.replace(tzinfo=ZoneInfo(key.removesuffix("]")))


def _unpack_datetime(payload: bytes) -> Any:
    from datetime import datetime

    return _unpack_zoned(datetime, payload)


def _unpack_date(payload: bytes) -> Any:
    from datetime import date

    return date.fromisoformat(payload.decode())


def _unpack_time(payload: bytes) -> Any:
    from datetime import time

    return _unpack_zoned(time, payload)


def _unpack_timedelta(payload: bytes) -> Any:
    from datetime import timedelta

    return timedelta(*struct.unpack("<iii", payload))


def _unpack_decimal(payload: bytes) -> Any:
    from decimal import Decimal

    return Decimal(payload.decode())


def _unpack_uuid(payload: bytes) -> Any:
    from uuid import UUID

    return UUID(bytes=payload)


_WRITERS: dict[tuple[str, str], tuple[int, Callable[[Any], bytes | None]]] = {
    ("builtins", "complex"): (COMPLEX, lambda value: struct.pack("<dd", value.real, value.imag)),
    ("builtins", "bytearray"): (BYTEARRAY, bytes),
    ("datetime", "datetime"): (DATETIME, _pack_zoned),
    ("datetime", "date"): (DATE, lambda value: value.isoformat().encode()),
    ("datetime", "time"): (TIME, _pack_zoned),
    ("datetime", "timedelta"): (
        TIMEDELTA,
        lambda value: struct.pack("<iii", value.days, value.seconds, value.microseconds),
    ),
    ("decimal", "Decimal"): (DECIMAL, lambda value: str(value).encode()),
    ("uuid", "UUID"): (UUID, lambda value: value.bytes),
}

_READERS: dict[int, Callable[[bytes], Any]] = {
    COMPLEX: _unpack_complex,
    BYTEARRAY: bytearray,
    DATETIME: _unpack_datetime,
    DATE: _unpack_date,
    TIME: _unpack_time,
    TIMEDELTA: _unpack_timedelta,
    DECIMAL: _unpack_decimal,
    UUID: _unpack_uuid,
    ARRAY: _unpack_array,
}
