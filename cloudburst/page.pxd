from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef struct Slot:
    uint32_t state
    uint32_t pid
    uint64_t incarnation
    uint32_t activity
    uint32_t waiting
    uint64_t started_us
    uint64_t deadline_us
    uint64_t high
    uint64_t low
    uint64_t doomed_high
    uint64_t doomed_low
    uint64_t begun
    uint64_t settled
    uint64_t watch_us
    uint64_t written
    uint32_t done
    uint32_t total
    uint64_t name_size
    char name[120]
    uint64_t unsettled[128]
    uint64_t node
    uint64_t life
    uint32_t number
    uint32_t address_size
    char address[112]


cdef enum:
    SUMMARY_BYTES = 8192
    SUMMARIES = 32


cdef struct Summary:
    uint64_t node
    uint64_t version
    uint8_t bits[SUMMARY_BYTES]


cdef struct Header:
    uint64_t magic
    uint32_t slots
    uint32_t own
    uint64_t python
    uint64_t incarnation
    uint64_t functions_version
    uint64_t executors_version
    uint64_t store_size
    char store[456]


cdef class Page:
    cdef object _buffer
    cdef Py_buffer _view
    cdef Header* header
    cdef Slot* slot
    cdef Summary* summary

    cdef Slot* at(self, int number) except NULL
    cdef Slot* mine(self, int number) except NULL


cdef class Chooser:
    cdef Page page
    cdef int size
    cdef uint64_t* incarnations
    cdef uint32_t* outstanding

    cdef bint takes(self, int number) noexcept
    cpdef int claim(self, int prefer, uint64_t near=*)
    cpdef void release(self, int number)


cdef uint64_t clock_us() noexcept nogil
