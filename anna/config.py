"""Every limit of the store, by name, with its unit last."""

from __future__ import annotations

from typing import Final

KEY_BYTES_MAX: Final = 4096
"""Longest key; the shortest has one byte."""

VALUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest encoded lattice state that one request may write."""

FRAME_BYTES_MAX: Final = VALUE_BYTES_MAX + KEY_BYTES_MAX + 64
"""Longest frame, its length field excluded."""

BATCH_KEYS_MAX: Final = 65536
"""Most keys in one multi-get or multi-put frame."""

FRAME_DEADLINE_S: Final = 5
"""How long after its first byte a frame may be unfinished, a large one longer: see FRAME_BYTES_PER_S_MIN."""

FRAME_BYTES_PER_S_MIN: Final = 1024 * 1024
"""Slowest arrival of a frame that is not ended: so many of its bytes have one second more."""

STAMP_AHEAD_MAX_US: Final = 60_000_000
"""How far ahead of the worker's clock a client's stamp may be; beyond it the write is refused."""

WORKER_AHEAD_MAX_US: Final = 366 * 24 * 3_600_000_000
"""How far ahead another worker's clock may be to be followed: a wrong date, not a wrong century."""

EPOCH_US: Final = 10_000
"""Length of an epoch (DESIGN §4)."""

TIMEOUT_S: Final = 2.0
"""Deadline of a call whose caller set none."""

VIRTUAL_NODES: Final = 256
"""Points on the ring for each node, and on a node's ring for each worker.

Of 64 workers the busiest has 1.17 times the mean of the keys, with 64 points 1.37 times.
"""

OWNERS_MAX: Final = 16
"""Most owners of one key on one ring: the greatest replication factor."""

RESERVED_PREFIX: Final = b"\x00"
"""Keys that begin with this byte belong to the system."""

ELEMENT_BYTES_MAX: Final = 1024 * 1024
"""Longest encoded element of a set, key of a map or place in an order."""

CLOCK_ENTRIES_MAX: Final = 65536
"""Most writers in a vector clock or counter, and most intervals in the clock of one causal version."""

SIBLINGS_MAX: Final = 1024
"""Most concurrent versions that a causal value may have for one more to be accepted from a client."""

MAP_DEPTH_MAX: Final = 16
"""How deep maps of maps may nest."""

LINK_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Most bytes that a link sends ahead of what its peer has confirmed."""

LINK_WINDOW_FRAMES: Final = 1024
"""Most frames that a link sends ahead of what its peer has confirmed."""

LINK_FRAGMENT_BYTES: Final = 256 * 1024
"""Longest part of a body that one frame of a link carries: a great value does not hold up the frames behind it."""

LINK_BODY_BYTES_MAX: Final = 4 * VALUE_BYTES_MAX + KEY_BYTES_MAX + 1024
"""Longest body of a link: any one key with its state, and what a message says about it.

A client's write lets no state grow beyond VALUE_BYTES_MAX; two or three owners that do not hear each other may.
"""

LINK_RESEND_FIRST_US: Final = 200_000
"""When a link's frame is sent again, while no round trip has been measured."""

LINK_RESEND_MIN_US: Final = 50_000
"""The soonest that a frame is sent again, however fast the round trips: a busy peer pauses for some epochs."""

LINK_RESEND_MAX_US: Final = 2_000_000
"""The longest that a link waits before it tries a silent peer again."""

LINK_RESEND_BYTES: Final = 256 * 1024
"""What a link sends again at first when a confirmation is overdue; it doubles as confirmations come."""

DELTA_BODY_BYTES: Final = 64 * 1024
"""Length at which a run of cells for one replica is cut into messages; a larger single cell travels alone."""

FLUSHES_PER_EPOCH_MAX: Final = 4
"""How often deltas leave before their epoch's end, for writers who wait for copies."""

BUSY_EPOCHS: Final = 5
"""For how many epochs after its last write a worker announces each closing; after that, heartbeats carry it."""

AGE_WINDOW_EPOCHS: Final = 3000
"""For how many epochs of work ages of the stable epoch are counted together: half a minute; those before stay once."""

AGE_EPOCHS_MAX: Final = 200
"""Ages of the stable epoch from here on are not told apart."""

EXPIRED_KEYS_MAX: Final = 2000
"""Most keys that one tick deletes because their time has come."""

SCAN_KEYS_MAX: Final = 1000
"""Most keys in one page of a scan."""

HEARTBEAT_US: Final = 500_000
"""How often a worker tells the others that it lives."""

HEARTBEAT_TARGETS_MAX: Final = 32
"""Most workers that one heartbeat goes to. In a larger cluster each goes to the next ones in turn."""

DEAD_AFTER_US: Final = 3_000_000
"""A node of which nobody heard anything for so long is called dead."""

PAUSE_US: Final = 1_500_000
"""A worker that did nothing for so long was stopped, and may have been called dead meanwhile."""

TOMBSTONE_US: Final = 86_400_000_000
"""A node that was dead for so long may not come back with what it knew: one day."""

LEFT_NODES_MAX: Final = 128
"""Most nodes that have left of which a view keeps the record: those that left last. Who was forgotten may come back."""

SEED_RETRY_FIRST_US: Final = 100_000
"""Pause after a seed that did not answer, at first; it doubles whenever all seeds were tried."""

SEED_RETRY_MAX_US: Final = 5_000_000

CLUSTER_NAME_BYTES_MAX: Final = 64
"""Longest name of a cluster."""

RIDER_BYTES_MAX: Final = 1024
"""Longest addition that a worker gives its heartbeats."""

REPAIR_BODY_BYTES: Final = 64 * 1024
"""When a run of cells is sent on its way; one cell may be longer."""

REPAIR_KEYS_HELD_MAX: Final = 1_000_000
"""Most keys that a repair with one peer holds the hashes of at once, unless one bucket has more."""

STORED_BYTES_MAX: Final = 1 << 40
"""Largest file of a seat's data: the address space that is mapped for it."""

BALLAST_BYTES: Final = 16 * 1024 * 1024
"""Room on the disk that each seat holds back, so that what was accepted can commit when the disk is full."""

LOG_PENDING_BYTES_MAX: Final = 8 * 1024 * 1024
"""Log bytes that may wait for a commit before the seat is overloaded; one blob may be larger."""

LOG_RETRY_S: Final = 0.5
"""How often a seat whose disk is full looks whether there is room again."""

LOG_SEGMENT_BYTES_MIN: Final = 1024 * 1024
"""Length of the first file that a seat's log is written to; the next ones have as many bytes as all before them."""

LOG_SEGMENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Most bytes of a file that a seat's log is written to, unless one commit has more."""

LOG_SPARE_BYTES_MAX: Final = 512 * 1024 * 1024
"""What a seat's log keeps of its files to be used again; what is over is removed."""

LOG_MARK_AFTER_S: Final = 0.005
"""A log that has been idle for so long notes that what it has was durable."""

CHECKPOINT_LOG_BYTES_MIN: Final = 256 * 1024 * 1024
"""A checkpoint is due when the log is longer than this and than the state itself."""

CHECKPOINT_SLICE_BYTES: Final = 4 * 1024 * 1024
"""Keys and cells in one durable slice of a checkpoint, about."""

CHECKPOINT_STEP_KEYS: Final = 512
"""How many keys' cells are gathered for a checkpoint before the worker looks at its clients again: about 1 ms."""

CHECKPOINT_PAUSE_S: Final = 0.002
"""How long a worker then looks at its clients."""

SWITCH_INTERVAL_S: Final = 0.0005
"""How long one thread of a worker that keeps a log may have the interpreter while another wants it."""

MEMORY_BYTES_MIN: Final = 16 * 1024 * 1024
"""The least memory that a worker is given for its keys and states."""

MEMORY_USUAL_PERCENT: Final = {"memory": 75, "disk": 50}
"""What part of the machine's memory keys and values of a node may take that was told nothing, by its tier."""

MEMORY_KEY_BYTES: Final = 200
"""What a key takes beside its bytes: its object, its slots (1.6 to 3.2 of 33 bytes) and what stands for its state."""

MEMORY_STATE_BYTES: Final = 112
"""What a state in memory takes beside its bytes: the objects of a register and of its payload."""

MEMORY_OBJECTS_FACTOR: Final = 4
"""How many bytes of memory one byte of a set's, map's or counter's encoding is, about, as objects."""

MEMORY_MAPPED_BYTES: Final = 128 * 1024
"""Blocks of at least this size go back to the system when a worker of the disk tier frees them."""

COLD_STATE_BYTES_MIN: Final = 64
"""Shorter states stay in memory: what stands for one that left is about as long."""

MEMORY_UNKEPT_SHARE: Final = 4
"""A worker of the disk tier begins a checkpoint when one such part of its memory holds what the checkpoint lacks."""

GATHER_S: Final = 0.002
"""How long a commit waits at most for those whom the last one answered, to have their next writes too."""

GATHER_PERCENT: Final = 90
"""Of those who were waiting then, how many are enough."""

GATHER_REST_COMMITS_MAX: Final = 128
"""How many commits do not wait after one that waited in vain, at most."""

REPAIR_QUEUE_BYTES: Final = 1024 * 1024
"""What repair may have under way to one peer; more is sent when that is confirmed, so deltas never wait for long."""

REPAIR_SLICE_BYTES: Final = 256 * 1024
"""What one tick of repair sends to one peer at most."""

REPAIR_SLICE_KEYS: Final = 2000
"""How many keys one tick of repair looks at, for each peer, at most."""

SWEEP_KEYS_MAX: Final = 2000
"""How many keys one tick looks at to drop those that moved away."""

OWNER_SHARE_MIN_NS: Final = 50_000_000
"""The least time that a read gives one owner before it goes on to the next."""

VIEW_LOOK_MIN_NS: Final = 100_000_000
"""A client that was told of another view, or had to go by a detour, looks for a newer one no more often than this."""

SUSPECT_NS: Final = 1_000_000_000
"""For how long a client asks other owners before one that could not be reached or did not answer."""

TTL_S_MAX: Final = 100 * 365 * 86400.0
"""The longest life that a write can be given; it fits the clock's microseconds."""

ANSWERED_BYTES_MAX: Final = 1024 * 1024
"""When a worker sends what it has answered on one connection, and looks at the others, before it answers more."""

ANSWERED_VALUES_MAX: Final = 64
"""The same for large values, which are sent from where they are stored."""

WRITE_BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Answers that may wait for a client that does not read, before its requests are no longer read either."""

UNREAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""What may wait for a client that does not read before one more push, or held answer, ends its connection."""

HELD_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX
"""What may wait on one connection behind a write that is not yet as safe as was asked; beyond it, it is ended."""

SNAPSHOT_IDLE_US: Final = 30_000_000
"""How long a worker keeps the state of one epoch for a backup that does not ask for it."""

RECENT_EPOCHS: Final = 30
"""How many epochs before the stable one are readable while anybody reads at epochs; older ones while pinned."""

EPOCH_LEASE_US_MAX: Final = 30_000_000
"""The longest that an epoch stays readable after it was asked for last."""

EPOCH_TRIES_MAX: Final = 200
"""How often a cache asks an owner for what is not stable there yet, half an epoch apart, before it says so."""

CACHE_EPOCH_WAIT_NS: Final = 1_000_000_000
"""How long a node's cache lets a session wait for an epoch at which it can begin, before it is told to ask again."""

CACHE_COMMIT_PAUSE_NS: Final = 5_000_000
"""How long a node's cache waits before it makes another attempt at a transaction, or asks again what became of it."""

CACHE_COMMIT_PATIENCE_NS: Final = 2_000_000_000
"""How long it waits for an owner that is connected and does not answer, before it asks the others."""

CACHE_COMMIT_QUESTIONS_MAX: Final = 40
"""How often it asks what became of an attempt before it makes another: those who knew may all have died."""

CACHE_COMMIT_NS: Final = 10_000_000_000
"""How long it goes on before it tells the executor, who may ask on, that nobody knows yet."""

CACHE_VERSIONS_MAX: Final = 64
"""Most versions of one key at epochs that a node's cache keeps; what falls out of them is asked of an owner."""

PINS_MAX: Final = 1024
"""Most epochs that are pinned at one worker."""

HISTORY_BYTES_MAX: Final = 256 * 1024 * 1024
"""What the past of keys may take at one worker, about; beyond it all of it is forgotten, and sessions begin again."""

HISTORY_BLURRED_MAX: Final = 100_000
"""Of how many keys a worker remembers that their past is not known; beyond it, that of all is not."""

BACKUP_PAGE_BYTES: Final = 1024 * 1024
"""When a worker's answer to a backup is long enough; one key may be longer."""

BACKUP_PAGE_KEYS: Final = 2000
"""Most keys that a worker looks at for one answer to a backup."""

OWN_VECTORS_MAX: Final = 4096
"""Most keys that may be given a replication vector of their own; a view then has some 100 KB."""

OWN_VECTORS_BOUND: Final = 65536
"""Most such keys in a view that a peer sends: in a partition each side may have given as many as it may."""

OWN_VECTORS_FORGET_US: Final = 60_000_000
"""For how long it is remembered at least that a key has the default again; then only if there is room."""

RING_BYTES: Final = 256 * 1024
"""Each of the two rings that a client and a worker share; a power of two. A longer message goes in pieces."""

RINGS_MAX: Final = 64
"""Most connections of one worker that have rings; later ones stay with their sockets."""

RINGS_AFTER_REQUESTS: Final = 32
"""How many requests a connection has served before its client asks for rings: they do not pay for a short life."""

RING_TURN_BYTES: Final = 64 * 1024
"""What a worker takes from one ring before it looks at the next."""

RING_TURN_NS: Final = 30_000
"""For how long a worker looks at its rings before it looks at its sockets and timers."""

RING_STAY_NS: Final = 60_000
"""How long a side of a ring stays awake for what it awaits, where that has paid lately."""

RING_LOOK_NS: Final = 20_000_000
"""How long a client sleeps by a ring before it looks whether the worker is still there."""

TRANSACTION_KEYS_MAX: Final = 1024
"""Most keys that are written in one transaction."""

TRANSACTION_SILENT_US: Final = 1_000_000
"""After so long an owner that has prepared a transaction and hears no more of it asks the others what became of it."""

TRANSACTION_RIVAL_US: Final = 30_000
"""For so long an attempt at a transaction is left to its coordinator when another one has begun to try it, too."""

TRANSACTION_KEPT_US: Final = 60_000_000
"""For how long an owner remembers, after it, what a transaction came to, if its epoch is stable by then."""

TRANSACTIONS_KEPT_MAX: Final = 65_536
"""Of how many transactions an owner remembers so; of those whose epochs are not stable it remembers all."""

TRANSACTION_DOUBT_US: Final = 3_600_000_000
"""For how long an owner keeps what it has prepared of a transaction of which another part is gone: it may come back."""

PREPARED_BYTES_MAX: Final = 64 * 1024 * 1024
"""What prepared transactions may take at one worker, about; beyond it a prepare is refused."""
