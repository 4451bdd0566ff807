"""The keys of batches that Kafka producers sent: answers are right before anybody has walked them, and cheap afterwards."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from broker.batch import Compression, build
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.log import key_walk
from broker.log.files import LogFile
from broker.log.manifest import FileState
from broker.log.merge import Merge
from broker.log.read_by_key import ReadByKey
from broker.log.record_keys import UNREADABLE_KEY
from tests.broker.log.journals import ORDERS, make_keys
from tests.broker.log.lives import NO_MERGE, Start, sealed

NEVER = 1 << 40
HANG_S = 20


@pytest.fixture
def start(start_engine: Start) -> Start:
    """A started engine with one journal that writes no file again."""
    quick = {"key_walk_file_bytes_min": NEVER, "key_walk_bytes_per_s": NEVER, "key_walk_interval_ms": 1}
    return partial(start_engine, **{**NO_MERGE, "journal_file_bytes": 1 << 26, **quick})


async def produce(engine: EmbeddedEngine, *keys: bytes | None, compression: Compression = Compression.ZSTD) -> int:
    """As a Kafka producer: nobody looks at the keys."""
    batch = build([(0, key, b"value" * 20, ()) for key in keys], compression=compression)
    return (await engine.append([Append("orders", 0, batch)]))[0].base_offset


def corrupt() -> bytes:
    batch = bytearray(build([(0, b"a", b"?" * 40, ())]))
    batch[62:72] = b"\xff" * 10
    return bytes(batch)


async def fill(engine: EmbeddedEngine, batches: int = 30) -> None:
    await engine.create_topic("orders", 1, {})
    for number in range(batches):
        await produce(engine, b"every", b"key %d" % (number % 5), b"once %d" % number, None)


async def walked(engine: EmbeddedEngine) -> None:
    """Whatever was there when somebody read by key."""
    async with asyncio.timeout(HANG_S):
        while engine.stats().key_walk_waiting or (engine._merging is not None and not engine._merging.done()):
            await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.001))])


async def newest(engine: EmbeddedEngine, key: bytes | None) -> int | None:
    """Base offset of the newest batch with the key."""
    found = await engine.find_latest("orders", 0, key)
    return None if found is None else found.base_offset


async def by_key(engine: EmbeddedEngine, key: bytes) -> list[int]:
    """Base offsets of all batches that a reader of the key is given."""
    offsets: list[int] = []
    sequence = 0
    while sequence < engine.next_sequence():
        tail = await engine.tail("orders", sequence, bytes_max=1 << 20, key=key)
        offsets += [stored.base_offset for stored in tail.batches]
        sequence = tail.next_sequence
    return offsets


async def candidates(engine: EmbeddedEngine, key: bytes) -> int:
    """Batches that a look-up of the key would open, at most."""
    log = engine._store.partition(engine.topics()["orders"].topic_id, 0)
    found = engine._store.keys.hasher(log.topic_id).hash(key)
    return sum([len((await engine._store.index_of(extent)).with_key(found)) for extent in log.extents])


async def check(engine: EmbeddedEngine, batches: int = 30) -> None:
    assert await newest(engine, b"every") == 4 * (batches - 1)
    assert await newest(engine, None) == 4 * (batches - 1)
    assert await newest(engine, b"once 3") == 12
    assert await newest(engine, b"key 2") == 4 * max(n for n in range(batches) if n % 5 == 2)
    assert await newest(engine, b"nobody's") is None
    assert set(await by_key(engine, b"key 1")) >= {4 * n for n in range(batches) if n % 5 == 1}


@pytest.mark.parametrize("options", [{"ring_bytes_max": 0}, {}, {"journal_file_bytes": 2048, "ring_bytes_max": 0}])
async def test_answers_are_right_before_anything_was_walked(start: Start, options: dict[str, object]) -> None:
    engine = await start(**options)
    await fill(engine)
    assert await candidates(engine, b"once 3") == 30
    await check(engine)


async def test_where_nobody_reads_by_key_nothing_is_walked(start: Start) -> None:
    engine = await start(key_walk_file_bytes_min=1, merge_files_min=2, journal_file_bytes=2048)
    await fill(engine)
    await sealed(engine)
    await walked(engine)
    assert engine.stats().merges > 0
    assert engine.stats().key_walk_batches == 0
    assert await candidates(engine, b"once 3") == 30


@pytest.mark.parametrize("ring_bytes_max", [0, 1 << 20])
async def test_the_file_that_grows_learns_them(start: Start, ring_bytes_max: int) -> None:
    engine = await start(ring_bytes_max=ring_bytes_max)
    await fill(engine)
    assert await newest(engine, b"once 3") == 12
    await walked(engine)
    assert engine.stats().key_walk_batches == 30
    assert await candidates(engine, b"once 3") == 1
    assert await by_key(engine, b"key 1") == [4 * n for n in range(30) if n % 5 == 1]
    await check(engine)
    for number in range(30, 40):  # what comes later is walked too
        await produce(engine, b"every", b"key %d" % (number % 5), b"once %d" % number, None)
    await check(engine, 40)
    await walked(engine)
    assert await candidates(engine, b"nobody's") == 0
    await check(engine, 40)


async def test_what_was_learned_is_in_the_footer_and_is_not_lost_in_a_merge(start: Start) -> None:
    engine = await start(journal_file_bytes=4096, ring_bytes_max=0)
    await engine.create_topic("orders", 1, {})
    await newest(engine, b"every")
    for number in range(30):
        await produce(engine, b"every", b"key %d" % (number % 5), b"once %d" % number, None)
        await walked(engine)
    await sealed(engine)
    assert engine.stats().sealed_in_place > 2
    assert await candidates(engine, b"once 3") == 1
    await engine.close()
    again = await start()
    unknown = await candidates(again, b"nobody's")
    assert unknown < 15, "the journal that was open is known by its batches' own headers"
    inputs = [file for file in again._store.files.values() if file.entry.state is not FileState.OPEN]
    made = Merge(again._store, inputs)
    await made.take_over(*await again._write_merged(made))
    assert await candidates(again, b"nobody's") == unknown
    assert again.stats().key_walk_batches == 30 - unknown
    await check(again)


async def test_sealed_files_are_written_again_for_their_keys(start: Start) -> None:
    engine = await start(journal_file_bytes=2048, key_walk_file_bytes_min=1, ring_bytes_max=0)
    await fill(engine)
    await sealed(engine)
    assert await candidates(engine, b"once 3") == 30
    await newest(engine, b"once 3")
    await walked(engine)
    assert engine.stats().merges > 2
    assert await candidates(engine, b"once 3") == 1
    await check(engine)
    await engine.close()
    again = await start()
    assert await candidates(again, b"once 3") <= 1 + 5, "the journal that was open is read by its headers"
    await check(again)


async def test_few_bytes_are_not_worth_a_file_written_again(start: Start) -> None:
    engine = await start(journal_file_bytes=2048, key_walk_file_bytes_min=1 << 20)
    await fill(engine)
    await sealed(engine)
    await newest(engine, b"once 3")
    assert engine._merging is not None
    await asyncio.wait([engine._merging])
    assert engine.stats().merges == 0
    assert engine.stats().key_walk_waiting > 10


@pytest.mark.parametrize("walks", [False, True])
async def test_a_batch_that_cannot_be_read_stops_nobody(start: Start, walks: bool) -> None:
    engine = await start(ring_bytes_max=0)
    await fill(engine, 4)
    (bad,) = await engine.append([Append("orders", 0, corrupt())])
    bomb = build([(0, b"a", bytes(70 << 20), ())], compression=Compression.ZSTD)
    (large,) = await engine.append([Append("orders", 0, bomb)])
    after = await produce(engine, b"after")
    if walks:
        await newest(engine, b"once 3")
        await walked(engine)
        assert await candidates(engine, b"once 3") == 1
    assert await newest(engine, b"once 3") == 12
    assert await newest(engine, b"after") == after
    assert await newest(engine, b"a") is None
    told = await by_key(engine, b"once 3")
    assert {bad.base_offset, large.base_offset} <= set(told), "readers of the key are told that it may have been there"
    assert not walks or after not in told


async def test_a_damaged_batch_stays_a_candidate_for_readers(start: Start) -> None:
    engine = await start(ring_bytes_max=0)
    await fill(engine, 6)
    log = engine._store.partition(engine.topics()["orders"].topic_id, 0)
    index = await engine._store.index_of(log.extents[0])
    place = index.place(2)
    file: LogFile = log.extents[0].file
    data = bytearray(file.file.read_at(place.position, place.size))
    data[-40] ^= 1
    file.file.write_at(place.position, [bytes(data)])
    await newest(engine, b"once 5")
    await walked(engine)
    assert index.with_key(engine._store.keys.hasher(log.topic_id).hash(UNREADABLE_KEY)) == [2]
    tail = await engine.tail("orders", 0, bytes_max=1 << 20, key=b"once 2")
    assert [(lost.from_offset, lost.to_offset) for lost in tail.damage] == [(place.base_offset, place.next_offset)]


async def test_the_walk_keeps_to_its_rate(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(delay: float) -> None:
        waits.append(delay)
        await real(0)

    engine = await start(key_walk_bytes_per_s=1000, key_walk_interval_ms=3_600_000)
    await fill(engine)
    size = sum((await engine._store.index_of(engine._store.partition(engine.topics()["orders"].topic_id, 0).extents[0])).sizes)
    monkeypatch.setattr(key_walk, "CHUNK_BYTES", 1)
    monkeypatch.setattr("broker.log.key_walk.asyncio.sleep", sleep)
    await newest(engine, b"every")
    await walked(engine)
    assert len([wait for wait in waits if 0.05 < wait < 10]) == 30, "a batch at a time"
    assert sum(wait for wait in waits if 0.05 < wait < 10) == pytest.approx(size / 1000)


async def test_a_deleted_topic_is_walked_no_more(start: Start) -> None:
    engine = await start()
    await fill(engine)
    await newest(engine, b"every")
    await engine.delete_topic("orders")
    await walked(engine)
    await engine.create_topic("orders", 1, {})
    await produce(engine, b"later")
    assert await newest(engine, b"later") == 0
    await walked(engine)


class Clock:
    def __init__(self) -> None:
        self.ms = 0

    def monotonic_ms(self) -> int:
        return self.ms

    def now_ms(self) -> int:
        return self.ms


def test_a_topic_counts_for_a_while_after_it_was_read_by_key() -> None:
    clock = Clock()
    read = ReadByKey(clock, 100)
    assert read.note(b"a")
    assert not read.note(b"a")
    clock.ms = 60
    assert not read.note(b"a")
    clock.ms = 160
    assert b"a" in read
    assert read
    clock.ms = 161
    assert b"a" not in read
    assert not read
    assert read.note(b"a")


def test_the_two_that_stand_for_none_are_no_key_that_is_used() -> None:
    hasher = make_keys().hasher(ORDERS)
    assert hasher.hash(UNREADABLE_KEY) != hasher.hash(b"")
