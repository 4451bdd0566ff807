"""Publications in columns: byte for byte what the general way makes of the same records."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.batch import build, verify, walk
from broker.broker import Broker, BrokerOptions, Outgoing
from broker.columns import (
    COLUMN_RECORDS_MAX,
    KEYS_REMEMBERED_MAX,
    Batches,
    Columns,
    Key,
    KeyPlaces,
    SharedHeaders,
)
from broker.compression import Compression
from broker.engine.embedded import EmbeddedEngine
from broker.errors import RecordTooLarge, UnknownTopic
from broker.machine import MachineClock
from broker.record import MESSAGE_ID_HEADER, valid_message_id
from broker.topics.partitioner import CACHED_KEY_BYTES_MAX, Partitioner, partition_of

PLAIN = SharedHeaders(())
TYPED = SharedHeaders(((b"content-type", b"application/json"), (b"mark", None)))
KEYS = st.one_of(st.none(), st.text(max_size=12), st.binary(max_size=12))


def stored(key: Key) -> bytes | None:
    return key.encode() if isinstance(key, str) else key


def batch_of(columns: Columns, now_ms: int = 5) -> bytes:
    batches = Batches(columns.headers, now_ms)
    batches.add(columns, KeyPlaces(Partitioner("orders", 1)).of(columns.keys), now_ms)
    [append] = batches.appends("orders", Compression.NONE)
    return append.batch


class TestEncoding:
    @given(
        st.lists(st.tuples(KEYS, st.binary(max_size=200)), min_size=1, max_size=40),
        st.sampled_from([PLAIN, TYPED]),
        st.sampled_from(list(Compression)),
    )
    def test_is_what_the_general_way_makes(
        self, records: list[tuple[Key, bytes]], headers: SharedHeaders, compression: Compression
    ) -> None:
        columns = Columns([key for key, _ in records], [value for _, value in records], headers)
        places = KeyPlaces(Partitioner("orders", 3)).of(columns.keys)
        batches = Batches(headers, 1_000)
        batches.add(columns, places, 1_000)
        made = batches.appends("orders", compression)
        head, lasts = columns.ids
        drafts: dict[int, list[object]] = {}
        for (key, value), place, last in zip(records, places, lasts, strict=False):
            ids = (MESSAGE_ID_HEADER.encode(), (head + last).encode())
            drafts.setdefault(place[0], []).append((1_000, stored(key), value, (ids, *headers.pairs)))
        assert {append.partition: append.batch for append in made} == {
            p: build(d, compression=compression)  # type: ignore[arg-type]
            for p, d in drafts.items()
        }

    @pytest.mark.parametrize("size", [63, 64, 8_000, 8_191, 8_192, 70_000, 2_100_000])
    def test_lengths_of_every_width(self, size: int) -> None:
        columns = Columns(["k" * 70], [b"x" * size], TYPED)
        batch = batch_of(columns)
        verify(batch)
        [record] = walk(batch)
        assert (len(record.key or b""), len(record.value or b""), record.timestamp_ms) == (70, size, 5)

    def test_as_many_records_as_a_publication_may_have(self) -> None:
        columns = Columns([None] * COLUMN_RECORDS_MAX, [b"%d" % number for number in range(COLUMN_RECORDS_MAX)], PLAIN)
        found = list(walk(batch_of(columns)))
        assert [record.value for record in found] == [b"%d" % number for number in range(COLUMN_RECORDS_MAX)]
        ids = [record.message_id or "" for record in found]
        assert len(set(ids)) == COLUMN_RECORDS_MAX
        assert all(map(valid_message_id, ids))

    @pytest.mark.parametrize("count", [0, COLUMN_RECORDS_MAX + 1])
    def test_no_records_and_too_many_are_refused(self, count: int) -> None:
        with pytest.raises(ValueError, match="1 to 4096"):
            Columns([None] * count, [b"v"] * count, PLAIN)


class TestSizes:
    @given(st.lists(st.tuples(KEYS, st.binary(max_size=20)), min_size=1, max_size=20))
    def test_are_bytes_whatever_the_key_was_given_as(self, records: list[tuple[Key, bytes]]) -> None:
        columns = Columns([key for key, _ in records], [value for _, value in records], PLAIN)
        sizes = [len(stored(key) or b"") + len(value) for key, value in records]
        assert (columns.size, columns.largest()) == (sum(sizes), max(sizes))
        columns.put_key(b"key")
        assert columns.size == sum(len(value) + 3 for _, value in records)
        assert {key for key, _ in columns.pairs()} == {b"key"}


class TestKeyPlaces:
    @given(st.lists(KEYS, max_size=30))
    def test_agree_with_kafka_remembered_or_not(self, keys: list[Key]) -> None:
        places = KeyPlaces(Partitioner("orders", 12))
        for found in (places.of(keys), places.of(keys)):
            for key, (partition, _, kept) in zip(keys, found, strict=True):
                assert kept == stored(key)
                assert partition == partition_of(b"orders" if kept is None else kept, 12)

    def test_are_bounded(self) -> None:
        places = KeyPlaces(Partitioner("orders", 12))
        for number in range(2 * KEYS_REMEMBERED_MAX + 10):
            places.of([f"k{number}"])
        assert len(places) <= KEYS_REMEMBERED_MAX
        before = len(places)
        places.of(["x" * (CACHED_KEY_BYTES_MAX + 1)])
        assert len(places) == before


class TestPublishing:
    @pytest.fixture
    def broker(self, engine: EmbeddedEngine) -> Broker:
        return Broker(engine, MachineClock(), BrokerOptions(record_bytes_max=3_000))

    async def test_places_and_ids_are_those_that_are_read(self, broker: Broker) -> None:
        columns = Columns([f"k{n}" for n in range(40)], [b"%d" % n for n in range(40)], TYPED)
        places = await broker.publish("orders", columns, durable=True, auto_create=True)
        assert not columns.keys
        assert not columns.values
        head, lasts = columns.ids
        for number, ((partition, offset), last) in enumerate(zip(places, lasts, strict=False)):
            page = await broker.fetch("orders", partition, offset, records_max=1, bytes_max=100, wait_max_ms=0)
            [record] = page.records
            assert (record.key, record.value, record.message_id) == (b"k%d" % number, b"%d" % number, head + last)
            assert record.headers[1:] == (("content-type", b"application/json"), ("mark", None))
        found = await broker.latest("orders", b"k7")
        assert found is not None
        assert found[1].value == b"7"

    async def test_more_than_a_batch_may_hold_becomes_several_in_order(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1, {"max.message.bytes": "5000"})
        columns = Columns(["k"] * 300, [b"%04d" % n + b"x" * 200 for n in range(300)], PLAIN)
        assert await broker.publish("orders", columns, durable=True, auto_create=False) == [(0, n) for n in range(300)]
        head, lasts = columns.ids
        page = await broker.fetch("orders", 0, 0, records_max=300, bytes_max=1 << 20, wait_max_ms=0)
        assert [int((record.value or b"")[:4]) for record in page.records] == list(range(300))
        assert [record.message_id for record in page.records] == [head + last for last in itertools.islice(lasts, 300)]

    async def test_the_bound_on_a_record_is_the_same_as_ever(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1, {"compression.type": "zstd"})
        room = 3_000 - TYPED.size
        await broker.publish("orders", Columns(["k"], [b"x" * (room - 1)], TYPED), durable=True, auto_create=False)
        for too_large in (Columns(["k"], [b"x" * room], TYPED), Columns([None, "é"], [b"v", b"x" * (room - 1)], TYPED)):
            with pytest.raises(RecordTooLarge, match="record_bytes_max allows 3000"):
                await broker.publish("orders", too_large, durable=True, auto_create=False)
        general = Outgoing(b"k", b"x" * room, TYPED.pairs)
        with pytest.raises(RecordTooLarge, match="record_bytes_max allows 3000"):
            await broker.publish("orders", [general], durable=True, auto_create=False)
        assert broker.offsets("orders")[0].high_watermark == 1

    async def test_a_topic_that_grew_has_other_places(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1)
        keys = [f"k{n}" for n in range(50)]
        for partitions in (1, 7):
            if partitions > 1:
                await broker.alter_topic("orders", partitions=partitions)
            places = await broker.publish("orders", Columns(keys, [b"v"] * 50, PLAIN), durable=True, auto_create=False)
            assert [partition for partition, _ in places] == [partition_of(key.encode(), partitions) for key in keys]

    async def test_no_topic_is_made_without_leave(self, broker: Broker) -> None:
        with pytest.raises(UnknownTopic):
            await broker.publish("orders", Columns(["k"], [b"v"], PLAIN), durable=True, auto_create=False)
