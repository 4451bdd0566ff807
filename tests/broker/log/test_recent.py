"""The newest batches of all partitions: in commit order, from any sequence, within the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.engine.base import Append, Stored
from broker.engine.embedded import EmbeddedEngine
from broker.log import lookup
from broker.log.partition import PartitionLog
from broker.log.recent import OBJECTS_BYTES, Recent
from tests.broker.log.journals import one_record


def pushed(sizes: list[int], bytes_max: int, first: int = 7) -> tuple[Recent, list[PartitionLog]]:
    recent, logs = Recent(bytes_max), [PartitionLog(b"t" * 16, n) for n in range(3)]
    for number, size in enumerate(sizes):
        log = logs[number % 3]
        base = number // 3
        recent.push(log, Stored(log.partition, base, base + 1, first + number, 0, bytes(size)))
        recent.trim()
    return recent, logs


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(0, 8 * (OBJECTS_BYTES + 50)))
def test_what_is_kept_is_the_newest_in_order(sizes: list[int], bytes_max: int) -> None:
    recent, logs = pushed(sizes, bytes_max)
    kept = len(recent)
    assert recent.size == sum(sizes[len(sizes) - kept :]) + kept * OBJECTS_BYTES <= bytes_max
    assert sum(len(log.ring) for log in logs) == kept
    oldest = 7 + len(sizes) - kept
    for sequence in range(0, 7 + len(sizes) + 3):
        found = recent.since(sequence)
        if not kept or not oldest <= sequence <= 7 + len(sizes):
            assert found is None
            continue
        assert found is not None
        assert [stored.sequence for _, stored in found] == list(range(sequence, 7 + len(sizes)))
        near = recent.newest(sequence, 5)
        assert (near is None) == (7 + len(sizes) - sequence > 5)


def test_rings_and_all_together_drop_the_same() -> None:
    recent, logs = pushed([10] * 30, 10 * (OBJECTS_BYTES + 10))
    assert [log.ring_floor for log in logs] == [7 + 18, 7 + 19, 7 + 17]
    recent.clear()
    assert (len(recent), recent.size, recent.since(36)) == (0, 0, None)
    assert [len(log.ring) for log in logs] == [0, 0, 0]


def test_what_is_dropped_is_not_kept_in_memory() -> None:
    recent, log = Recent(4 * (OBJECTS_BYTES + 10)), PartitionLog(b"t" * 16, 0)
    for number in range(8):
        recent.push(log, Stored(0, number, number + 1, 1 + number, 0, bytes(10)))
        recent.trim()
    assert [stored.base_offset for stored in log.ring.items if stored.batch] == [4, 5, 6, 7]


async def test_a_scan_for_a_quiet_topic_passes_many_batches_of_others(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "LOOKED_AT_MAX", 10)
    for name in ("busy", "quiet"):
        await engine.create_topic(name, 1, {})
    await engine.append([Append("quiet", 0, one_record(b"first"))])
    await engine.append([Append("busy", 0, one_record(b"x"))] * 100)
    await engine.append([Append("quiet", 0, one_record(b"last"))])
    sequence, found = 0, list[int]()
    while sequence < engine.next_sequence():
        page = await engine.scan(sequence, topics=lambda name: name == "quiet", bytes_max=1 << 20)
        assert page.next_sequence > sequence
        found += [stored.sequence for _, stored in page.batches]
        sequence = page.next_sequence
    assert found == [1, 102]
    nothing = await engine.scan(2, topics=lambda name: name == "nobody", bytes_max=1 << 20, wait_max_ms=5)
    assert (nothing.batches, nothing.next_sequence) == ([], engine.next_sequence())
