"""Finding visible batches by offset, sequence, key and time: from memory and from files alike, and while commits go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.batch import build
from broker.engine.base import Append, Stored, Tail
from broker.engine.embedded import EmbeddedEngine
from broker.log.footer import DamagedRange
from broker.machine import READ_WORKERS
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

HANG_S = 20


@pytest.fixture(params=["memory", "files", "both"])
async def engine(request: pytest.FixtureRequest, open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """Ten batches of topic `orders`, partitions 0 and 1 in turn, keys a and b; read from memory, files, or half and half."""
    made = open_engine()
    await made.start()
    await made.create_topic("orders", 2, {})
    for number in range(10):
        if number == 5 and request.param == "both":
            await made.close()
            made = open_engine()
            await made.start()
        key = b"ab"[number % 3 == 0 :][:1]
        batch = one_record(b"%d" % number + bytes(100), key, timestamp_ms=1000 + 100 * (number // 2))
        await made.append([Append("orders", number % 2, batch, [key])])
    if request.param == "files":
        await made.close()
        made = open_engine()
        await made.start()
    yield made
    await made.close()


async def by_tail(engine: EmbeddedEngine, bytes_max: int, *, key: bytes | None = None) -> list[Stored]:
    found, sequence = [], 0
    while sequence < engine.next_sequence():
        tail = await engine.tail("orders", sequence, bytes_max=bytes_max, key=key)
        assert tail.next_sequence > sequence
        assert all(sequence <= stored.sequence < tail.next_sequence for stored in tail.batches)
        found += tail.batches
        sequence = tail.next_sequence
    return found


@pytest.mark.parametrize("bytes_max", [1, 200, 450, 1 << 20])
async def test_a_tail_in_steps_of_any_size_sees_every_batch_once_in_commit_order(engine: EmbeddedEngine, bytes_max: int) -> None:
    assert [stored.sequence for stored in await by_tail(engine, bytes_max)] == list(range(1, 11))


@pytest.mark.parametrize("bytes_max", [1, 250, 1 << 20])
async def test_a_tail_from_files_passes_nothing_by_where_one_partition_is_busier(open_engine: OpenEngine, bytes_max: int) -> None:
    # A row of one partition that was cut short must not be overtaken by the next batch of another.
    engine = open_engine()
    await engine.start()
    await engine.create_topic("orders", 2, {})
    for partition in (0, 0, 0, 1, 0, 0):
        await engine.append([Append("orders", partition, one_record(bytes(100)))])
    await engine.close()
    engine = open_engine()
    await engine.start()
    assert [stored.sequence for stored in await by_tail(engine, bytes_max)] == [1, 2, 3, 4, 5, 6]
    await engine.close()


@pytest.mark.parametrize("bytes_max", [1, 450, 1 << 20])
async def test_a_tail_by_key_sees_only_batches_that_may_hold_it(engine: EmbeddedEngine, bytes_max: int) -> None:
    assert [stored.sequence for stored in await by_tail(engine, bytes_max, key=b"b")] == [1, 4, 7, 10]
    assert await by_tail(engine, bytes_max, key=b"nobody's") == []


async def test_a_tail_reads_no_more_than_asked_for_and_at_least_one(engine: EmbeddedEngine) -> None:
    assert len((await engine.tail("orders", 0, bytes_max=0)).batches) == 1
    one = len((await engine.tail("orders", 0, bytes_max=0)).batches[0].batch)
    for bytes_max in (one, 3 * one, 5 * one + 1):
        tail = await engine.tail("orders", 3, bytes_max=bytes_max)
        assert sum(len(stored.batch) for stored in tail.batches) <= bytes_max
        assert tail.batches[0].sequence == 3


async def test_partitions_are_picked(engine: EmbeddedEngine) -> None:
    tail = await engine.tail("orders", 0, bytes_max=1 << 20, partitions=[1])
    assert [stored.sequence for stored in tail.batches] == [2, 4, 6, 8, 10]
    assert tail.next_sequence == 11


async def test_fetch_from_any_offset(engine: EmbeddedEngine) -> None:
    for offset in range(5):
        fetched = await engine.fetch("orders", 1, offset, bytes_max=1 << 20)
        assert [stored.base_offset for stored in fetched.batches] == list(range(offset, 5))
        assert fetched.next_offset == fetched.high_watermark == 5


async def test_the_newest_batch_with_a_key(engine: EmbeddedEngine) -> None:
    newest = await engine.find_latest("orders", 1, b"b")
    assert newest is not None
    assert newest.sequence == 10
    newest = await engine.find_latest("orders", 0, b"b")
    assert newest is not None
    assert newest.sequence == 7
    assert await engine.find_latest("orders", 0, b"nobody's") is None
    assert await engine.find_latest("orders", 0, None) is None


async def test_offsets_for_times(engine: EmbeddedEngine) -> None:
    found = [await engine.offset_for_time("orders", 0, timestamp_ms) for timestamp_ms in (0, 1000, 1001, 1350, 1400, 1401)]
    assert [(answer.offset, answer.timestamp_ms) for answer in found] == [
        (0, 1000),
        (0, 1000),
        (1, 1100),
        (4, 1400),
        (4, 1400),
        (-1, -1),
    ]
    newest = await engine.offset_of_max_timestamp("orders", 0)
    assert (newest.offset, newest.timestamp_ms) == (4, 1400)


async def test_sequences_for_times(engine: EmbeddedEngine) -> None:
    assert [await engine.sequence_for_time("orders", timestamp_ms) for timestamp_ms in (0, 1001, 1400, 1401)] == [1, 3, 9, 11]


async def test_an_offset_within_a_batch_gives_that_batch(open_engine: OpenEngine) -> None:
    for _ in range(2):
        engine = open_engine()
        await engine.start()
        if not engine.topics():
            await engine.create_topic("orders", 1, {})
            await engine.append([Append("orders", 0, build([(1, None, b"%d" % n, ()) for n in range(4)]))])
        fetched = await engine.fetch("orders", 0, 2, bytes_max=1)
        assert (fetched.batches[0].base_offset, fetched.next_offset) == (0, 4)
        await engine.close()


# -- races: the read lane is held while commits go on ---------------------------------------------------------------------


class HeldReads:
    """Keeps every read worker busy until it is let go."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self._go = threading.Event()
        self._busy = [engine._seams.executor.run("read", self._go.wait) for _ in range(READ_WORKERS)]

    async def let_go(self) -> None:
        self._go.set()
        for each in self._busy:
            await each


@pytest.fixture
async def restarted(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """One batch in each of two partitions, all in a sealed file whose indexes are not in memory."""
    engine = open_engine()
    await engine.start()
    await engine.create_topic("orders", 2, {})
    for partition in (0, 1):
        await engine.append([Append("orders", partition, one_record(b"old"), [b"k"])])
    await engine.close()
    engine = open_engine()
    await engine.start()
    yield engine
    await engine.close()


async def started(task: asyncio.Task[Tail]) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()


async def test_what_is_committed_while_a_tail_looks_is_given_once(restarted: EmbeddedEngine) -> None:
    held = HeldReads(restarted)
    looking = asyncio.create_task(restarted.tail("orders", 0, bytes_max=1 << 20))
    await started(looking)
    for partition in (0, 1, 0):
        await restarted.append([Append("orders", partition, one_record(b"new"), [b"k"])])
    await held.let_go()
    tail = await asyncio.wait_for(looking, HANG_S)
    later = await restarted.tail("orders", tail.next_sequence, bytes_max=1 << 20)
    assert [stored.sequence for stored in tail.batches + later.batches] == [1, 2, 3, 4, 5]
    assert all(stored.sequence < tail.next_sequence for stored in tail.batches)


async def test_what_is_committed_while_a_long_poll_looks_wakes_it(restarted: EmbeddedEngine) -> None:
    held = HeldReads(restarted)
    looking = asyncio.create_task(restarted.tail("orders", 0, bytes_max=1 << 20, wait_max_ms=600_000, key=b"other"))
    await started(looking)
    await restarted.append([Append("orders", 0, one_record(b"new", b"other"), [b"other"])])
    await held.let_go()
    tail = await asyncio.wait_for(looking, HANG_S)
    assert [stored.sequence for stored in tail.batches] == [3]


async def test_reads_in_flight_are_bounded(open_engine: OpenEngine, restarted: EmbeddedEngine) -> None:
    lookup = restarted._lookup
    lookup._reads = asyncio.Semaphore(1)
    await restarted.fetch("orders", 0, 0, bytes_max=1)
    held = HeldReads(restarted)
    reads = [asyncio.create_task(restarted.fetch("orders", 0, 0, bytes_max=1)) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert lookup.file_reads == 2, "the first one of before and one of these"
    await held.let_go()
    assert len(await asyncio.gather(*reads)) == 3
    assert lookup.file_reads == 4


# -- damage ---------------------------------------------------------------------------------------------------------------


async def test_damage_met_by_a_reader_is_reported_from_then_on(restarted: EmbeddedEngine, tmp_path: Path) -> None:
    log = next(log for log in restarted._store.partitions.values() if log.partition == 0)
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    data[(await restarted._store.index_of(log.extents[0])).place(0).position + 180] ^= 1
    path.write_bytes(data)
    assert restarted.damage() == []
    await restarted.append([Append("orders", 0, one_record(b"new"), [b"k"])])
    fetched = await restarted.fetch("orders", 0, 0, bytes_max=1 << 20)
    (lost,) = fetched.damage
    assert (lost.from_offset, lost.to_offset, lost.reason) == (0, 1, "does not authenticate")
    assert [stored.base_offset for stored in fetched.batches] == [1]
    tail = await restarted.tail("orders", 0, bytes_max=1 << 20)
    assert tail.damage == restarted.damage() == [lost]
    assert [stored.sequence for stored in tail.batches] == [2, 3]
    newest = await restarted.find_latest("orders", 0, b"k")
    assert newest is not None
    assert newest.base_offset == 1


async def test_a_range_known_to_be_damaged_is_stepped_over_and_told(
    restarted: EmbeddedEngine, make_lost: Callable[[EmbeddedEngine, int, int], None]
) -> None:
    make_lost(restarted, 0, 1)
    fetched = await restarted.fetch("orders", 0, 0, bytes_max=1)
    assert (fetched.batches, fetched.next_offset) == ([], 1)
    assert [(lost.from_offset, lost.to_offset) for lost in fetched.damage] == [(0, 1)]
    assert await restarted.find_latest("orders", 0, b"k") is None
    assert (await restarted.offset_of_max_timestamp("orders", 0)).offset == -1
    assert (await restarted.tail("orders", 0, bytes_max=1 << 20)).damage == fetched.damage


@pytest.fixture
def make_lost() -> Callable[[EmbeddedEngine, int, int], None]:
    def lose(engine: EmbeddedEngine, start: int, end: int) -> None:
        log = next(log for log in engine._store.partitions.values() if log.partition == 0)
        log.extents[0].summary.damage.append(DamagedRange(start, end, "lost"))

    return lose
