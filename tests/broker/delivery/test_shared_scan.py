"""Shared scans: every session gets what a reader of its own would have got, and the log is read once for all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor, Start
from broker.delivery.shared_scan import LIVE_COMMITS, SharedScanOptions, SharedScans
from broker.delivery.source import ScanSource
from broker.delivery.subscription import Delivered, Subscription
from broker.engine.base import Damage, Engine, Gap, Scan
from broker.engine.embedded import EmbeddedEngine
from broker.errors import Closed, DiskFailed
from broker.machine import MachineClock

BEGIN = Cursor(0)
TOPICS = ("orders", "payments", "secrets")
NAMES: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "not secrets": lambda name: name != "secrets",
    "orders": lambda name: name == "orders",
    "none": lambda name: False,
}


class StoppedClock:
    now = 1_000_000.0

    def monotonic_ms(self) -> int:
        return int(self.now)

    def now_ms(self) -> int:
        return int(self.now)


class Log:
    def __init__(self, engine: Engine, **options: int) -> None:
        self.engine, self.clock = engine, MachineClock()
        self.broker = Broker(engine, self.clock, BrokerOptions(partitions_default=2))
        self.scans = SharedScans(engine, self.clock, SharedScanOptions(**options))
        self.number = 0

    async def put(self, topic: str, records: int = 1, size: int = 10) -> None:
        made = [Outgoing(b"k%d" % (self.number % 5), b"%d" % (self.number + n) + b" " * size) for n in range(records)]
        self.number += records
        await self.broker.publish(topic, made, durable=True, auto_create=True)

    async def fill(self, commits: int, size: int = 10) -> None:
        for _ in range(commits):
            await self.put(random.Random(self.number).choice(TOPICS), random.Random(self.number).randint(1, 4), size)

    def reader(self, topics: Callable[[str], bool], at: Cursor = BEGIN, filter: Filter | None = None) -> Subscription:
        wanted = None if filter is None or filter.open else filter.wants
        return Subscription(self.engine, self.clock, self.scans.source(topics), Start(at), wanted)

    def alone(self, topics: Callable[[str], bool], at: Cursor = BEGIN, filter: Filter | None = None) -> Subscription:
        wanted = None if filter is None or filter.open else filter.wants
        return Subscription(self.engine, self.clock, ScanSource(self.engine, topics), Start(at), wanted)


OpenLog = Callable[..., Log]


@pytest.fixture
def open_log(engine: EmbeddedEngine) -> OpenLog:
    return lambda **options: Log(engine, **options)


@pytest.fixture
async def cold(open_engine: Callable[..., EmbeddedEngine]) -> Any:
    """Nothing stays in memory: every range is read from files."""
    made = open_engine(ring_bytes_max=1, journal_file_bytes=65_536)
    await made.start()
    yield made
    await made.close()


async def drain(reader: Subscription, bytes_max: int = 1 << 20, records_max: int = 1_000) -> list[Delivered]:
    found: list[Delivered] = []
    while page := await reader.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=0):
        found += page
    return found


def places(found: list[Delivered]) -> list[tuple[str, int, int, str]]:
    return [(one.topic, one.partition, one.record.offset, str(one.cursor)) for one in found]


async def test_the_log_is_read_once_for_all_who_wait(open_log: OpenLog) -> None:
    log = open_log(read_bytes=2_000)
    await log.fill(100)
    first = Log(log.engine, read_bytes=2_000)
    wanted = places(await drain(first.reader(NAMES["all"])))
    alone = first.scans.stats()
    assert alone.reads > 5

    found = await asyncio.gather(*[drain(log.reader(NAMES["all"])) for _ in range(50)])
    shared = log.scans.stats()
    assert all(places(one) == wanted for one in found)
    assert (shared.reads, shared.read_bytes) == (alone.reads, alone.read_bytes)
    assert shared.served_bytes == 50 * shared.read_bytes
    assert shared.waiting == 0


async def test_sessions_that_come_a_moment_later_are_served_from_memory(open_log: OpenLog) -> None:
    log = open_log(kept_ms=60_000)
    await log.fill(30)
    wanted = places(await drain(log.reader(NAMES["all"])))
    reads = log.scans.stats().reads
    for begin in (0, 1, 7, 20):
        later = await drain(log.reader(NAMES["all"], Cursor(begin)))
        assert places(later) == [place for place in wanted if Cursor.parse(place[3]) > Cursor(begin)]
    assert log.scans.stats().reads == reads


async def test_who_falls_into_step_stays_in_step(open_log: OpenLog) -> None:
    log = open_log(read_bytes=1_500)
    await log.fill(120)
    readers = [log.reader(NAMES["all"], Cursor(begin)) for begin in (0, 3, 9, 14)]
    wanted = [places(await drain(log.alone(NAMES["all"], Cursor(begin)))) for begin in (0, 3, 9, 14)]
    assert [places(found) for found in await asyncio.gather(*map(drain, readers))] == wanted
    alone = Log(log.engine, read_bytes=1_500)
    await drain(alone.reader(NAMES["all"]))
    assert log.scans.stats().reads <= alone.scans.stats().reads + len(readers)


@pytest.mark.parametrize("seed", range(12))
async def test_every_session_gets_what_a_reader_of_its_own_gets(open_engine: Any, seed: int) -> None:
    """Sessions of different rights, places, page sizes and speeds; meanwhile topics are made and records published."""
    engine = open_engine(ring_bytes_max=4_000 if seed % 2 else 1 << 20, journal_file_bytes=65_536)
    await engine.start()
    choose = random.Random(seed)
    log = Log(
        engine,
        read_bytes=choose.choice([1, 500, 5_000, 1 << 20]),
        kept_bytes=choose.choice([0, 3_000, 1 << 20]),
        kept_ms=choose.choice([1, 10_000]),
        readers_max=choose.choice([1, 2, 5]),
        waited_ms_max=choose.choice([0, 5, 500]),
    )
    await log.fill(60)
    rights = {name: [NAMES[name]] for name in NAMES}
    sessions = []
    for _ in range(20):
        topics = choose.choice(list(rights))
        filter = choose.choice([None, Filter.parse("+/k1"), Filter.parse("#")])
        sessions.append((topics, Cursor(choose.randint(0, 70)), filter, choose.randrange(2**30)))

    async def publish() -> None:
        for step in range(40):
            await log.fill(1)
            if step in (10, 30):
                await log.put(f"made-{step}")
            await asyncio.sleep(0)

    async def follow(topics: str, at: Cursor, filter: Filter | None, own_seed: int) -> list[Delivered]:
        own, found = random.Random(own_seed), list[Delivered]()
        reader = log.reader(NAMES[topics], at, filter)
        while True:
            page = await reader.next(
                bytes_max=own.choice([1, 300, 1 << 20]), records_max=own.choice([1, 3, 1_000]), wait_max_ms=0
            )
            found += page
            if not page and published.done() and reader.at_end:
                return found
            if own.random() < 0.2:
                await asyncio.sleep(own.random() * 0.01)
            elif not page:
                await asyncio.sleep(0.001)

    published = asyncio.create_task(publish())
    found = await asyncio.gather(*[follow(*session) for session in sessions])
    for (topics, at, filter, _), one in zip(sessions, found, strict=True):
        assert places(one) == places(await drain(log.alone(NAMES[topics], at, filter))), (topics, at, filter)
    assert log.scans.stats().waiting == 0
    await engine.close()


async def test_a_topic_made_after_a_session_began_to_wait_is_not_missed(open_log: OpenLog, monkeypatch: Any) -> None:
    """What its wait ends with was looked up for the topics of before: it may not step over what is new."""
    log = open_log()
    await log.put("orders")
    scan = log.engine.scan

    async def slow(*args: Any, **members: Any) -> Scan:
        await log.put("news")
        await log.put("orders")
        return await scan(*args, **members)

    reader = log.reader(NAMES["all"])
    with monkeypatch.context() as patched:
        patched.setattr(log.engine, "scan", slow)
        found = await reader.next(bytes_max=1 << 20, records_max=100, wait_max_ms=0)
    found += await drain(reader)
    assert [one.topic for one in found] == ["orders", "news", "orders"]


async def test_a_topic_made_again_is_another_topic(open_log: OpenLog) -> None:
    log = open_log(kept_ms=60_000)
    await log.put("orders")
    assert len(await drain(log.reader(NAMES["all"]))) == 1
    await log.broker.delete_topic("orders")
    assert await drain(log.reader(NAMES["all"])) == []
    await log.put("orders")
    [found] = await drain(log.reader(NAMES["all"]))
    assert (found.topic, found.record.value and found.record.value.strip()) == ("orders", b"1")


async def test_what_was_deleted_is_not_handed_out_of_memory(open_log: OpenLog) -> None:
    log = open_log(kept_ms=60_000)
    await log.broker.create_topic("orders", 1)
    for _ in range(6):
        await log.put("orders")
    assert len(await drain(log.reader(NAMES["all"]))) == 6
    await log.engine.delete_records("orders", 0, 4)
    assert places(await drain(log.reader(NAMES["all"]))) == places(await drain(log.alone(NAMES["all"])))
    assert [one.record.offset for one in await drain(log.reader(NAMES["all"]))] == [4, 5]
    reads = log.scans.stats().reads
    await drain(log.reader(NAMES["all"]))
    assert log.scans.stats().reads == reads


async def test_rights_are_asked_at_every_read(open_log: OpenLog) -> None:
    log = open_log(kept_ms=60_000)
    await log.put("orders")
    await log.put("secrets")
    allowed = {"orders", "secrets"}
    reader, other = log.reader(allowed.__contains__), log.reader(NAMES["all"])
    assert len(await drain(other)) == 2
    allowed.remove("secrets")
    assert [one.topic for one in await drain(reader)] == ["orders"]


async def test_it_waits_for_what_comes(open_log: OpenLog) -> None:
    log = open_log()
    await log.put("orders")
    readers = [log.reader(NAMES["all"], Cursor(log.engine.next_sequence())) for _ in range(20)]
    waiting = [asyncio.create_task(reader.next(bytes_max=100, records_max=9, wait_max_ms=30_000)) for reader in readers]
    await asyncio.sleep(0.01)
    reads = log.scans.stats().reads
    await log.put("payments")
    assert [len(await one) for one in waiting] == [1] * 20
    assert log.scans.stats().reads == reads + 1
    assert not log.engine._watchers_of_all  # type: ignore[attr-defined]


async def test_the_wait_ends(open_log: OpenLog) -> None:
    log = open_log()
    await log.put("secrets")
    for topics in ("all", "none", "not secrets"):
        reader = log.reader(NAMES[topics], Cursor(log.engine.next_sequence()))
        assert await reader.next(bytes_max=100, records_max=9, wait_max_ms=2) == []
        assert reader.at_end


async def test_who_goes_away_is_not_waited_for(open_log: OpenLog, monkeypatch: Any) -> None:
    log = open_log()
    await log.fill(5)
    scan, gate = log.engine.scan, asyncio.Event()

    async def gated(*args: Any, **members: Any) -> Scan:
        await gate.wait()
        return await scan(*args, **members)

    monkeypatch.setattr(log.engine, "scan", gated)
    tasks = [asyncio.create_task(drain(log.reader(NAMES["all"]))) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert log.scans.stats().waiting == 3
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert log.scans.stats().waiting == 2
    gate.set()
    assert len({len(await task) for task in tasks[1:]}) == 1


async def test_a_failed_read_is_told_to_those_who_stood_there_and_the_lanes_go_on(open_log: OpenLog, monkeypatch: Any) -> None:
    log = open_log(read_bytes=1)
    await log.fill(5)
    scan, failures = log.engine.scan, [1]

    async def failing(*args: Any, **members: Any) -> Scan:
        if failures and failures.pop():
            raise DiskFailed("reading", "no such luck")
        return await scan(*args, **members)

    monkeypatch.setattr(log.engine, "scan", failing)
    first, second = await asyncio.gather(
        drain(log.reader(NAMES["all"])), drain(log.reader(NAMES["orders"])), return_exceptions=True
    )
    assert isinstance(first, DiskFailed)
    assert isinstance(second, list)
    assert await drain(log.reader(NAMES["all"]))


async def test_closing_ends_the_wait(open_engine: Any) -> None:
    engine = open_engine()
    await engine.start()
    log = Log(engine)
    await log.put("orders")
    end = Cursor(engine.next_sequence())
    readers = [log.reader(NAMES["all"], end), log.alone(NAMES["all"], end), log.reader(NAMES["none"], end)]
    waiting = [asyncio.create_task(one.next(bytes_max=9, records_max=9, wait_max_ms=30_000)) for one in readers]
    await asyncio.sleep(0.01)
    await engine.close()
    for one in waiting:
        with pytest.raises(Closed):
            await one


# Bounds


async def test_no_more_readers_than_allowed(open_log: OpenLog, monkeypatch: Any) -> None:
    for readers_max in (1, 2, 3):
        log = open_log(readers_max=readers_max, read_bytes=1, kept_bytes=0)
        await log.fill(12)
        scan, under_way, most = log.engine.scan, 0, 0

        async def counted(position: int, *, scan: Any = scan, engine: Engine = log.engine, **members: Any) -> Scan:
            nonlocal under_way, most
            if position >= engine.next_sequence():  # a session at the end looks whether the engine is closed
                return await scan(position, **members)  # type: ignore[no-any-return]
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.001)
            try:
                return await scan(position, **members)  # type: ignore[no-any-return]
            finally:
                under_way -= 1

        with monkeypatch.context() as patched:
            patched.setattr(log.engine, "scan", counted)
            log.scans._reach = 1
            await asyncio.gather(*[drain(log.reader(NAMES["all"], Cursor(begin))) for begin in range(0, 12, 2)])
        assert most == readers_max


async def test_chunks_are_forgotten_by_size_and_by_age(open_log: OpenLog) -> None:
    log = open_log(read_bytes=500, kept_bytes=2_000, kept_ms=60_000)
    await log.fill(60)
    await drain(log.reader(NAMES["all"]))
    stats = log.scans.stats()
    assert stats.read_bytes > 4_000
    assert 0 < stats.kept_bytes <= 2_000
    aged = open_log(kept_ms=1)
    await drain(aged.reader(NAMES["all"]))
    await asyncio.sleep(0.01)
    await drain(aged.reader(NAMES["all"], Cursor(3)))
    assert aged.scans.stats().reads == 2


async def test_chunks_do_not_stay_because_nobody_reads(open_log: OpenLog) -> None:
    log = open_log(kept_ms=20)
    await log.fill(3)
    await drain(log.reader(NAMES["all"]))
    assert log.scans.stats().kept_bytes > 0
    while log.scans.stats().kept_bytes:  # noqa: ASYNC110  the timer is what is waited for
        await asyncio.sleep(0.005)
    assert log.scans._timer is None


async def test_those_far_behind_are_paced_and_those_at_the_live_end_are_not(open_log: OpenLog, monkeypatch: Any) -> None:
    log = open_log(read_bytes=2_000, bytes_per_s=100_000)
    await log.fill(LIVE_COMMITS // 20)
    slept: list[float] = []
    sleep, log.scans._clock = asyncio.sleep, (clock := StoppedClock())

    async def noted(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds * 1_000
        await sleep(0)

    monkeypatch.setattr("broker.delivery.shared_scan.asyncio.sleep", noted)
    await drain(log.reader(NAMES["all"]))
    assert [seconds for seconds in slept if seconds] == []
    monkeypatch.setattr("broker.delivery.shared_scan.LIVE_COMMITS", 0)
    log.scans._chunks.clear()
    await drain(log.reader(NAMES["all"]))
    assert sum(slept) == pytest.approx(log.scans.stats().read_bytes / 100_000, rel=0.2)  # what was read live is owed too


@pytest.mark.parametrize(("waited_ms_max", "served"), [(0, 1), (60_000, 21)])
async def test_who_has_waited_long_is_served_before_those_who_go_on(open_log: OpenLog, waited_ms_max: int, served: int) -> None:
    """A lane that finds somebody further on goes there, but not for ever: the lone one came second."""
    log = open_log(readers_max=1, read_bytes=1, kept_bytes=0, waited_ms_max=waited_ms_max)
    await log.put("payments")
    for _ in range(25):
        await log.put("orders")
    order: list[str] = []

    async def read(name: str, topics: str, begin: int) -> None:
        await log.reader(NAMES[topics], Cursor(begin)).next(bytes_max=1, records_max=1, wait_max_ms=0)
        order.append(name)

    places_of_many = [read("many", "all", begin) for begin in range(2, 22)]
    await asyncio.gather(read("first", "all", 1), read("lone", "orders", 20), *places_of_many)
    assert order.index("lone") == served


# Damage and gaps


async def test_damage_and_gaps_are_told_to_those_who_stand_before_them_only(open_log: OpenLog, monkeypatch: Any) -> None:
    log = open_log(kept_ms=60_000)
    await log.fill(10)
    scan = log.engine.scan
    lost, gone = Damage("orders", 0, 3, 9, "flipped"), Gap("orders", 1, 0, 4)

    async def damaged(position: int, **members: Any) -> Scan:
        found = await scan(position, **members)
        return Scan(found.batches, found.next_sequence, [lost], [gone]) if position <= 2 else found

    monkeypatch.setattr(log.engine, "scan", damaged)
    for begin, told in ((0, True), (1, True), (2, True), (5, False)):
        reader = log.reader(NAMES["all"], Cursor(begin))
        found = await drain(reader)
        assert places(found) == places(await drain(log.alone(NAMES["all"], Cursor(begin))))
        assert list(reader.damage.values()) == ([lost] if told else [])
        assert list(reader.gaps.values()) == ([gone] if told else [])


async def test_out_of_files_as_out_of_memory(cold: EmbeddedEngine) -> None:
    log = Log(cold, read_bytes=20_000, kept_ms=60_000)
    await log.fill(80, size=2_000)
    reads_before = cold.stats().file_reads
    found = await asyncio.gather(*[drain(log.reader(NAMES["all"])) for _ in range(30)])
    shared = cold.stats().file_reads - reads_before
    alone = places(await drain(log.alone(NAMES["all"]), bytes_max=20_000))
    assert all(places(one) == alone for one in found)
    assert log.scans.stats().reads <= shared + 2
    own = cold.stats().file_reads - reads_before - shared
    assert shared <= own + 5  # the files are read as often for thirty as for one


async def test_topics_are_looked_up_again_only_when_they_or_the_rights_have_changed(open_log: OpenLog) -> None:
    log, asked = open_log(), list[str]()
    version = [0]

    def topics(name: str) -> bool:
        asked.append(name)
        return True

    source = log.scans.source(topics, lambda: version[0])

    async def looked_up(change: Callable[[], Any]) -> list[str]:
        asked.clear()
        if (changed := change()) is not None:
            await changed
        await source.read(0, bytes_max=1 << 20, wait_max_ms=0)
        return asked

    assert await looked_up(lambda: log.put("orders")) == ["orders"]
    assert await looked_up(lambda: log.put("orders")) == []
    assert await looked_up(lambda: log.put("payments")) == ["orders", "payments"]
    assert await looked_up(lambda: log.broker.alter_topic("orders", partitions=3)) == []
    assert await looked_up(lambda: log.broker.delete_topic("payments")) == ["orders"]
    assert await looked_up(lambda: log.put("payments")) == ["orders", "payments"]
    version[0] += 1
    assert await looked_up(lambda: None) == ["orders", "payments"]


async def test_thousands_who_wait_at_places_of_their_own_are_served_in_order(open_log: OpenLog) -> None:
    """Work per read that grew with the number of waiters would make millions of steps here."""
    log = open_log(read_bytes=1, kept_bytes=0, waited_ms_max=0)
    await log.fill(30)
    readers = [log.reader(NAMES["all"], Cursor(number % 40)) for number in range(2_000)]
    found = await asyncio.gather(*[reader.next(bytes_max=1, records_max=1, wait_max_ms=0) for reader in readers])
    alone = places(await drain(log.alone(NAMES["all"])))
    for number, page in enumerate(found):
        after = [place for place in alone if Cursor.parse(place[3]) > Cursor(number % 40)]
        assert places(page) == after[:1]
    assert log.scans.stats().reads < 200
    assert not log.scans._groups
