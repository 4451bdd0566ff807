"""The broker as the gateway sees it: topics by name, records in, records out. It knows keys, never people.

Everything runs on the owner thread of the engine and changes nothing between two awaits of its own, so there are no locks.
What is published in one call is one append: all of it is stored, or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import cast

import msgspec

from broker.batch import Draft, build, walk
from broker.batch_header import HEADER_BYTES
from broker.columns import Batches, Columns, KeyPlaces
from broker.compression import Compression
from broker.delivery.committed import fetch_committed
from broker.delivery.consumers import Consumers
from broker.delivery.expiry import expired, expiry_header, living
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor, Position, check_cursor, find_start, find_start_of_many
from broker.delivery.shared_scan import SharedScanOptions, SharedScans
from broker.delivery.source import ScanSource, Source, TopicSource
from broker.delivery.subscription import Subscription, record_bytes
from broker.delivery.whole_batches import without_deleted, without_expired
from broker.engine.base import (
    Append,
    Appended,
    Capabilities,
    Damage,
    Engine,
    Fetched,
    KeyCopy,
    OffsetForTime,
    PartitionEnds,
    PartitionOffsets,
    StateChanges,
    Stored,
    Told,
    Topic,
)
from broker.errors import BatchRefused, RecordTooLarge, TopicExists, UnknownPartition, UnknownTopic
from broker.gathering import Gathering, Submit
from broker.idempotency import Changes, Idempotency
from broker.idempotency_options import IdempotencyOptions
from broker.message_ids import message_ids
from broker.outgoing import Outgoing as Outgoing
from broker.producers.options import ProducerOptions
from broker.producers.producers import Producers
from broker.record import MESSAGE_ID_HEADER, Record
from broker.seams import Clock
from broker.topics.configs import batch_bytes_max, edge_compression, strict_ttl
from broker.topics.partitioner import Partitioner
from broker.transactions.options import TransactionOptions
from broker.transactions.stability import Stability
from broker.transactions.transactions import Transactions

# Keys whose partition is remembered: a quarter of a million in all, some 100 MB if every topic has so many.
ROUTES_MAX = 64
PARTITIONER_KEYS_MAX = 4_096

# Of a record beside key, value and headers, at most: lengths, deltas, the count and lengths of two headers.
RECORD_BYTES_EXTRA = 40

_MESSAGE_ID = MESSAGE_ID_HEADER.encode()


class BrokerOptions(msgspec.Struct, frozen=True):
    """`partitions_default` is for topics that publishing creates; `auto_create` False wants every topic created by hand."""

    auto_create: bool = True
    partitions_default: int = 4
    record_bytes_max: int = 1024 * 1024


class Page(msgspec.Struct, gc=False):
    """Records of one partition; `next_offset` is where to go on, past whatever was left out."""

    records: list[Record]
    next_offset: int
    log_start: int
    high_watermark: int
    damage: list[Damage]


class Route:
    """What publishing to a topic looks up each time. Good for this very `topic`: an altered one is another object."""

    __slots__ = ("batch_bytes_max", "compression", "gathering", "partitioner", "places", "topic")

    def __init__(self, topic: Topic, submit: Submit) -> None:
        self.topic = topic
        self.partitioner = Partitioner(topic.name, topic.partitions, PARTITIONER_KEYS_MAX)
        self.places = KeyPlaces(self.partitioner)
        self.compression = edge_compression(topic.configs)
        self.batch_bytes_max = batch_bytes_max(topic.configs)
        self.gathering = Gathering(topic.name, self.compression, self.batch_bytes_max, submit)


class Broker:
    """A facade without state of its own, save the caches of routes. `shared_scans` reads for everybody with wildcards."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        options: BrokerOptions,
        consumers: Consumers | None = None,
        shared_scan: SharedScanOptions | None = None,
        idempotency: IdempotencyOptions | None = None,
        producers: ProducerOptions | None = None,
        transactions: TransactionOptions | None = None,
    ) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self._consumers = consumers
        self.shared_scans = SharedScans(engine, clock, shared_scan)
        if consumers is not None:
            consumers.wide = self.shared_scans.source
        self._routes: dict[str, Route] = {}
        self.idempotency = Idempotency(engine, clock, idempotency or IdempotencyOptions())
        self.stability = engine.decided = Stability(engine)
        self.producers = Producers(engine, clock, producers or ProducerOptions(), self.stability)
        self.transactions = Transactions(engine, clock, transactions or TransactionOptions(), self.producers, self.stability)

    @property
    def consumers(self) -> Consumers:
        """Durable consumers that acknowledge, where the broker was made with them."""
        if self._consumers is None:
            raise RuntimeError("this broker was made without consumers")
        return self._consumers

    @property
    def options(self) -> BrokerOptions:
        return self._options

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

    def topic_of(self, topic_id: bytes) -> Topic | None:
        return self._engine.topic_of(topic_id)

    def offsets(self, topic: str) -> list[PartitionOffsets]:
        self.topic(topic)
        return self._engine.offsets(topic)

    async def create_topic(self, name: str, partitions: int | None = None, configs: Mapping[str, str] | None = None) -> Topic:
        """TopicExists, IllegalTopicName, InvalidConfig."""
        number = self._options.partitions_default if partitions is None else partitions
        return await self._engine.create_topic(name, number, configs or {})

    def check_new_topic(self, name: str, partitions: int | None = None, configs: Mapping[str, str] | None = None) -> Topic:
        """What `create_topic` would make now, without id and time, and what it would refuse."""
        number = self._options.partitions_default if partitions is None else partitions
        self._engine.check_new_topic(name, number, configs or {})
        return Topic(bytes(16), name, number, configs or {}, 0)

    def check_altered(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        """What `alter_topic` would make of the topic now, and what it would refuse."""
        return self._engine.check_altered(name, partitions=partitions, configs=configs)

    def sizes(self, topic: str) -> list[int]:
        """Bytes of each partition as stored. UnknownTopic."""
        return self._engine.sizes(topic)

    async def alter_topic(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        return await self._engine.alter_topic(name, partitions=partitions, configs=configs)

    async def delete_topic(self, name: str) -> list[KeyCopy]:
        """Returns the key backups that still hold the topic's key."""
        topic = self.topic(name)
        kept = await self._engine.delete_topic(name)
        await self.transactions.forget(topic)
        if (route := self._routes.pop(name, None)) is not None:
            route.gathering.hand_over()  # to be refused
        return kept

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        """Records below the offset go; the new log start. OffsetOutOfRange, UnknownTopic, UnknownPartition."""
        return await self._engine.delete_records(topic, partition, before_offset)

    # In

    async def publish(
        self,
        topic: str,
        records: Sequence[Outgoing] | Columns,
        *,
        durable: bool,
        auto_create: bool,
        changes: Changes | None = None,
    ) -> list[tuple[int, int]]:
        """Partition and offset of each record, in their order; fills in the records' ids, timestamps and partitions.

        `changes` are committed together with the records: it is told the topic and their places.

        Raises UnknownTopic unless `auto_create` and the option of that name allow to make the topic, UnknownPartition,
        RecordTooLarge, and what `Engine.append` raises.
        """
        found = self._engine.topics().get(topic) or await self._create(topic, auto_create)
        route = self._route(found)
        if isinstance(records, Columns):
            if durable and changes is None and (measured := self._columns(route, records)) is not None:
                return await route.gathering.add(records, route.places.of(records.keys), *measured)
            partitions, appends = self._column_batches(found, records)
        else:
            appends = self._batches(found, records)
            partitions = [cast("int", record.partition) for record in records]
        route.gathering.hand_over()  # so that nothing overtakes what came before it
        if changes is None:
            return _places(partitions, await self._engine.append(appends, durable=durable))
        landed = await self._engine.append(
            appends, durable=durable, changes=lambda landed: changes(found, _places(partitions, landed))
        )
        return _places(partitions, landed)

    def submit(
        self, appends: Sequence[Append], *, durable: bool, changes: StateChanges = (), told: Told | None = None
    ) -> tuple[list[Appended], asyncio.Future[None] | None]:
        """`Engine.submit` of whole batches, after what was gathered for their topics before them."""
        if self._routes:
            for append in appends:
                if (route := self._routes.get(append.topic)) is not None:
                    route.gathering.hand_over()
        return self._engine.submit(appends, durable=durable, changes=changes, told=told)

    def _batches(self, topic: Topic, records: Sequence[Outgoing]) -> list[Append]:
        """What the batches are built from is gone when this returns, before the log is waited for: memory that is used again
        while it is in the processor's cache costs half."""
        appends = []
        expires = any(record.expires for record in records)
        for partition, drafts in self._complete(topic, records, expires=expires).items():
            appends += self._appends(topic, partition, drafts, has_expiry=expires)
        return appends

    def _columns(self, route: Route, columns: Columns) -> tuple[int, int] | None:
        """The time, and what the records take in their batches at most; None where that is more than one may hold."""
        extra = columns.headers.size
        size = columns.size + columns.count * (extra + RECORD_BYTES_EXTRA)
        if size > self._options.record_bytes_max and (largest := columns.largest() + extra) > self._options.record_bytes_max:
            raise RecordTooLarge("a record", largest, "broker.record_bytes_max", self._options.record_bytes_max)
        return None if size + HEADER_BYTES > route.batch_bytes_max else (self._clock.now_ms(), size)

    def _column_batches(self, topic: Topic, columns: Columns) -> tuple[list[int], list[Append]]:
        """The partition of each record, and a batch a partition."""
        route = self._route(topic)
        measured = self._columns(route, columns)
        if measured is None:
            return self._split_batches(topic, columns)
        now_ms, _ = measured
        places, batches = route.places.of(columns.keys), Batches(columns.headers, now_ms)
        batches.add(columns, places, now_ms)
        columns.release()
        return [place[0] for place in places], batches.appends(topic.name, route.compression)

    def _split_batches(self, topic: Topic, columns: Columns) -> tuple[list[int], list[Append]]:
        """More than a batch may hold: record by record, which knows how to make several of it."""
        records = [Outgoing(key, value, columns.headers.pairs) for key, value in columns.pairs()]
        columns.release()
        appends = self._batches(topic, records)
        columns.ids = ("", [cast("str", record.message_id) for record in records])
        return [cast("int", record.partition) for record in records], appends

    async def _create(self, topic: str, auto_create: bool) -> Topic:
        if not (auto_create and self._options.auto_create):
            raise UnknownTopic(topic)
        try:
            return await self.create_topic(topic)
        except TopicExists:  # another publisher was first
            return self.topic(topic)

    def _complete(self, topic: Topic, records: Sequence[Outgoing], *, expires: bool) -> dict[int, list[Draft]]:
        """Per partition what its batch is built from. The one loop over the records of a publish: keep it lean."""
        now_ms, ids = self._clock.now_ms(), message_ids()
        partition_of = self._route(topic).partitioner.partition
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
            headers = ((_MESSAGE_ID, message_id.encode()), *record.headers)
            if expires and record.expires:
                at_ms = record.expires_at_ms if record.ttl_ms is None else now_ms + record.ttl_ms
                headers = (headers[0], expiry_header(cast("int", at_ms)), *headers[1:])
            draft = (record.timestamp_ms, record.key, record.value, headers)
            if partition in drafts:
                drafts[partition].append(draft)
            else:
                drafts[partition] = [draft]
        return drafts

    def _appends(self, topic: Topic, partition: int, drafts: list[Draft], *, has_expiry: bool = False) -> list[Append]:
        """One batch, or as many as the topic's bound on batches asks for."""
        route = self._route(topic)
        compression = route.compression
        batch = build(drafts, compression=compression)
        if len(batch) > self._options.record_bytes_max or compression is not Compression.NONE:  # else none can be too large
            self._check_sizes(drafts)
        if len(batch) > route.batch_bytes_max and len(drafts) > 1:
            middle = len(drafts) // 2
            halves = (drafts[:middle], drafts[middle:])
            return [append for half in halves for append in self._appends(topic, partition, half, has_expiry=has_expiry)]
        return [Append(topic.name, partition, batch, list({draft[1] for draft in drafts}), has_expiry)]

    def _check_sizes(self, drafts: list[Draft]) -> None:
        limit = self._options.record_bytes_max
        for _, key, value, headers in drafts:
            size = len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
            if size > limit:
                raise RecordTooLarge("a record", size, "broker.record_bytes_max", limit)

    def _route(self, topic: Topic) -> Route:
        found = self._routes.get(topic.name)
        if found is None or found.topic is not topic:
            if found is not None:
                found.gathering.hand_over()
            elif len(self._routes) >= ROUTES_MAX:
                self._routes.pop(next(iter(self._routes))).gathering.hand_over()
            found = self._routes[topic.name] = Route(topic, self._engine.submit)
        return found

    # Out

    async def fetch(self, topic: str, partition: int, offset: int, *, records_max: int, bytes_max: int, wait_max_ms: int) -> Page:
        """Records from an offset on. OffsetOutOfRange, UnknownTopic, UnknownPartition."""
        fetched = await fetch_committed(
            self._engine, self.stability, self._clock, topic, partition, offset, bytes_max=bytes_max, wait_max_ms=wait_max_ms
        )
        page = Page([], offset, fetched.log_start, fetched.high_watermark, list(fetched.damage))
        for stored in fetched.batches:
            if not _read_into(page, topic, stored, records_max, bytes_max, self._clock):
                return page
        page.next_offset = max(offset, fetched.next_offset)
        return page

    async def fetch_batches(self, topic: str, partition: int, offset: int, *, bytes_max: int, wait_max_ms: int) -> Fetched:
        """Whole batches from an offset on, for protocols whose clients open them (Kafka). They are passed unopened, expired
        records and all; only where the topic says strict.ttl those are cut. Errors as `fetch`."""
        fetched = await self._engine.fetch(topic, partition, offset, bytes_max=bytes_max, wait_max_ms=wait_max_ms)
        return self._readable(topic, fetched)

    def recent_batches(self, topic: str, partition: int, offset: int, *, bytes_max: int) -> Fetched | None:
        """`fetch_batches` without waiting, of what is in memory; None where files have to be read."""
        fetched = self._engine.fetch_recent(topic, partition, offset, bytes_max=bytes_max)
        return fetched if fetched is None or not fetched.batches else self._readable(topic, fetched)

    def _readable(self, topic: str, fetched: Fetched) -> Fetched:
        kept = without_deleted(fetched)
        return without_expired(kept, self._clock) if strict_ttl(self.topic(topic).configs) else kept

    def watch(self, topic: str, wake: Callable[[], None]) -> Callable[[], None]:
        """See `Engine.watch`."""
        return self._engine.watch(topic, wake)

    def next_sequence(self) -> int:
        """The commit sequence after the newest visible batch: as long as it stays, no reader has missed anything."""
        return self._engine.next_sequence()

    async def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset at or after this time; the next one to come where no record is that young."""
        found = await self._engine.offset_for_time(topic, partition, timestamp_ms)
        return found.offset if found.offset >= 0 else self.partition_offsets(topic, partition).high_watermark

    async def first_at(self, topic: str, partition: int, timestamp_ms: int) -> OffsetForTime:
        """See `Engine.offset_for_time`."""
        return await self._engine.offset_for_time(topic, partition, timestamp_ms)

    async def newest_time(self, topic: str, partition: int) -> OffsetForTime:
        """See `Engine.offset_of_max_timestamp`."""
        return await self._engine.offset_of_max_timestamp(topic, partition)

    def partition_offsets(self, topic: str, partition: int) -> PartitionOffsets:
        return self._engine.partition_offsets(topic, partition)

    def partition_ends(self, topic: Topic, partition: int) -> PartitionEnds:
        """See `Engine.partition_ends`."""
        return self._engine.partition_ends(topic, partition)

    async def latest(self, topic: str, key: bytes | None) -> tuple[int, Record] | None:
        """Partition and record of the newest record with this key, unless it has expired; a tombstone is a record."""
        partition = self._route(self.topic(topic)).partitioner.partition(key)
        stored = await self._engine.find_latest(topic, partition, key)
        found = [] if stored is None else [record for record in walk(stored.batch) if record.key == key]
        # An older value does not come back when the newest has expired.
        return (partition, found[-1]) if found and not expired(found[-1], self._clock.now_ms()) else None

    async def subscribe(self, topic: str, key: bytes | None, position: Position) -> Subscription:
        """Of a topic, or of one key of it; an empty key is a key."""
        self.topic(topic)
        start = await find_start(self._engine, topic, position)
        source = TopicSource(self._engine, topic, key)
        await _check_cursor(source, position)
        return Subscription(self._engine, self._clock, source, start, None if key is None else lambda record: record.key == key)

    async def subscribe_filter(
        self,
        filter: Filter,
        position: Position,
        *,
        readable: Callable[[str], bool] | None = None,
        version: Callable[[], object] = lambda: None,
    ) -> Subscription:
        """Of every topic that the filter reaches, those made later too; `readable` narrows them, asked when `version` changes.

        UnknownTopic where the filter names a topic that is not there. An offset needs a filter of one topic: PositionRefused.
        """

        def topics(name: str) -> bool:
            return filter.topics(name) and (readable is None or readable(name))

        wanted = None if filter.open else filter.wants
        source: Source
        if filter.topic is None:
            source = self.shared_scans.source(topics, version)
            start = await find_start_of_many(self._engine, [name for name in self._engine.topics() if topics(name)], position)
        else:
            self.topic(filter.topic)
            source = TopicSource(self._engine, filter.topic, None if filter.exact is None else filter.exact[1])
            start = await find_start(self._engine, filter.topic, position)
        await _check_cursor(ScanSource(self._engine, topics), position)
        wanted_key = None if filter.only_headers else filter.wants_key
        return Subscription(self._engine, self._clock, source, start, wanted, wanted_key)


def _places(partitions: Sequence[int], landed: Sequence[Appended]) -> list[tuple[int, int]]:
    """What one append put into a partition follows on each other, in the order of the records."""
    if len(landed) == 1:
        return list(zip(partitions, count(landed[0].base_offset), strict=False))
    following = {appended.partition: count(appended.base_offset).__next__ for appended in reversed(landed)}
    return [(partition, following[partition]()) for partition in partitions]


async def _check_cursor(source: Source, position: Position) -> None:
    """A cursor within a batch comes from whoever asks, maybe made up: see whether there is such a place."""
    if isinstance(position, Cursor) and position.index:
        scan = await source.read(position.sequence, bytes_max=1, wait_max_ms=0)
        check_cursor(position, [stored for _, stored in scan.batches])


def _read_into(page: Page, topic: str, stored: Stored, records_max: int, bytes_max: int, clock: Clock) -> bool:
    """Add the batch's records; whether there is room for another batch's."""
    size = sum([record_bytes(record) for record in page.records])
    try:
        for record in living(stored, clock):
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
