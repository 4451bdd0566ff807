"""Batches read on the owner thread, of what the system has in memory: the same as from the read lane, or nothing at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.engine.base import Append, Stored
from broker.engine.embedded import EmbeddedEngine
from broker.log.index import BatchIndex
from broker.log.partition import PartitionLog
from broker.log.stretch import AT_ONCE_BYTES_MAX, stretch_at
from broker.machine import MachineFile
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

BATCHES = 20


@pytest.fixture
async def engine(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """Twenty batches of topic `orders`, in two partitions by turns, all in files."""
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


def log_of(engine: EmbeddedEngine, partition: int = 0) -> PartitionLog:
    return next(log for log in engine._store.partitions.values() if log.partition == partition)


def at_once(engine: EmbeddedEngine, offset: int, bytes_max: int = 1 << 20) -> list[Stored] | None:
    found = engine.fetch_recent("orders", 0, offset, bytes_max=bytes_max)
    return None if found is None else found.batches


@pytest.mark.parametrize("bytes_max", [1, 800, 1_300, 1 << 20])
async def test_the_same_as_from_the_read_lane(engine: EmbeddedEngine, bytes_max: int) -> None:
    for offset in range(BATCHES // 2):
        expected = await engine.fetch("orders", 0, offset, bytes_max=bytes_max)
        assert at_once(engine, offset, bytes_max) == expected.batches
    assert engine._lookup.file_reads > 0


async def test_it_asks_no_lane(engine: EmbeddedEngine) -> None:
    assert len(at_once(engine, 0) or ()) == BATCHES // 2
    assert engine._lookup.file_reads == 0


async def test_what_is_not_in_memory_is_left_to_the_read_lane(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_some(self: MachineFile, position: int, into: memoryview) -> int:
        return max(0, len(into) - 1)

    monkeypatch.setattr(MachineFile, "read_now", read_some)
    assert at_once(engine, 0) is None
    assert len((await engine.fetch("orders", 0, 0, bytes_max=1 << 20)).batches) == BATCHES // 2


async def test_who_wants_more_than_one_turns_worth_is_left_to_it_too(engine: EmbeddedEngine) -> None:
    for _ in range(3):
        await engine.append([Append("orders", 0, one_record(bytes(AT_ONCE_BYTES_MAX // 2)), None)])
    engine._recent.clear()
    assert at_once(engine, 0, 2 * AT_ONCE_BYTES_MAX) is None
    found = at_once(engine, 0, AT_ONCE_BYTES_MAX)
    assert found is not None
    assert sum(len(stored.batch) for stored in found) <= AT_ONCE_BYTES_MAX
    assert [stored.base_offset for stored in found] == list(range(11))


async def test_a_batch_larger_than_the_buffer_is_left_to_it(engine: EmbeddedEngine) -> None:
    await engine.alter_topic("orders", configs={"max.message.bytes": str(4 * AT_ONCE_BYTES_MAX)})
    await engine.append([Append("orders", 0, one_record(bytes(2 * AT_ONCE_BYTES_MAX)), None)])
    engine._recent.clear()
    assert at_once(engine, BATCHES // 2) is None


@pytest.mark.parametrize("at", [0, 3, 5, 8, 12, 16, 40, 60, 80, 100, 127, 140, -1, -16])
async def test_no_changed_byte_is_given_out(engine: EmbeddedEngine, tmp_path: Path, at: int) -> None:
    log = log_of(engine)
    place = (await engine._store.index_of(log.extents[0])).place(4)
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    data[place.position + (at if at >= 0 else place.size + at)] ^= 1
    path.write_bytes(data)
    found = at_once(engine, 0)
    assert found is None
    assert [stored.base_offset for stored in at_once(engine, 5) or ()] == [5, 6, 7, 8, 9]
    fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
    assert all(stored.base_offset != 4 for stored in fetched.batches) or at == 127  # the header's crc is nobody's question


async def test_another_batch_in_the_place_is_not_given_out(engine: EmbeddedEngine, tmp_path: Path) -> None:
    """Whole and sealed for this topic, but not the one that the index means."""
    log = log_of(engine)
    index = await engine._store.index_of(log.extents[0])
    one, other = index.place(2), index.place(3)
    assert one.size == other.size
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    data[one.position : one.position + one.size] = data[other.position : other.position + other.size]
    path.write_bytes(data)
    assert at_once(engine, 2) is None
    assert at_once(engine, 3)


async def test_after_reported_damage_the_read_lane_says_what_it_is(engine: EmbeddedEngine, tmp_path: Path) -> None:
    log = log_of(engine)
    place = (await engine._store.index_of(log.extents[0])).place(4)
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    data[place.position + 180] ^= 1
    path.write_bytes(data)
    assert (await engine.fetch("orders", 0, 0, bytes_max=1 << 20)).damage
    assert at_once(engine, 0) is None
    assert at_once(engine, 8) is None


async def test_batches_that_lie_too_far_apart_are_two_stretches(engine: EmbeddedEngine) -> None:
    engine._recent.clear()
    await engine.append([Append("orders", 0, one_record(b"first"), None)])
    await engine.append([Append("orders", 1, one_record(bytes(100_000)), None)])
    await engine.append([Append("orders", 0, one_record(b"second"), None)])
    engine._recent.clear()
    log = log_of(engine)
    index = engine._store.index_at_hand(log.extents[-1])
    assert index is not None
    assert len(index) == 2
    stretch = stretch_at(index, 0, 1 << 20, first_of_all=True)
    assert stretch is not None
    assert (stretch.first, stretch.end) == (0, 1)
    assert len(at_once(engine, BATCHES // 2) or ()) == 2


async def test_a_stretch_without_room() -> None:
    index = BatchIndex()
    index.add(0, 0, 0, 100, 1, 0, 0, bytes(16), None)
    assert stretch_at(index, 0, 99, first_of_all=False) is None
    assert stretch_at(index, 0, 99, first_of_all=True) is not None
