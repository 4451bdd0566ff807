"""Reading in commit order: exactly once, from anywhere, by key, without holding more than asked for."""

from __future__ import annotations

import asyncio
import random

import pytest

from broker.batch import build
from broker.broker import Broker, BrokerOptions, Outgoing
from broker.compression import Compression
from broker.delivery import subscription as module
from broker.delivery.filter import Filter
from broker.delivery.position import AtTime, Cursor, Position, Start
from broker.delivery.source import ScanSource
from broker.delivery.subscription import DAMAGE_MAX, Delivered, Subscription
from broker.engine.base import Append, Damage, Tail
from broker.engine.embedded import EmbeddedEngine
from broker.errors import UnknownTopic
from broker.log.read_by_key import ReadByKey
from broker.machine import MachineClock

EVERYTHING = {"bytes_max": 1 << 20, "records_max": 1_000, "wait_max_ms": 0}


class Log:
    """Publishes numbered texts; the number is the order in which they were committed."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine, self.broker = engine, Broker(engine, MachineClock(), BrokerOptions(partitions_default=3))
        self.number = 0

    async def put(self, *keys: bytes | None, topic: str = "orders") -> None:
        """One request: one commit, a batch in each partition."""
        records = []
        for key in keys:
            records.append(Outgoing(key, b"%d" % self.number, timestamp_ms=1_000 * self.number))
            self.number += 1
        await self.broker.publish(topic, records, durable=True, auto_create=True)

    async def reader(self, position: Position = "earliest", key: bytes | None = None) -> Subscription:
        return await self.broker.subscribe("orders", key, position)


@pytest.fixture
def log(engine: EmbeddedEngine) -> Log:
    return Log(engine)


def numbers(delivered: list[Delivered]) -> list[int]:
    return [int(one.record.value or b"-1") for one in delivered]


async def drain(reader: Subscription, **bounds: int) -> list[Delivered]:
    """All there is."""
    found: list[Delivered] = []
    while page := await reader.next(**(EVERYTHING | bounds)):
        found += page
    return found


async def test_everything_in_commit_order_once(log: Log) -> None:
    for _ in range(5):
        await log.put(b"a", b"b", b"c", b"d", None)
    found = await drain(await log.reader())
    assert sorted(numbers(found)) == list(range(25))
    assert [number // 5 for number in numbers(found)] == sorted(number // 5 for number in range(25))
    by_partition: dict[int, list[int]] = {}
    for one in found:
        by_partition.setdefault(one.partition, []).append(one.record.offset)
    assert all(offsets == list(range(len(offsets))) for offsets in by_partition.values())


async def test_the_cursor_of_each_record_resumes_right_after_it_also_inside_a_batch(log: Log) -> None:
    for _ in range(3):
        await log.put(b"a", b"a", b"b", None, b"b")
    found = await drain(await log.reader())
    for position, one in enumerate(found):
        rest = await drain(await log.reader(one.cursor))
        assert numbers(rest) == numbers(found)[position + 1 :]


async def test_cursors_go_up(log: Log) -> None:
    for _ in range(3):
        await log.put(b"a", b"b", b"c", b"d")
    cursors = [one.cursor for one in await drain(await log.reader())]
    assert cursors == sorted(set(cursors))


@pytest.mark.parametrize("records_max", [1, 2, 3, 7])
async def test_small_pages_miss_and_repeat_nothing(log: Log, records_max: int) -> None:
    for _ in range(4):
        await log.put(b"a", b"b", b"a", None, b"c")
    whole = numbers(await drain(await log.reader()))
    reader = await log.reader()
    pages = []
    while page := await reader.next(bytes_max=1 << 20, records_max=records_max, wait_max_ms=0):
        assert len(page) <= records_max
        pages += numbers(page)
    assert pages == whole


async def test_any_cut_into_pages_and_new_readers_gives_the_same_sequence(log: Log) -> None:
    for _ in range(6):
        await log.put(*random.Random(log.number).choices([b"a", b"b", b"c", None, b""], k=5))
    whole = numbers(await drain(await log.reader()))
    for seed in range(20):
        choose = random.Random(seed)
        reader, found = await log.reader(), []
        while page := await reader.next(
            bytes_max=choose.choice([1, 5, 1 << 20]), records_max=choose.randint(1, 9), wait_max_ms=0
        ):
            found += numbers(page)
            if choose.random() < 0.4:
                reader = await log.reader(page[-1].cursor)
        assert found == whole


async def test_bytes_max_ends_a_page(log: Log) -> None:
    await log.put(*[b"k"] * 10)
    reader = await log.reader()
    page = await reader.next(bytes_max=5, records_max=100, wait_max_ms=0)
    assert len(page) == 3  # a byte of key and one of value each: the third crosses it


async def test_one_key_exactly(log: Log) -> None:
    keys = [b"a", b"b", b"", None, b"aa"]
    for _ in range(3):
        await log.put(*keys)
    for place, key in enumerate(keys):
        if key is not None:
            found = await drain(await log.reader(key=key))
            assert numbers(found) == [place, place + 5, place + 10]
            assert {one.record.key for one in found} == {key}


async def test_a_key_resumes_from_each_of_its_cursors(log: Log) -> None:
    for _ in range(3):
        await log.put(b"a", b"b", b"a", b"c", b"a")
    found = await drain(await log.reader(key=b"a"))
    for position, one in enumerate(found):
        assert numbers(await drain(await log.reader(one.cursor, key=b"a"))) == numbers(found)[position + 1 :]


async def test_it_waits_for_the_next_record(log: Log) -> None:
    await log.put(b"a")
    reader = await log.reader("latest")
    waiting = asyncio.create_task(reader.next(bytes_max=100, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await log.put(b"b")
    assert numbers(await waiting) == [1]


async def test_a_reader_of_a_key_sleeps_through_other_keys(log: Log) -> None:
    await log.put(b"a")
    reader = await log.reader("latest", key=b"a")
    waiting = asyncio.create_task(reader.next(bytes_max=100, records_max=10, wait_max_ms=30_000))
    for _ in range(5):
        await log.put(b"b", b"c", b"d")
    assert not waiting.done()
    await log.put(b"a")
    assert numbers(await waiting) == [16]


async def test_the_wait_ends_and_the_cursor_has_moved_over_other_topics(log: Log) -> None:
    await log.put(b"a")
    reader = await log.reader("latest")
    await log.put(b"x", topic="other")
    assert await reader.next(bytes_max=100, records_max=10, wait_max_ms=1) == []
    assert reader.at_end
    assert reader.cursor <= Cursor(log.engine.next_sequence())


async def test_a_wait_that_is_cancelled_loses_nothing(log: Log) -> None:
    await log.put(b"a")
    reader = await log.reader()
    assert numbers(await drain(reader)) == [0]
    waiting = asyncio.create_task(reader.next(bytes_max=100, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await log.put(b"a", b"b")
    assert sorted(numbers(await drain(reader))) == [1, 2]
    assert not log.engine._watchers


async def test_at_end_is_known_when_all_was_delivered(log: Log) -> None:
    await log.put(b"a", b"b")
    reader = await log.reader()
    assert not reader.at_end
    await reader.next(bytes_max=1 << 20, records_max=1, wait_max_ms=0)
    assert not reader.at_end
    await drain(reader)
    assert reader.at_end
    await log.put(b"a")
    assert not reader.at_end


async def test_from_a_time_begins_with_the_first_record_that_is_not_older(log: Log) -> None:
    for _ in range(3):
        await log.put(b"a", b"a", b"a", b"a")
    assert numbers(await drain(await log.reader(AtTime(5_500)))) == list(range(6, 12))
    assert numbers(await drain(await log.reader(AtTime(5_500), key=b"a"))) == list(range(6, 12))
    assert numbers(await drain(await log.reader(AtTime(0)))) == list(range(12))
    assert numbers(await drain(await log.reader(AtTime(99_000)))) == []


async def test_what_is_committed_later_follows_whatever_its_timestamp(log: Log) -> None:
    await log.put(b"a", b"a")
    reader = await log.reader(AtTime(1_000))
    await log.broker.publish("orders", [Outgoing(b"a", b"99", timestamp_ms=5)], durable=True, auto_create=False)
    assert numbers(await drain(reader)) == [1, 99]


async def test_a_topic_that_is_deleted_ends_its_readers(log: Log) -> None:
    await log.put(b"a")
    reader = await log.reader("latest")
    waiting = asyncio.create_task(reader.next(bytes_max=100, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    await log.broker.delete_topic("orders")
    with pytest.raises(UnknownTopic):
        await waiting


async def test_a_reader_holds_no_more_than_it_asked_for(log: Log) -> None:
    for _ in range(30):
        await log.broker.publish("orders", [Outgoing(b"k", b"x" * 10_000)] * 2, durable=True, auto_create=True)
    reader = await log.reader()
    await reader.next(bytes_max=50_000, records_max=1, wait_max_ms=0)
    assert sum(len(stored.batch) for _, stored in reader._fetched) <= 50_000
    await reader.next(bytes_max=1, records_max=1, wait_max_ms=0)
    assert sum(len(stored.batch) for _, stored in reader._fetched) <= 50_000


async def test_after_so_many_bytes_without_a_match_it_comes_up_for_air(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches without a list of keys are candidates for every key: the reader opens them all."""
    monkeypatch.setattr(module, "SCAN_BYTES_MAX", 1_000)
    monkeypatch.setattr(ReadByKey, "__contains__", lambda *_: False)  # nobody walks them for their keys meanwhile
    await log.broker.create_topic("orders", 1)
    for number in range(20):
        await log.engine.append([Append("orders", 0, build([(number, b"other", b"x" * 200, ())]))])
    await log.engine.append([Append("orders", 0, build([(99, b"rare", b"7", ())]))])
    reader = await log.reader(key=b"rare")
    before, empty = reader.cursor, 0
    while not (found := await reader.next(bytes_max=400, records_max=10, wait_max_ms=0)):
        assert reader.cursor > before
        before, empty = reader.cursor, empty + 1
    assert numbers(found) == [7]
    assert empty >= 2


async def test_a_batch_that_does_not_open_is_reported_and_stepped_over(log: Log) -> None:
    await log.broker.create_topic("orders", 1)
    await log.put(b"a")
    whole = build([(1, b"k", b"x" * 50, ())] * 3, compression=Compression.ZSTD)
    cut = bytearray(whole[:-7])
    cut[8:12] = (len(cut) - 12).to_bytes(4, "big")
    await log.engine.append([Append("orders", 0, bytes(cut))])
    await log.put(b"a")
    reader = await log.reader()
    assert numbers(await drain(reader)) == [0, 1]
    assert [(lost.partition, lost.from_offset, lost.to_offset) for lost in reader.damage.values()] == [(0, 1, 4)]


async def test_ranges_lost_by_the_media_are_reported_once_and_their_number_is_bounded(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.put(b"a")

    async def tail(*_: object, **__: object) -> Tail:
        lost = [Damage("orders", 0, number, number + 1, "lost") for number in range(DAMAGE_MAX + 10)]
        return Tail([], log.engine.next_sequence(), lost + lost[:1])

    monkeypatch.setattr(log.engine, "tail", tail)
    reader = await log.reader()
    assert await reader.next(**EVERYTHING) == []
    assert len(reader.damage) == DAMAGE_MAX


class Watched:
    """Counts the keys it was asked about."""

    def __init__(self, wanted: bytes) -> None:
        self.wanted, self.asked = wanted, 0

    def __call__(self, key: bytes | None) -> bool:
        self.asked += 1
        return key == self.wanted


@pytest.mark.parametrize("records_max", [1, 1_000])
async def test_batches_without_a_wanted_key_are_passed_by_their_keys_and_nothing_is_missed(log: Log, records_max: int) -> None:
    for number in range(60):
        await log.put(b"rare" if number % 7 == 3 else b"a", b"b", b"c")
    for filter in (Filter.parse("orders/+", key_prefix=b"rare"), Filter.parse("+/rare"), Filter.parse("orders/rare")):
        found = await drain(await log.broker.subscribe_filter(filter, "earliest"), records_max=records_max)
        assert numbers(found) == [3 * number for number in range(60) if number % 7 == 3]


async def test_keys_are_looked_at_only_while_nothing_is_found(log: Log) -> None:
    for number in range(20):
        await log.put(b"often" if number >= 10 else b"other")
    watched = Watched(b"often")
    source = ScanSource(log.engine, lambda topic: True)
    reader = Subscription(log.engine, MachineClock(), source, Start(Cursor(0)), lambda record: record.key == b"often", watched)
    assert len(await drain(reader)) == 10
    assert watched.asked == 10  # of batches 2 to 10, and of the first that has it
    assert reader.at_end


async def test_a_batch_whose_keys_do_not_open_is_reported_as_any_other(log: Log) -> None:
    await log.broker.create_topic("orders", 1)
    await log.put(b"a")
    await log.put(b"a")
    whole = build([(1, b"k", b"x" * 50, ())] * 3, compression=Compression.ZSTD)
    cut = bytearray(whole[:-7])
    cut[8:12] = (len(cut) - 12).to_bytes(4, "big")
    await log.engine.append([Append("orders", 0, bytes(cut))])
    reader = await log.broker.subscribe_filter(Filter.parse("orders/none"), "earliest")
    assert await drain(reader) == []
    assert [(lost.from_offset, lost.to_offset) for lost in reader.damage.values()] == [(2, 5)]
