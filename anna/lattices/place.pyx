"""A place in the order of `anna.lattices.ordering`, as `Max`, `Min`, `Priority` and `OrderedSet` keep it.

The one rule: what a state holds was checked when it entered, from Python or from the wire.
"""

from cpython.bytes cimport PyBytes_GET_SIZE

from anna.lattices.ordering cimport check_order_key, order_key

from anna.config import ELEMENT_BYTES_MAX
from anna.errors import ProtocolError, ValueTooLarge

cdef Py_ssize_t BYTES_MAX = ELEMENT_BYTES_MAX
cdef bytes NONE = order_key(None)


cdef bytes place_of(object value):
    """Return the order key of `value`. Raises NotSerializable, ValueError for NaN, ValueTooLarge."""
    cdef bytes key = order_key(value)
    if PyBytes_GET_SIZE(key) > BYTES_MAX:
        raise ValueTooLarge(f"a place in an order has {len(key):,} bytes; element_bytes_max is {BYTES_MAX:,}")
    return key


cdef bytes take_place(bytes raw, str what):
    """Return `raw` if it is empty (the bottom) or the key of anything but None. Raises ProtocolError."""
    if not raw:
        return raw
    if PyBytes_GET_SIZE(raw) > BYTES_MAX or raw == NONE:
        raise ProtocolError(f"{len(raw):,} bytes are no state of {what}")
    check_order_key(raw)
    return raw
