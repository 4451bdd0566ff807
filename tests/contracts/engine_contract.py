"""What every engine promises (`broker/engine/base.py`), as tests: a subclass gives the `engine`, started and empty, and `reopen`.

An engine that cannot be restarted has a `reopen` that skips.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise

import msgspec
import pytest

from broker.batch import build, keys, walk
from broker.engine.base import Append, Appended, Engine, OffsetForTime, StateChange, StateSpace, Stored
from broker.errors import (
    BatchRefused,
    BrokerError,
    IllegalTopicName,
    InvalidConfig,
    OffsetOutOfRange,
    RecordTooLarge,
    TopicExists,
    UnknownPartition,
    UnknownTopic,
)

Reopen = Callable[[], Awaitable[Engine]]  # ends the life of the engine; the next one over the same data

NOON_MS = 1_760_000_000_000
PLENTY = 1 << 20
LONG_MS = 600_000  # a long poll that ends is one that was woken
SHORT_MS = 20
NOT_FOUND = OffsetForTime(-1, -1)


def batch_of(*values: bytes, key: bytes | None = None, at_ms: int = NOON_MS) -> bytes:
    """Records a millisecond apart, all with one key."""
    return build([(at_ms + n, key, value, ()) for n, value in enumerate(values)])


def one(topic: str, *values: bytes, partition: int = 0, key: bytes | None = None, at_ms: int = NOON_MS) -> Append:
    """A batch whose keys are known."""
    return Append(topic, partition, batch_of(*values, key=key, at_ms=at_ms), keys=[key] * len(values))


def values_of(stored: Sequence[Stored]) -> list[bytes | None]:
    return [record.value for batch in stored for record in walk(batch.batch)]


async def read_partition(engine: Engine, topic: str, partition: int = 0, bytes_max: int = PLENTY) -> list[Stored]:
    """From the log start to the high watermark, page by page."""
    found: list[Stored] = []
    page = await engine.fetch(topic, partition, 0, bytes_max=bytes_max)
    while page.batches:
        found += page.batches
        page = await engine.fetch(topic, partition, page.next_offset, bytes_max=bytes_max)
    assert page.next_offset == page.high_watermark
    return found


async def read_partition_from(engine: Engine, topic: str, offset: int) -> list[Stored]:
    """One page from an offset on."""
    return (await engine.fetch(topic, 0, offset, bytes_max=PLENTY)).batches


async def follow(
    engine: Engine,
    topic: str,
    from_sequence: int = 0,
    *,
    bytes_max: int = PLENTY,
    partitions: Sequence[int] | None = None,
    key: bytes | None = None,
) -> list[Stored]:
    """All there is from a sequence on, page by page."""
    found: list[Stored] = []
    while from_sequence < engine.next_sequence():
        page = await engine.tail(topic, from_sequence, bytes_max=bytes_max, partitions=partitions, key=key)
        assert page.next_sequence > from_sequence
        assert all(from_sequence <= stored.sequence < page.next_sequence for stored in page.batches)
        found += page.batches
        from_sequence = page.next_sequence
    return found


def position(key: bytes, value: bytes | None) -> StateChange:
    return StateChange(StateSpace.POSITION, key, value)


async def scan_all(
    engine: Engine, topics: Callable[[str], bool], from_sequence: int = 0, *, bytes_max: int = PLENTY
) -> list[tuple[str, Stored]]:
    """All there is in topics of these names from a sequence on, page by page."""
    found: list[tuple[str, Stored]] = []
    while from_sequence < engine.next_sequence():
        page = await engine.scan(from_sequence, topics=topics, bytes_max=bytes_max)
        assert page.next_sequence > from_sequence
        assert all(from_sequence <= stored.sequence < page.next_sequence for _, stored in page.batches)
        found += page.batches
        from_sequence = page.next_sequence
    return found


_GOOD = batch_of(b"a")
GARBAGE = {
    "empty": b"",
    "shorter than a header": bytes(60),
    "zeros": bytes(200),
    "ones": b"\xff" * 200,
    "cut": _GOOD[:-1],
    "longer than it says": _GOOD + b"\x00",
    "magic 1": _GOOD[:16] + b"\x01" + _GOOD[17:],
    "negative last offset delta": _GOOD[:23] + b"\xff" * 4 + _GOOD[27:],
    "no records": _GOOD[:57] + bytes(4) + _GOOD[61:],
    "more records than offsets": _GOOD[:57] + b"\x00\x00\x00\x02" + _GOOD[61:],
}


async def lives_of(engine: Engine, *reopens: Reopen) -> AsyncIterator[Engine]:
    """The engine, then its next lives, each when the one before has been looked at."""
    yield engine
    for reopen in reopens:
        yield await reopen()


class Written(msgspec.Struct, frozen=True):
    """A batch as it was appended, and where it landed."""

    append: Append
    at: Appended

    @property
    def place(self) -> tuple[int, int, int]:
        return self.at.sequence, self.at.partition, self.at.base_offset

    @property
    def stored(self) -> bytes:
        return self.at.base_offset.to_bytes(8, "big") + self.append.batch[8:]


KEYS = (b"eu/7", b"eu/8", b"", None)


class Traffic:
    """Seeded appends to two topics, some of several batches, some at once, and what must be readable of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.partitions = {"orders": 3, "readings": 1}
        self.written: list[Written] = []
        self._count = 0

    async def create(self, engine: Engine) -> None:
        for name, partitions in self.partitions.items():
            await engine.create_topic(name, partitions, {})

    def call(self) -> list[Append]:
        return [self._append() for _ in range(self.random.choice((1, 1, 1, 2, 4)))]

    def _append(self) -> Append:
        topic = self.random.choice(list(self.partitions))
        held = [self.random.choice(KEYS) for _ in range(self.random.randint(1, 4))]
        self._count += 1
        fill = b"." * self.random.choice((0, 10, 200, 3_000))
        batch = build([(NOON_MS + self.random.randint(0, 5_000), key, b"%d" % self._count + fill, ()) for key in held])
        known = held if self.random.random() < 0.8 else None
        return Append(topic, self.random.randrange(self.partitions[topic]), batch, keys=known)

    async def write(self, engine: Engine, calls: int) -> None:
        while calls > 0:
            together = [self.call() for _ in range(self.random.randint(1, 6))]
            calls -= len(together)
            answers = await asyncio.gather(*(engine.append(appends) for appends in together))
            for appends, appended in zip(together, answers, strict=True):
                self.written += [Written(append, at) for append, at in zip(appends, appended, strict=True)]

    def of(self, topic: str | None, from_sequence: int = 0, partitions: Sequence[int] | None = None) -> list[Written]:
        return [
            written
            for written in self.written
            if topic in (None, written.append.topic)
            and written.at.sequence >= from_sequence
            and (partitions is None or written.append.partition in partitions)
        ]

    async def check(self, engine: Engine) -> None:
        """By offset, by sequence, by key: all of it, once, in order."""
        for topic, partitions in self.partitions.items():
            for partition in range(partitions):
                await self._check_partition(engine, topic, partition)
            for _ in range(4):
                await self._check_order(engine, topic)
            for key in KEYS:
                await self._check_key(engine, topic, key)
            await self._check_scan(engine, topic)
        await self._check_scan(engine, None)

    async def _check_scan(self, engine: Engine, topic: str | None) -> None:
        """One topic out of the stream of all, and all of them (None)."""
        start = self.random.randint(0, engine.next_sequence())
        expected = [(w.append.topic, *w.place, w.stored) for w in self.of(topic, start)]
        for bytes_max in (1, 500, PLENTY):
            found = await scan_all(engine, lambda name: topic in (None, name), start, bytes_max=bytes_max)
            assert [(name, s.sequence, s.partition, s.base_offset, s.batch) for name, s in found] == expected

    async def _check_partition(self, engine: Engine, topic: str, partition: int) -> None:
        expected = self.of(topic, partitions=[partition])
        for bytes_max in (1, 1_000, PLENTY):
            found = await read_partition(engine, topic, partition, bytes_max)
            assert [stored.batch for stored in found] == [written.stored for written in expected]
        end = expected[-1].at.base_offset + expected[-1].at.count if expected else 0
        assert engine.offsets(topic)[partition].high_watermark == end
        for key in KEYS:
            newest = next((w for w in reversed(expected) if key in keys(w.append.batch)), None)
            latest = await engine.find_latest(topic, partition, key)
            assert (None if latest is None else latest.batch) == (None if newest is None else newest.stored)

    async def _check_order(self, engine: Engine, topic: str) -> None:
        start = self.random.randint(0, engine.next_sequence())
        some = self.random.sample(range(self.partitions[topic]), self.random.randint(1, self.partitions[topic]))
        partitions = self.random.choice((None, some))
        expected = self.of(topic, start, partitions)
        for bytes_max in (1, 500, PLENTY):
            found = await follow(engine, topic, start, bytes_max=bytes_max, partitions=partitions)
            assert [(s.sequence, s.partition, s.base_offset) for s in found] == [written.place for written in expected]
            assert [stored.batch for stored in found] == [written.stored for written in expected]

    async def _check_key(self, engine: Engine, topic: str, key: bytes | None) -> None:
        """A key of None cannot be asked of a tail: it means any key there."""
        if key is None:
            return
        for bytes_max in (1, PLENTY):
            found = [stored.sequence for stored in await follow(engine, topic, bytes_max=bytes_max, key=key)]
            assert all(earlier < later for earlier, later in pairwise(found))
            holding = {written.at.sequence for written in self.of(topic) if key in keys(written.append.batch)}
            unknown = {written.at.sequence for written in self.of(topic) if written.append.keys is None}
            assert holding <= set(found)
            assert not engine.capabilities().key_index or set(found) <= holding | unknown


class EngineContract:
    @pytest.fixture
    async def orders(self, engine: Engine) -> Engine:
        """The engine with a topic `orders` of two partitions and `readings` of one."""
        await engine.create_topic("orders", 2, {})
        await engine.create_topic("readings", 1, {})
        return engine

    @pytest.fixture(autouse=True)
    async def _hangs_are_failures(self) -> AsyncIterator[None]:
        """Reads here that are never woken would wait ten minutes."""
        own = asyncio.current_task()
        yield
        assert not [task for task in asyncio.all_tasks() if task is not own and task.get_name() == "poll"]

    # -- appending --------------------------------------------------------------------------------------------------------

    async def test_offsets_are_dense_and_in_the_order_of_calls(self, orders: Engine) -> None:
        calls = [orders.append([one("orders", *[b"%d.%d" % (n, m) for m in range(n % 3 + 1)])]) for n in range(20)]
        answers = [appended for (appended,) in await asyncio.gather(*calls)]
        next_offset = 0
        for n, appended in enumerate(answers):
            assert (appended.base_offset, appended.count) == (next_offset, n % 3 + 1)
            next_offset += appended.count
        found = await read_partition(orders, "orders")
        assert values_of(found) == [b"%d.%d" % (n, m) for n in range(20) for m in range(n % 3 + 1)]
        assert [record.offset for stored in found for record in walk(stored.batch)] == list(range(next_offset))

    async def test_partitions_count_their_own_offsets(self, orders: Engine) -> None:
        answers = await orders.append([one("orders", b"a", b"b"), one("orders", b"c", partition=1), one("orders", b"d")])
        assert [(appended.partition, appended.base_offset) for appended in answers] == [(0, 0), (1, 0), (0, 2)]
        assert [(o.log_start, o.high_watermark) for o in orders.offsets("orders")] == [(0, 3), (0, 1)]

    async def test_sequences_grow_over_all_topics(self, orders: Engine) -> None:
        calls = [orders.append([one("orders", b"a", partition=n % 2), one("readings", b"b")]) for n in range(10)]
        sequences = [appended.sequence for answer in await asyncio.gather(*calls) for appended in answer]
        assert all(earlier < later for earlier, later in pairwise(sequences))
        assert orders.next_sequence() > sequences[-1]

    async def test_batches_of_one_call_become_visible_together(self, orders: Engine) -> None:
        seen: list[tuple[int, int]] = []

        def look() -> None:
            seen.append((orders.offsets("orders")[0].high_watermark, orders.offsets("readings")[0].high_watermark))

        unwatch = [orders.watch(topic, look) for topic in ("orders", "readings")]
        await orders.append([one("orders", b"a"), one("readings", b"b")])
        for stop in unwatch:
            stop()
        assert set(seen) == {(1, 1)}

    async def test_an_acknowledged_batch_can_be_read_at_once(self, orders: Engine) -> None:
        (appended,) = await orders.append([one("orders", b"a")])
        assert orders.next_sequence() == appended.sequence + 1
        assert values_of((await orders.fetch("orders", 0, 0, bytes_max=PLENTY)).batches) == [b"a"]
        assert values_of((await orders.tail("orders", appended.sequence, bytes_max=PLENTY)).batches) == [b"a"]

    @pytest.mark.parametrize(
        ("refused", "error"),
        [
            (one("nowhere", b"x"), UnknownTopic),
            (one("orders", b"x", partition=2), UnknownPartition),
            (one("orders", b"x", partition=-1), UnknownPartition),
            (one("orders", b"x" * 2_000_000), RecordTooLarge),
            (Append("orders", 0, b"no batch"), BatchRefused),
        ],
        ids=["topic", "partition", "negative-partition", "size", "garbage"],
    )
    async def test_one_refused_batch_refuses_the_call(self, orders: Engine, refused: Append, error: type[BrokerError]) -> None:
        before = orders.next_sequence()
        with pytest.raises(error):
            await orders.append([one("orders", b"a"), one("readings", b"b"), refused])
        assert [o.high_watermark for topic in ("orders", "readings") for o in orders.offsets(topic)] == [0, 0, 0]
        (appended,) = await orders.append([one("orders", b"c")])
        assert (appended.base_offset, appended.sequence) == (0, before)

    async def test_append_without_waiting_becomes_visible(self, orders: Engine) -> None:
        (appended,) = await orders.append([one("orders", b"a")], durable=False)
        assert appended.base_offset == 0
        async with asyncio.timeout(30):
            fetched = await orders.fetch("orders", 0, 0, bytes_max=PLENTY, wait_max_ms=LONG_MS)
        assert values_of(fetched.batches) == [b"a"]

    async def test_what_is_submitted_comes_before_what_is_appended_later(self, orders: Engine) -> None:
        answers, durable = orders.submit([one("orders", b"a"), one("readings", b"b")])
        (later,) = await orders.append([one("orders", b"c")])
        assert durable is not None
        await durable
        assert [(appended.topic, appended.base_offset) for appended in (*answers, later)] == [
            ("orders", 0),
            ("readings", 0),
            ("orders", 1),
        ]
        assert values_of(await read_partition(orders, "orders")) == [b"a", b"c"]

    async def test_what_is_submitted_is_visible_when_it_is_durable_and_not_before(self, orders: Engine) -> None:
        _, durable = orders.submit([one("orders", b"a")])
        assert [offsets.high_watermark for offsets in orders.offsets("orders")] == [0] * len(orders.offsets("orders"))
        assert durable is not None
        await durable
        assert values_of(await read_partition(orders, "orders")) == [b"a"]
        assert orders.submit([one("orders", b"b")], durable=False)[1] is None

    async def test_a_refused_submission_is_refused_at_once(self, orders: Engine) -> None:
        with pytest.raises(UnknownTopic):
            orders.submit([one("orders", b"a"), one("nowhere", b"x")])
        (appended,) = await orders.append([one("orders", b"b")])
        assert appended.base_offset == 0

    async def test_changes_may_say_where_the_records_landed(self, orders: Engine) -> None:
        def changes(landed: Sequence[Appended]) -> list[StateChange]:
            return [position(b"at", b"%d" % landed[0].base_offset)]

        for expected in (b"0", b"1"):
            await orders.append([one("orders", b"x")], changes=changes)
            assert orders.state(StateSpace.POSITION, b"at") == expected

    async def test_changes_that_fail_append_nothing(self, orders: Engine) -> None:
        def changes(_landed: Sequence[Appended]) -> list[StateChange]:
            raise LookupError("no place for it")

        with pytest.raises(LookupError, match="no place"):
            await orders.append([one("orders", b"x")], changes=changes)
        (appended,) = await orders.append([one("orders", b"y")])
        assert appended.base_offset == 0

    async def test_largest_batch_is_the_topics_config(self, engine: Engine) -> None:
        batch = batch_of(b"x" * 1000)
        await engine.create_topic("small", 1, {"max.message.bytes": str(len(batch))})
        await engine.append([Append("small", 0, batch)])
        with pytest.raises(RecordTooLarge) as refused:
            await engine.append([Append("small", 0, batch_of(b"x" * 1001))])
        assert refused.value.limit_bytes == len(batch)

    async def test_garbage_is_refused(self, orders: Engine, subtests: pytest.Subtests) -> None:
        for reason, garbage in GARBAGE.items():
            with subtests.test(reason), pytest.raises(BatchRefused):
                await orders.append([Append("orders", 0, garbage)])

    # -- state beside data ------------------------------------------------------------------------------------------------

    async def test_state_is_set_replaced_and_deleted(self, orders: Engine) -> None:
        await orders.append([], changes=[position(b"a", b"1"), position(b"b", b"2")])
        await orders.append([], changes=[position(b"a", b"3"), position(b"b", None), position(b"never", None)])
        assert orders.state(StateSpace.POSITION, b"a") == b"3"
        assert orders.state(StateSpace.POSITION, b"b") is None
        assert dict(orders.states(StateSpace.POSITION)) == {b"a": b"3"}

    async def test_spaces_are_kept_apart(self, orders: Engine) -> None:
        changes = [position(b"a", b"1"), StateChange(StateSpace.IDEMPOTENCY, b"a", b"2")]
        await orders.append([], changes=changes)
        assert orders.state(StateSpace.IDEMPOTENCY, b"a") == b"2"
        assert dict(orders.states(StateSpace.POSITION)) == {b"a": b"1"}

    async def test_of_changes_of_one_key_the_last_counts(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([], changes=[position(b"a", b"1"), position(b"a", None), position(b"a", b"2"), position(b"a", b"3")])
        await orders.append([], changes=[position(b"b", b"1"), position(b"b", None)])
        async for engine in lives_of(orders, reopen, reopen):
            assert dict(engine.states(StateSpace.POSITION)) == {b"a": b"3"}

    async def test_state_comes_with_the_batches_of_its_call(self, orders: Engine) -> None:
        """Whoever is woken by the records finds the state, and before nobody finds either."""
        seen: list[bytes | None] = []
        orders.watch("orders", lambda: seen.append(orders.state(StateSpace.POSITION, b"a")))
        appending = asyncio.ensure_future(orders.append([one("orders", b"x")], changes=[position(b"a", b"")]))
        assert orders.state(StateSpace.POSITION, b"a") is None
        (appended,) = await appending
        assert appended.base_offset == 0
        assert seen == [b""]

    async def test_a_refused_batch_refuses_the_state(self, orders: Engine) -> None:
        with pytest.raises(UnknownTopic):
            await orders.append([one("nowhere", b"x")], changes=[position(b"a", b"1")])
        assert orders.state(StateSpace.POSITION, b"a") is None

    @pytest.mark.parametrize("change", [position(b"k" * 1025, b""), position(b"k", bytes(65537))], ids=["key", "value"])
    async def test_an_oversized_entry_refuses_the_call(self, orders: Engine, change: StateChange) -> None:
        before = orders.next_sequence()
        with pytest.raises(RecordTooLarge):
            await orders.append([one("orders", b"x")], changes=[position(b"a", b"1"), change])
        assert list(orders.states(StateSpace.POSITION)) == []
        (appended,) = await orders.append([one("orders", b"y")], changes=[position(b"k" * 1024, bytes(65536))])
        assert (appended.base_offset, appended.sequence) == (0, before)

    async def test_nothing_to_append_is_nothing(self, orders: Engine) -> None:
        assert await orders.append([]) == []

    async def test_state_can_be_changed_while_it_is_walked(self, orders: Engine) -> None:
        await orders.append([], changes=[position(b"%d" % n, b"") for n in range(3)])
        walked = orders.states(StateSpace.POSITION)
        first = next(walked)
        await orders.append([], changes=[position(b"more", b""), position(b"2", None)])
        assert len({first, *walked}) == 3

    async def test_state_outlives_restarts(self, orders: Engine, reopen: Reopen) -> None:
        for n in range(50):
            await orders.append([one("orders", b"%d" % n)], changes=[position(b"%d" % (n % 7), b"%d" % n)])
        await orders.append([], changes=[position(b"3", None)])
        expected = {b"%d" % (n % 7): b"%d" % n for n in range(50)}
        del expected[b"3"]
        async for engine in lives_of(orders, reopen, reopen):
            assert dict(engine.states(StateSpace.POSITION)) == expected

    # -- fetching ---------------------------------------------------------------------------------------------------------

    async def test_fetch_from_inside_a_batch_gives_the_whole_batch(self, orders: Engine) -> None:
        await orders.append([one("orders", b"0", b"1", b"2"), one("orders", b"3")])
        fetched = await orders.fetch("orders", 0, 2, bytes_max=PLENTY)
        assert [stored.base_offset for stored in fetched.batches] == [0, 3]
        assert (fetched.next_offset, fetched.high_watermark) == (4, 4)

    async def test_fetch_gives_one_batch_however_large(self, orders: Engine) -> None:
        await orders.append([one("orders", b"x" * 5_000), one("orders", b"y")])
        fetched = await orders.fetch("orders", 0, 0, bytes_max=1)
        assert values_of(fetched.batches) == [b"x" * 5_000]
        assert (fetched.next_offset, fetched.high_watermark) == (1, 2)

    async def test_fetch_stops_at_bytes_max(self, orders: Engine) -> None:
        append = one("orders", b"x" * 100)
        await orders.append([append] * 10)
        fetched = await orders.fetch("orders", 0, 0, bytes_max=len(append.batch) * 4)
        # An engine may count sealing in: never more than asked for, and not a single batch a time.
        assert 1 < len(fetched.batches) <= 4

    @pytest.mark.parametrize("offset", [-1, 2, 1 << 40])
    async def test_offset_out_of_range(self, orders: Engine, offset: int) -> None:
        await orders.append([one("orders", b"a")])
        with pytest.raises(OffsetOutOfRange) as refused:
            await orders.fetch("orders", 0, offset, bytes_max=PLENTY)
        assert (refused.value.log_start, refused.value.high_watermark) == (0, 1)

    async def test_fetch_at_the_end_waits_and_comes_back_empty(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a")])
        for wait_max_ms in (0, SHORT_MS):
            fetched = await orders.fetch("orders", 0, 1, bytes_max=PLENTY, wait_max_ms=wait_max_ms)
            assert (fetched.batches, fetched.next_offset, fetched.high_watermark) == ([], 1, 1)

    async def test_fetch_at_the_end_is_woken(self, orders: Engine) -> None:
        poll = asyncio.create_task(orders.fetch("orders", 1, 0, bytes_max=PLENTY, wait_max_ms=LONG_MS), name="poll")
        await asyncio.sleep(0.01)
        await orders.append([one("orders", b"other partition")])
        await asyncio.sleep(0.01)
        assert not poll.done()
        await orders.append([one("orders", b"a", partition=1)])
        async with asyncio.timeout(30):
            assert values_of((await poll).batches) == [b"a"]

    async def test_fetch_waits_for_bytes_min(self, orders: Engine) -> None:
        append = one("orders", b"x" * 100)
        await orders.append([append])
        bytes_min = len(append.batch) * 3
        waiting = orders.fetch("orders", 0, 0, bytes_max=PLENTY, bytes_min=bytes_min, wait_max_ms=LONG_MS)
        poll = asyncio.create_task(waiting, name="poll")
        for _ in range(2):
            await asyncio.sleep(0.01)
            assert not poll.done()
            await orders.append([append])
        async with asyncio.timeout(30):
            assert len((await poll).batches) == 3

    async def test_fetch_gives_less_than_bytes_min_when_time_is_up(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a")])
        fetched = await orders.fetch("orders", 0, 0, bytes_max=PLENTY, bytes_min=PLENTY, wait_max_ms=SHORT_MS)
        assert values_of(fetched.batches) == [b"a"]

    async def test_fetch_does_not_wait_for_more_than_bytes_max(self, orders: Engine) -> None:
        await orders.append([one("orders", b"x" * 100)] * 3)
        async with asyncio.timeout(30):
            fetched = await orders.fetch("orders", 0, 0, bytes_max=200, bytes_min=PLENTY, wait_max_ms=LONG_MS)
        assert fetched.batches

    async def test_reads_of_what_is_not_there(self, orders: Engine) -> None:
        reads: tuple[Callable[[str, int], Awaitable[object]], ...] = (
            lambda topic, partition: orders.fetch(topic, partition, 0, bytes_max=PLENTY),
            lambda topic, partition: orders.tail(topic, 0, bytes_max=PLENTY, partitions=[partition]),
            lambda topic, partition: orders.find_latest(topic, partition, b"k"),
            lambda topic, partition: orders.offset_for_time(topic, partition, NOON_MS),
            lambda topic, partition: orders.offset_of_max_timestamp(topic, partition),
        )
        await orders.append([one("orders", b"a")])
        for read in reads:
            with pytest.raises(UnknownTopic):
                await read("nowhere", 0)
            for partition in (-1, 2):
                with pytest.raises(UnknownPartition):
                    await read("orders", partition)
        with pytest.raises(UnknownTopic):
            await orders.sequence_for_time("nowhere", NOON_MS)
        with pytest.raises(UnknownTopic):
            orders.offsets("nowhere")

    # -- tailing ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(4))
    async def test_everything_is_read_once_in_commit_order(self, engine: Engine, reopen: Reopen, seed: int) -> None:
        traffic = Traffic(seed)
        await traffic.create(engine)
        await traffic.write(engine, 40)
        await traffic.check(engine)
        engine = await reopen()
        await traffic.check(engine)
        await traffic.write(engine, 20)
        await traffic.check(engine)

    @pytest.mark.parametrize("bytes_max", [1, 700, PLENTY])
    async def test_a_follower_misses_and_repeats_nothing_while_others_append(self, engine: Engine, bytes_max: int) -> None:
        traffic = Traffic(bytes_max)
        await traffic.create(engine)
        found: list[Stored] = []

        async def follow_live() -> None:
            sequence = 0
            while not found or values_of(found[-1:]) != [b"the end"]:
                page = await engine.tail("orders", sequence, bytes_max=bytes_max, wait_max_ms=LONG_MS)
                found.extend(page.batches)
                sequence = page.next_sequence

        reader = asyncio.create_task(follow_live(), name="poll")
        await traffic.write(engine, 60)
        await engine.append([one("orders", b"the end")])
        async with asyncio.timeout(30):
            await reader
        assert [stored.batch for stored in found[:-1]] == [written.stored for written in traffic.of("orders")]

    async def test_tail_at_the_end_waits_and_comes_back_empty(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a")])
        end = orders.next_sequence()
        for wait_max_ms in (0, SHORT_MS):
            tail = await orders.tail("orders", end, bytes_max=PLENTY, wait_max_ms=wait_max_ms)
            assert (tail.batches, tail.next_sequence) == ([], end)

    async def test_tail_is_woken_by_its_own_topic(self, orders: Engine) -> None:
        waiting = orders.tail("orders", orders.next_sequence(), bytes_max=PLENTY, wait_max_ms=LONG_MS)
        poll = asyncio.create_task(waiting, name="poll")
        await asyncio.sleep(0.01)
        await orders.append([one("readings", b"other topic")])
        await asyncio.sleep(0.01)
        assert not poll.done()
        (appended,) = await orders.append([one("orders", b"a", partition=1)])
        async with asyncio.timeout(30):
            tail = await poll
        assert (values_of(tail.batches), tail.next_sequence) == ([b"a"], appended.sequence + 1)

    async def test_tail_passes_what_other_topics_wrote(self, orders: Engine) -> None:
        await orders.append([one("readings", b"x")] * 5)
        tail = await orders.tail("orders", 0, bytes_max=PLENTY)
        assert (tail.batches, tail.next_sequence) == ([], orders.next_sequence())

    async def test_tail_by_key_is_woken_by_the_key_only(self, orders: Engine) -> None:
        waiting = orders.tail("orders", 0, bytes_max=PLENTY, wait_max_ms=LONG_MS, partitions=[0], key=b"k")
        poll = asyncio.create_task(waiting, name="poll")
        await asyncio.sleep(0.01)
        await orders.append([one("orders", b"a", key=b"other")])
        await orders.append([one("orders", b"b", key=b"k")])
        async with asyncio.timeout(30):
            found = (await poll).batches
        assert b"k" in keys(found[-1].batch)

    # -- by key -----------------------------------------------------------------------------------------------------------

    async def test_the_newest_batch_with_a_key(self, orders: Engine) -> None:
        await orders.append([one("orders", b"1", key=b"a"), one("orders", b"2", key=b"b"), one("orders", b"3", key=b"a")])
        await orders.append([one("orders", b"4", key=b"a", partition=1), one("orders", b"5"), one("orders", b"6", key=b"")])
        for key, value in ((b"a", b"3"), (b"b", b"2"), (None, b"5"), (b"", b"6")):
            found = await orders.find_latest("orders", 0, key)
            assert found is not None
            assert values_of([found]) == [value]
        assert await orders.find_latest("orders", 0, b"c") is None
        assert await orders.find_latest("orders", 1, None) is None
        assert await orders.find_latest("readings", 0, b"a") is None

    async def test_batches_of_unknown_keys_are_looked_into(self, orders: Engine) -> None:
        await orders.append([Append("orders", 0, batch_of(b"1", key=b"a")), Append("orders", 0, batch_of(b"2", key=b"b"))])
        found = await orders.find_latest("orders", 0, b"a")
        assert found is not None
        assert values_of([found]) == [b"1"]
        assert await orders.find_latest("orders", 0, None) is None

    async def test_a_candidate_that_does_not_hold_the_key_is_passed_by(self, orders: Engine, reopen: Reopen) -> None:
        """Two keys may share a hash: here an edge says a key that the batch does not hold."""
        await orders.append([one("orders", b"1", key=b"a")])
        await orders.append([Append("orders", 0, batch_of(b"2", key=b"b"), keys=[b"a"])])
        await orders.append([Append("orders", 0, batch_of(b"3", key=b"b"), keys=[None])])
        async for engine in lives_of(orders, reopen):
            found = await engine.find_latest("orders", 0, b"a")
            assert found is not None
            assert values_of([found]) == [b"1"]
            assert await engine.find_latest("orders", 0, None) is None

    # -- by time ----------------------------------------------------------------------------------------------------------

    async def test_offsets_by_time(self, orders: Engine) -> None:
        """Offsets 0 and 1 at noon and a millisecond later, 2 an hour before, 3 an hour after."""
        hour = 3_600_000
        await orders.append([one("orders", b"a", b"b"), one("orders", b"c", at_ms=NOON_MS - hour)])
        await orders.append([one("orders", b"d", at_ms=NOON_MS + hour)])
        for at_ms, offset, found_ms in (
            (0, 0, NOON_MS),
            (NOON_MS, 0, NOON_MS),
            (NOON_MS + 1, 1, NOON_MS + 1),
            (NOON_MS + 2, 3, NOON_MS + hour),
            (NOON_MS + hour, 3, NOON_MS + hour),
        ):
            assert await orders.offset_for_time("orders", 0, at_ms) == OffsetForTime(offset, found_ms)
        assert await orders.offset_for_time("orders", 0, NOON_MS + hour + 1) == NOT_FOUND
        assert await orders.offset_for_time("orders", 1, 0) == NOT_FOUND

    async def test_the_newest_timestamp(self, orders: Engine) -> None:
        assert await orders.offset_of_max_timestamp("orders", 0) == NOT_FOUND
        await orders.append([one("orders", b"a"), one("orders", b"b", b"c", at_ms=NOON_MS + 50), one("orders", b"d")])
        assert await orders.offset_of_max_timestamp("orders", 0) == OffsetForTime(2, NOON_MS + 51)

    async def test_sequences_by_time(self, orders: Engine) -> None:
        appended = [
            (await orders.append([one("orders", b"x", partition=n % 2, at_ms=NOON_MS + late)]))[0].sequence
            for n, late in enumerate((0, 30, 10, 40, 20))
        ]
        for after, expected in ((-1, 0), (0, 0), (1, 1), (30, 1), (31, 3), (40, 3)):
            assert await orders.sequence_for_time("orders", NOON_MS + after) == appended[expected]
        assert await orders.sequence_for_time("orders", NOON_MS + 41) == orders.next_sequence()
        assert await orders.sequence_for_time("readings", 0) == orders.next_sequence()

    @pytest.mark.parametrize("seed", range(2))
    async def test_times_over_any_traffic(self, engine: Engine, reopen: Reopen, seed: int) -> None:
        traffic = Traffic(seed + 100)
        await traffic.create(engine)
        await traffic.write(engine, 30)
        expected = [(w, list(walk(w.stored))) for w in traffic.of("orders")]
        async for opened in lives_of(engine, reopen):
            for _ in range(20):
                at_ms = NOON_MS + traffic.random.randint(-10, 5_010)
                for partition in range(3):
                    records = [r for w, found in expected if w.append.partition == partition for r in found]
                    first = next((OffsetForTime(r.offset, r.timestamp_ms) for r in records if r.timestamp_ms >= at_ms), NOT_FOUND)
                    assert await opened.offset_for_time("orders", partition, at_ms) == first
                young = [w.at.sequence for w, found in expected if any(r.timestamp_ms >= at_ms for r in found)]
                assert await opened.sequence_for_time("orders", at_ms) == min(young, default=opened.next_sequence())

    # -- topics -----------------------------------------------------------------------------------------------------------

    async def test_a_created_topic_is_listed_and_empty(self, engine: Engine) -> None:
        topic = await engine.create_topic("orders", 3, {"max.message.bytes": "5000"})
        assert engine.topics() == {"orders": topic}
        assert (topic.name, topic.partitions, topic.configs) == ("orders", 3, {"max.message.bytes": "5000"})
        assert len(topic.topic_id) == 16
        assert [(o.partition, o.log_start, o.high_watermark) for o in engine.offsets("orders")] == [(n, 0, 0) for n in range(3)]

    async def test_illegal_topic_names(self, engine: Engine, subtests: pytest.Subtests) -> None:
        for name in ("", ".", "..", "a/b", "a b", "é", "x" * 250, "a\n", "a\x00"):
            with subtests.test(repr(name)), pytest.raises(IllegalTopicName):
                await engine.create_topic(name, 1, {})
        assert not engine.topics()

    async def test_invalid_configs_name_the_config(self, engine: Engine, subtests: pytest.Subtests) -> None:
        refusals: tuple[tuple[int, dict[str, str], str], ...] = (
            (0, {}, "partitions"),
            (-1, {}, "partitions"),
            (1 << 31, {}, "partitions"),
            (1, {"max.message.byte": "5"}, "max.message.byte"),
            (1, {"max.message.bytes": "lots"}, "max.message.bytes"),
            (1, {"compression.type": "rar"}, "compression.type"),
            (1, {"min.compaction.lag.ms": "9", "max.compaction.lag.ms": "8"}, "min.compaction.lag.ms"),
        )
        for partitions, configs, named in refusals:
            with subtests.test(f"{partitions} {configs}"):
                with pytest.raises(InvalidConfig) as refused:
                    await engine.create_topic("orders", partitions, configs)
                assert refused.value.config == named
        assert not engine.topics()

    async def test_a_name_is_used_once(self, engine: Engine) -> None:
        made = await asyncio.gather(*(engine.create_topic("orders", 1, {}) for _ in range(5)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in made) == ["Topic", *["TopicExists"] * 4]
        with pytest.raises(TopicExists):
            await engine.create_topic("orders", 1, {})

    async def test_partitions_grow(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a", partition=1)])
        altered = await orders.alter_topic("orders", partitions=4)
        assert (altered.partitions, orders.topics()["orders"].partitions) == (4, 4)
        assert [o.high_watermark for o in orders.offsets("orders")] == [0, 1, 0, 0]
        (appended,) = await orders.append([one("orders", b"b", partition=3)])
        assert appended.base_offset == 0

    async def test_partitions_never_shrink(self, orders: Engine) -> None:
        for partitions in (1, 0, -1):
            with pytest.raises(InvalidConfig) as refused:
                await orders.alter_topic("orders", partitions=partitions)
            assert refused.value.config == "partitions"
        assert orders.topics()["orders"].partitions == 2

    async def test_configs_change_and_go_back_to_their_defaults(self, orders: Engine) -> None:
        large = one("orders", b"x" * 1_000)
        altered = await orders.alter_topic("orders", configs={"max.message.bytes": "500", "compression.type": "zstd"})
        assert altered.configs == {"max.message.bytes": "500", "compression.type": "zstd"}
        with pytest.raises(RecordTooLarge):
            await orders.append([large])
        altered = await orders.alter_topic("orders", configs={"max.message.bytes": None})
        assert altered.configs == {"compression.type": "zstd"}
        await orders.append([large])
        with pytest.raises(InvalidConfig):
            await orders.alter_topic("orders", configs={"nonsense": "1"})
        assert orders.topics()["orders"] == altered

    async def test_configs_that_contradict_each_other_are_refused_together(self, orders: Engine) -> None:
        altered = await orders.alter_topic("orders", configs={"min.compaction.lag.ms": "9", "max.compaction.lag.ms": "9"})
        for configs in ({"max.compaction.lag.ms": "8"}, {"min.compaction.lag.ms": "10"}):
            with pytest.raises(InvalidConfig, match="conflict topic config setting"):
                await orders.alter_topic("orders", configs=configs)
        assert orders.topics()["orders"] == altered

    async def test_changing_what_is_not_there(self, engine: Engine) -> None:
        with pytest.raises(UnknownTopic):
            await engine.alter_topic("nowhere", partitions=2)
        with pytest.raises(UnknownTopic):
            await engine.delete_topic("nowhere")

    async def test_a_deleted_topic_is_gone_and_its_name_free(self, orders: Engine) -> None:
        old = orders.topics()["orders"]
        await orders.append([one("orders", b"old", key=b"k"), one("readings", b"kept")])
        before = orders.next_sequence()
        await orders.delete_topic("orders")
        assert set(orders.topics()) == {"readings"}
        with pytest.raises(UnknownTopic):
            await orders.fetch("orders", 0, 0, bytes_max=PLENTY)
        with pytest.raises(UnknownTopic):
            await orders.append([one("orders", b"x")])
        new = await orders.create_topic("orders", 1, {})
        assert new.topic_id != old.topic_id
        assert await orders.find_latest("orders", 0, b"k") is None
        assert not await follow(orders, "orders")
        (appended,) = await orders.append([one("orders", b"new", key=b"k")])
        assert appended.base_offset == 0
        assert appended.sequence >= before
        assert values_of(await read_partition(orders, "orders")) == [b"new"]
        assert values_of(await read_partition(orders, "readings")) == [b"kept"]

    async def test_polls_and_watchers_of_a_deleted_topic_end(self, orders: Engine) -> None:
        woken: list[str] = []
        unwatch = orders.watch("orders", lambda: woken.append("orders"))
        polls = [
            asyncio.create_task(orders.fetch("orders", 0, 0, bytes_max=PLENTY, wait_max_ms=LONG_MS), name="poll"),
            asyncio.create_task(orders.tail("orders", 0, bytes_max=PLENTY, wait_max_ms=LONG_MS), name="poll"),
        ]
        await asyncio.sleep(0.01)
        await orders.delete_topic("orders")
        async with asyncio.timeout(30):
            ends = await asyncio.gather(*polls, return_exceptions=True)
        assert [type(end) for end in ends] == [UnknownTopic, UnknownTopic]
        assert woken
        unwatch()

    async def test_deleting_while_others_append(self, orders: Engine) -> None:
        """Each append either came before and was acknowledged, or hears that the topic is gone."""
        appends = [asyncio.create_task(orders.append([one("orders", b"%d" % n)])) for n in range(20)]
        deleting = asyncio.create_task(orders.delete_topic("orders"))
        results: list[object] = []
        while not deleting.done():
            results += await asyncio.gather(orders.append([one("orders", b"late")]), return_exceptions=True)
        results += await asyncio.gather(*appends, return_exceptions=True)
        await deleting
        assert all(isinstance(result, list | UnknownTopic) for result in results)
        with pytest.raises(UnknownTopic):
            await orders.append([one("orders", b"too late")])
        assert "orders" not in orders.topics()

    # -- scanning ---------------------------------------------------------------------------------------------------------

    async def test_a_scan_gives_at_least_one_batch_and_stops_at_bytes_max(self, orders: Engine) -> None:
        append = one("orders", b"x" * 100)
        for _ in range(4):
            await orders.append([append, one("readings", b"x" * 100)])
        first = await orders.scan(0, topics=lambda _: True, bytes_max=1)
        assert [(name, stored.base_offset) for name, stored in first.batches] == [("orders", 0)]
        some = await orders.scan(first.next_sequence, topics=lambda _: True, bytes_max=len(append.batch) * 4)
        assert 1 < len(some.batches) <= 4
        assert some.batches[0][0] == "readings"

    async def test_a_scan_of_no_topic_goes_on_behind_everything(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a")])
        found = await orders.scan(0, topics=lambda _: False, bytes_max=PLENTY)
        assert (found.batches, found.next_sequence, found.damage) == ([], orders.next_sequence(), [])
        beyond = await orders.scan(found.next_sequence + 5, topics=lambda _: True, bytes_max=PLENTY, wait_max_ms=SHORT_MS)
        assert (beyond.batches, beyond.next_sequence) == ([], found.next_sequence + 5)

    @pytest.mark.parametrize("bytes_max", [1, 700, PLENTY])
    async def test_a_waiting_scan_is_woken_by_its_topics_only(self, orders: Engine, bytes_max: int) -> None:
        await orders.append([one("orders", b"before")])
        start = orders.next_sequence()
        waiting = orders.scan(start, topics=lambda name: name != "orders", bytes_max=bytes_max, wait_max_ms=LONG_MS)
        poll = asyncio.create_task(waiting, name="poll")
        await asyncio.sleep(0.01)
        await orders.append([one("orders", b"other")])
        await asyncio.sleep(0.01)
        assert not poll.done()
        await orders.create_topic("later", 1, {})
        await orders.append([one("later", b"a")])
        async with asyncio.timeout(30):
            found = await poll
        assert [(name, *values_of([stored])) for name, stored in found.batches] == [("later", b"a")]
        assert found.next_sequence == orders.next_sequence()

    @pytest.mark.parametrize("bytes_max", [1, 700, PLENTY])
    async def test_a_scan_misses_and_repeats_nothing_while_others_append(self, engine: Engine, bytes_max: int) -> None:
        traffic = Traffic(bytes_max)
        await traffic.create(engine)
        found: list[tuple[str, Stored]] = []

        async def scan_live() -> None:
            sequence = 0
            while not found or values_of([found[-1][1]]) != [b"the end"]:
                page = await engine.scan(sequence, topics=lambda _: True, bytes_max=bytes_max, wait_max_ms=LONG_MS)
                found.extend(page.batches)
                sequence = page.next_sequence

        scanning = asyncio.create_task(scan_live(), name="poll")
        await traffic.write(engine, 60)
        await engine.append([one("readings", b"the end")])
        async with asyncio.timeout(30):
            await scanning
        assert [(name, stored.sequence, stored.batch) for name, stored in found[:-1]] == [
            (written.append.topic, written.at.sequence, written.stored) for written in traffic.of(None)
        ]

    async def test_a_scan_leaves_deleted_topics_out(self, orders: Engine, reopen: Reopen) -> None:
        for n in range(3):
            await orders.append([one("orders", b"%d" % n), one("readings", b"%d" % n)])
        poll = asyncio.create_task(
            orders.scan(orders.next_sequence(), topics=lambda _: True, bytes_max=PLENTY, wait_max_ms=LONG_MS), name="poll"
        )
        await asyncio.sleep(0.01)
        await orders.delete_topic("orders")
        await asyncio.sleep(0.01)
        assert not poll.done()
        assert {name for name, _ in await scan_all(orders, lambda _: True)} == {"readings"}
        await orders.append([one("readings", b"after")])
        async with asyncio.timeout(30):
            assert [name for name, _ in (await poll).batches] == ["readings"]
        found = await scan_all(await reopen(), lambda _: True)
        assert values_of([stored for _, stored in found]) == [b"0", b"1", b"2", b"after"]

    async def test_deleting_a_topic_while_it_is_scanned_from_files(self, orders: Engine, reopen: Reopen) -> None:
        """What is found is a part, in order, of what there was; the other topic's is all there."""
        for n in range(10):
            await orders.append([one("orders", b"%d" % n), one("readings", b"%d" % n)])
        engine = await reopen()
        scans = [asyncio.create_task(scan_all(engine, lambda _: True, bytes_max=300)) for _ in range(4)]
        await asyncio.sleep(0)
        await engine.delete_topic("orders")
        for found in await asyncio.gather(*scans):
            kept = [stored for name, stored in found if name == "readings"]
            assert values_of(kept) == [b"%d" % n for n in range(10)]
            assert all(earlier.sequence < later.sequence for (_, earlier), (_, later) in pairwise(found))

    # -- watching ---------------------------------------------------------------------------------------------------------

    async def test_watchers_of_all_hear_of_every_topic_once_a_commit(self, orders: Engine) -> None:
        heard: list[int] = []
        leave = orders.watch_all(lambda: heard.append(orders.next_sequence()))
        await orders.append([one("orders", b"a"), one("readings", b"b"), one("orders", b"c", partition=1)])
        assert heard == [orders.next_sequence()]
        await orders.append([one("readings", b"d")])
        assert len(heard) == 2
        leave()
        leave()
        await orders.append([one("readings", b"e")])
        assert len(heard) == 2

    async def test_watchers_hear_of_their_topic_until_they_leave(self, orders: Engine) -> None:
        heard: list[str] = []
        leave = orders.watch("orders", lambda: heard.append("first"))
        stay = orders.watch("orders", lambda: heard.append("second"))
        await orders.append([one("readings", b"x")])
        assert heard == []
        await orders.append([one("orders", b"x")])
        assert sorted(heard) == ["first", "second"]
        leave()
        leave()
        await orders.append([one("orders", b"x", partition=1)])
        assert sorted(heard) == ["first", "second", "second"]
        stay()
        await orders.append([one("orders", b"x")])
        assert len(heard) == 3

    async def test_a_watcher_that_fails_harms_nobody(self, orders: Engine) -> None:
        heard: list[str] = []

        def fail() -> None:
            raise RuntimeError("a reader's mistake")

        unwatch = [orders.watch("orders", wake) for wake in (fail, lambda: heard.append("other"))]
        await orders.append([one("orders", b"a")])
        for stop in unwatch:
            stop()
        assert heard == ["other"]

    # -- letting records go -----------------------------------------------------------------------------------------------

    async def test_deleted_records_are_gone_for_every_reader(self, orders: Engine, reopen: Reopen) -> None:
        for n in range(10):
            await orders.append([one("orders", b"%d" % n, key=b"k%d" % n, at_ms=NOON_MS + n)])
        assert await orders.delete_records("orders", 0, 4) == 4
        async for engine in lives_of(orders, reopen, reopen):
            first = engine.offsets("orders")[0]
            assert (first.log_start, first.high_watermark) == (4, 10)
            with pytest.raises(OffsetOutOfRange) as refused:
                await engine.fetch("orders", 0, 3, bytes_max=PLENTY)
            assert (refused.value.log_start, refused.value.high_watermark) == (4, 10)
            assert values_of((await engine.fetch("orders", 0, 4, bytes_max=PLENTY)).batches)[0] == b"4"
            assert values_of(await follow(engine, "orders")) == [b"%d" % n for n in range(4, 10)]
            assert await engine.find_latest("orders", 0, b"k3") is None
            assert await engine.find_latest("orders", 0, b"k4") is not None
            assert await engine.offset_for_time("orders", 0, NOON_MS) == OffsetForTime(4, NOON_MS + 4)
            assert engine.damage() == []

    async def test_records_are_deleted_from_inside_a_batch(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"a", b"b", b"c", key=b"old"), one("orders", b"d")])
        assert await orders.delete_records("orders", 0, 2) == 2
        async for engine in lives_of(orders, reopen):
            (first, second) = (await engine.fetch("orders", 0, 2, bytes_max=PLENTY)).batches
            assert (first.base_offset, first.first_offset, second.first_offset) == (0, 2, 0)
            assert [s.first_offset for s in await follow(engine, "orders")] == [2, 0]
            assert await engine.offset_for_time("orders", 0, NOON_MS) == OffsetForTime(2, NOON_MS + 2)
        await engine.delete_records("orders", 0, 3)
        assert await engine.find_latest("orders", 0, b"old") is None

    async def test_the_newest_time_is_of_a_record_that_is_left(self, orders: Engine, reopen: Reopen) -> None:
        batch = build([(NOON_MS + ms, b"k", b"v", ()) for ms in (900, 100, 300, 200)])
        await orders.append([Append("orders", 0, batch), one("orders", b"v", at_ms=NOON_MS)])
        await orders.delete_records("orders", 0, 1)
        async for engine in lives_of(orders, reopen):
            assert await engine.offset_of_max_timestamp("orders", 0) == OffsetForTime(2, NOON_MS + 300)

    async def test_a_key_is_found_only_above_the_log_start(self, orders: Engine) -> None:
        batch = build([(NOON_MS, b"a", b"1", ()), (NOON_MS, b"b", b"2", ())])
        await orders.append([Append("orders", 0, batch, keys=[b"a", b"b"])])
        await orders.delete_records("orders", 0, 1)
        assert await orders.find_latest("orders", 0, b"a") is None
        assert await orders.find_latest("orders", 0, b"b") is not None

    async def test_all_records_deleted_and_offsets_go_on(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"a", b"b"), one("orders", b"kept", partition=1)])
        assert await orders.delete_records("orders", 0, -1) == 2
        count = 2
        async for engine in lives_of(orders, reopen, reopen):
            assert (await engine.fetch("orders", 0, count, bytes_max=PLENTY)).batches == []
            (appended,) = await engine.append([one("orders", b"c")])
            assert appended.base_offset == count
            count += 1
            assert values_of(await follow(engine, "orders")) == [b"kept", *[b"c"] * (count - 2)]
            assert engine.damage() == []

    async def test_the_log_start_never_goes_back(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a", b"b", b"c")])
        assert [await orders.delete_records("orders", 0, offset) for offset in (2, 1, 0, 2, 3)] == [2, 2, 2, 2, 3]
        assert orders.offsets("orders")[0].log_start == 3

    @pytest.mark.parametrize(
        ("topic", "partition", "offset", "error"),
        [
            ("nowhere", 0, 0, UnknownTopic),
            ("orders", 2, 0, UnknownPartition),
            ("orders", 0, 2, OffsetOutOfRange),
            ("orders", 0, -2, OffsetOutOfRange),
        ],
    )
    async def test_records_that_cannot_be_deleted(
        self, orders: Engine, topic: str, partition: int, offset: int, error: type[BrokerError]
    ) -> None:
        await orders.append([one("orders", b"a")])
        with pytest.raises(error):
            await orders.delete_records(topic, partition, offset)
        assert orders.offsets("orders")[0].log_start == 0

    async def test_a_reader_from_before_is_told_of_the_gap_once(self, orders: Engine, reopen: Reopen) -> None:
        landed = [(await orders.append([one("orders", b"%d" % n)]))[0] for n in range(6)]
        await orders.delete_records("orders", 0, 4)
        read_one = landed[1].sequence
        async for engine in lives_of(orders, reopen):
            tail = await engine.tail("orders", read_one, bytes_max=1)
            assert [(g.topic, g.partition, g.to_offset) for g in tail.gap] == [("orders", 0, 4)]
            assert tail.gap[0].from_offset <= 1
            assert values_of(tail.batches) == [b"4"]
            assert (await engine.tail("orders", tail.next_sequence, bytes_max=1)).gap == []
            scan = await engine.scan(read_one, topics=lambda name: True, bytes_max=PLENTY)
            assert [gap.to_offset for gap in scan.gap] == [4]
            # Who asks for what there is, who had read it all, and who reads another partition, misses nothing.
            assert (await engine.tail("orders", 0, bytes_max=PLENTY)).gap == []
            assert (await engine.tail("orders", landed[4].sequence, bytes_max=PLENTY)).gap == []
            assert (await engine.tail("orders", read_one, bytes_max=PLENTY, partitions=[1])).gap == []
            assert (await engine.scan(read_one, topics=lambda name: name != "orders", bytes_max=PLENTY)).gap == []

    async def test_a_gap_ends_a_long_poll(self, orders: Engine) -> None:
        (landed,) = await orders.append([one("orders", b"a")])
        await orders.append([one("orders", b"b")])
        await orders.delete_records("orders", 0, -1)
        async with asyncio.timeout(30):
            tail = await orders.tail("orders", landed.sequence + 1, bytes_max=PLENTY, wait_max_ms=LONG_MS)
        assert (tail.batches, [(g.from_offset, g.to_offset) for g in tail.gap]) == ([], [(0, 2)])

    async def test_old_records_expire(self, engine: Engine, reopen: Reopen) -> None:
        await engine.create_topic("short", 1, {"retention.ms": "86400000"})
        await engine.create_topic("long", 1, {"retention.ms": "-1"})
        await engine.append([one("short", b"a"), one("long", b"a")])
        assert await engine.apply_retention() == 1
        (appended,) = await engine.append([one("short", b"young", at_ms=int(time.time() * 1000))])
        async for opened in lives_of(engine, reopen):
            assert await opened.apply_retention() == 0
            assert [o.log_start for o in opened.offsets("short") + opened.offsets("long")] == [1, 0]
            assert values_of(await follow(opened, "short")) == [b"young"]
        assert appended.base_offset == 1

    async def test_old_records_expire_though_young_ones_share_their_file(self, engine: Engine) -> None:
        await engine.create_topic("short", 1, {"retention.ms": "86400000"})
        for n in range(4):
            await engine.append([one("short", b"old %d" % n, at_ms=NOON_MS + n)])
        await engine.append([one("short", b"young", at_ms=int(time.time() * 1000))])
        assert [await engine.apply_retention() for _ in range(2)] == [1, 0]
        assert values_of(await read_partition_from(engine, "short", 4)) == [b"young"]
        assert engine.offsets("short")[0].log_start == 4

    async def test_a_record_that_is_young_keeps_what_follows_it(self, engine: Engine) -> None:
        await engine.create_topic("short", 1, {"retention.ms": "86400000"})
        await engine.append([one("short", b"young", at_ms=int(time.time() * 1000))])
        await engine.append([one("short", b"old")])
        assert await engine.apply_retention() == 0

    async def test_the_default_is_seven_days(self, orders: Engine) -> None:
        day_ms, now_ms = 86_400_000, int(time.time() * 1000)
        await orders.append(
            [one("orders", b"six", at_ms=now_ms - 6 * day_ms), one("readings", b"eight", at_ms=now_ms - 8 * day_ms)]
        )
        await orders.apply_retention()
        assert [o.log_start for o in orders.offsets("orders") + orders.offsets("readings")] == [0, 0, 1]

    async def test_a_deleted_and_new_topic_begins_at_0(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"a")])
        await orders.delete_records("orders", 0, -1)
        await orders.delete_topic("orders")
        await orders.create_topic("orders", 2, {})
        await orders.append([one("orders", b"b")])
        async for engine in lives_of(orders, reopen):
            assert engine.offsets("orders")[0].log_start == 0
            assert values_of(await read_partition(engine, "orders")) == [b"b"]

    @pytest.mark.parametrize("value", ["-2", "", "1.5", "9" * 20, "9" * 5000, "9223372036854775808"])
    async def test_retention_out_of_its_range(self, engine: Engine, value: str) -> None:
        for name in ("retention.ms", "retention.bytes"):
            with pytest.raises(InvalidConfig):
                await engine.create_topic("t", 1, {name: value})

    # -- in good health ---------------------------------------------------------------------------------------------------

    async def test_a_healthy_engine_says_so(self, orders: Engine) -> None:
        await orders.append([one("orders", b"a")])
        assert orders.append_problem() is None
        assert orders.damage() == []
        assert orders.capabilities().commit_sequence

    # -- the next life ----------------------------------------------------------------------------------------------------

    async def test_topics_and_configs_outlive_a_restart(self, orders: Engine, reopen: Reopen) -> None:
        await orders.alter_topic("orders", partitions=5, configs={"compression.type": "lz4"})
        before = dict(orders.topics())
        assert dict((await reopen()).topics()) == before

    async def test_offsets_and_sequences_go_on_after_a_restart(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"a", b"b"), one("orders", b"c", partition=1)])
        offsets, sequence = orders.offsets("orders"), orders.next_sequence()
        engine = await reopen()
        assert (engine.offsets("orders"), engine.next_sequence()) == (offsets, sequence)
        (appended,) = await engine.append([one("orders", b"d")])
        assert appended.base_offset == 2
        assert appended.sequence >= sequence
        assert values_of(await read_partition(engine, "orders")) == [b"a", b"b", b"d"]
        assert values_of(await follow(engine, "orders")) == [b"a", b"b", b"c", b"d"]

    async def test_what_was_accepted_without_waiting_is_kept_by_a_clean_stop(self, orders: Engine, reopen: Reopen) -> None:
        for n in range(20):
            await orders.append([one("orders", b"%d" % n)], durable=False)
        assert values_of(await read_partition(await reopen(), "orders")) == [b"%d" % n for n in range(20)]

    async def test_a_deleted_topic_stays_deleted(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"old", key=b"k"), one("readings", b"kept")])
        await orders.delete_topic("orders")
        engine = await reopen()
        assert set(engine.topics()) == {"readings"}
        await engine.create_topic("orders", 1, {})
        async for opened in lives_of(engine, reopen):
            assert await read_partition(opened, "orders") == []
            assert await opened.find_latest("orders", 0, b"k") is None
            assert values_of(await follow(opened, "readings")) == [b"kept"]

    async def test_a_name_made_anew_is_kept_apart_from_the_old_one(self, orders: Engine, reopen: Reopen) -> None:
        await orders.append([one("orders", b"old")])
        await orders.delete_topic("orders")
        topic = await orders.create_topic("orders", 1, {})
        await orders.append([one("orders", b"new")])
        engine = await reopen()
        assert engine.topics()["orders"] == topic
        assert values_of(await read_partition(engine, "orders")) == [b"new"]

    async def test_many_restarts(self, orders: Engine, reopen: Reopen) -> None:
        engine = orders
        for life in range(5):
            await engine.append([one("orders", b"%d" % life, key=b"k")])
            engine = await reopen()
        assert values_of(await read_partition(engine, "orders")) == [b"0", b"1", b"2", b"3", b"4"]
        found = await engine.find_latest("orders", 0, b"k")
        assert found is not None
        assert found.base_offset == 4
