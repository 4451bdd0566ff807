"""The durable log start: what its entry says, and what a start makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.errors import FormatUnsupported
from broker.log.log_start import forgotten_starts, log_start_entry, log_starts, parse_log_start, start_at
from broker.log.partition import LogStart, PartitionLog
from broker.log.startup import Startup
from broker.log.state import Entry, Kind, StateTable
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

TOPIC, OTHER = bytes(range(16)), bytes(range(16, 32))
Start = Callable[..., Coroutine[Any, Any, EmbeddedEngine]]


@pytest.fixture
async def start(open_engine: OpenEngine) -> AsyncIterator[Start]:
    lives: list[EmbeddedEngine] = []

    async def begin(**options: object) -> EmbeddedEngine:
        for engine in lives:
            await engine.close()
        engine = open_engine(**{"merge_files_min": 10_000, **options})
        await engine.start()
        lives.append(engine)
        return engine

    yield begin
    await lives[-1].close()


def test_an_entry_says_what_it_was_made_of() -> None:
    log = PartitionLog(TOPIC, 7)
    begin = LogStart(1 << 40, b"t" * 16, 1 << 39, 1 << 50)
    assert parse_log_start(log_start_entry(log, begin)) == (TOPIC, 7, begin)


def test_a_topics_entries_go_with_it() -> None:
    table = StateTable()
    for topic, partition in ((TOPIC, 0), (TOPIC, 1), (OTHER, 0)):
        table.apply([log_start_entry(PartitionLog(topic, partition), LogStart(5, b"", 5, 9))])
    table.apply(forgotten_starts(table, TOPIC))
    assert list(log_starts(table)) == [(OTHER, 0)]


async def test_it_names_the_batch_before_the_first_kept_one(start: Start) -> None:
    engine = await start()
    topic = await engine.create_topic("orders", 1, {})
    landed = [(await engine.append([Append("orders", 0, one_record(b"v"), [b"k"])]))[0] for _ in range(4)]
    log = engine._store.partition(topic.topic_id, 0)
    index = log.extents[0].index
    assert index is not None
    assert await start_at(engine._store, log, 1) == LogStart(1, index.place(0).tag, 1, landed[0].sequence)
    assert await start_at(engine._store, log, 3) == LogStart(3, index.place(2).tag, 3, landed[2].sequence)
    assert await start_at(engine._store, log, 4) == LogStart(4, log.visible_tag, 4, landed[3].sequence)


async def test_a_hole_above_it_is_damage_and_below_it_is_not(start: Start) -> None:
    engine = await start()
    topic = await engine.create_topic("orders", 1, {})
    for _ in range(4):
        await engine.append([Append("orders", 0, one_record(b"v"), [b"k"])])
    log = engine._store.partition(topic.topic_id, 0)
    await engine.delete_records("orders", 0, 2)
    assert log.first_kept is not None
    assert engine.damage() == []
    # A start from which files that it needs are gone: as if the log began at 2 and the first extent at 3.
    log.extents[0].summary.first_offset = 3
    startup = Startup(engine._seams, engine._store, engine._keystore)
    startup._join_extents()
    assert [(lost.from_offset, lost.to_offset) for lost in engine.damage()] == [(2, 3)]


@pytest.mark.parametrize(
    "entry",
    [
        Entry(Kind.TOPIC, TOPIC, msgspec.msgpack.encode([2, "orders", 1, {}, 0, "something new"])),
        Entry(Kind.LOG_START, TOPIC + bytes(4), msgspec.msgpack.encode([2, 5, b"", 5, 5])),
    ],
    ids=["topic", "log start"],
)
async def test_an_entry_of_a_newer_build_is_refused_by_name(open_engine: OpenEngine, entry: Entry) -> None:
    engine = open_engine()
    await engine.start()
    await engine._commit_entries([entry], flush_view=True)
    await engine.close()
    for _ in range(2):
        with pytest.raises(FormatUnsupported, match=rf"{TOPIC.hex()} has format version 2; this build reads up to 1"):
            await open_engine().start()


async def test_entries_of_kinds_that_this_build_does_not_know_are_kept(start: Start) -> None:
    engine = await start()
    await engine._commit_entries([Entry(99, b"key", b"value")], flush_view=False)
    for _ in range(2):
        engine = await start()
        assert engine._table.get(99, b"key") == b"value"
