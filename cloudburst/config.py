"""Every limit of the function runtime, by name, with its unit last."""

from __future__ import annotations

from typing import Final

TIMEOUT_S: Final = 300.0
"""Deadline of a call whose caller and function set none."""

CONTROL_TIMEOUT_S: Final = 10.0
"""Deadline of a request to the node itself: leases, registrations, status."""

ATTEMPTS_MAX: Final = 3
"""How often a call is begun when only its executors are at fault (P19); `retries=` sets another bound."""

CRASHES_MAX: Final = 3
"""A function under which this many executors died is refused until it is registered anew (P22)."""

NAME_BYTES_MAX: Final = 120
"""Longest function name in UTF-8: what a slot of the node's page can show."""

FUNCTION_BYTES_MAX: Final = 64 * 1024 * 1024
"""Largest pickled function, closure included."""

FUNCTION_BYTES_WARN: Final = 10 * 1024 * 1024
"""A pickled function above this size is registered with a warning."""

ARGUMENT_BYTES_MAX: Final = 1 << 40
"""Largest arguments of one call, pickled, with their buffers."""

RESULT_BYTES_MAX: Final = 1 << 40
"""Largest result of one call, pickled, with its buffers."""

FRAME_BYTES_MAX: Final = 257 * 1024 * 1024
"""Longest frame between client and executor; a longer one is a protocol error."""

QUEUE_CALLS_MAX: Final = 1024
"""Most calls that wait in one executor; the next is refused with `Overloaded`."""

QUEUE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Most bytes of arguments that wait in one executor."""

PENDING_CALLS_MAX: Final = 200_000
"""Most spawned calls of one client that have no result yet; the next `spawn` raises `Overloaded`."""

WINDOW_CALLS_MIN: Final = 8
"""Calls that a client may have under way at one executor before it knows how long they take."""

WINDOW_CALLS_MAX: Final = 256
"""Calls that a client may ever have under way at one executor."""

WINDOW_US: Final = 4_000
"""How much work a client keeps waiting at an executor, once it knows how long a call takes."""

MAP_IN_FLIGHT_MAX: Final = 1024
"""Most items that `map` has taken from its input and not yet yielded."""

BOUNCES_MAX: Final = 1_000
"""How often an executor may hand one call back unbegun before it is refused with `Overloaded`."""

EXECUTORS_MAX: Final = 128
"""Slots of a node: executors of their own, and those that stand in for blocked ones."""

LEASE_S: Final = 30.0
"""How long an executor lease lasts; its client renews it when half of that has passed."""

SURPLUS_IDLE_S: Final = 5.0
"""An executor above the node's own number that has been idle this long is retired."""

START_TIMEOUT_S: Final = 15.0
"""How long a client waits for the node that it started."""

KILL_GRACE_US: Final = 500_000
"""A call that still runs this long after its deadline is interrupted from outside."""

KILL_US: Final = 200_000
"""And killed when it still runs this long after that."""

LONG_US: Final = 5_000
"""A call that has run this long no longer has its executor's undivided attention: the attendant thread looks after
the queue."""

LOOK_US: Final = 1_000_000
"""How often, at least, the node looks at an executor that reported a long call."""

COALESCE_US: Final = 100
"""Replies of functions that take less than this may wait for the next one's, to share a system call."""

OUTPUT_BYTES_MAX: Final = 64 * 1024
"""Most bytes of printed output that travel with one reply; the rest is counted."""

TAIL_BYTES_MAX: Final = 64 * 1024
"""Last bytes of an executor's output that the node keeps."""

OUTPUT_BYTES_PER_S: Final = 8 * 1024 * 1024
"""How fast an executor may write output before the node lets it wait."""

OPEN_FILES_MAX: Final = 4096
"""RLIMIT_NOFILE of an executor."""

PROCESSES_MAX: Final = 4096
"""RLIMIT_NPROC of an executor (root is exempt by the kernel)."""

REPLY_BACKLOG_BYTES_MAX: Final = 1024 * 1024
"""An executor takes no more calls from a client that leaves this much of its replies unread."""

DAG_STEPS_MAX: Final = 2_000
"""Most steps of one DAG."""

JOIN_CALLS_MAX: Final = 20_000
"""Most stages of DAGs that wait in one executor for what their predecessors return; the next is refused."""

JOIN_BYTES_MAX: Final = 512 * 1024 * 1024
"""Most bytes of results that wait there for others."""

RESULT_KEEP_S: Final = 600.0
"""How long a result is kept that has been published, or that belongs to an id of the caller's (P21)."""

INBOX_MESSAGES_MAX: Final = 10_000
"""Most messages that wait for one invocation; the sender of the next is told Overloaded."""

INBOX_BYTES_MAX: Final = 64 * 1024 * 1024
"""Most bytes of messages that wait for one invocation."""

SEND_TIMEOUT_S: Final = 5.0
"""How long a sender waits for the invocation that it sends to, unless it says otherwise."""

LOAD_TIMEOUT_S: Final = 60.0
"""How long an executor may take to load a function that is being registered."""

LOG_BYTES_MAX: Final = 8 * 1024 * 1024
"""How much of what its executors print a node keeps, to be asked for; older lines are dropped."""

LOG_ANSWER_BYTES_MAX: Final = 256 * 1024
"""Most bytes of lines in one answer to a reader of them."""

LOG_GATHER_US: Final = 20_000
"""How long lines gather before those that wait for them are told."""

LOG_WAIT_S: Final = 5.0
"""How long a reader's request waits for lines before it is answered with none, and made again."""

CONCURRENT_CALLS_MAX: Final = 50
"""Most calls of coroutine functions that run beside each other in one executor; what a function has that sets no
`concurrency`. The page lists 64 calls that have begun, and some of those places are for plain calls."""

SANDBOX_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Size of each private directory of a sandbox: `/tmp`, the home directory and others; they are memory."""

SEGMENT_BYTES_MIN: Final = 64 * 1024
"""A pickled value with this many bytes or more travels as a segment of shared memory, on one node."""

MEMORY_SHARE: Final = 0.5
"""Share of the shared memory that is free when a node starts which its segments may have; CLOUDBURST_SEGMENT_BYTES sets
another bound. What is beyond it is written to disk."""

MEMORY_LEFT_SHARE: Final = 0.1
"""Share of the machine's shared memory that segments leave free, whatever the bound."""

DISK_LEFT_SHARE: Final = 0.05
"""Share of the disk that segments leave free; beyond it a value is refused with NoRoom."""

POPULATE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest segment whose pages are all entered when it is mapped; those of a longer one are when they are read."""

FRAME_HEAD_BYTES_MAX: Final = 1024 * 1024
"""Room that a frame keeps for all but its payload."""

CHUNK_BYTES: Final = 1024 * 1024
"""A large value moves between hosts in pieces of this size; one that is no larger goes in the frame of its call."""

CHUNKS_ASKED_MAX: Final = 4
"""Chunks of a value that are asked for ahead of the one that is arriving."""

FETCHES_MAX: Final = 16
"""Most values that a node fetches from other hosts at a time; each takes a chunk of memory. Others wait."""

FETCH_SILENCE_S: Final = 5.0
"""How long the holder of a value may send nothing before the connection is given up."""

FETCH_FRUITLESS_MAX: Final = 2
"""Connections in a row that may end before they have brought a byte; then the value is lost with its holder."""

PORTER_CONNECTIONS_MAX: Final = 512
"""Most connections that a node's porter serves at a time; the next wait."""

LEND_BYTES_MIN: Final = 1024 * 1024
"""A result of more bytes that is passed on as an argument stays where it is, and only its place is published."""

CACHE_SHARE: Final = 0.5
"""Share of the bound of a node's segments that the values of keys may have, which its cache keeps."""

SEGMENT_GRACE_S: Final = 1.0
"""How long the value of a key can still be opened after it was replaced."""

MAPPED_BYTES_MAX: Final = 4 * 1024 * 1024 * 1024
"""Most bytes of values of keys that a process keeps mapped; the last used stay."""

OPENED_MAX: Final = 4_096
"""Most values of keys that a process keeps mapped."""

TRACE_SPANS_MAX: Final = 1_000
"""Most spans that come back with one reply of a call that is traced; the rest is counted."""

FOREIGN_EXECUTORS_MAX: Final = 384
"""Executors of other nodes that the clients of a node can use; those beyond are left out."""

NODE_BEAT_S: Final = 0.5
"""How often a node tells its neighbours what its executors do, when nothing changes."""

NODE_NEWS_S: Final = 0.02
"""And when it does."""

NODE_STAY_S: Final = 1.0
"""How often a node that others have not met in return tells them that it is still there."""

NODE_SILENCE_S: Final = 3.0
"""A neighbour that is not heard of for so long is lost, and with it what its executors were asked."""

NODE_RECORD_S: Final = 10.0
"""How long a node's record stays in the store when it is not renewed."""

NODE_LOOK_S: Final = 1.0
"""How often a node renews its record, and looks for those of others."""

FUNCTIONS_KNOWN_S: Final = 0.5
"""How long a registration waits for the neighbours to know of it."""

DRAIN_S: Final = 10.0
"""How long a node that stops lets calls run on that have begun there; after that they are begun again elsewhere."""

STOP_S: Final = 80.0
"""How long a node that stops may take, calls and the handing over of its keys included."""

INTRODUCTION_S: Final = 3.0
"""How long a node on another host may take to be reached, and to show that it has the same secret."""

CONNECT_S: Final = 1.0
"""How long a connection to an executor on another host may take to be made."""

CONTINUATIONS_MAX: Final = 1_000
"""How often one call may be continued with another function."""

SCALE_IDLE_S: Final = 30.0
"""How long a node that may have no executors keeps its last one without a call."""

AWAKE_US: Final = 100
"""How long a caller waits awake for an answer, and an executor for the next call, as long as that has been worth it."""

SESSION_BEGIN_S: Final = 5.0
"""How long a session waits for an epoch that it can read at: a store that restarts, a partition, a token's epoch."""

SESSION_LEASE_S: Final = 9.0
"""For how long the epoch of an open session is pinned at a time; it is pinned again before that ends. A worker has room
for 1,024 pinned epochs (`pins_max`), 10 s of them."""

SESSION_CALLS_MAX: Final = 1024
"""From so many calls on a session looks which of its own are over, before it begins another."""

READY_IN_S: Final = 120.0
"""How long machines may take from being asked for until all are ready, unless `ready_in` says otherwise."""

CONSOLE_BYTES: Final = 2_000
"""How much of what a machine has said is shown when it does not become ready."""

TERMS_LOOK_S: Final = 0.25
"""How often a run looks whether its time, its money or its patience is over, and which machines are at work."""

SIZE_LOOK_S: Final = 0.25
"""How often a run that has bounds looks whether calls wait, or machines have nothing to do."""

SIZE_PATIENCE_S: Final = 1.0
"""How long it waits for machines until it looks whether anybody still wants them."""

AGENT_LEASE_S: Final = 10.0
"""How long the agent on a host hears nothing of whoever asked for its node, until it ends that."""

AGENT_START_S: Final = 100.0
"""How long an agent waits until its node is ready, for hosts may be slow; less than `ready_in_s`: so it can say why."""

AGENT_BEAT_S: Final = 1.0
"""How often it is told that they are there."""

RUN_KEYS_S: Final = 86400.0
"""How long the keys last that the hosts of a run are given; they get new ones when half of it is over."""

SSH_CONNECT_S: Final = 10.0
"""How long a connection to an SSH host may take, its greeting and the user's key included."""

RAY_CONNECT_S: Final = 60.0
"""How long Ray may take to let a job in; for one that comes from outside it starts a process first."""

RAY_TRIES_MAX: Final = 3
"""How often that is tried when Ray's own process has failed at its start."""

CLOUD_LEASE_S: Final = 20.0
"""How long a machine of a cloud sees no sign of whoever asked for it, until it ends itself; and the other way round."""

CLOUD_LOOK_S: Final = 0.25
"""How often machines of a cloud and whoever asked for them look for news of each other while they wait for some."""

CLOUD_REST_S: Final = 1.0
"""How often they do otherwise."""

BUILD_BYTES_MAX: Final = 256 * 1024 * 1024
"""Most bytes of an application's own files, and of its test data, that `cb build` packs."""

BUILD_TIMEOUT_S: Final = 600.0
"""How long pip and PEX may take, each."""

GIT_TIMEOUT_S: Final = 30.0
"""How long git may take to say of which commit an application is."""

CASE_TIMEOUT_S: Final = 300.0
"""How long one case of `./OUT test` may take."""

MEMORY_WANTED_BYTES: Final = 256 * 1024 * 1024
"""Memory that `cb doctor` wants to be available: a node and its store take about 70 MiB, executors what they run."""

SHARED_MEMORY_WANTED_BYTES: Final = 256 * 1024 * 1024
"""Shared memory that `cb doctor` wants to be free; containers often have 64 MiB."""

DISK_WANTED_BYTES: Final = 1024 * 1024 * 1024
"""Room that `cb doctor` wants on each disk that is used."""

CLOCKS_APART_MAX_S: Final = 1.0
"""How far clocks of hosts may be apart before `cb doctor` says so."""

SELFTEST_S: Final = 60.0
"""How long each step of `cb selftest` may take before it counts as failed."""

QUEUE_WINDOW_TASKS: Final = 4_096
"""Most tasks of one `cb map` that are announced and have no result that counts; its inputs are read no further."""

QUEUE_AHEAD_TASKS: Final = 1_024
"""Most results of a stage that the next stage has not taken; the stage then announces no more tasks."""

QUEUE_LEASE_US: Final = 3_000_000
"""A worker whose beat has not been seen to grow for so long has lost its leases."""

QUEUE_BEAT_US: Final = 500_000
"""How often a worker beats when it has nothing to tell."""

QUEUE_CONFIRM_US: Final = 40_000
"""How long a lease is known before its task begins, so that of two that cross one can yield."""

QUEUE_LOSSES_MAX: Final = 3
"""How often a task is begun when only its workers are at fault: lost, frozen or slow."""

QUEUE_SLOW_US: Final = 2_000_000
"""A task that runs for less is never begun a second time because it is slow."""

QUEUE_SLOW_FACTOR: Final = 3
"""How many times as long as nearly all others a task runs until a worker with nothing else to do begins it, too."""

QUEUE_GATHER_US: Final = 10_000
"""How long facts gather before they are written as one page: an epoch of the store."""

QUEUE_REST_US: Final = 100_000
"""Who has enough to do tells and looks for news at most this often; what that costs is shared by all that gathered."""

QUEUE_REST_SHARE: Final = 20
"""But sooner at first: after a twentieth of the time since it began, so that the next stage soon has enough, too."""

QUEUE_INLINE_BYTES: Final = 1_024
"""A result of at most this many bytes is told to everybody with the task's end; a longer one is kept in the store."""

QUEUE_PAGE_BYTES: Final = 256 * 1024
"""Most bytes of facts in one page, one fact excepted."""

QUEUE_BLOB_BYTES: Final = 4 * 1024 * 1024
"""A task's input and output are kept in the store in pieces of this size."""

QUEUE_KEEP_S: Final = 24 * 3600.0
"""How long the store keeps what a `cb map` that was killed has left there."""

QUEUE_OWNER_US: Final = 30_000_000
"""A worker stops when the command that it works for has not been heard of for so long."""

TASKS_TOGETHER: Final = 8
"""So many tasks at a time share a worker where all are on one host: each worker more costs messages to all others."""

QUEUE_PATIENCE_S: Final = 30.0
"""How long a participant asks a store that does not answer, because hosts are cut off, frozen or gone."""

TASK_SAID_BYTES: Final = 4_096
"""How much of the end of a failed task's standard error is kept."""

TASK_TERM_S: Final = 2.0
"""How long a task that is stopped may take to end before it is killed."""

TASK_OUTPUT_BYTES_MAX: Final = 256 * 1024 * 1024
"""Longest output of one task of `cb map`."""
