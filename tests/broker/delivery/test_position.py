"""Cursors as text, and positions found in a real log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.position import AtOffset, AtTime, Cursor, CursorAhead, find_start
from broker.engine.embedded import EmbeddedEngine
from broker.errors import OffsetOutOfRange, UnknownPartition
from broker.machine import MachineClock

sequences, indexes = st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1)


@given(sequences, indexes)
def test_a_cursor_is_its_text(sequence: int, index: int) -> None:
    cursor = Cursor(sequence, index)
    assert Cursor.parse(str(cursor)) == cursor


@given(st.tuples(sequences, indexes), st.tuples(sequences, indexes))
def test_cursors_are_ordered_by_batch_then_record(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (Cursor(*one) < Cursor(*other)) == (one < other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1--1",
        "+1-1",
        "1-1 ",
        " 1-1",
        "1-1\n",
        "a-1",
        "1_0-1",
        "١-١",
        f"{2**63}-0",
        "1-12345678901",
        "1-1-1",
    ],
)
def test_hostile_cursors(text: str) -> None:
    with pytest.raises(ValueError, match="a cursor looks like"):
        Cursor.parse(text)


class TestFindStart:
    @pytest.fixture
    async def log(self, engine: EmbeddedEngine) -> EmbeddedEngine:
        """Three batches of four records in partition 0, one of another topic between the second and the third."""
        broker = Broker(engine, MachineClock(), BrokerOptions(partitions_default=1))
        for number in range(3):
            if number == 2:
                await broker.publish("other", [Outgoing(b"k", b"v")], durable=True, auto_create=True)
            records = [Outgoing(b"k", b"v", timestamp_ms=1000 * (4 * number + step)) for step in range(4)]
            await broker.publish("orders", records, durable=True, auto_create=True)
        return engine

    async def sequences(self, log: EmbeddedEngine) -> list[int]:
        return [stored.sequence for stored in (await log.tail("orders", 0, bytes_max=1 << 20)).batches]

    async def test_the_ends(self, log: EmbeddedEngine) -> None:
        assert (await find_start(log, "orders", "earliest")).cursor == Cursor(0)
        assert (await find_start(log, "orders", "latest")).cursor == Cursor(log.next_sequence())

    async def test_an_offset_inside_a_batch(self, log: EmbeddedEngine) -> None:
        sequences = await self.sequences(log)
        for offset in range(12):
            start = await find_start(log, "orders", AtOffset(0, offset))
            assert start.cursor == Cursor(sequences[offset // 4], offset % 4)

    async def test_the_next_offset_is_the_end(self, log: EmbeddedEngine) -> None:
        assert (await find_start(log, "orders", AtOffset(0, 12))).cursor == Cursor(log.next_sequence())

    async def test_offsets_and_partitions_that_are_not_there(self, log: EmbeddedEngine) -> None:
        with pytest.raises(OffsetOutOfRange):
            await find_start(log, "orders", AtOffset(0, 13))
        with pytest.raises(UnknownPartition):
            await find_start(log, "orders", AtOffset(1, 0))

    async def test_a_time(self, log: EmbeddedEngine) -> None:
        sequences = await self.sequences(log)
        start = await find_start(log, "orders", AtTime(5_500))
        assert (start.cursor.sequence, start.since_ms) == (sequences[1], 5_500)

    async def test_a_cursor_of_the_past_and_one_ahead(self, log: EmbeddedEngine) -> None:
        assert (await find_start(log, "orders", Cursor(2, 3))).cursor == Cursor(2, 3)
        end = log.next_sequence()
        assert (await find_start(log, "orders", Cursor(end))).cursor == Cursor(end)
        for ahead in (Cursor(end, 1), Cursor(end + 1)):
            with pytest.raises(CursorAhead, match="before a restore"):
                await find_start(log, "orders", ahead)
