"""What an engine is: it keeps batches. Everything above speaks to this Protocol and to no engine by name.

A batch is a Kafka record batch v2 (`broker/batch.py`) in clear; sealing is the engine's own business. Every engine passes
`tests/contracts/engine_contract.py`.

Order and visibility, for every engine:
- an append is visible, acknowledged and counted in the high watermark together, after it is as durable as `durability` promises;
- offsets of a partition are handed out in the order of `append` calls on the owner thread;
- commit sequences grow with every committed batch over all partitions; a reader that has seen sequence s has seen all below s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Literal, Protocol, TypeAlias

import msgspec


class Topic(msgspec.Struct, frozen=True, gc=False):
    """A topic as users see it. `topic_id` is a 16-byte UUID, never reused."""

    topic_id: bytes
    name: str
    partitions: int
    configs: Mapping[str, str]
    created_at_ms: int


class Append(msgspec.Struct, frozen=True, gc=False):
    """One batch for one partition. `batch` is a whole record batch v2 whose base offset is still 0; a view is copied before
    `append` first waits, so the buffer under it may be used again.

    `keys` are the keys of the batch (None in it: a record without a key) when the edge that built it knows them: they feed
    the key index. Without them the batch is a candidate for every key.
    """

    topic: str
    partition: int
    batch: bytes | memoryview
    keys: Sequence[bytes | None] | None = None
    has_expiry: bool = False


class StateSpace(IntEnum):
    """Whose keyed state it is. Numbers are the entry kinds of decision 0001, section 5."""

    IDEMPOTENCY = 10
    POSITION = 11
    GROUP = 12
    GROUP_OFFSET = 13
    PRODUCER = 14
    TRANSACTION = 15
    ABORTED = 16


class StateChange(msgspec.Struct, frozen=True, gc=False):
    """One entry of keyed state set, or deleted (`value` None)."""

    space: StateSpace
    key: bytes
    value: bytes | None


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a batch landed: offsets base_offset .. base_offset + count - 1, of a partition that begins at `log_start`."""

    topic: str
    partition: int
    base_offset: int
    count: int
    sequence: int
    append_time_ms: int
    log_start: int = 0


Told: TypeAlias = Callable[[Exception | None], None]
"""Hears how an append ended. It must not raise: what it has to say is not worth an append of others."""

StateChanges: TypeAlias = Sequence[StateChange] | Callable[[Sequence[Appended]], Sequence[StateChange]]


class Damage(msgspec.Struct, frozen=True, gc=False):
    """Offsets [from_offset, to_offset) of a partition that the media lost; the rest of the partition is served."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int
    reason: str


class KeyCopy(msgspec.Struct, frozen=True, gc=False):
    """A key backup that still holds a key which was destroyed here: the records open with it until it is destroyed too."""

    backup: str
    path: str
    expires_at_ms: int


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Offsets up to `to_offset` that retention or a deletion of records took before a reader got there. `from_offset` is the
    lowest that it may have missed: what it had read before is not known here."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A batch as read back: clear, offsets in place. Records below `first_offset` were deleted and are not to be handed out."""

    partition: int
    base_offset: int
    next_offset: int
    sequence: int
    max_timestamp_ms: int
    batch: bytes
    has_expiry: bool = False
    first_offset: int = 0


class PartitionEnds(Protocol):
    """Where a partition begins and ends, as it is whenever it is looked at; of a topic that is gone, as it was last."""

    @property
    def log_start(self) -> int: ...
    @property
    def high_watermark(self) -> int: ...


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """Batches from an offset on. The first batch may begin below the asked offset (fetch from a position inside a batch).

    `next_offset` is where to go on, also when `batches` is empty because damaged or compacted offsets were stepped over.
    """

    batches: list[Stored]
    next_offset: int
    log_start: int
    high_watermark: int
    damage: list[Damage]


class Tail(msgspec.Struct, frozen=True, gc=False):
    """Batches of one topic in commit order. `next_sequence` is where to go on. `gap`: records that are gone, told once, to the
    reader that comes from before them; one that begins at sequence 0 or 1 asked for what there is and is told of none."""

    batches: list[Stored]
    next_sequence: int
    damage: list[Damage]
    gap: list[Gap] = []


class Scan(msgspec.Struct, frozen=True, gc=False):
    """Batches of many topics, each with its topic's name, in commit order. `next_sequence` is where to go on."""

    batches: list[tuple[str, Stored]]
    next_sequence: int
    damage: list[Damage]
    gap: list[Gap] = []


class PartitionOffsets(msgspec.Struct, frozen=True, gc=False):
    partition: int
    log_start: int
    high_watermark: int


class OffsetForTime(msgspec.Struct, frozen=True, gc=False):
    """-1, -1 when no record is that young, as Kafka's ListOffsets answers."""

    offset: int
    timestamp_ms: int


class Capabilities(msgspec.Struct, frozen=True, gc=False):
    """What this engine can do; protocols advertise no more than this."""

    durability: Literal["fsync", "os", "cluster"]
    commit_sequence: bool
    key_index: bool
    groups: bool = False
    transactions: bool = False
    compaction: bool = False


class AbortedRange(Protocol):
    """Transactional records of the producer in [first offset, marker offset) of a partition do not count."""

    @property
    def producer_id(self) -> int: ...

    @property
    def first_offset(self) -> int: ...

    @property
    def marker_offset(self) -> int: ...


class Decided(Protocol):
    """What transactions leave to readers in commit order, and to those of the newest record of a key
    (broker/transactions/stability.py). `Engine.fetch` and `Engine.offsets` know nothing of it: Kafka clients ask themselves."""

    def stable_sequence(self, topic_ids: Iterable[bytes]) -> int:
        """All batches of these topics below this commit sequence are decided; at most the next one to come."""

    def committed(self, topic_id: bytes, stored: Stored) -> bool:
        """False for markers, and for batches of transactions that are open or were aborted."""

    def stable_offset(self, topic_id: bytes, partition: int, high_watermark: int) -> int:
        """All below is decided; at most the high watermark. Compaction goes no further."""

    def aborted(self, topic_id: bytes, partition: int, from_offset: int, to_offset: int) -> Sequence[AbortedRange]:
        """Every aborted transaction with records in the range: compaction drops them."""

    async def markers_gone(self, topic_id: bytes, partition: int, offsets: Sequence[int]) -> None:
        """A compaction is about to take these ends of transactions away, of which an earlier one has left no record: an aborted
        one is forgotten, durably, before a reader could wait for its end in vain."""


class Engine(Protocol):
    """Errors are `broker.errors`. All methods run on the owner thread; none blocks it."""

    decided: Decided | None
    """Asked by `tail`, `scan` and `find_latest`; None where nobody writes transactions."""

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Finish what was accepted, make it durable, release the data folder."""

    def capabilities(self) -> Capabilities: ...

    def topics(self) -> Mapping[str, Topic]:
        """By name, in the order in which they were made; a live view, do not change it."""

    def topic_of(self, topic_id: bytes) -> Topic | None:
        """The topic with this id, if there is one."""

    async def create_topic(self, name: str, partitions: int, configs: Mapping[str, str]) -> Topic:
        """TopicExists, IllegalTopicName, InvalidConfig; durable when it returns."""

    async def alter_topic(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        """Partitions only grow; a config of None goes back to its default."""

    def check_new_topic(self, name: str, partitions: int, configs: Mapping[str, str]) -> None:
        """What `create_topic` would refuse now."""

    def check_altered(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        """What `alter_topic` would make of the topic now, and what it would refuse."""

    async def delete_topic(self, name: str) -> list[KeyCopy]:
        """Records and keys go at once: the topic's root key is destroyed. What files say of its batches without it (offsets,
        sizes, times, keyed hashes, themselves sealed under the node's key) goes when they are merged. Returns the key backups
        that still hold the root key."""

    async def append(self, appends: Sequence[Append], *, durable: bool = True, changes: StateChanges = ()) -> list[Appended]:
        """All batches and state changes of one call are committed together or not at all; `appends` may be empty. Changes that
        say where the records landed are given as a function of what is returned; it is called before anything is written.

        Of changes of one key the last counts. Raises StateFull at `state_entries_max` or `state_bytes_max` (deletes, and new
        values no larger than the old, always pass), RecordTooLarge for an entry above `state_key_bytes_max` or
        `state_value_bytes_max`; then nothing of the call is appended.

        `durable=False` (acks none) returns as soon as offsets are assigned; nothing is promised, and the records become
        visible with everybody else's, after the sync. Raises Overloaded at `append_queue_bytes_max`, AppendUnknown after a
        failed write or sync.
        """

    def submit(
        self, appends: Sequence[Append], *, durable: bool = True, changes: StateChanges = (), told: Told | None = None
    ) -> tuple[list[Appended], asyncio.Future[None] | None]:
        """`append` for callers that do not wait themselves: what it returns, and a future that is done when it would return, or
        has its error; None where it would return at once.

        `told` is called once instead, in the very turn in which that is so and after this has returned; then the future is made
        only where there are `changes` (others may wait for them). It is for who answers many: no task has to be woken."""

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Records below the offset are gone for every reader when this returns, durably; -1 means all there are (Kafka's
        DeleteRecords). Returns the log start, which never goes back. OffsetOutOfRange above the high watermark.

        The bytes go with their file, or when it is merged."""

    async def apply_retention(self) -> int:
        """Let go, now, what `retention.ms` and `retention.bytes` of the topics no longer keep; the engine does so by itself
        every `retention_check_ms`. Returns how many partitions begin later than before."""

    def state(self, space: StateSpace, key: bytes) -> bytes | None:
        """The visible value: as durable as `append` promises. Out of memory."""

    def states(self, space: StateSpace) -> Iterator[tuple[bytes, bytes]]:
        """All visible keys and values of a space, as they are now, in no order."""

    async def fetch(
        self,
        topic: str,
        partition: int,
        offset: int,
        *,
        bytes_max: int,
        bytes_min: int = 1,
        wait_max_ms: int = 0,
    ) -> Fetched:
        """At least one batch if there is one, whatever its size; waits while less than `bytes_min` is there. OffsetOutOfRange
        below the log start, also when the start has passed the offset meanwhile."""

    def fetch_recent(self, topic: str, partition: int, offset: int, *, bytes_max: int) -> Fetched | None:
        """`fetch` without waiting, of what is in memory, the system's included; None where it is not, where it is so much that
        others should not wait for it, or where something was damaged."""

    async def tail(
        self,
        topic: str,
        from_sequence: int,
        *,
        bytes_max: int,
        wait_max_ms: int = 0,
        partitions: Sequence[int] | None = None,
        key: bytes | None = None,
    ) -> Tail:
        """Batches of a topic in commit order, from a commit sequence on; with `key`, only batches that may hold the key, found
        through the key index where there is one (name its partition in `partitions` to look in no other)."""

    async def scan(self, from_sequence: int, *, topics: Callable[[str], bool], bytes_max: int, wait_max_ms: int = 0) -> Scan:
        """As `tail`, over every topic for which `topics(name)` is true. It is asked at each call (and each time a waiting call
        is woken), so a topic made later needs nothing, and one that is deleted meanwhile is left out."""

    async def find_latest(self, topic: str, partition: int, key: bytes | None) -> Stored | None:
        """The newest visible batch that holds a record with this key (None: without a key)."""

    def offsets(self, topic: str) -> list[PartitionOffsets]: ...

    def partition_offsets(self, topic: str, partition: int) -> PartitionOffsets: ...

    def partition_ends(self, topic: Topic, partition: int) -> PartitionEnds:
        """For who looks at many partitions again and again. UnknownPartition."""

    def sizes(self, topic: str) -> list[int]:
        """Bytes of each partition as stored, those of deleted records included until their file goes."""

    async def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> OffsetForTime:
        """The first record whose timestamp is at or after `timestamp_ms` (Kafka ListOffsets)."""

    async def offset_of_max_timestamp(self, topic: str, partition: int) -> OffsetForTime: ...

    async def sequence_for_time(self, topic: str, timestamp_ms: int) -> int:
        """The lowest commit sequence from which `tail` sees every record at or after `timestamp_ms`."""

    def next_sequence(self) -> int:
        """The sequence after the newest visible batch: where `latest` begins."""

    def watch(self, topic: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` on the owner thread after each commit that made records of the topic visible; returns the unwatch."""

    def watch_all(self, wake: Callable[[], None]) -> Callable[[], None]:
        """The same for the records of any topic."""

    def append_problem(self) -> str | None:
        """Why appends are refused at the moment; None when they are not."""

    def damage(self) -> list[Damage]:
        """Every range the media lost, as far as known."""
