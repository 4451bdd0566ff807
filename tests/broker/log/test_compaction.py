"""Compaction of sealed files: the newest of each key stays, offsets and chain hold, and nothing else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from broker.batch import build, walk
from broker.batch_header import CONTROL, HEADER_BYTES, TRANSACTIONAL, assemble, read_header
from broker.compression import Compression
from broker.engine.base import AbortedRange, Append, Stored
from broker.engine.embedded import EmbeddedEngine
from broker.log.footer import DamagedRange
from broker.log.layout import FLAG_REWRITTEN, TRAILER_BYTES, parse_batch_header
from broker.log.manifest import FileKind
from broker.retained import delete_horizon
from tests.broker.log.lives import NO_MERGE, Start, sealed
from tests.broker.log.test_verify import Folder
from tests.conftest import OpenEngine

Read = list[tuple[int, bytes | None, bytes | None]]
COMPACT = {"cleanup.policy": "compact"}
PLENTY = 1 << 20
DAY_MS = 24 * 60 * 60 * 1000


@pytest.fixture
def start(start_engine: Start) -> Start:
    """A started engine with small journals that merges nothing but what is compacted."""
    return partial(start_engine, **NO_MERGE)


Draft = tuple[bytes | None, bytes | None]


async def put(engine: EmbeddedEngine, *records: Draft, topic: str = "settings", partition: int = 0, **header: int) -> int:
    """One batch; its base offset. Without keys: what the log knows of them it has to find out."""
    now_ms = engine._seams.clock.now_ms()
    batch = build([(now_ms, key, value, ()) for key, value in records], compression=Compression.ZSTD, **header)
    return (await engine.append([Append(topic, partition, batch)]))[0].base_offset


async def fill(engine: EmbeddedEngine, rounds: int = 30, keys: int = 4) -> None:
    for number in range(rounds):
        await put(engine, (b"key %d" % (number % keys), b"%d " % number + bytes(100)), (b"twin", b"%d" % number))


async def compact(engine: EmbeddedEngine) -> None:
    """Full journals are sealed; what is to be compacted is."""
    await sealed(engine)
    engine._consider_merge()
    while engine._merging is not None and not engine._merging.done():
        await asyncio.wait([engine._merging])


async def everything(engine: EmbeddedEngine, topic: str = "settings", partition: int = 0) -> Read:
    """What readers by offset get."""
    return [(r.offset, r.key, r.value) for s in await batches(engine, topic, partition) for r in walk(s.batch)]


async def batches(engine: EmbeddedEngine, topic: str = "settings", partition: int = 0) -> list[Stored]:
    offsets = engine.offsets(topic)[partition]
    found: list[Stored] = []
    offset = offsets.log_start
    while offset < offsets.high_watermark:
        fetched = await engine.fetch(topic, partition, offset, bytes_max=PLENTY)
        assert fetched.next_offset > offset
        assert fetched.damage == []
        found += fetched.batches
        offset = fetched.next_offset
    return found


def cleaned_to(engine: EmbeddedEngine, topic: str = "settings", partition: int = 0) -> int:
    """The offset up to which the partition was compacted."""
    log = engine._log(engine._topics[topic], partition)
    compacted = [extent.summary.next_offset for extent in log.extents if extent.summary.generation]
    return max(compacted, default=0)


def newest(written: Iterable[tuple[int, bytes | None, bytes | None]], below: int) -> Read:
    """The model: below an offset only the newest of each key there, from there on everything."""
    rows = list(written)
    last = {key: offset for offset, key, _ in rows if offset < below}
    return [row for row in rows if row[0] >= below or row[1] is None or last[row[1]] == row[0]]


async def test_the_newest_value_of_each_key_stays_at_its_offset(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await engine.create_topic("orders", 1, {})
    written: Read = []
    for number in range(60):
        rows: list[Draft] = [(b"key %d" % (number % 4), b"%d " % number + bytes(100)), (b"odd %d" % (number % 7), b"x")]
        base = await put(engine, *rows)
        written += [(base + at, key, value) for at, (key, value) in enumerate(rows)]
        await put(engine, (b"same", b"%d" % number), topic="orders")
    await compact(engine)
    assert engine.stats().compactions > 1
    clean = cleaned_to(engine)
    assert clean > 60
    assert await everything(engine) == newest(written, clean)
    assert [value for _, _, value in await everything(engine, "orders")] == [b"%d" % number for number in range(60)]
    assert len(await everything(engine)) < len(written) / 2


async def test_long_keys_that_differ_in_the_end_are_not_taken_for_one(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    long = [bytes(200) + bytes([n]) for n in range(3)] + [b"#" + bytes(31), b"#" + bytes(32), b"#" + bytes(33)]
    for number in range(20):
        await put(engine, *[(key, b"%d" % number) for key in long])
    await compact(engine)
    clean = cleaned_to(engine)
    assert clean > 60
    assert sorted(row[1] or b"" for row in await everything(engine) if row[0] < clean) == sorted(long)


async def test_a_start_finds_it_as_it_was(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    before = await everything(engine)
    assert cleaned_to(engine) > 0
    await engine.close()
    again = await start()
    assert await everything(again) == before
    assert again.damage() == []
    assert again._store.unattributed == []
    base = await put(again, (b"key 0", b"later"))
    assert (await everything(again))[-1] == (base, b"key 0", b"later")


async def test_every_way_of_reading_agrees(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    rows = await everything(engine)
    tail: Read = []
    sequence = 0
    while sequence < engine.next_sequence():
        page = await engine.tail("settings", sequence, bytes_max=1)
        tail += [(r.offset, r.key, r.value) for s in page.batches for r in walk(s.batch)]
        assert page.damage == []
        assert page.gap == []
        sequence = page.next_sequence
    assert tail == rows
    scanned: Read = []
    sequence = 0
    while sequence < engine.next_sequence():
        scan = await engine.scan(sequence, topics=lambda _: True, bytes_max=PLENTY)
        scanned += [(r.offset, r.key, r.value) for _, s in scan.batches for r in walk(s.batch)]
        sequence = scan.next_sequence
    assert scanned == rows
    for key in {key for _, key, _ in rows}:
        assert key is not None
        latest = await engine.find_latest("settings", 0, key)
        assert latest is not None
        newest_row = [row for row in rows if row[1] == key][-1]
        assert newest_row in [(r.offset, r.key, r.value) for r in walk(latest.batch)]
        by_key = await engine.tail("settings", 0, bytes_max=PLENTY, key=key)
        assert {row for row in rows if row[1] == key} <= {
            (r.offset, r.key, r.value) for s in by_key.batches for r in walk(s.batch)
        }
    assert (await engine.offset_for_time("settings", 0, 0)).offset == rows[0][0]
    assert (await engine.offset_of_max_timestamp("settings", 0)).timestamp_ms > 0


async def test_every_offset_can_be_fetched_from_and_leads_on(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    rows = await everything(engine)
    end = engine.offsets("settings")[0].high_watermark
    for offset in range(end):
        fetched = await engine.fetch("settings", 0, offset, bytes_max=1)
        assert len(fetched.batches) == 1
        assert fetched.batches[0].base_offset <= offset < fetched.batches[0].next_offset == fetched.next_offset
        header = read_header(fetched.batches[0].batch)  # what a Kafka client goes by
        assert (header.base_offset, header.next_offset) == (fetched.batches[0].base_offset, fetched.next_offset)
        found = [r.offset for r in walk(fetched.batches[0].batch) if r.offset >= offset]
        following = [row[0] for row in rows if offset <= row[0] < fetched.next_offset]
        assert found == following


async def test_memory_does_not_serve_what_is_gone(start: Start) -> None:
    """The newest batches are kept in memory, compacted or not."""
    engine = await start(ring_bytes_max=1 << 24)
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    clean = 0
    while clean == 0:
        await compact(engine)
        clean = cleaned_to(engine)
    seen = await everything(engine)
    assert len([row for row in seen if row[1] == b"twin" and row[0] < clean]) == 1


async def test_tombstones_stay_for_their_time_and_then_go(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, {**COMPACT, "delete.retention.ms": str(DAY_MS), "min.cleanable.dirty.ratio": "0"})
    await put(engine, (b"gone", b"value"), (b"kept", b"value"))
    await put(engine, (b"gone", None))
    await fill(engine, 40)
    await compact(engine)
    first = await everything(engine)
    assert [row for row in first if row[1] == b"gone"] == [(2, b"gone", None)]
    marked = next(s for s in await batches(engine) if s.base_offset <= 2 < s.next_offset and delete_horizon(s.batch))
    horizon = delete_horizon(marked.batch)
    assert horizon is not None
    assert abs(horizon - engine._seams.clock.now_ms() - DAY_MS) < 60_000
    await engine.alter_topic("settings", configs={"delete.retention.ms": "0"})
    await fill(engine, 40)
    await compact(engine)
    assert (2, b"gone", None) in await everything(engine)  # its horizon was set once
    clock = engine._retention_clock
    engine._retention_clock = _Ahead(clock.now_ms, 2 * DAY_MS)  # type: ignore[assignment]
    await fill(engine, 40)
    await compact(engine)
    rows = await everything(engine)
    assert not [row for row in rows if row[1] == b"gone"]
    assert (1, b"kept", b"value") in rows


async def held(start: Start, **options: object) -> EmbeddedEngine:
    """An engine that compacts nothing until `release`."""
    engine = await start(**options)
    engine._retention_clock = _Ahead(lambda: None, 0)  # type: ignore[assignment]
    return engine


def release(engine: EmbeddedEngine) -> None:
    engine._retention_clock = _Ahead(engine._seams.clock.now_ms, 0)  # type: ignore[assignment]


class _Ahead:
    def __init__(self, now_ms: Callable[[], int | None], by_ms: int) -> None:
        self._now_ms, self.by_ms = now_ms, by_ms

    def now_ms(self) -> int | None:
        now_ms = self._now_ms()
        return None if now_ms is None else now_ms + self.by_ms


async def test_a_clock_that_is_not_believed_compacts_nothing(start: Start) -> None:
    engine = await held(start)
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    assert cleaned_to(engine) == 0


async def test_records_without_a_key_go_and_unreadable_batches_stay(start: Start) -> None:
    """Of a topic whose policy was another once: as Kafka's cleaner does."""
    engine = await start()
    await engine.create_topic("settings", 1, {})
    await put(engine, (None, b"no key"), (b"key 1", b"old"), (b"alone", b"stays"))
    await put(engine, (None, b"no key"), (b"key 1", b"old"))
    broken = bytearray(build([(0, b"key 1", b"?" * 40, ())]))
    broken[70:80] = b"\xff" * 10
    await engine.append([Append("settings", 0, bytes(broken))])
    await engine.alter_topic("settings", configs=COMPACT)
    await fill(engine)
    await compact(engine)
    found = await batches(engine)
    assert cleaned_to(engine) > 6
    assert [(r.offset, r.key, r.value) for r in walk(found[0].batch)] == [(2, b"alone", b"stays")]
    assert (found[0].base_offset, found[0].next_offset) == (0, 5)
    assert found[1].batch[16:] == bytes(broken)[16:]
    assert (found[1].base_offset, found[1].next_offset) == (5, 6)
    assert found[2].base_offset == 6  # nothing reaches out of a batch that cannot be read
    assert await engine.find_latest("settings", 0, None) is None


async def test_lags_ratio_and_policy_decide(start: Start) -> None:
    engine = await start()
    for name, configs in {
        "kept": {"cleanup.policy": "delete"},
        "young": {**COMPACT, "min.compaction.lag.ms": str(DAY_MS)},
        "clean": {**COMPACT, "min.cleanable.dirty.ratio": "1"},
        "overdue": {**COMPACT, "min.cleanable.dirty.ratio": "1", "max.compaction.lag.ms": "1"},
        "both": {"cleanup.policy": "delete,compact", "retention.ms": "-1"},
    }.items():
        await engine.create_topic(name, 1, configs)
    for number in range(40):
        for name in engine.topics():
            await put(engine, (b"key", b"%d " % number + bytes(60)), topic=name)
        await asyncio.sleep(0.001)
    await compact(engine)
    assert {name: cleaned_to(engine, name) > 0 for name in engine.topics()} == {
        "kept": False,
        "young": False,
        "clean": False,
        "overdue": True,
        "both": True,
    }


async def test_retention_takes_nothing_from_a_topic_that_is_only_compacted(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, {**COMPACT, "retention.ms": "0", "retention.bytes": "0"})
    await engine.create_topic("both", 1, {"cleanup.policy": "compact,delete", "retention.ms": "0"})
    await fill(engine)
    await put(engine, (b"a", b"1"), topic="both")
    await asyncio.sleep(0.002)
    await engine.apply_retention()
    assert engine.offsets("settings")[0].log_start == 0
    assert engine.offsets("both")[0].log_start == 1


async def test_records_below_the_log_start_go(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await put(engine, *[(b"only here %d" % n, b"1") for n in range(10)])
    await fill(engine, 20)
    await engine.delete_records("settings", 0, 5)
    await fill(engine, 20)
    await compact(engine)
    assert cleaned_to(engine) > 10
    rows = await everything(engine)
    assert [row[1] for row in rows[:5]] == [b"only here %d" % n for n in range(5, 10)]
    await engine.delete_records("settings", 0, 8)
    await fill(engine, 20)
    await compact(engine)
    await engine.close()
    again = await start()
    assert again.damage() == []
    assert [row[1] for row in await everything(again)][:2] == [b"only here 8", b"only here 9"]


async def test_damage_is_carried_and_nothing_reaches_over_it(start: Start) -> None:
    engine = await held(start)
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine, 30, keys=1)
    await sealed(engine)
    log = engine._log(engine._topics["settings"], 0)
    engine._recent.clear()
    extent = log.extents[0]
    place = (await engine._store.index_of(extent)).place(1)
    data = bytearray(extent.file.file.read_at(place.position, place.size))
    data[-40] ^= 1
    extent.file.file.write_at(place.position, [bytes(data)])
    release(engine)
    await compact(engine)
    assert cleaned_to(engine) > place.next_offset
    (lost,) = engine.damage()
    assert (lost.from_offset, lost.to_offset) == (place.base_offset, place.next_offset)
    fetched = await engine.fetch("settings", 0, 0, bytes_max=PLENTY)
    assert not [s for s in fetched.batches if s.base_offset < place.next_offset and s.next_offset > place.base_offset]
    assert fetched.batches[0].next_offset == place.base_offset


async def test_a_batch_in_damage_on_record_is_not_believed(start: Start) -> None:
    """It may be one of a rolled-back past: it neither stands nor takes older values away."""
    engine = await held(start)
    await engine.create_topic("settings", 1, COMPACT)
    await put(engine, (b"precious", b"the last that counts"))
    base = await put(engine, (b"precious", b"what was put there"))
    await fill(engine)
    await sealed(engine)
    log = engine._log(engine._topics["settings"], 0)
    log.extents[0].summary.damage.append(DamagedRange(base, base + 1, "not the batch that its successor was chained to"))
    release(engine)
    await compact(engine)
    assert cleaned_to(engine) > base + 1
    engine._recent.clear()
    first = (await engine.fetch("settings", 0, 0, bytes_max=1)).batches[0]
    assert [(r.offset, r.value) for r in walk(first.batch)] == [(0, b"the last that counts")]


class Range(NamedTuple):
    producer_id: int
    first_offset: int
    marker_offset: int


class Transactions:
    """What Kafka's coordinator would know."""

    def __init__(self) -> None:
        self.stable: int | None = None
        self.ranges: list[AbortedRange] = []
        self.gone: list[int] = []

    def stable_sequence(self, topic_ids: Iterable[bytes]) -> int:
        return 1 << 60

    def committed(self, topic_id: bytes, stored: Stored) -> bool:
        return True

    def stable_offset(self, topic_id: bytes, partition: int, high_watermark: int) -> int:
        return high_watermark if self.stable is None else self.stable

    def aborted(self, topic_id: bytes, partition: int, from_offset: int, to_offset: int) -> list[AbortedRange]:
        return [one for one in self.ranges if one.marker_offset >= from_offset and one.first_offset < to_offset]

    async def markers_gone(self, topic_id: bytes, partition: int, offsets: Sequence[int]) -> None:
        self.gone += offsets
        self.ranges = [one for one in self.ranges if one.marker_offset not in offsets]


async def put_in_transaction(engine: EmbeddedEngine, producer_id: int, *records: Draft, control: bool = False) -> int:
    batch = build([(0, key, value, ()) for key, value in records], producer_id=producer_id, producer_epoch=0, base_sequence=0)
    header = read_header(batch)
    attributes = header.attributes | TRANSACTIONAL | (CONTROL if control else 0)
    changed = msgspec.structs.replace(header, attributes=attributes)
    return (await engine.append([Append("settings", 0, assemble(changed, batch[HEADER_BYTES:]))]))[0].base_offset


async def test_aborted_records_go_and_take_nothing_with_them(start: Start) -> None:
    engine = await start()
    engine.decided = transactions = Transactions()
    await engine.create_topic("settings", 1, COMPACT)
    await put(engine, (b"a", b"stays: what follows was aborted"), (b"b", b"goes"))
    aborted = await put_in_transaction(engine, 7, (b"a", b"aborted"))
    committed = await put_in_transaction(engine, 8, (b"b", b"committed"))
    marker = await put_in_transaction(engine, 7, (b"\x00\x00\x00\x00", b"abort"), control=True)
    await put_in_transaction(engine, 8, (b"\x00\x00\x00\x01", b"commit"), control=True)
    after = await put_in_transaction(engine, 7, (b"c", b"of a later transaction of 7"))
    last = await put_in_transaction(engine, 7, (b"\x00\x00\x00\x01", b"commit"), control=True)
    transactions.ranges = [Range(7, aborted, marker)]
    await fill(engine)
    await compact(engine)
    assert cleaned_to(engine) > last
    found = [s for s in await batches(engine) if s.base_offset <= last]
    assert [(r.offset, r.key) for s in found for r in walk(s.batch) if not read_header(s.batch).is_control] == [
        (0, b"a"),
        (committed, b"b"),
        (after, b"c"),
    ]
    markers = [s for s in found if read_header(s.batch).is_control]
    assert [(s.base_offset, s.next_offset - s.base_offset) for s in markers] == [(marker, 1), (marker + 1, 1), (last, 1)]


async def test_the_ends_of_transactions_go_when_nothing_of_them_is_left(start: Start) -> None:
    """First their records, then, when the delete horizon has passed, they themselves (KIP-534); not while a record is left."""
    engine = await start()
    engine.decided = transactions = Transactions()
    clock = _Ahead(engine._seams.clock.now_ms, 0)
    await engine.create_topic("settings", 1, {**COMPACT, "delete.retention.ms": str(DAY_MS), "min.cleanable.dirty.ratio": "0"})
    aborted = await put_in_transaction(engine, 7, (b"a", b"aborted"))
    abort = await put_in_transaction(engine, 7, (b"\x00\x00\x00\x00", b"abort"), control=True)
    await put_in_transaction(engine, 8, (b"replaced", b"early"))
    replaced = await put_in_transaction(engine, 8, (b"\x00\x00\x00\x01", b"commit"), control=True)
    stays = await put_in_transaction(engine, 8, (b"once", b"stays"))
    commit = await put_in_transaction(engine, 8, (b"\x00\x00\x00\x01", b"commit"), control=True)
    await put(engine, (b"replaced", b"late"))
    transactions.ranges = [Range(7, aborted, abort)]

    async def round_of_compaction() -> tuple[list[int], list[int]]:
        """Offsets of the ends that are left, and of those that have a horizon."""
        engine._retention_clock = _Ahead(lambda: None, 0)  # type: ignore[assignment]
        await fill(engine, 40)
        await sealed(engine)
        engine._retention_clock = clock  # type: ignore[assignment]
        await compact(engine)
        assert cleaned_to(engine) > commit
        left = [s for s in await batches(engine) if s.base_offset <= commit and read_header(s.batch).is_control]
        return [s.base_offset for s in left], [s.base_offset for s in left if delete_horizon(s.batch) is not None]

    assert await round_of_compaction() == ([abort, replaced, commit], [])
    assert await round_of_compaction() == ([abort, replaced, commit], [abort, replaced])
    clock.by_ms = DAY_MS - 3_600_000
    assert await round_of_compaction() == ([abort, replaced, commit], [abort, replaced])
    assert transactions.gone == []
    clock.by_ms = 2 * DAY_MS
    assert await round_of_compaction() == ([commit], [])
    assert transactions.gone == [abort, replaced]
    assert transactions.ranges == []
    rows = await everything(engine)
    assert (stays, b"once", b"stays") in rows
    assert [row[0] for row in rows if row[0] < stays] == []
    await engine.close()
    again = await start()
    assert again.damage() == []
    assert await everything(again) == rows


async def test_open_transactions_hold_it_up(start: Start) -> None:
    engine = await start()
    engine.decided = transactions = Transactions()
    transactions.stable = 0
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    assert cleaned_to(engine) == 0
    transactions.stable = None
    await compact(engine)
    assert cleaned_to(engine) > 0


async def test_without_a_coordinator_nothing_of_a_transaction_is_touched(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await put_in_transaction(engine, 7, (b"twin", b"who knows"))
    await fill(engine)
    await compact(engine)
    assert cleaned_to(engine) == 0


async def test_a_large_backlog_is_done_in_parts(start: Start) -> None:
    engine = await start(compaction_offsets_max=1)
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine, 40)
    await compact(engine)
    assert engine.stats().compactions > 4
    rows = await everything(engine)
    assert len([row for row in rows if row[1] == b"twin" and row[0] < cleaned_to(engine)]) == 1


async def test_merges_join_what_was_compacted_with_what_follows(start: Start, tmp_path: Path) -> None:
    """A merged extent then begins with rewritten batches and goes on with others: it is read, started from and compacted."""
    engine = await start(merge_files_min=2)
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine, 60)
    await compact(engine)
    await engine.alter_topic("settings", configs={"min.cleanable.dirty.ratio": "1"})
    await fill(engine, 20)
    await compact(engine)
    log = engine._log(engine._topics["settings"], 0)
    mixed = [extent for extent in log.extents if extent.summary.generation and await _is_mixed(engine, extent)]
    assert mixed
    rows = await everything(engine)
    await engine.close()
    assert _lost(tmp_path) == []
    again = await start(merge_files_min=2)
    assert await everything(again) == rows
    assert again.damage() == []
    await again.alter_topic("settings", configs={"min.cleanable.dirty.ratio": "0"})
    await compact(again)
    clean = cleaned_to(again)
    assert len([row for row in await everything(again) if row[1] == b"twin" and row[0] < clean]) == 1


async def _is_mixed(engine: EmbeddedEngine, extent: Any) -> bool:
    flags = {flag & FLAG_REWRITTEN for flag in (await engine._store.index_of(extent)).flags}
    return len(flags) == 2


def _lost(root: Path) -> list[str]:
    return [f"{found.severity.name} {found.what} {found.problem}" for found in Folder(root).verify().findings]


async def test_an_examination_finds_it_whole(start: Start, tmp_path: Path) -> None:
    engine = await start()
    await engine.create_topic("settings", 2, COMPACT)
    for partition in range(2):
        for number in range(30):
            await put(engine, (b"key %d" % (number % 3), bytes(100)), partition=partition)
    await compact(engine)
    assert cleaned_to(engine) > 0
    await engine.close()
    assert _lost(tmp_path) == []


@pytest.mark.parametrize("hit", ["footer", "index"])
async def test_a_damaged_footer_costs_nothing(start: Start, tmp_path: Path, hit: str) -> None:
    """The batches say it all but one: what the last of them replaced."""
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine)
    await compact(engine)
    await fill(engine, 3)  # follows, in a journal
    rows = await everything(engine)
    segment = next(f for f in engine._store.files.values() if f.entry.kind is FileKind.SEGMENT)
    path, end, size = segment.path, segment.entry.data_end, segment.file.size()
    await engine.close()
    Folder(tmp_path).flip(path, end + 20 if hit == "index" else size - TRAILER_BYTES - 20)
    assert {found.severity.name for found in Folder(tmp_path).verify().findings} == {"MENDABLE"}
    again = await start()
    assert await everything(again) == rows
    assert again.damage() == []
    assert again._store.unattributed == []
    await fill(again)
    await compact(again)
    rows = await everything(again)
    await again.close()
    last = await start()
    assert await everything(last) == rows
    assert last.damage() == []


async def test_a_failing_disk_leaves_everything_as_it_was(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    sync = engine._seams.disk.rename

    def refuse(source: str, target: str) -> None:
        if target.startswith("segments/"):
            raise OSError(28, "no space, on purpose")
        sync(source, target)

    engine._seams.disk.rename = refuse  # type: ignore[method-assign]
    await fill(engine)
    await compact(engine)
    assert cleaned_to(engine) == 0
    assert len(await everything(engine)) == 60
    engine._seams.disk.rename = sync  # type: ignore[method-assign]
    await compact(engine)
    assert cleaned_to(engine) > 0


async def test_a_topic_deleted_meanwhile_is_left_alone(start: Start) -> None:
    engine = await start(merge_bytes_per_s=20_000)
    await engine.create_topic("settings", 1, COMPACT)
    await engine.create_topic("orders", 1, {})
    await fill(engine)
    for number in range(20):
        await put(engine, (b"a", b"%d" % number), topic="orders")
    engine._consider_merge()
    assert engine._merging is not None
    await asyncio.sleep(0.01)
    await engine.delete_topic("settings")
    await asyncio.wait([engine._merging])
    await engine.close()
    again = await start()
    assert len(await everything(again, "orders")) == 20
    assert again.damage() == []


async def test_no_two_seals_share_a_key_and_a_nonce(start: Start) -> None:
    engine = await start()
    await engine.create_topic("settings", 1, COMPACT)
    await fill(engine, 60)
    await compact(engine)
    own = engine._compaction_epochs[engine._topics["settings"].topic_id]
    assert own.key_id != engine._store.keys.keyring.sealing_epoch(own.topic_id).key_id
    log = engine._log(engine._topics["settings"], 0)
    places: set[tuple[int, bytes]] = set()
    for extent in log.extents:
        index = await engine._store.index_of(extent)
        for place in map(index.place, range(len(index))):
            header = parse_batch_header(extent.file.file.read_at(place.position, place.size))
            assert header is not None
            assert (header.key_id == own.key_id) == bool(header.flags & FLAG_REWRITTEN)
            places.add((header.key_id, header.nonce))
    assert len(places) == sum([len(await engine._store.index_of(extent)) for extent in log.extents])


def test_options(open_engine: OpenEngine) -> None:
    assert open_engine().capabilities().compaction
