"""The broker as the gateway sees it: topics by name, records in, records out. It knows keys, never people.

Everything runs on the owner thread of the engine and changes nothing between two awaits of its own, so there are no locks.
What is published in one call is one append: all of it is stored, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import cast

import msgspec

from broker.batch import Draft, build, walk
from broker.compression import Compression
from broker.delivery.position import Position, find_start
from broker.delivery.subscription import Subscription, record_bytes
from broker.engine.base import Append, Appended, Capabilities, Damage, Engine, PartitionOffsets, Stored, Topic
from broker.errors import BatchRefused, RecordTooLarge, TopicExists, UnknownPartition, UnknownTopic
from broker.message_ids import message_ids
from broker.record import MESSAGE_ID_HEADER, Record
from broker.seams import Clock
from broker.topics.configs import batch_bytes_max, edge_compression
from broker.topics.partitioner import Partitioner

# Keys whose partition is remembered: half a million in all, some 100 MB if every topic has so many.
PARTITIONERS_MAX = 64
PARTITIONER_KEYS_MAX = 8_192

_MESSAGE_ID = MESSAGE_ID_HEADER.encode()


class BrokerOptions(msgspec.Struct, frozen=True):
    """`partitions_default` is for topics that publishing creates; `auto_create` False wants every topic created by hand."""

    auto_create: bool = True
    partitions_default: int = 4
    record_bytes_max: int = 1024 * 1024


class Outgoing(msgspec.Struct, gc=False):
    """A record to publish. `publish` fills in what is None: its own clock, a new id, the key's partition."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    timestamp_ms: int | None = None
    message_id: str | None = None
    partition: int | None = None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        return size + sum(len(name) + len(content or b"") for name, content in self.headers)


class Page(msgspec.Struct, gc=False):
    """Records of one partition; `next_offset` is where to go on, past whatever was left out."""

    records: list[Record]
    next_offset: int
    log_start: int
    high_watermark: int
    damage: list[Damage]


class Broker:
    """A facade without state of its own, save the partitioners' caches."""

    def __init__(self, engine: Engine, clock: Clock, options: BrokerOptions) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self._partitioners: dict[str, Partitioner] = {}

    # Topics

    def capabilities(self) -> Capabilities:
        return self._engine.capabilities()

    def topics(self) -> Mapping[str, Topic]:
        return self._engine.topics()

    def topic(self, name: str) -> Topic:
        found = self._engine.topics().get(name)
        if found is None:
            raise UnknownTopic(name)
        return found

    def offsets(self, topic: str) -> list[PartitionOffsets]:
        self.topic(topic)
        return self._engine.offsets(topic)

    async def create_topic(self, name: str, partitions: int | None = None, configs: Mapping[str, str] | None = None) -> Topic:
        """TopicExists, IllegalTopicName, InvalidConfig."""
        number = self._options.partitions_default if partitions is None else partitions
        return await self._engine.create_topic(name, number, configs or {})

    async def alter_topic(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        return await self._engine.alter_topic(name, partitions=partitions, configs=configs)

    async def delete_topic(self, name: str) -> None:
        await self._engine.delete_topic(name)
        self._partitioners.pop(name, None)

    # In

    async def publish(
        self, topic: str, records: Sequence[Outgoing], *, durable: bool, auto_create: bool
    ) -> list[tuple[int, int]]:
        """Partition and offset of each record, in their order; fills in the records' ids, timestamps and partitions.

        Raises UnknownTopic unless `auto_create` and the option of that name allow to make the topic, UnknownPartition,
        RecordTooLarge, and what `Engine.append` raises.
        """
        found = self._engine.topics().get(topic) or await self._create(topic, auto_create)
        landed = await self._engine.append(self._batches(found, records), durable=durable)
        return _places(records, landed)

    def _batches(self, topic: Topic, records: Sequence[Outgoing]) -> list[Append]:
        """What the batches are built from is gone when this returns, before the log is waited for: memory that is used again
        while it is in the processor's cache costs half."""
        appends = []
        for partition, drafts in self._complete(topic, records).items():
            appends += self._appends(topic, partition, drafts)
        return appends

    async def _create(self, topic: str, auto_create: bool) -> Topic:
        if not (auto_create and self._options.auto_create):
            raise UnknownTopic(topic)
        try:
            return await self.create_topic(topic)
        except TopicExists:  # another publisher was first
            return self.topic(topic)

    def _complete(self, topic: Topic, records: Sequence[Outgoing]) -> dict[int, list[Draft]]:
        """Per partition what its batch is built from. The one loop over the records of a publish: keep it lean."""
        now_ms, ids = self._clock.now_ms(), message_ids()
        partition_of = self._partitioner(topic).partition
        partitions = topic.partitions
        drafts: dict[int, list[Draft]] = {}
        for record in records:
            message_id = record.message_id
            if message_id is None:
                message_id = record.message_id = next(ids)
            if record.timestamp_ms is None:
                record.timestamp_ms = now_ms
            partition = record.partition
            if partition is None:
                partition = record.partition = partition_of(record.key)
            elif not 0 <= partition < partitions:
                raise UnknownPartition(topic.name, partition, partitions)
            draft = (record.timestamp_ms, record.key, record.value, ((_MESSAGE_ID, message_id.encode()), *record.headers))
            if partition in drafts:
                drafts[partition].append(draft)
            else:
                drafts[partition] = [draft]
        return drafts

    def _appends(self, topic: Topic, partition: int, drafts: list[Draft]) -> list[Append]:
        """One batch, or as many as the topic's bound on batches asks for."""
        compression = edge_compression(topic.configs)
        batch = build(drafts, compression=compression)
        if len(batch) > self._options.record_bytes_max or compression is not Compression.NONE:  # else none can be too large
            self._check_sizes(drafts)
        if len(batch) > batch_bytes_max(topic.configs) and len(drafts) > 1:
            middle = len(drafts) // 2
            return self._appends(topic, partition, drafts[:middle]) + self._appends(topic, partition, drafts[middle:])
        return [Append(topic.name, partition, batch, keys=list({draft[1] for draft in drafts}))]

    def _check_sizes(self, drafts: list[Draft]) -> None:
        limit = self._options.record_bytes_max
        for _, key, value, headers in drafts:
            size = len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
            if size > limit:
                raise RecordTooLarge("a record", size, "broker.record_bytes_max", limit)

    def _partitioner(self, topic: Topic) -> Partitioner:
        found = self._partitioners.get(topic.name)
        if found is None or found.partitions != topic.partitions:
            if len(self._partitioners) >= PARTITIONERS_MAX:
                del self._partitioners[next(iter(self._partitioners))]
            found = self._partitioners[topic.name] = Partitioner(topic.name, topic.partitions, PARTITIONER_KEYS_MAX)
        return found

    # Out

    async def fetch(self, topic: str, partition: int, offset: int, *, records_max: int, bytes_max: int, wait_max_ms: int) -> Page:
        """Records from an offset on. OffsetOutOfRange, UnknownTopic, UnknownPartition."""
        fetched = await self._engine.fetch(topic, partition, offset, bytes_max=bytes_max, wait_max_ms=wait_max_ms)
        page = Page([], offset, fetched.log_start, fetched.high_watermark, list(fetched.damage))
        for stored in fetched.batches:
            if not _read_into(page, topic, stored, records_max, bytes_max):
                return page
        page.next_offset = max(offset, fetched.next_offset)
        return page

    async def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset at or after this time; the next one to come where no record is that young."""
        found = await self._engine.offset_for_time(topic, partition, timestamp_ms)
        return found.offset if found.offset >= 0 else self.partition_offsets(topic, partition).high_watermark

    def partition_offsets(self, topic: str, partition: int) -> PartitionOffsets:
        offsets = self.offsets(topic)
        if not 0 <= partition < len(offsets):
            raise UnknownPartition(topic, partition, len(offsets))
        return offsets[partition]

    async def latest(self, topic: str, key: bytes | None) -> tuple[int, Record] | None:
        """Partition and record of the newest record with this key; a tombstone is a record."""
        partition = self._partitioner(self.topic(topic)).partition(key)
        stored = await self._engine.find_latest(topic, partition, key)
        found = [] if stored is None else [record for record in walk(stored.batch) if record.key == key]
        return (partition, found[-1]) if found else None

    async def subscribe(self, topic: str, key: bytes | None, position: Position) -> Subscription:
        self.topic(topic)
        return Subscription(self._engine, self._clock, topic, key, await find_start(self._engine, topic, position))


def _places(records: Sequence[Outgoing], landed: list[Appended]) -> list[tuple[int, int]]:
    """What one append put into a partition follows on each other, in the order of the records."""
    following = {appended.partition: count(appended.base_offset).__next__ for appended in reversed(landed)}
    partitions = [cast("int", record.partition) for record in records]
    return [(partition, following[partition]()) for partition in partitions]


def _read_into(page: Page, topic: str, stored: Stored, records_max: int, bytes_max: int) -> bool:
    """Add the batch's records; whether there is room for another batch's."""
    size = sum([record_bytes(record) for record in page.records])
    try:
        for record in walk(stored.batch):
            if record.offset < page.next_offset:
                continue
            if len(page.records) >= records_max or size >= bytes_max:
                return False
            page.records.append(record)
            page.next_offset = record.offset + 1
            size += record_bytes(record)
    except (BatchRefused, RecordTooLarge) as error:
        page.damage.append(Damage(topic, stored.partition, page.next_offset, stored.next_offset, str(error)))
    page.next_offset = max(page.next_offset, stored.next_offset)
    return True
