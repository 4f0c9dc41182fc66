"""The node's page: what its executors are doing, in memory that the whole node maps.

One small file in the node's private directory. The node writes the header and which executor lives in which slot; the
executor of a slot, and nobody else, writes what it is running; clients read it before each call, so that a call goes
to an idle executor without asking anyone, and the node's watchdog reads it to enforce deadlines from outside. Every
word has one writer, is aligned and is moved atomically. Nothing sleeps on this page: it carries hints and facts, and
events go over sockets.

Behind the slots is a summary of the keys that the caches of this node and of others hold, so that a call can go where
its arguments are: bits that a key sets by its hash (Bloom's filter), so it may say of a key that it is there when it
is not, seldom, and never the reverse, but for what has changed since.

After the node's own slots come those of its neighbours' executors. The node writes them, as its neighbours tell it, so
they are a little behind; but who reads the page need not know how many machines there are.

`unsettled` is what makes a lost executor's damage exact: the invocations that were begun and whose replies were not
yet handed to the kernel. A call that its dead executor had accepted and that is not among them was surely not begun.
Calls that run at the same time end in any order, so one that is settled before an older one leaves a gap in the list.
Source: DESIGN §6, decision record 0009.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from anna.routing.hash cimport hash64

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    static inline uint32_t get32(const uint32_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t get64(const uint64_t* p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void set32(uint32_t* p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void set64(uint64_t* p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t now_us(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    }
    """
    uint32_t get32(const uint32_t* p)
    uint64_t get64(const uint64_t* p)
    void set32(uint32_t* p, uint32_t v)
    void set64(uint64_t* p, uint64_t v)
    uint64_t now_us()

cdef uint64_t MAGIC = 0x3230676170636263  # "cbcpag02"
cdef enum:
    RING = 64
    NEAR_CALLS = 2

EMPTY, READY, LEAVING, LOST = 0, 1, 2, 3
IDLE, RUNNING, BLOCKED = 0, 1, 2


cdef uint64_t clock_us() noexcept nogil:
    return now_us()


cdef void list_begun(Slot* slot, uint64_t high, uint64_t low) noexcept:
    """Add an invocation to the list of those begun, at whatever moment this process may end.

    When the list is full and has gaps, its oldest entry first moves into one; without gaps it becomes too many to say.
    """
    cdef uint64_t i, place, first
    if slot.begun - slot.settled == RING:
        first = slot.settled % RING
        for i in range(slot.settled + 1, slot.begun):
            place = i % RING
            if slot.unsettled[2 * place] == 0 and slot.unsettled[2 * place + 1] == 0:
                set64(&slot.unsettled[2 * place], slot.unsettled[2 * first])
                set64(&slot.unsettled[2 * place + 1], slot.unsettled[2 * first + 1])
                set64(&slot.settled, slot.settled + 1)
                break
    place = slot.begun % RING
    slot.unsettled[2 * place], slot.unsettled[2 * place + 1] = high, low
    set64(&slot.begun, slot.begun + 1)


def monotonic_us():
    """Return the host's monotonic clock in microseconds: the same in all of its processes."""
    return now_us()


def page_bytes(int slots):
    """Return the size of a page with `slots` slots."""
    return sizeof(Header) + slots * sizeof(Slot) + SUMMARIES * sizeof(Summary)


def summary_of(keys):
    """Return the bits of some keys, which are bytes: what `Page.summarize` takes."""
    cdef bytearray bits = bytearray(SUMMARY_BYTES)
    cdef uint8_t* place = <uint8_t*> <char*> bits
    cdef bytes key
    cdef uint64_t position
    cdef int probe
    for key in keys:
        position = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        for probe in range(4):
            place[(position & 0xFFFF) >> 3] |= 1 << (position & 7)
            position >>= 16
    return bytes(bits)


cdef bint summarized(const uint8_t* bits, uint64_t position) noexcept nogil:
    """Whether a key whose hash is `position` is among those that set these bits."""
    cdef int probe
    for probe in range(4):
        if not bits[(position & 0xFFFF) >> 3] & (1 << (position & 7)):
            return False
        position >>= 16
    return True


def executor_socket(int slot, uint64_t incarnation):
    """Return the name, in the node's directory, of the socket of an executor."""
    return f"e{slot}-{incarnation}.sock"


cdef class Page:
    """A page over a mapped buffer, which may be read-only. Keeps the buffer alive.

    Raises ValueError when the buffer is no page or is shorter than it says.
    """

    def __cinit__(self, buffer):
        self._buffer = buffer
        readonly = memoryview(buffer).readonly
        PyObject_GetBuffer(buffer, &self._view, PyBUF_SIMPLE if readonly else PyBUF_WRITABLE)
        self.header = <Header*> self._view.buf
        self.slot = <Slot*> (<char*> self._view.buf + sizeof(Header))
        cdef Py_ssize_t size = self._view.len
        if size < <Py_ssize_t> sizeof(Header) or self.header.magic != MAGIC or size < page_bytes(self.header.slots):
            raise ValueError(f"{size} bytes that are no node page")
        self.summary = <Summary*> (<char*> self.slot + self.header.slots * sizeof(Slot))

    def __dealloc__(self):
        PyBuffer_Release(&self._view)  # does nothing when it was never taken

    @staticmethod
    def format(buffer, int slots, uint64_t incarnation, int python, int foreign=0):
        """Begin a page in `buffer`, which is zero: `slots` slots, the last `foreign` for executors of other nodes.

        `python` is its executors' version, 0x030b for 3.11.
        """
        cdef Header header
        memset(&header, 0, sizeof(Header))
        header.magic, header.slots, header.python, header.incarnation = MAGIC, slots, python, incarnation
        header.own = slots - foreign
        header.functions_version = 1
        buffer[: sizeof(Header)] = (<char*> &header)[: sizeof(Header)]

    cdef Slot* at(self, int number) except NULL:
        if number < 0 or number >= <int> self.header.slots:
            raise IndexError(f"slot {number}; the page has {self.header.slots}")
        return self.slot + number

    cdef Slot* mine(self, int number) except NULL:
        if self._view.readonly:
            raise PermissionError("this page is mapped read-only")
        return self.at(number)

    # What everybody reads.

    @property
    def slots(self):
        """How many slots there are, those of other nodes' executors included."""
        return self.header.slots

    @property
    def own(self):
        """How many of them are the node's own: the first ones."""
        return self.header.own

    @property
    def incarnation(self):
        """Which life of the node this page belongs to; it is how other nodes name it, too."""
        return self.header.incarnation

    @property
    def python(self):
        """The version of the executors' Python, 0x030b for 3.11."""
        return self.header.python

    @property
    def functions_version(self):
        """Grows with every registration and deletion: what was looked up at an older one may have changed."""
        return get64(&self.header.functions_version)

    @property
    def executors_version(self):
        """Grows whenever an executor comes or goes: leases taken before may not be all there are."""
        return get64(&self.header.executors_version)

    @property
    def store(self):
        """The addresses of the store for this node's processes, (through its cache, of an owner); () until known."""
        cdef uint64_t size = get64(&self.header.store_size)
        return tuple((<bytes> self.header.store[:size]).decode().split("\n")) if size else ()

    def state(self, int number):
        """Return (state, incarnation, pid) of a slot."""
        cdef Slot* slot = self.at(number)
        return get32(&slot.state), get64(&slot.incarnation), get32(&slot.pid)

    def ready(self):
        """Return {slot: incarnation} of every executor that takes calls, those included that are just being forked."""
        cdef int number
        return {number: self.slot[number].incarnation for number in range(<int> self.header.slots)
                if get32(&self.slot[number].state) == 1}

    def foreign(self):
        """Return how many executors of other nodes take calls."""
        cdef int number
        return sum([get32(&self.slot[number].state) == 1
                    for number in range(<int> self.header.own, <int> self.header.slots)])

    def home(self, int number):
        """Return (node, slot there, incarnation there, address) of a slot's executor; the node's own has address ""."""
        cdef Slot* slot = self.at(number)
        if number < <int> self.header.own:
            return self.header.incarnation, number, get64(&slot.incarnation), ""
        address = (<bytes> slot.address[: get32(&slot.address_size)]).decode()
        return get64(&slot.node), get32(&slot.number), get64(&slot.life), address

    def near(self, keys):
        """Return the node whose cache holds most of `keys`, as far as is known: the own one if none holds more, 0 for none."""
        cdef bytes key
        cdef int place, held[SUMMARIES], best = 0
        cdef uint64_t position
        memset(held, 0, sizeof(held))
        for key in keys:
            position = hash64(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            for place in range(SUMMARIES):
                if get64(&self.summary[place].node) and summarized(self.summary[place].bits, position):
                    held[place] += 1
        for place in range(1, SUMMARIES):
            if held[place] > held[best]:
                best = place
        return get64(&self.summary[best].node) if held[best] else 0

    def summary_at(self, int place):
        """Return (node, version, bits) of the summary in a place; the node's own is in place 0."""
        if not 0 <= place < SUMMARIES:
            raise IndexError(f"summary {place}; the page has {SUMMARIES}")
        cdef Summary* found = self.summary + place
        return get64(&found.node), get64(&found.version), (<char*> found.bits)[: SUMMARY_BYTES]

    def locate(self, uint64_t node, int number, uint64_t incarnation):
        """Return the slot here of an executor of any node, which is `incarnation` there; -1 when there is none. O(slots)."""
        cdef int place
        cdef Slot* slot
        if node == self.header.incarnation:
            return number if 0 <= number < <int> self.header.own \
                and get64(&self.slot[number].incarnation) == incarnation else -1
        for place in range(<int> self.header.own, <int> self.header.slots):
            slot = self.slot + place
            if get32(&slot.state) and get64(&slot.node) == node and <int> get32(&slot.number) == number \
                    and get64(&slot.life) == incarnation:
                return place
        return -1

    def activity(self, int number):
        """Return (activity, waiting, high, low, started_us, deadline_us) of a slot, from one moment."""
        cdef Slot* slot = self.at(number)
        cdef uint64_t begun
        cdef int tries
        for tries in range(100):
            begun = get64(&slot.begun)
            found = (get32(&slot.activity), get32(&slot.waiting), get64(&slot.high), get64(&slot.low),
                     get64(&slot.started_us), get64(&slot.deadline_us))
            if get64(&slot.begun) == begun:
                break
        return found

    def find(self, uint64_t high, uint64_t low):
        """Return the slot that runs an invocation, -1 when none does. O(slots)."""
        cdef int number
        cdef Slot* slot
        for number in range(<int> self.header.slots):
            slot = self.slot + number
            if get32(&slot.state) and get32(&slot.activity) and get64(&slot.low) == low and get64(&slot.high) == high:
                return number
        return -1

    def describe(self, int number):
        """Return (function, done, total, begun, written) of a slot: what its invocation is and how far it has got."""
        cdef Slot* slot = self.at(number)
        name = (<bytes> slot.name[: min(get64(&slot.name_size), 120)]).decode(errors="replace")
        return name, get32(&slot.done), get32(&slot.total), get64(&slot.begun), get64(&slot.written)

    def unsettled(self, int number):
        """Return the invocations begun in a slot whose replies may not have been sent, or None when too many to say."""
        cdef Slot* slot = self.at(number)
        cdef uint64_t first = get64(&slot.settled), last = get64(&slot.begun), i
        if last - first > RING:
            return None
        found = [(slot.unsettled[2 * (i % RING)], slot.unsettled[2 * (i % RING) + 1]) for i in range(first, last)]
        return [one for one in found if one != (0, 0)]

    def idle(self, int but=-1):
        """Return how many executors other than `but` are ready and have nothing to do."""
        cdef int count = 0, number
        cdef Slot* slot
        for number in range(<int> self.header.slots):
            slot = self.slot + number
            if number != but and get32(&slot.state) == 1 and get32(&slot.activity) == 0 and get32(&slot.waiting) == 0:
                count += 1
        return count

    # What the node writes.

    def set_store(self, str cached, str owner):
        """Publish the addresses of the store, once."""
        self.mine(0)
        raw = f"{cached}\n{owner}".encode()
        if len(raw) > sizeof(self.header.store):
            raise ValueError(f"the store's addresses have {len(raw)} bytes; {sizeof(self.header.store)} fit")
        memcpy(self.header.store, <char*> raw, len(raw))
        set64(&self.header.store_size, len(raw))

    def bump(self):
        """Say that the table of functions has changed."""
        self.mine(0)
        set64(&self.header.functions_version, self.header.functions_version + 1)

    def occupy(self, int number, uint64_t incarnation):
        """Give a slot to a new executor: everything in it starts over."""
        cdef Slot* slot = self.mine(number)
        set32(&slot.state, 0)
        memset(<char*> slot + 4, 0, sizeof(Slot) - 4)
        set64(&slot.incarnation, incarnation)
        set32(&slot.state, 1)
        set64(&self.header.executors_version, self.header.executors_version + 1)

    def set_pid(self, int number, uint32_t pid):
        """Say which process the executor of a slot is: from now on it can be leased."""
        set32(&self.mine(number).pid, pid)
        set64(&self.header.executors_version, self.header.executors_version + 1)

    def leave(self, int number):
        """Say that the executor of a slot takes no more calls."""
        set32(&self.mine(number).state, 2)

    def mirror(self, int number, uint64_t incarnation, uint32_t pid, uint64_t node, uint32_t there, uint64_t life,
               str address):
        """Give a slot to an executor of another node: in which slot it lives there, and at which address it listens.

        Its `incarnation` there is its `life`; the one here is never used again, whatever the slot shows next.
        """
        cdef Slot* slot = self.mine(number)
        raw = address.encode()
        if number < <int> self.header.own or len(raw) > sizeof(slot.address):
            raise ValueError(f"slot {number} with an address of {len(raw)} bytes; {sizeof(slot.address)} fit")
        set32(&slot.state, 0)
        memset(<char*> slot + 4, 0, sizeof(Slot) - 4)
        slot.node, slot.life, slot.number, slot.address_size = node, life, there, len(raw)
        memcpy(slot.address, <char*> raw, len(raw))
        set32(&slot.pid, pid)
        set64(&slot.incarnation, incarnation)
        set32(&slot.state, 1)
        set64(&self.header.executors_version, self.header.executors_version + 1)

    def reflect(self, int number, uint32_t state, uint32_t activity, uint32_t waiting, uint64_t high, uint64_t low):
        """Say what an executor of another node was doing when it was last heard of."""
        cdef Slot* slot = self.mine(number)
        set64(&slot.high, high)
        set64(&slot.low, low)
        set32(&slot.waiting, waiting)
        set32(&slot.activity, activity)
        set32(&slot.state, state)

    def lose(self, int number):
        """Say that the node of a slot's executor is heard of no more: what it was asked may never be answered."""
        set32(&self.mine(number).state, 3)
        set64(&self.header.executors_version, self.header.executors_version + 1)

    def vacate(self, int number):
        """Say that nobody lives in a slot."""
        set32(&self.mine(number).state, 0)
        set64(&self.header.executors_version, self.header.executors_version + 1)

    def doom(self, int number, uint64_t high, uint64_t low):
        """Say which invocation the executor of a slot must stop, when it is (still) running that one."""
        cdef Slot* slot = self.mine(number)
        set64(&slot.doomed_high, high)
        set64(&slot.doomed_low, low)

    def watch(self, int number, uint64_t until_us):
        """Say when the watchdog will look at a slot next: no long call need be reported that ends its time later."""
        set64(&self.mine(number).watch_us, until_us)

    def summarize(self, int place, uint64_t node, bytes bits):
        """Say which keys a node's cache holds: the cache its own, the node those of others. Node 0 forgets a summary."""
        self.mine(0)
        if not 0 <= place < SUMMARIES or len(bits) not in (0, SUMMARY_BYTES):
            raise ValueError(f"summary {place} of {len(bits)} bytes; the page has {SUMMARIES} of {SUMMARY_BYTES}")
        cdef Summary* summary = self.summary + place
        if bits:
            memcpy(summary.bits, <char*> bits, SUMMARY_BYTES)
        set64(&summary.node, node)
        set64(&summary.version, summary.version + 1)

    # What the executor of the slot writes.

    def begin(self, int number, uint64_t high, uint64_t low, uint64_t deadline_us, bytes name, uint64_t written):
        """Say that an invocation has begun, when `written` bytes of output had been written."""
        cdef Slot* slot = self.mine(number)
        cdef Py_ssize_t size = min(len(name), 120)
        list_begun(slot, high, low)
        set64(&slot.high, high)
        set64(&slot.low, low)
        set64(&slot.started_us, now_us())
        set64(&slot.deadline_us, deadline_us)
        set32(&slot.done, 0)
        set32(&slot.total, 0)
        set64(&slot.written, written)
        memcpy(slot.name, <char*> name, size)
        set64(&slot.name_size, size)
        set32(&slot.activity, 1)

    def enlist(self, int number, uint64_t high, uint64_t low):
        """Say that an invocation has begun beside others; which one is shown is for `show` to say."""
        list_begun(self.mine(number), high, low)

    def show(self, int number, uint64_t high, uint64_t low, uint64_t deadline_us, bytes name, uint64_t started_us,
             bint blocked):
        """Show one of the invocations that run beside each other, none of which `begin` has shown."""
        cdef Slot* slot = self.mine(number)
        cdef Py_ssize_t size = min(len(name), 120)
        if slot.high != high or slot.low != low:
            set32(&slot.done, 0)
            set32(&slot.total, 0)
        set64(&slot.high, high)
        set64(&slot.low, low)
        set64(&slot.started_us, started_us)
        set64(&slot.deadline_us, deadline_us)
        memcpy(slot.name, <char*> name, size)
        set64(&slot.name_size, size)
        set32(&slot.activity, 2 if blocked else 1)

    def rename(self, int number, bytes name):
        """Say which function the running invocation has come to."""
        cdef Slot* slot = self.mine(number)
        cdef Py_ssize_t size = min(len(name), 120)
        memcpy(slot.name, <char*> name, size)
        set64(&slot.name_size, size)

    def redate(self, int number, uint64_t deadline_us):
        """Say until when the function that the running invocation has come to must have ended."""
        set64(&self.mine(number).deadline_us, deadline_us)

    def end(self, int number):
        """Say that it has ended; return how long it took in microseconds."""
        cdef Slot* slot = self.mine(number)
        set32(&slot.activity, 0)
        return now_us() - slot.started_us

    def settle(self, int number, bint running):
        """Say that every reply so far has been handed to the kernel, but for the one that is `running`."""
        cdef Slot* slot = self.mine(number)
        set64(&slot.settled, slot.begun - running)

    def settle_but(self, int number, list running):
        """Say the same when calls run beside each other: every reply but those of `running`, (high, low) of each."""
        cdef Slot* slot = self.mine(number)
        cdef uint64_t place, i, first = slot.settled, last = slot.begun
        if last - first > RING:  # too many to say, and so nobody reads the list: write it anew
            first = last - len(running)
            for i in range(first, last):
                place = i % RING
                slot.unsettled[2 * place], slot.unsettled[2 * place + 1] = running[i - first]
        else:
            for i in range(first, last):
                place = i % RING
                if (slot.unsettled[2 * place], slot.unsettled[2 * place + 1]) not in running:
                    slot.unsettled[2 * place] = slot.unsettled[2 * place + 1] = 0
            while first < last and slot.unsettled[2 * (first % RING)] == slot.unsettled[2 * (first % RING) + 1] == 0:
                first += 1
        set64(&slot.settled, first)

    def block(self, int number, bint blocked):
        """Say that the running invocation waits for a nested call, or no longer does."""
        set32(&self.mine(number).activity, 2 if blocked else 1)

    def set_waiting(self, int number, uint32_t waiting):
        """Say how many calls wait in the queue."""
        set32(&self.mine(number).waiting, waiting)

    def progress(self, int number, uint32_t done, uint32_t total):
        """Say how far the running invocation is."""
        cdef Slot* slot = self.mine(number)
        set32(&slot.total, total)
        set32(&slot.done, done)

    def doomed(self, int number):
        """Return whether the running invocation is the one that must stop."""
        cdef Slot* slot = self.at(number)
        return bool((slot.high | slot.low) and get64(&slot.doomed_high) == slot.high
                    and get64(&slot.doomed_low) == slot.low)

    def check(self):
        """Assert what holds at any moment, whoever is writing."""
        cdef int number
        for number in range(<int> self.header.slots):
            assert get32(&self.slot[number].state) <= 3
            assert get32(&self.slot[number].activity) <= 2
            assert get64(&self.slot[number].settled) <= get64(&self.slot[number].begun)


cdef class Chooser:
    """Which executor a client sends its next call to: of those it has a lease on, an idle one, the last used first.

    Counts what this process has outstanding at each, so that its threads do not all choose the same idle executor
    before it shows in the page. Methods are atomic under the GIL.
    """

    def __cinit__(self, Page page):
        self.page = page
        self.size = page.header.slots
        self.incarnations = <uint64_t*> calloc(self.size, sizeof(uint64_t))
        self.outstanding = <uint32_t*> calloc(self.size, sizeof(uint32_t))
        if self.incarnations == NULL or self.outstanding == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.incarnations)
        free(self.outstanding)

    def grant(self, int number, uint64_t incarnation):
        """Take a lease on the executor of a slot into account; incarnation 0 takes it away."""
        self.page.at(number)
        self.incarnations[number] = incarnation

    def granted(self):
        """Return {slot: incarnation} of the leases."""
        return {number: self.incarnations[number] for number in range(self.size) if self.incarnations[number]}

    def loads(self):
        """Return {slot: calls that it has before it} of the leases, for those executors that take calls now."""
        cdef Slot* slot
        cdef int number
        cdef dict found = {}
        for number in range(self.size):
            if self.incarnations[number] and self.takes(number):
                slot = self.page.slot + number
                found[number] = get32(&slot.waiting) + get32(&slot.activity)
        return found

    cdef bint takes(self, int number) noexcept:
        """Whether a leased executor is there and takes calls."""
        cdef Slot* slot = self.page.slot + number
        return get32(&slot.state) == 1 and get64(&slot.incarnation) == self.incarnations[number] \
            and get32(&slot.activity) != 2

    cpdef int claim(self, int prefer, uint64_t near=0):
        """Return the slot for one more call, now outstanding there, or -1 when no leased executor takes calls.

        The preferred slot if it is idle and the node's own, else the next idle one, the node's own first; else the one
        with the fewest calls before it. Those of the node `near` come first, idle or with one call, which may be over:
        what the page shows of other nodes is a little behind. O(slots).
        """
        cdef int best = -1, step, number, own = self.page.header.own
        cdef uint32_t load, least = 0xFFFFFFFF
        cdef Slot* slot
        if near and near != self.page.header.incarnation:
            least = NEAR_CALLS
            for number in range(own, self.size):
                slot = self.page.slot + number
                if self.incarnations[number] and get64(&slot.node) == near and self.takes(number):
                    load = max(get32(&slot.waiting) + get32(&slot.activity), self.outstanding[number])
                    if load < least:
                        best, least = number, load
            if best >= 0:
                self.outstanding[best] += 1
                return best
            least = 0xFFFFFFFF
        if prefer < 0 or prefer >= own:
            prefer = 0
        for step in range(self.size):
            number = (prefer + step) % own if step < own else step
            if self.incarnations[number] == 0 or not self.takes(number):
                continue
            slot = self.page.slot + number
            load = get32(&slot.waiting) + get32(&slot.activity)
            if load < self.outstanding[number]:
                load = self.outstanding[number]
            if load < least:
                best, least = number, load
                if load == 0:
                    break
        if best >= 0:
            self.outstanding[best] += 1
        return best

    cpdef void release(self, int number):
        """Say that a claimed call has come back."""
        if 0 <= number < self.size and self.outstanding[number]:
            self.outstanding[number] -= 1
