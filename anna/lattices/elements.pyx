"""Elements of sets and keys of maps: hashable values in their canonical encoding.

The one rule: an element is its bytes. The store compares, sorts and joins them and never decodes one; two values are
the same element when their encodings are equal, so `1`, `1.0` and `True` are three (`anna.codec` says which are told
apart). A sequence of elements is written ascending, without repetition, each after its length.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from anna.codec cimport decode_value, encode_element
from anna.layout cimport Reader, sized_bytes, take_sized, write_sized

from anna.config import ELEMENT_BYTES_MAX
from anna.errors import ProtocolError, ValueTooLarge

cdef enum:
    TAG_LAST = 8  # of the tags that are canonical; the next is pickle

cdef Py_ssize_t BYTES_MAX = ELEMENT_BYTES_MAX


cdef bytes element_of(object value):
    """Return the encoding of one value. Raises TypeError, NotSerializable or ValueTooLarge."""
    cdef bytes element = encode_element(value)
    if PyBytes_GET_SIZE(element) > BYTES_MAX:
        raise ValueTooLarge(f"an element has {len(element):,} bytes; element_bytes_max is {BYTES_MAX:,}")
    return element


cdef set elements_of(object values):
    """Return the encodings of some values. A text is refused: it was hardly meant as a set of characters."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"expected several elements, got one {type(values).__name__}: put it into a set")
    return {element_of(value) for value in values}


cdef set decoded(object elements, bint allow_pickle):
    return {decode_value(element, allow_pickle) for element in elements}


cdef Py_ssize_t elements_bytes(object elements) except -1:
    """How many bytes `write_elements` writes."""
    cdef Py_ssize_t total = 0
    cdef bytes element
    for element in elements:
        total += sized_bytes(element)
    return total


cdef char* write_elements(char* target, object elements) except NULL:
    cdef bytes element
    for element in sorted(elements):
        target = write_sized(target, element)
    return target


cdef bytes take_element(Reader* reader):
    """Read one element. Raises ProtocolError when no value has such an encoding, as far as its tag tells."""
    cdef bytes element = take_sized(reader)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(element)
    cdef unsigned char tag
    if not 1 <= size <= BYTES_MAX:
        raise ProtocolError(f"an element has {size:,} bytes; it may have 1 to {BYTES_MAX:,}")
    tag = <unsigned char>PyBytes_AS_STRING(element)[0]
    if tag > TAG_LAST:
        raise ProtocolError(f"an element has tag {tag:#04x}, which is not canonical")
    return element


cdef int expect_after(bytes element, bytes last, str what) except -1:
    """Raise ProtocolError unless `element` is greater than `last`, which is None before the first."""
    if last is not None and element <= last:
        raise ProtocolError(f"{what} are not strictly ascending")
    return 0
