"""Pages read before their readers ask: given once, never when something changed, and no more of them than the budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from broker.engine.base import Append, Stored
from broker.engine.embedded import EmbeddedEngine
from broker.errors import UnknownTopic
from broker.log.partition import PartitionLog
from broker.log.read_ahead import PLACES_MAX, ReadAhead
from broker.log.reader import Wanted
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

BATCHES = 40
PAGE_BYTES = 1_000  # two or three batches


@pytest.fixture
async def engine(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """Forty batches of topic `orders` in files, none in memory."""
    made = open_engine()
    await made.start()
    await made.create_topic("orders", 2, {})
    for number in range(BATCHES):
        await made.append([Append("orders", number % 2, one_record(b"%d" % number + bytes(300), b"k"), [b"k"])])
    await made.close()
    made = open_engine()
    await made.start()
    yield made
    await made.close()


async def by_offset(engine: EmbeddedEngine, offset: int = 0) -> list[Stored]:
    found: list[Stored] = []
    while (page := await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)).batches:
        found += page.batches
        offset = page.next_offset
    return found


async def by_sequence(engine: EmbeddedEngine, key: bytes | None = None) -> list[Stored]:
    found: list[Stored] = []
    sequence = 0
    while sequence < engine.next_sequence():
        page = await engine.tail("orders", sequence, bytes_max=PAGE_BYTES, key=key)
        found += page.batches
        sequence = page.next_sequence
    return found


async def by_scan(engine: EmbeddedEngine) -> list[Stored]:
    found: list[Stored] = []
    sequence = 0
    while sequence < engine.next_sequence():
        page = await engine.scan(sequence, topics=lambda _: True, bytes_max=PAGE_BYTES)
        found += [stored for _, stored in page.batches]
        sequence = page.next_sequence
    return found


@pytest.mark.parametrize("read", [by_sequence, by_scan, lambda engine: by_sequence(engine, b"k")])
async def test_a_reader_in_commit_order_finds_its_pages_ready(
    engine: EmbeddedEngine, read: Callable[[EmbeddedEngine], Awaitable[list[Stored]]]
) -> None:
    assert [stored.sequence for stored in await read(engine)] == list(range(1, BATCHES + 1))
    assert engine._lookup.pages_read_ahead >= 5


async def test_a_reader_by_offset_finds_its_pages_ready(engine: EmbeddedEngine) -> None:
    assert [stored.base_offset for stored in await by_offset(engine)] == list(range(BATCHES // 2))
    assert engine._lookup.pages_read_ahead >= 5


async def test_two_readers_of_the_same_place_are_both_served(engine: EmbeddedEngine) -> None:
    pages = await asyncio.gather(by_offset(engine), by_offset(engine), by_sequence(engine), by_sequence(engine))
    assert [stored.base_offset for stored in pages[0]] == [stored.base_offset for stored in pages[1]] == list(range(BATCHES // 2))
    assert [stored.sequence for stored in pages[2]] == [stored.sequence for stored in pages[3]] == list(range(1, BATCHES + 1))


async def test_who_jumps_about_has_nothing_read_ahead(engine: EmbeddedEngine) -> None:
    for offset in (0, 10, 5, 15, 2):
        await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)
    assert not engine._lookup._pages._pages


async def test_followers_at_the_live_end_leave_no_trace(engine: EmbeddedEngine) -> None:
    sequence = engine.next_sequence()
    for _ in range(3):
        await engine.append([Append("orders", 0, one_record(b"new"), [b"k"])])
        sequence = (await engine.tail("orders", sequence, bytes_max=PAGE_BYTES)).next_sequence
    assert sequence == engine.next_sequence()
    assert not engine._lookup._rows._places


async def test_records_let_go_meanwhile_are_not_given_out(engine: EmbeddedEngine) -> None:
    sequence = 0
    for _ in range(3):
        sequence = (await engine.tail("orders", sequence, bytes_max=PAGE_BYTES)).next_sequence
    assert engine._lookup._rows._pages, "the next page is under way"
    for partition in (0, 1):
        await engine.delete_records("orders", partition, 18)
    page = await engine.tail("orders", sequence, bytes_max=PAGE_BYTES)
    assert page.batches
    assert all(stored.base_offset >= 18 for stored in page.batches)


async def test_damage_met_meanwhile_is_told(engine: EmbeddedEngine, tmp_path: Path) -> None:
    offset = 0
    for _ in range(2):
        offset = (await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)).next_offset
    log = next(log for log in engine._store.partitions.values() if log.partition == 0)
    place = (await engine._store.index_of(log.extents[0])).place(offset)
    path = tmp_path / "data" / log.extents[0].file.path
    await asyncio.wait([ahead.task for ahead in engine._lookup._pages._pages.values()])
    data = bytearray(path.read_bytes())
    data[place.position + 180] ^= 1
    path.write_bytes(data)
    await engine._lookup._one(log, Wanted(log.extents[0].file, place, log.topic_id, log.partition))  # another reader meets it
    page = await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)
    assert [(lost.from_offset, lost.to_offset) for lost in page.damage] == [(offset, offset + 1)]
    assert all(stored.base_offset > offset for stored in page.batches)


async def test_a_deleted_topic_is_gone_for_who_reads_ahead(engine: EmbeddedEngine) -> None:
    offset = 0
    for _ in range(2):
        offset = (await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)).next_offset
    await engine.delete_topic("orders")
    with pytest.raises(UnknownTopic):
        await engine.fetch("orders", 0, offset, bytes_max=PAGE_BYTES)


async def test_what_is_appended_meanwhile_is_not_missed(engine: EmbeddedEngine) -> None:
    found: list[int] = []
    sequence = 0
    for _ in range(BATCHES * 2):
        page = await engine.tail("orders", sequence, bytes_max=PAGE_BYTES, key=b"k", wait_max_ms=600_000)
        found += [stored.sequence for stored in page.batches]
        sequence = page.next_sequence
        if len(found) >= BATCHES + 10:
            break
        if len(found) < BATCHES + 5:
            await engine.append([Append("orders", 0, one_record(bytes(300), b"k"), [b"k"])])
    assert found[: BATCHES + 5] == list(range(1, BATCHES + 6))


async def test_nothing_is_read_ahead_at_a_budget_of_nothing(open_engine: OpenEngine, engine: EmbeddedEngine) -> None:
    await engine.close()
    small = open_engine(read_ahead_bytes_max=0)
    await small.start()
    assert len(await by_offset(small)) == BATCHES // 2
    assert small._lookup.pages_read_ahead == 0
    await small.close()


# -- the budget -----------------------------------------------------------------------------------------------------------


async def done(value: str) -> str:
    return value


async def test_pages_nobody_came_for_make_room() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)
    for number in range(5):
        ahead.start(number, 40, [], partial(done, f"page {number}"))
        await asyncio.sleep(0)
        assert ahead.size <= 100
    assert [await ahead.take(number) for number in range(5)] == [None, None, None, "page 3", "page 4"]
    assert ahead.size == 0
    assert await ahead.take(4) is None, "given once"


async def test_pages_under_way_are_waited_for_and_not_thrown_away() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)
    go = asyncio.Event()

    async def slow() -> str:
        await go.wait()
        return "slow"

    ahead.start("a", 80, [], slow)
    ahead.start("b", 80, [], slow)
    assert ahead.size == 80, "no room for the second while the first is under way"
    reader = asyncio.create_task(ahead.take("a"))
    await asyncio.sleep(0)
    go.set()
    assert await reader == "slow"
    assert await ahead.take("b") is None


async def test_an_error_ahead_of_its_reader_is_no_answer() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)

    async def fail() -> str:
        raise OSError("a bad block")

    ahead.start("a", 10, [], fail)
    await asyncio.sleep(0)
    assert await ahead.take("a") is None


async def test_a_page_too_large_and_one_of_too_many_partitions_are_not_read() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)
    ahead.start("large", 101, [], lambda: done("large"))
    ahead.start("wide", 1, [PartitionLog(b"t" * 16, n) for n in range(65)], lambda: done("wide"))
    assert ahead.size == 0


async def test_places_are_bounded() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)
    for number in range(PLACES_MAX + 1):
        ahead.stopped(number)
    assert not ahead.goes_on(0)
    assert ahead.goes_on(1)
    assert ahead.goes_on(PLACES_MAX)


async def test_close_leaves_nothing_under_way() -> None:
    ahead: ReadAhead[str] = ReadAhead(100)
    cancelled = asyncio.Event()

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    ahead.start("a", 10, [], slow)
    await asyncio.sleep(0)
    await ahead.close()
    assert cancelled.is_set()
    assert ahead.size == 0
