"""Offsets of groups on a real engine: kept, listed, deleted, found again."""

from __future__ import annotations

import msgspec
import pytest

from broker.engine.base import StateChange, StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.errors import FormatUnsupported, StorageDamaged
from broker.groups.group_errors import OffsetMetadataTooLarge
from broker.groups.group_options import GroupOptions
from broker.groups.offsets import Committed, GroupOffset, GroupOffsets, group_digest
from broker.machine import MachineClock
from tests.conftest import OpenEngine

TOPIC, OTHER = bytes(15) + b"\1", bytes(15) + b"\2"


def make(engine: EmbeddedEngine, **options: int) -> GroupOffsets:
    return GroupOffsets(engine, MachineClock(), GroupOptions(**options))


async def commit(engine: EmbeddedEngine, offsets: GroupOffsets, group: str, *places: GroupOffset) -> None:
    await engine.append([], changes=offsets.changes(group, places))


def places(found: list[Committed]) -> list[tuple[bytes, int, int]]:
    return [(one.topic_id, one.partition, one.offset) for one in found]


async def test_what_is_committed_is_found_by_every_life(open_engine: OpenEngine) -> None:
    engine = open_engine()
    await engine.start()
    offsets = make(engine)
    await commit(engine, offsets, "g", GroupOffset(TOPIC, 1, 7, 3, "note ü"), GroupOffset(OTHER, 0, 2**40))
    await commit(engine, offsets, "g", GroupOffset(TOPIC, 0, 5))
    await commit(engine, offsets, "h", GroupOffset(TOPIC, 1, 99))
    await engine.close()
    engine = open_engine()
    await engine.start()
    offsets = make(engine)
    assert sorted(offsets.groups()) == ["g", "h"]
    assert places(offsets.all("g")) == [(TOPIC, 0, 5), (TOPIC, 1, 7), (OTHER, 0, 2**40)]
    found = offsets.committed("g", TOPIC, 1)
    assert found is not None
    assert (found.leader_epoch, found.metadata) == (3, "note ü")
    assert offsets.committed("g", TOPIC, 2) is None
    assert offsets.committed("nobody", TOPIC, 1) is None
    await engine.close()


async def test_what_is_not_appended_is_not_there(engine: EmbeddedEngine) -> None:
    offsets = make(engine)
    changes = offsets.changes("g", [GroupOffset(TOPIC, 0, 5)])
    assert offsets.all("g") == []
    assert "g" not in offsets
    await engine.append([], changes=changes)
    assert "g" in offsets


async def test_deleting_some_and_all(engine: EmbeddedEngine) -> None:
    offsets = make(engine)
    await commit(engine, offsets, "g", *[GroupOffset(TOPIC, partition, 1) for partition in range(3)])
    await engine.append([], changes=offsets.removals("g", [(TOPIC, 1), (OTHER, 0)]))
    offsets.forget("g")
    assert places(offsets.all("g")) == [(TOPIC, 0, 1), (TOPIC, 2, 1)]
    await engine.append([], changes=offsets.removals("g"))
    offsets.forget("g")
    assert offsets.groups() == []
    assert list(engine.states(StateSpace.GROUP_OFFSET)) == []


async def test_the_bound_of_the_metadata(engine: EmbeddedEngine) -> None:
    offsets = make(engine, offset_metadata_bytes_max=4)
    offsets.check(GroupOffset(TOPIC, 0, 0, metadata="üü"))
    with pytest.raises(OffsetMetadataTooLarge, match="at most 4 bytes"):
        offsets.check(GroupOffset(TOPIC, 0, 0, metadata="üüa"))


@pytest.mark.parametrize(
    ("value", "problem"),
    [(b"", StorageDamaged), (b"\xc1", StorageDamaged), (msgspec.msgpack.encode([2, "g", 0, 0, "", 0]), FormatUnsupported)],
)
async def test_entries_that_cannot_be_read(engine: EmbeddedEngine, value: bytes, problem: type[Exception]) -> None:
    key = group_digest("g") + TOPIC + bytes(4)
    await engine.append([], changes=[StateChange(StateSpace.GROUP_OFFSET, key, value)])
    with pytest.raises(problem):
        make(engine).committed("g", TOPIC, 0)
