"""Merging sealed files by partition: batches move unchanged, damage is carried, nothing is lost when the disk says no."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.batch import walk
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.log.footer import DamagedRange
from broker.log.index import Place
from broker.log.layout import parse_batch_header
from broker.log.manifest import FileKind, FileState
from broker.log.merge import (
    CHUNK_BYTES,
    HOLE_BYTES_MAX,
    SOURCES_TOGETHER_MAX,
    Chunk,
    Merge,
    Source,
    _Copy,
    _CopyJob,
    _Known,
    choose,
    runs,
)
from broker.log.recovery import NOT_CHAINED, key_hashes
from tests.broker.log.journals import one_record
from tests.broker.log.lives import NO_MERGE, Start, sealed


@pytest.fixture
def start(start_engine: Start) -> Start:
    """A started engine that merges only when it is told to."""
    return partial(start_engine, **NO_MERGE)


async def fill(engine: EmbeddedEngine, topics: tuple[str, ...] = ("orders", "readings"), rounds: int = 12) -> None:
    for topic in topics:
        await engine.create_topic(topic, 2, {})
    for number in range(rounds):
        for topic in topics:
            value = b"%s %d " % (topic.encode(), number) + bytes(300)
            await engine.append(
                [Append(topic, number % 2, one_record(value, b"key %d" % (number % 3)), [b"key %d" % (number % 3)])]
            )
    await sealed(engine)


async def everything(engine: EmbeddedEngine, topic: str) -> list[tuple[int, int, bytes]]:
    """Every record served, by partition and offset, through fetch."""
    found = []
    for offsets in engine.offsets(topic):
        offset = offsets.log_start
        while offset < offsets.high_watermark:
            fetched = await engine.fetch(topic, offsets.partition, offset, bytes_max=1 << 20)
            found += [(offsets.partition, r.offset, r.value or b"") for s in fetched.batches for r in walk(s.batch)]
            assert fetched.next_offset > offset
            offset = fetched.next_offset
    return found


def full(engine: EmbeddedEngine) -> list[Any]:
    return [file for file in engine._store.files.values() if file.entry.state is not FileState.OPEN]


async def merge(engine: EmbeddedEngine, inputs: list[Any] | None = None) -> Merge:
    made = Merge(engine._store, full(engine) if inputs is None else inputs)
    snapshot, group = await engine._write_merged(made)
    await made.take_over(snapshot, group)
    return made


def forget_memory(engine: EmbeddedEngine) -> None:
    """Make every read go to the files."""
    engine._recent.clear()


async def test_a_merge_moves_every_batch_unchanged(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await fill(engine)
    forget_memory(engine)
    before = {topic: await everything(engine, topic) for topic in engine.topics()}
    inputs = [file.path for file in full(engine)]
    assert len(inputs) > 3
    made = await merge(engine)
    assert made.batches_moved >= 20
    assert {topic: await everything(engine, topic) for topic in engine.topics()} == before
    assert not any((tmp_path / "data" / path).exists() for path in inputs)
    kinds = [file.entry.kind for file in engine._store.files.values()]
    assert kinds.count(FileKind.SEGMENT) == 1
    await engine.close()
    again = await start()
    assert {topic: await everything(again, topic) for topic in again.topics()} == before
    assert again.damage() == []
    assert again._store.unattributed == []


async def test_tail_keys_and_times_answer_alike_after_a_merge(start: Start) -> None:
    engine = await start()
    await fill(engine)
    forget_memory(engine)

    async def answers() -> list[object]:
        tail = await engine.tail("orders", 0, bytes_max=1 << 20)
        by_key = await engine.tail("orders", 0, bytes_max=1 << 20, key=b"key 1")
        latest = await engine.find_latest("orders", 1, b"key 1")
        times = [await engine.offset_for_time("orders", 1, 0), await engine.offset_of_max_timestamp("orders", 0)]
        return [tail.batches, tail.next_sequence, by_key.batches, latest, times, await engine.sequence_for_time("orders", 0)]

    before = await answers()
    await merge(engine)
    assert await answers() == before


async def test_a_partition_with_enough_bytes_gets_a_segment_of_its_own(start: Start) -> None:
    engine = await start(merge_own_bytes=2500)
    await fill(engine, ("big",), rounds=20)
    await engine.create_topic("small", 1, {})
    await engine.append([Append("small", 0, one_record(b"x"))])
    await fill(engine, ("more",), rounds=2)
    made = await merge(engine)
    assert [len(output.parts) for output in made._outputs][:2] == [1, 1]
    assert {part.topic_id for part, _, _ in made._outputs[0].parts} == {engine.topics()["big"].topic_id}


async def test_a_deleted_topic_is_not_carried_along(start: Start) -> None:
    engine = await start()
    await fill(engine)
    topic_id = engine.topics()["orders"].topic_id
    await engine.delete_topic("orders")
    made = await merge(engine)
    assert all(part.topic_id != topic_id for output in made._outputs for part, _, _ in output.parts)
    assert all(key.topic_id != topic_id for output in made._outputs for key in output.keys.values())


async def test_damage_found_on_the_way_is_told_and_carried(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await fill(engine)
    forget_memory(engine)
    log = next(log for log in engine._store.partitions.values() if log.partition == 0)
    place = (await engine._store.index_of(log.extents[0])).place(0)
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    data[place.position + 200] ^= 1
    path.write_bytes(data)
    made = await merge(engine)
    assert [(lost.start, lost.end) for lost in made.damage_found] == [(place.base_offset, place.next_offset)]
    (reported,) = engine.damage()
    assert (reported.topic, reported.partition, reported.from_offset, reported.to_offset) == ("orders", 0, 0, 1)
    fetched = await engine.fetch("orders", 0, 0, bytes_max=1 << 20)
    assert fetched.damage == [reported]
    assert fetched.batches[0].base_offset == 1
    await merge(engine)
    await engine.close()
    assert (await start()).damage() == [reported]


async def test_damage_known_before_is_carried_too(start: Start) -> None:
    engine = await start()
    await fill(engine)
    log = next(iter(engine._store.partitions.values()))
    log.extents[0].summary.damage.append(DamagedRange(0, 1, "met by a reader"))
    engine._store.summaries[log.extents[0].file.number].unattributed.append(DamagedRange(7, 8, "of nobody"))
    await merge(engine)
    await merge(engine)
    await engine.close()
    again = await start()
    assert [lost.reason for lost in again.damage()] == ["met by a reader"]
    assert [lost.reason for lost in again._store.unattributed] == ["of nobody"]


async def test_another_batch_in_a_place_is_damage(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await fill(engine)
    first, second = [log for log in engine._store.partitions.values() if log.topic_id == engine.topics()["orders"].topic_id]
    here, there = next((a, b) for a in first.extents for b in second.extents if a.file is b.file)
    one = (await engine._store.index_of(here)).place(0)
    other = (await engine._store.index_of(there)).place(0)
    assert one.size == other.size
    path = tmp_path / "data" / here.file.path
    data = bytearray(path.read_bytes())
    a, b = slice(one.position, one.position + one.size), slice(other.position, other.position + other.size)
    data[a], data[b] = data[b], data[a]
    path.write_bytes(data)
    made = await merge(engine)
    assert len(made.damage_found) == 2
    told = sorted((lost.partition, lost.from_offset) for lost in engine.damage())
    assert told == [(0, one.base_offset), (1, other.base_offset)]


async def test_a_batch_sealed_for_the_same_place_and_rolled_back_is_damage(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await fill(engine)
    log = next(iter(engine._store.partitions.values()))
    place = (await engine._store.index_of(log.extents[0])).place(0)
    path = tmp_path / "data" / log.extents[0].file.path
    data = bytearray(path.read_bytes())
    header = parse_batch_header(bytes(data), place.position)
    assert header is not None
    clear = engine._store.keys.open_batch(bytes(data), place.position, header)
    ghost = engine._store.keys.seal_batch(
        clear[:-1] + b"?",
        flags=0,
        topic_id=log.topic_id,
        partition=log.partition,
        last_offset_delta=0,
        base_offset=place.base_offset,
        sequence=place.sequence,
        max_timestamp_ms=header.max_timestamp_ms,
        append_time_ms=header.append_time_ms,
        records=1,
        previous_tag=header.previous_tag,
        key_hashes=key_hashes(bytes(data), place.position, header),
    )
    assert ghost.size == place.size
    data[place.position : place.position + place.size] = b"".join(ghost.parts)
    path.write_bytes(data)
    made = await merge(engine)
    assert [(lost.start, lost.end) for lost in made.damage_found] == [(place.base_offset, place.next_offset)]


async def test_a_chain_that_breaks_between_two_files_is_told(start: Start) -> None:
    engine = await start()
    await fill(engine, ("orders",), rounds=20)
    log = next(log for log in engine._store.partitions.values() if len(log.extents) > 2)
    index = await engine._store.index_of(log.extents[1])
    wrong = bytes(16)
    last = log.extents[0]
    before = await engine._store.index_of(last)
    known = before.place(len(before) - 1)
    copy = _Copy(Source(log, [log.extents[1]], 0))
    copy.known = _Known(known.base_offset, known.next_offset, wrong)
    target = engine._store.seams.disk.open("scratch", create=True)
    chunk = Chunk(log.extents[1], [index.place(0)])
    job = _CopyJob(engine._store.keys, chunk, target, copy, engine._store.keys.hasher(log.topic_id))
    job.run()
    assert job.damage == [DamagedRange(known.base_offset, known.next_offset, NOT_CHAINED)]
    assert len(job.rows) == 1


async def test_what_a_merge_leaves_of_deleted_records_hides_nothing_behind_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log start moves over a whole file just before the file is merged: nothing of it is left, at the offset where the next
    file begins."""
    engine = await start()
    await fill(engine, ("orders",), rounds=40)
    log = engine._store.partition(engine.topics()["orders"].topic_id, 0)
    first = log.extents[0]
    monkeypatch.setattr(engine, "_consider_merge", lambda: None)
    await engine.delete_records("orders", 0, first.summary.next_offset)
    await merge(engine, [first.file])
    assert (log.extents[0].summary.batches, log.extents[0].summary.first_offset) == (0, log.extents[1].summary.first_offset)
    before, offsets = await everything(engine, "orders"), engine.offsets("orders")
    await engine.close()
    again = await start()
    assert again.offsets("orders") == offsets
    assert await everything(again, "orders") == before
    assert again.damage() == []


async def test_readers_of_a_file_that_is_merged_away_finish_first(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await fill(engine)
    forget_memory(engine)
    file = full(engine)[0]
    file.hold()
    await merge(engine)
    assert (tmp_path / "data" / file.path).exists()
    assert file.file.read_at(0, 4) == b"SPJ1"
    file.release()
    assert not (tmp_path / "data" / file.path).exists()


async def test_a_merge_that_fails_leaves_everything_as_it_was(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start()
    await fill(engine)
    before = await everything(engine, "orders")
    files = set(engine._store.files)

    def no_space(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Merge, "_sync_segment", staticmethod(no_space))
    object.__setattr__(engine._store, "options", replaced(engine, merge_files_min=2))
    await engine._merge_all()
    assert set(engine._store.files) == files
    assert list((tmp_path / "data" / "segments").iterdir()) == []
    forget_memory(engine)
    assert await everything(engine, "orders") == before


def replaced(engine: EmbeddedEngine, **options: object) -> object:
    return msgspec.structs.replace(engine.options, **options)


async def test_a_manifest_that_cannot_be_written_removes_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The outputs are read from then on: removing them, or the inputs, would lose what was acknowledged.
    engine = await start(recover_retry_ms=1)
    await fill(engine)
    forget_memory(engine)
    before = await everything(engine, "orders")
    real, failures = engine._store.save_manifest, 3

    async def failing() -> None:
        nonlocal failures
        if failures:
            failures -= 1
            assert all((tmp_path / "data" / path).exists() for path in inputs)
            raise OSError(5, "Input/output error")
        await real()

    inputs = [file.path for file in full(engine)]
    monkeypatch.setattr(engine._store, "save_manifest", failing)
    await merge(engine)
    assert failures == 0
    assert await everything(engine, "orders") == before
    await engine.close()
    assert await everything(await start(), "orders") == before


async def test_files_are_chosen_oldest_first_when_there_are_enough(start: Start) -> None:
    engine = await start(merge_files_min=10_000)
    await fill(engine)
    assert choose(engine._store) == []
    object.__setattr__(engine._store, "options", replaced(engine, merge_files_min=3))
    chosen = choose(engine._store)
    assert [file.number for file in chosen] == [file.number for file in full(engine)]
    object.__setattr__(engine._store, "options", replaced(engine, merge_files_min=3, merge_input_bytes_max=10))
    assert choose(engine._store) == []


async def test_merging_goes_on_by_itself_in_the_background(start: Start) -> None:
    engine = await start(merge_files_min=3)
    await fill(engine, rounds=30)
    while engine._merging is not None and not engine._merging.done():
        await asyncio.wait([engine._merging])
    assert engine.stats().merges > 0
    assert len(engine._store.files) < 10
    forget_memory(engine)
    assert len(await everything(engine, "orders")) == 30
    assert engine.damage() == []


def test_neighbours_are_read_in_one_go_up_to_a_bound() -> None:
    def at(position: int, size: int) -> Place:
        return Place(0, 0, 1, position, size, 1, 0, 0, b"")

    near, far = at(100 + HOLE_BYTES_MAX, 50), at(100 + HOLE_BYTES_MAX + 1, 50)
    assert runs([at(0, 100), near]) == [[at(0, 100), near]]
    assert runs([at(0, 100), far]) == [[at(0, 100)], [far]]
    assert runs([at(200, 100), at(0, 100)]) == [[at(200, 100)], [at(0, 100)]]
    whole = at(0, CHUNK_BYTES)
    assert runs([whole, at(CHUNK_BYTES, CHUNK_BYTES)]) == [[whole, at(CHUNK_BYTES, CHUNK_BYTES)]]
    assert runs([whole, at(CHUNK_BYTES, CHUNK_BYTES + 1)]) == [[whole], [at(CHUNK_BYTES, CHUNK_BYTES + 1)]]
    assert runs([]) == []


async def test_small_partitions_are_copied_together_up_to_a_bound(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with what it holds, damage of one in its own place."""
    engine = await start(journal_file_bytes=16_384)
    await engine.create_topic("many", SOURCES_TOGETHER_MAX + 3, {})
    for number in range(200):
        await engine.append([Append("many", number % (SOURCES_TOGETHER_MAX + 3), one_record(b"%d" % number + bytes(200)))])
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
    before = await everything(engine, "many")
    runs_of_work: list[int] = []
    real = Merge._run

    async def noting(self: Merge, output: Any, jobs: list[_CopyJob]) -> None:
        runs_of_work.append(len({id(job.copy) for job in jobs}))
        await real(self, output, jobs)

    monkeypatch.setattr(Merge, "_run", noting)
    await merge(engine)
    assert max(runs_of_work) == SOURCES_TOGETHER_MAX
    assert len(runs_of_work) < SOURCES_TOGETHER_MAX
    forget_memory(engine)
    assert await everything(engine, "many") == before
    assert engine.damage() == []
