"""Small publications that become one batch: in order, each whole, and no one waits for company."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from broker import gathering
from broker.batch import keys, read_header
from broker.broker import Broker, BrokerOptions, Outgoing
from broker.columns import Columns, SharedHeaders
from broker.engine.embedded import EmbeddedEngine
from broker.errors import AppendUnknown, Closed, DiskFailed, UnknownTopic
from broker.machine import MachineClock

PLAIN = SharedHeaders(())
TYPED = SharedHeaders(((b"content-type", b"application/json"),))


class TickingClock(MachineClock):
    """Each look at it is ten milliseconds later than the last."""

    now = 1_000_000

    def now_ms(self) -> int:
        self.now += 10
        return self.now


@pytest.fixture
async def broker(engine: EmbeddedEngine) -> Broker:
    broker = Broker(engine, MachineClock(), BrokerOptions())
    await broker.create_topic("orders", 1)
    return broker


async def put(
    broker: Broker, *values: bytes, headers: SharedHeaders = PLAIN, key: str = "k", durable: bool = True
) -> list[tuple[int, int]]:
    columns = Columns([key] * len(values), list(values), headers)
    return await broker.publish("orders", columns, durable=durable, auto_create=False)


async def batches(engine: EmbeddedEngine, partition: int = 0) -> list[int]:
    """How many records each has."""
    fetched = await engine.fetch("orders", partition, 0, bytes_max=1 << 24)
    return [read_header(stored.batch).count for stored in fetched.batches]


async def values(broker: Broker, partition: int = 0) -> list[bytes | None]:
    page = await broker.fetch("orders", partition, 0, records_max=10_000, bytes_max=1 << 24, wait_max_ms=0)
    return [record.value for record in page.records]


class TestGathering:
    async def test_the_first_goes_alone_and_the_others_together(self, broker: Broker, engine: EmbeddedEngine) -> None:
        places = await asyncio.gather(*(put(broker, b"%d" % number) for number in range(20)))
        assert places == [[(0, number)] for number in range(20)]
        assert await batches(engine) == [1, 19]
        assert await values(broker) == [b"%d" % number for number in range(20)]

    async def test_one_after_the_other_nobody_waits(self, broker: Broker, engine: EmbeddedEngine) -> None:
        for number in range(5):
            await put(broker, b"%d" % number)
        assert await batches(engine) == [1] * 5

    async def test_places_ids_and_keys_are_each_publication_s_own(self, engine: EmbeddedEngine) -> None:
        broker = Broker(engine, MachineClock(), BrokerOptions())
        await broker.create_topic("orders", 4)
        brought = [Columns([f"k{n}-{m}" for m in range(5)], [b"%d-%d" % (n, m) for m in range(5)], PLAIN) for n in range(12)]
        asked = (broker.publish("orders", columns, durable=True, auto_create=False) for columns in brought)
        for number, (columns, places) in enumerate(zip(brought, await asyncio.gather(*asked), strict=True)):
            head, lasts = columns.ids
            assert len(lasts) == 5
            for place, (last, (partition, offset)) in enumerate(zip(lasts, places, strict=True)):
                page = await broker.fetch("orders", partition, offset, records_max=1, bytes_max=100, wait_max_ms=0)
                [record] = page.records
                assert (record.key, record.value) == (b"k%d-%d" % (number, place), b"%d-%d" % (number, place))
                assert record.message_id == head + last
                latest = await broker.latest("orders", record.key)
                assert latest == (partition, record)
        assert sum([len(await batches(engine, partition)) for partition in range(4)]) <= 8

    async def test_records_keep_the_time_they_were_taken_at(self, engine: EmbeddedEngine) -> None:
        clock = TickingClock()
        broker = Broker(engine, clock, BrokerOptions())
        await broker.create_topic("orders", 1)
        began = clock.now
        await asyncio.gather(*(put(broker, b"v") for _ in range(6)))
        page = await broker.fetch("orders", 0, 0, records_max=10, bytes_max=1 << 20, wait_max_ms=0)
        assert [record.timestamp_ms for record in page.records] == [began + 10 * (number + 1) for number in range(6)]
        fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
        assert fetched.batches[-1].max_timestamp_ms == began + 60

    async def test_other_headers_are_another_batch(self, broker: Broker, engine: EmbeddedEngine) -> None:
        await asyncio.gather(*(put(broker, b"%d" % number, headers=(PLAIN, TYPED)[number // 3 % 2]) for number in range(9)))
        assert await batches(engine) == [1, 2, 3, 3]
        assert await values(broker) == [b"%d" % number for number in range(9)]


class TestOrder:
    async def test_what_is_published_another_way_overtakes_nothing(self, broker: Broker) -> None:
        def general(value: bytes) -> list[Outgoing]:
            return [Outgoing(b"k", value, timestamp_ms=5)]

        asked = [
            put(broker, b"0"),
            put(broker, b"1"),
            broker.publish("orders", general(b"2"), durable=True, auto_create=False),
            put(broker, b"3"),
            put(broker, b"4", durable=False),
            put(broker, b"5"),
            broker.publish("orders", general(b"6"), durable=False, auto_create=False),
            put(broker, b"7"),
        ]
        await asyncio.gather(*asked)
        assert await values(broker) == [b"%d" % number for number in range(8)]

    async def test_nor_what_comes_when_the_topic_was_altered_meanwhile(self, broker: Broker) -> None:
        asked = [asyncio.create_task(put(broker, b"%d" % number)) for number in range(4)]
        await asyncio.sleep(0)
        await broker.alter_topic("orders", configs={"compression.type": "zstd"})
        await put(broker, b"4")
        await asyncio.gather(*asked)
        assert await values(broker) == [b"%d" % number for number in range(5)]


class TestBounds:
    async def test_records(self, broker: Broker, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gathering, "GATHERED_RECORDS_MAX", 4)
        await asyncio.gather(*(put(broker, b"v", b"v") for _ in range(8)))
        assert await batches(engine) == [2, 4, 4, 4, 2]

    async def test_bytes(self, broker: Broker, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gathering, "GATHERED_BYTES_MAX", 2_500)
        await asyncio.gather(*(put(broker, b"x" * 1_000) for _ in range(6)))
        assert await batches(engine) == [1, 2, 2, 1]

    async def test_one_that_is_larger_than_the_bounds_goes_alone(self, broker: Broker, engine: EmbeddedEngine) -> None:
        many = [b"v"] * (gathering.GATHERED_RECORDS_MAX + 1)
        await asyncio.gather(put(broker, b"a"), put(broker, b"b"), put(broker, *many), put(broker, b"c"))
        assert await batches(engine) == [1, 1, len(many), 1]

    async def test_the_topic_s_bound_on_batches_holds(self, broker: Broker, engine: EmbeddedEngine) -> None:
        await broker.alter_topic("orders", configs={"max.message.bytes": "3000"})
        await asyncio.gather(*(put(broker, b"x" * 1_000) for _ in range(9)))
        fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
        assert max(len(stored.batch) for stored in fetched.batches) <= 3_000
        assert len(await values(broker)) == 9


class TestEnds:
    async def test_a_caller_that_goes_away_takes_nobody_with_it(self, broker: Broker) -> None:
        asked = [asyncio.create_task(put(broker, b"%d" % number)) for number in range(6)]
        await asyncio.sleep(0)
        asked[0].cancel()
        asked[3].cancel()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in done] == [n in (0, 3) for n in range(6)]
        assert await values(broker) == [b"%d" % number for number in range(6)]

    async def test_a_disk_that_fails_is_told_to_all_and_the_next_try_works(
        self, broker: Broker, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            monkeypatch.undo()
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(engine._committer, "_write_now", fail)
        done = await asyncio.gather(*(put(broker, b"%d" % number) for number in range(6)), return_exceptions=True)
        assert isinstance(done[0], AppendUnknown)  # which was on its way when the disk failed
        assert all(isinstance(outcome, AppendUnknown | DiskFailed) for outcome in done)  # those that were not even tried
        while engine.append_problem() is not None:  # noqa: ASYNC110  # the engine sets no event
            await asyncio.sleep(0.01)
        assert await put(broker, b"after") == [(0, 0)]

    async def test_a_topic_that_is_deleted_meanwhile(self, broker: Broker) -> None:
        asked = [asyncio.create_task(put(broker, b"%d" % number)) for number in range(4)]
        await asyncio.sleep(0)
        await broker.delete_topic("orders")
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in done} <= {list, UnknownTopic}
        assert not any(isinstance(outcome, asyncio.CancelledError) for outcome in done)

    async def test_an_engine_that_closes_answers_everybody(self, open_engine: Callable[..., EmbeddedEngine]) -> None:
        engine = open_engine()
        await engine.start()
        broker = Broker(engine, MachineClock(), BrokerOptions())
        await broker.create_topic("orders", 1)
        asked = [asyncio.create_task(put(broker, b"%d" % number)) for number in range(6)]
        await asyncio.sleep(0)
        await engine.close()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in done} <= {list, Closed}


async def test_every_batch_s_keys_are_indexed(broker: Broker, engine: EmbeddedEngine) -> None:
    await asyncio.gather(*(put(broker, b"%d" % number, key=f"key-{number % 5}") for number in range(20)))
    fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
    assert len(keys(fetched.batches[-1].batch)) == 19
    for number in range(5):
        tail = await engine.tail("orders", 0, bytes_max=1 << 20, key=b"key-%d" % number)
        assert tail.batches
    assert not (await engine.tail("orders", 0, bytes_max=1 << 20, key=b"other")).batches
