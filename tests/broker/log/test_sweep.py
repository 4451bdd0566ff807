"""Space comes back: whole files at once, parts of shared files with a merge, and never from under a reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from broker.batch import walk
from broker.engine.base import Append, StateChange, StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.errors import OffsetOutOfRange
from broker.log.sweep import dead_files
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

Start = Callable[..., Coroutine[Any, Any, EmbeddedEngine]]
NEVER = 10_000


@pytest.fixture
async def start(open_engine: OpenEngine) -> AsyncIterator[Start]:
    """The next life of one folder: every full journal goes as soon as nothing in it is kept."""
    lives: list[EmbeddedEngine] = []

    async def begin(**options: object) -> EmbeddedEngine:
        for engine in lives:
            await engine.close()
        small = {"merge_files_min": NEVER, "journal_file_bytes": 4096, "sweep_journal_bytes": 0, "merge_dead_bytes": 1 << 40}
        engine = open_engine(**{**small, **options})
        await engine.start()
        lives.append(engine)
        return engine

    yield begin
    await lives[-1].close()


async def fill(engine: EmbeddedEngine, topic: str, records: int, first: int = 0) -> None:
    for number in range(first, first + records):
        await engine.append([Append(topic, 0, one_record(b"%d " % number + bytes(400), b"k"), [b"k"])])


async def settled(engine: EmbeddedEngine) -> None:
    """All full journals are sealed, and what could be swept or merged is."""
    while True:
        tasks = {*engine._committer._background} | ({engine._merging} if engine._merging else set())
        running = [task for task in tasks if not task.done()]
        if not running:
            return
        await asyncio.wait(running)


def size_on_disk(root: Path) -> int:
    return sum(path.stat().st_size for folder in ("journal", "segments") for path in (root / "data" / folder).iterdir())


async def values(engine: EmbeddedEngine, topic: str, offset: int | None = None) -> list[bytes]:
    at = engine.offsets(topic)[0].log_start if offset is None else offset
    found: list[bytes] = []
    while at < engine.offsets(topic)[0].high_watermark:
        fetched = await engine.fetch(topic, 0, at, bytes_max=1 << 20)
        found += [(record.value or b"").rstrip(b"\0").strip() for stored in fetched.batches for record in walk(stored.batch)]
        at = fetched.next_offset
    return found


async def test_deleted_records_give_their_files_back(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {})
    await fill(engine, "orders", 100)
    await settled(engine)
    before, files = size_on_disk(tmp_path), len(engine._store.files)
    await engine.delete_records("orders", 0, 90)
    await settled(engine)
    assert size_on_disk(tmp_path) < before / 4
    assert len(engine._store.files) < files / 4
    assert engine.stats().files_swept > files / 2
    assert engine.stats().bytes_swept > before / 2
    assert engine.stats().log_starts_moved == 1
    engine = await start()
    assert (await values(engine, "orders"))[-10:] == [b"%d" % n for n in range(90, 100)]
    assert engine.recovery.damaged_files == []
    assert engine.damage() == []


async def test_state_outlives_the_journals_that_said_it(start: Start) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {})
    for number in range(40):
        change = StateChange(StateSpace.POSITION, b"%d" % number, b"v" * 100)
        await engine.append([Append("orders", 0, one_record(bytes(400)), [b"k"])], changes=[change])
    await engine.delete_records("orders", 0, -1)
    await settled(engine)
    assert engine.stats().files_swept > 2
    engine = await start()
    assert len(list(engine.states(StateSpace.POSITION))) == 40
    (appended,) = await engine.append([Append("orders", 0, one_record(b"v"), [b"k"])])
    assert appended.base_offset == 40


async def test_a_view_that_is_lost_after_a_sweep_is_made_again(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {})
    await fill(engine, "orders", 60)
    await engine.delete_records("orders", 0, 59)
    await settled(engine)
    await engine.close()
    for path in (tmp_path / "data" / "view").iterdir():
        if path.name == "CURRENT":
            path.unlink()
    engine = await start()
    assert engine.recovery.view_rebuilt is not None
    assert engine.offsets("orders")[0].log_start == 59
    assert await values(engine, "orders") == [b"59"]


async def test_a_deleted_topic_gives_its_files_back(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {})
    await engine.create_topic("kept", 1, {})
    await fill(engine, "orders", 100)
    await fill(engine, "kept", 1)
    await settled(engine)
    before = size_on_disk(tmp_path)
    await engine.delete_topic("orders")
    await settled(engine)
    assert size_on_disk(tmp_path) < before / 4
    assert await values(await start(), "kept") == [b"0"]


async def test_a_shared_file_stays_until_nothing_in_it_is_kept(start: Start) -> None:
    engine = await start()
    for topic in ("orders", "kept"):
        await engine.create_topic(topic, 1, {})
    for number in range(30):
        await fill(engine, "orders", 1, number)
        await fill(engine, "kept", 1, number)
    await settled(engine)
    files = set(engine._store.files)
    await engine.delete_records("orders", 0, -1)
    await settled(engine)
    assert set(engine._store.files) >= files
    assert engine.stats().files_swept == 0
    assert await values(engine, "kept") == [b"%d" % n for n in range(30)]
    await engine.delete_records("kept", 0, 25)
    await settled(engine)
    assert engine.stats().files_swept > 0
    assert (await values(engine, "kept"))[-5:] == [b"%d" % n for n in range(25, 30)]


async def test_a_merge_leaves_behind_what_is_deleted(start: Start, tmp_path: Path) -> None:
    engine = await start()
    for topic in ("orders", "kept"):
        await engine.create_topic(topic, 1, {})
    for number in range(60):
        await fill(engine, "orders", 1, number)
        await fill(engine, "kept", 1, number)
    await settled(engine)
    before = size_on_disk(tmp_path)
    await engine.delete_records("orders", 0, 55)
    engine = await start(merge_files_min=2)
    await settled(engine)
    assert engine.stats().merges > 0
    assert size_on_disk(tmp_path) < before * 0.7
    for _ in range(2):
        assert (await values(engine, "orders"))[-5:] == [b"%d" % n for n in range(55, 60)]
        assert await values(engine, "kept") == [b"%d" % n for n in range(60)]
        assert engine.offsets("orders")[0].log_start == 55
        assert engine.damage() == []
        engine = await start()


async def test_a_merged_extent_begins_with_the_batch_of_the_log_start(start: Start) -> None:
    engine = await start(journal_file_bytes=1 << 20)
    await engine.create_topic("orders", 1, {})
    await fill(engine, "orders", 20)
    await engine.delete_records("orders", 0, 13)
    engine = await start(journal_file_bytes=1 << 20)  # the journal is sealed
    await fill(engine, "orders", 1, 20)
    engine = await start(merge_files_min=2)
    await settled(engine)
    assert engine.stats().merges == 1
    assert engine._store.partition(engine.topics()["orders"].topic_id, 0).extents[0].summary.first_offset == 13
    assert await values(await start(), "orders") == [b"%d" % n for n in range(13, 21)]


async def test_a_file_that_is_mostly_dead_is_rewritten_alone(start: Start, tmp_path: Path) -> None:
    engine = await start(journal_file_bytes=1 << 20)
    for topic in ("orders", "kept"):
        await engine.create_topic(topic, 1, {})
    await fill(engine, "kept", 2)
    await fill(engine, "orders", 100)
    engine = await start(journal_file_bytes=1 << 20, merge_dead_bytes=16_384)
    before = size_on_disk(tmp_path)
    await engine.delete_records("orders", 0, -1)
    await settled(engine)
    assert engine.stats().merges == 1
    assert size_on_disk(tmp_path) < before / 4
    assert await values(engine, "kept") == [b"0", b"1"]
    await settled(engine)
    assert engine.stats().merges == 1, "what was rewritten is not rewritten again"


async def test_a_reader_keeps_the_file_it_reads(start: Start, tmp_path: Path) -> None:
    engine = await start(ring_bytes_max=0)
    await engine.create_topic("orders", 1, {})
    await fill(engine, "orders", 60)
    await settled(engine)
    log = engine._store.partition(engine.topics()["orders"].topic_id, 0)
    file = log.extents[0].file
    file.hold()  # as a reader does before its first await
    await engine.delete_records("orders", 0, 50)
    await settled(engine)
    path = tmp_path / "data" / file.path
    assert file.number not in engine._store.files
    assert path.exists()
    assert len(file.file.read_at(0, 128)) == 128
    file.release()
    assert not path.exists()


async def test_a_read_that_the_log_start_passes_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(ring_bytes_max=0)
    await engine.create_topic("orders", 1, {})
    await fill(engine, "orders", 60)
    await settled(engine)
    index_of = engine._store.index_of
    moved = False

    async def move_meanwhile(extent: Any) -> Any:
        nonlocal moved
        if not moved:
            moved = True
            await engine.delete_records("orders", 0, 50)
            await settled(engine)
        return await index_of(extent)

    monkeypatch.setattr(engine._store, "index_of", move_meanwhile)
    with pytest.raises(OffsetOutOfRange) as told:
        await engine.fetch("orders", 0, 3, bytes_max=1 << 20)
    assert told.value.log_start == 50


async def test_a_journal_that_is_old_is_sealed_by_the_next_append(start: Start) -> None:
    engine = await start(journal_file_bytes=1 << 20, journal_age_max_ms=0)
    await engine.create_topic("orders", 1, {})
    for number in range(3):
        await asyncio.sleep(0.005)  # the journal is older than 0 ms
        await fill(engine, "orders", 1, number)
    await settled(engine)
    assert engine.stats().sealed_in_place >= 2
    assert await values(engine, "orders") == [b"0", b"1", b"2"]


async def test_retention_by_size_keeps_at_least_what_was_asked_for(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {"retention.ms": "-1", "retention.bytes": "20000"})
    await fill(engine, "orders", 200)
    await settled(engine)
    assert await engine.apply_retention() == 1
    await settled(engine)
    kept = sum(extent.summary.size for log in engine._store.partitions.values() for extent in log.extents)
    assert 20_000 <= kept < 20_000 + 2 * 4096 + 1000
    assert size_on_disk(tmp_path) < 40_000
    assert await engine.apply_retention() == 0
    assert (await values(engine, "orders"))[-1] == b"199"


async def test_altered_retention_acts_without_waiting_for_the_next_look(start: Start) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {"retention.ms": "-1"})
    await fill(engine, "orders", 60)
    await engine.alter_topic("orders", configs={"retention.bytes": "0"})
    async with asyncio.timeout(20):
        while engine.offsets("orders")[0].log_start == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_nothing_to_sweep_writes_nothing(start: Start) -> None:
    engine = await start()
    await engine.create_topic("orders", 1, {"retention.ms": "-1", "retention.bytes": "1000000"})
    await fill(engine, "orders", 60)
    await settled(engine)
    number = engine._store.manifest.number
    assert dead_files(engine._store) == []
    await engine.apply_retention()
    await settled(engine)
    assert engine._store.manifest.number == number
