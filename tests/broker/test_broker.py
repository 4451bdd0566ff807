"""The facade on a real engine: where records go, and how they come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from broker.batch import build
from broker.broker import ROUTES_MAX, Broker, BrokerOptions, Outgoing
from broker.compression import Compression
from broker.delivery.position import AtTime
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.errors import (
    IllegalTopicName,
    InvalidConfig,
    OffsetOutOfRange,
    RecordTooLarge,
    TopicExists,
    UnknownPartition,
    UnknownTopic,
)
from broker.machine import MachineClock
from broker.record import Record, valid_message_id
from broker.topics.partitioner import partition_of


@pytest.fixture
def broker(engine: EmbeddedEngine) -> Broker:
    return Broker(engine, MachineClock(), BrokerOptions())


def outgoing(*keys: bytes | None, value: bytes = b"v") -> list[Outgoing]:
    return [Outgoing(key, value) for key in keys]


async def put(broker: Broker, *records: Outgoing, topic: str = "orders", durable: bool = True) -> list[tuple[int, int]]:
    return await broker.publish(topic, records, durable=durable, auto_create=True)


async def records_of(
    broker: Broker, partition: int, offset: int = 0, *, topic: str = "orders", records_max: int = 1000
) -> list[Record]:
    page = await broker.fetch(topic, partition, offset, records_max=records_max, bytes_max=1 << 20, wait_max_ms=0)
    return page.records


class TestPublish:
    async def test_a_key_decides_the_partition_as_in_kafka(self, broker: Broker) -> None:
        keys = [b"eu/%d" % number for number in range(50)]
        places = await put(broker, *outgoing(*keys))
        assert [partition for partition, _ in places] == [partition_of(key, 4) for key in keys]

    async def test_records_without_a_key_keep_their_order_in_one_partition(self, broker: Broker) -> None:
        places = await put(broker, *[Outgoing(None, b"%d" % number) for number in range(20)])
        assert {partition for partition, _ in places} == {partition_of(b"orders", 4)}
        found = await records_of(broker, places[0][0])
        assert [record.value for record in found] == [b"%d" % number for number in range(20)]

    async def test_offsets_are_those_under_which_the_records_are_read(self, broker: Broker) -> None:
        for round_number in range(3):
            records = outgoing(*[b"k%d" % number for number in range(30)], value=b"%d" % round_number)
            for record, (partition, offset) in zip(records, await put(broker, *records), strict=True):
                found = (await records_of(broker, partition, offset, records_max=1))[0]
                assert (found.offset, found.key, found.value) == (offset, record.key, record.value)
                assert found.message_id == record.message_id

    async def test_what_is_missing_is_filled_in(self, broker: Broker) -> None:
        record = Outgoing(b"k", b"v")
        before_ms = MachineClock().now_ms()
        [(partition, _)] = await put(broker, record)
        assert record.partition == partition
        assert record.timestamp_ms is not None
        assert before_ms <= record.timestamp_ms <= MachineClock().now_ms()
        assert record.message_id is not None
        assert valid_message_id(record.message_id)

    async def test_what_is_given_is_kept(self, broker: Broker) -> None:
        given = Outgoing(b"k", None, ((b"a", b"1"), (b"a", None)), 123_456, "01890a5d-ac96-774b-bcce-b302099a8057", 2)
        assert await put(broker, given) == [(2, 0)]
        [found] = await records_of(broker, 2)
        assert (found.timestamp_ms, found.value, found.message_id) == (123_456, None, given.message_id)
        assert found.headers[1:] == (("a", b"1"), ("a", None))

    @pytest.mark.parametrize("partition", [-1, 4, 2**31])
    async def test_a_partition_that_is_not_there_stores_nothing(self, broker: Broker, partition: int) -> None:
        with pytest.raises(UnknownPartition, match="partitions 0 to 3"):
            await put(broker, Outgoing(b"k", b"v"), Outgoing(b"k", b"v", partition=partition))
        assert all(offsets.high_watermark == 0 for offsets in broker.offsets("orders"))

    async def test_a_request_larger_than_a_batch_may_be_becomes_several_and_stays_in_order(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1, {"max.message.bytes": "5000"})
        records = [Outgoing(b"k", b"%04d" % number + b"x" * 200) for number in range(300)]
        places = await put(broker, *records)
        assert places == [(0, number) for number in range(300)]
        found = await records_of(broker, 0)
        assert [record.value for record in found] == [record.value for record in records]

    async def test_a_single_record_larger_than_the_topic_allows_is_refused(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1, {"max.message.bytes": "1000"})
        with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes"):
            await put(broker, *outgoing(b"a", b"b"), Outgoing(b"k", b"x" * 2000))
        assert broker.offsets("orders")[0].high_watermark == 0

    @pytest.mark.parametrize("compression", ["producer", "zstd"])
    async def test_the_bound_on_a_record_is_on_what_the_producer_sent(self, engine: EmbeddedEngine, compression: str) -> None:
        broker = Broker(engine, MachineClock(), BrokerOptions(record_bytes_max=500))
        await broker.create_topic("orders", 1, {"compression.type": compression})
        headers = ((b"name", b"content"),)
        await put(broker, Outgoing(b"k", b"x" * (500 - 1 - 11 - 53), headers), *outgoing(b"k", b"k"))
        with pytest.raises(RecordTooLarge, match="record_bytes_max allows 500"):
            await put(broker, *outgoing(b"k", b"k"), Outgoing(b"k", b"x" * 500))

    async def test_a_topic_may_have_its_batches_compressed(self, broker: Broker, engine: EmbeddedEngine) -> None:
        await broker.create_topic("orders", 1, {"compression.type": "zstd"})
        await put(broker, *[Outgoing(b"k", b"x" * 1000) for _ in range(50)])
        fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
        assert len(fetched.batches[0].batch) < 10_000
        assert len(await records_of(broker, 0)) == 50

    async def test_acks_none_returns_before_the_sync_and_the_records_come(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1)
        await put(broker, *outgoing(b"k"), durable=False)
        page = await broker.fetch("orders", 0, 0, records_max=1, bytes_max=100, wait_max_ms=5_000)
        assert [record.key for record in page.records] == [b"k"]


class TestTopics:
    async def test_publishing_makes_the_topic_with_the_default_partitions(self, broker: Broker) -> None:
        await put(broker, *outgoing(b"k"))
        assert broker.topic("orders").partitions == 4

    async def test_it_is_not_made_without_leave(self, broker: Broker) -> None:
        with pytest.raises(UnknownTopic):
            await broker.publish("orders", outgoing(b"k"), durable=True, auto_create=False)
        assert not broker.topics()

    async def test_it_is_not_made_where_the_node_says_so(self, engine: EmbeddedEngine) -> None:
        broker = Broker(engine, MachineClock(), BrokerOptions(auto_create=False))
        with pytest.raises(UnknownTopic):
            await put(broker, *outgoing(b"k"))

    async def test_many_first_publishers_make_one_topic(self, broker: Broker) -> None:
        places = await asyncio.gather(*(put(broker, Outgoing(b"k", b"v", partition=0)) for _ in range(20)))
        assert sorted(place for [place] in places) == [(0, offset) for offset in range(20)]

    async def test_topics_made_by_publishing_are_bounded_like_all(self, open_engine: Callable[..., EmbeddedEngine]) -> None:
        engine = open_engine(topics_max=1)
        await engine.start()
        broker = Broker(engine, MachineClock(), BrokerOptions())
        await put(broker, *outgoing(b"k"))
        with pytest.raises(InvalidConfig, match="topics_max"):
            await put(broker, *outgoing(b"k"), topic="other")
        await put(broker, *outgoing(b"k"))
        await engine.close()

    async def test_an_illegal_name_is_refused(self, broker: Broker) -> None:
        with pytest.raises(IllegalTopicName):
            await put(broker, *outgoing(b"k"), topic="a b")

    async def test_a_topic_can_be_made_altered_and_deleted(self, broker: Broker) -> None:
        await broker.create_topic("orders", 2)
        with pytest.raises(TopicExists):
            await broker.create_topic("orders", 2)
        await put(broker, *outgoing(*[b"%d" % number for number in range(100)]))
        await broker.alter_topic("orders", partitions=8)
        places = await put(broker, *outgoing(*[b"%d" % number for number in range(100)]))
        assert {partition for partition, _ in places} == set(range(8))
        await broker.delete_topic("orders")
        with pytest.raises(UnknownTopic):
            broker.offsets("orders")

    async def test_a_topic_deleted_and_made_again_is_another_one(self, broker: Broker) -> None:
        await put(broker, *outgoing(b"k"))
        await broker.delete_topic("orders")
        await broker.create_topic("orders", 1)
        assert await put(broker, *outgoing(b"a", b"b")) == [(0, 0), (0, 1)]

    async def test_the_routes_kept_are_bounded(self, broker: Broker) -> None:
        for number in range(ROUTES_MAX + 5):
            await broker.create_topic(f"t{number}", 1)
            await put(broker, *outgoing(b"k"), topic=f"t{number}")
        assert len(broker._routes) == ROUTES_MAX


class TestFetch:
    async def test_limits_and_where_to_go_on(self, broker: Broker) -> None:
        await put(broker, *[Outgoing(b"k", b"%d" % number, partition=0) for number in range(10)])
        page = await broker.fetch("orders", 0, 3, records_max=4, bytes_max=1 << 20, wait_max_ms=0)
        assert [record.offset for record in page.records] == [3, 4, 5, 6]
        assert (page.next_offset, page.log_start, page.high_watermark) == (7, 0, 10)
        rest = await broker.fetch("orders", 0, page.next_offset, records_max=100, bytes_max=1 << 20, wait_max_ms=0)
        assert ([record.offset for record in rest.records], rest.next_offset) == ([7, 8, 9], 10)

    async def test_bytes_max_ends_the_page_but_never_makes_it_empty(self, broker: Broker) -> None:
        await put(broker, *[Outgoing(b"k", b"x" * 99, partition=0) for _ in range(10)])
        page = await broker.fetch("orders", 0, 0, records_max=100, bytes_max=250, wait_max_ms=0)
        assert (len(page.records), page.next_offset) == (3, 3)
        page = await broker.fetch("orders", 0, 0, records_max=100, bytes_max=1, wait_max_ms=0)
        assert (len(page.records), page.next_offset) == (1, 1)

    async def test_it_waits_for_the_first_record(self, broker: Broker) -> None:
        await broker.create_topic("orders", 1)
        waiting = asyncio.create_task(broker.fetch("orders", 0, 0, records_max=10, bytes_max=100, wait_max_ms=30_000))
        await asyncio.sleep(0)
        await put(broker, *outgoing(b"k"))
        assert [record.key for record in (await waiting).records] == [b"k"]

    async def test_the_end_and_beyond(self, broker: Broker) -> None:
        await put(broker, Outgoing(b"k", b"v", partition=0))
        page = await broker.fetch("orders", 0, 1, records_max=1, bytes_max=1, wait_max_ms=0)
        assert (page.records, page.next_offset) == ([], 1)
        with pytest.raises(OffsetOutOfRange):
            await broker.fetch("orders", 0, 2, records_max=1, bytes_max=1, wait_max_ms=0)
        with pytest.raises(UnknownPartition):
            await broker.fetch("orders", 4, 0, records_max=1, bytes_max=1, wait_max_ms=0)

    async def test_a_batch_that_does_not_open_is_reported_and_stepped_over(self, broker: Broker, engine: EmbeddedEngine) -> None:
        """It authenticates, so a producer made it so: the rest of the partition is served."""
        await put(broker, Outgoing(b"k", b"before", partition=0))
        await engine.append([Append("orders", 0, broken_batch())])
        await put(broker, Outgoing(b"k", b"after", partition=0))
        page = await broker.fetch("orders", 0, 0, records_max=100, bytes_max=1 << 20, wait_max_ms=0)
        assert [record.value for record in page.records] == [b"before", b"after"]
        assert [(lost.from_offset, lost.to_offset) for lost in page.damage] == [(1, 4)]

    async def test_offset_for_time(self, broker: Broker) -> None:
        await put(broker, *[Outgoing(b"k", b"v", timestamp_ms=1000 * number, partition=0) for number in range(10)])
        assert await broker.offset_for_time("orders", 0, 3_500) == 4
        assert await broker.offset_for_time("orders", 0, 99_999) == 10


class TestLatest:
    async def test_the_newest_of_a_key(self, broker: Broker) -> None:
        await put(broker, *[Outgoing(b"k%d" % (number % 7), b"%d" % number) for number in range(70)])
        for key in range(7):
            found = await broker.latest("orders", b"k%d" % key)
            assert found is not None
            assert (found[0], found[1].value) == (partition_of(b"k%d" % key, 4), b"%d" % (63 + key))

    async def test_no_such_key(self, broker: Broker) -> None:
        await put(broker, *outgoing(b"k"))
        assert await broker.latest("orders", b"other") is None
        assert await broker.latest("orders", b"") is None
        assert await broker.latest("orders", None) is None

    async def test_the_null_key_and_the_empty_key_are_two(self, broker: Broker) -> None:
        await put(broker, Outgoing(None, b"null"), Outgoing(b"", b"empty"), Outgoing(b"k", b"other"))
        null, empty = await broker.latest("orders", None), await broker.latest("orders", b"")
        assert null is not None
        assert empty is not None
        assert (null[1].value, empty[1].value) == (b"null", b"empty")

    async def test_a_tombstone_is_the_latest(self, broker: Broker) -> None:
        await put(broker, Outgoing(b"k", b"v"), Outgoing(b"k", None))
        found = await broker.latest("orders", b"k")
        assert found is not None
        assert found[1].value is None

    async def test_an_unknown_topic(self, broker: Broker) -> None:
        with pytest.raises(UnknownTopic):
            await broker.latest("orders", b"k")


async def test_a_subscription_needs_the_topic(broker: Broker) -> None:
    with pytest.raises(UnknownTopic):
        await broker.subscribe("orders", None, "earliest")
    await put(broker, *outgoing(b"k"))
    subscription = await broker.subscribe("orders", None, AtTime(0))
    assert len(await subscription.next(bytes_max=1 << 20, records_max=10, wait_max_ms=0)) == 1


def broken_batch() -> bytes:
    """Three records whose compressed section is cut: the header is whole, so an engine takes it."""
    whole = build([(1, b"k", b"x" * 50, ())] * 3, compression=Compression.ZSTD)
    cut = bytearray(whole[:-7])
    cut[8:12] = (len(cut) - 12).to_bytes(4, "big")
    return bytes(cut)
