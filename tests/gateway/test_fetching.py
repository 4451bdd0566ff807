"""Whole batches on the way out, on a real engine: what may be had, no more, and where to go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.batch import read_header, split, walk
from broker.errors import OffsetOutOfRange, UnknownPartition, UnknownTopic
from gateway.fetching import (
    TOPIC_LOOKS,
    TURN_BYTES,
    TURN_LOOKS,
    WATCHES_TURN,
    FetchLimits,
    FetchWanted,
    Look,
    PartitionRead,
)
from gateway.pipeline import Incoming
from security.errors import AccessDenied, TokenRevoked
from security.policy.quotas import RateLimit

AT_ONCE = FetchLimits(1, 1 << 20, 0)
WAITING = FetchLimits(1, 1 << 20, 10_000)


async def publish(door: Any, *keys: str | None, partition: int = 0, topic: str = "orders", **more: Any) -> None:
    """One batch."""
    records = [Incoming(None if key is None else key.encode(), b"v" * 20, partition=partition, **more) for key in keys]
    await door.publish(topic, *records)


async def fetch(door: Any, session: Any, *wanted: tuple[str, int, int], limits: FetchLimits = AT_ONCE) -> list[PartitionRead]:
    return await door.pipeline.fetching.fetch(session, [FetchWanted(*one, 1 << 20) for one in wanted], limits)


def seen(read: PartitionRead) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.key) for batch in split(b"".join(read.pieces())) for record in walk(batch)]


def goes_on_at(read: PartitionRead) -> int:
    """As a client does: behind the last batch."""
    return read_header(split(b"".join(read.pieces()))[-1]).next_offset


async def until_waiting(door: Any, task: asyncio.Task[Any], topic: str = "orders") -> None:
    await door.until(lambda: task.done() or bool(door.engine._watchers.get(topic)))


@pytest.fixture
async def orders(door: Any) -> Any:
    await door.engine.create_topic("orders", 2, {})
    return door


async def test_whole_batches_also_from_an_offset_inside_of_one(orders: Any) -> None:
    await publish(orders, "a", "b", "c")
    await publish(orders, "d", partition=1)
    session = await orders.session("subscriber")
    first, second = await fetch(orders, session, ("orders", 0, 1), ("orders", 1, 0))
    assert seen(first) == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert (first.high_watermark, first.stable_offset, first.log_start) == (3, 3, 0)
    assert seen(second) == [(0, b"d")]
    assert orders.count("records_out_total", protocol="rest") == 4


async def test_each_partition_is_refused_for_itself(orders: Any) -> None:
    await publish(orders, "a")
    session = await orders.session("orders-reader")
    reads = await fetch(orders, session, ("orders", 0, 0), ("orders", 9, 0), ("orders", 0, 2), ("others", 0, 0), limits=WAITING)
    assert [type(read.error) for read in reads] == [type(None), UnknownPartition, OffsetOutOfRange, AccessDenied]
    admin = await orders.session()
    [read] = await fetch(orders, admin, ("nowhere", 0, 0), limits=WAITING)
    assert isinstance(read.error, UnknownTopic)


async def test_it_waits_for_any_of_the_partitions(orders: Any) -> None:
    session = await orders.session("subscriber")
    waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), ("orders", 1, 0), limits=WAITING))
    await until_waiting(orders, waiting)
    await publish(orders, "a", partition=1)
    none, one = await waiting
    assert (seen(none), seen(one)) == ([], [(0, b"a")])


async def test_it_waits_for_as_much_as_is_asked_for_and_no_longer_than_that(orders: Any) -> None:
    session = await orders.session("subscriber")
    await publish(orders, "a")
    waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), limits=FetchLimits(250, 1 << 20, 10_000)))
    await until_waiting(orders, waiting)
    await publish(orders, "b")
    assert len(seen((await waiting)[0])) == 2
    [read] = await fetch(orders, session, ("orders", 0, 0), limits=FetchLimits(1 << 20, 1 << 20, 50))
    assert len(seen(read)) == 2  # what there was when the time was up


async def test_a_topic_that_goes_while_it_is_waited_for(orders: Any) -> None:
    session = await orders.session("subscriber")
    waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), limits=WAITING))
    await until_waiting(orders, waiting)
    await orders.engine.delete_topic("orders")
    assert isinstance((await waiting)[0].error, UnknownTopic)


class TestBytes:
    async def test_the_first_batch_of_all_comes_whole_whatever_its_size(self, orders: Any) -> None:
        await publish(orders, *"abcdefghij")
        await publish(orders, "k", partition=1)
        session = await orders.session("subscriber")
        for limits, own_max in ((FetchLimits(1, 10, 0), 1 << 20), (FetchLimits(1, 1 << 20, 0), 10)):
            wanted = [FetchWanted("orders", 0, 0, own_max), FetchWanted("orders", 1, 0, own_max)]
            first, second = await orders.pipeline.fetching.fetch(session, wanted, limits)
            assert len(seen(first)) == 10
            assert (second.error, seen(second), second.high_watermark) == (None, [], 1)

    async def test_what_follows_fits(self, orders: Any) -> None:
        for key in "abcd":
            await publish(orders, key)
        session = await orders.session("subscriber")
        size = len((await orders.engine.fetch("orders", 0, 0, bytes_max=1)).batches[0].batch)
        [read] = await fetch(orders, session, ("orders", 0, 0), limits=FetchLimits(1, 3 * size, 0))
        assert [offset for offset, _ in seen(read)] == [0, 1, 2]

    async def test_without_room_an_offset_is_looked_at_all_the_same(self, orders: Any) -> None:
        session = await orders.session("subscriber")
        [read] = await fetch(orders, session, ("orders", 0, 5), limits=FetchLimits(1, 0, 0))
        assert isinstance(read.error, OffsetOutOfRange)


class TestSomeKeys:
    async def test_forbidden_records_are_cut_and_offsets_stay(self, orders: Any) -> None:
        await publish(orders, "us/1", "eu/1", None, "eu/2")
        await publish(orders, "eu/3")
        [read] = await fetch(orders, await orders.session("eu-reader"), ("orders", 0, 0))
        assert seen(read) == [(1, b"eu/1"), (3, b"eu/2"), (4, b"eu/3")]
        assert b"us/1" not in b"".join(read.pieces())

    async def test_a_reader_gets_past_what_he_may_not_have(self, orders: Any) -> None:
        for key in ("eu/1", "us/1", "us/2"):
            await publish(orders, key)
        session = await orders.session("eu-reader")
        [read] = await fetch(orders, session, ("orders", 0, 0))
        assert (seen(read), goes_on_at(read)) == ([(0, b"eu/1")], 3)
        [rest] = await fetch(orders, session, ("orders", 0, 1), limits=WAITING)
        assert (seen(rest), goes_on_at(rest)) == ([], 3)

    async def test_what_was_forbidden_meanwhile_is_cut_from_what_was_waited_for(self, orders: Any) -> None:
        session = await orders.session("eu-reader")
        waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), limits=WAITING))
        await until_waiting(orders, waiting)
        orders.grant({"eu-reader": [{"actions": ["read"], "topic": "orders", "key": "us/*"}]})
        await publish(orders, "eu/1", "us/1")
        assert seen((await waiting)[0]) == [(1, b"us/1")]


class TestAuthorisedAgain:
    async def test_a_policy_that_changes_while_it_is_waited(self, orders: Any) -> None:
        session = await orders.session("eu-reader")
        waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), limits=WAITING))
        await until_waiting(orders, waiting)
        orders.grant({"eu-reader": [{"actions": ["describe"], "topic": "orders"}]})
        await publish(orders, "eu/1")
        [read] = await waiting
        assert isinstance(read.error, AccessDenied)
        assert (read.pieces(), read.high_watermark) == ([], -1)

    async def test_a_token_that_is_revoked_while_it_is_waited(self, orders: Any) -> None:
        token = orders.token("subscriber")
        session = await orders.session(token=token)
        waiting = asyncio.create_task(fetch(orders, session, ("orders", 0, 0), limits=WAITING))
        await until_waiting(orders, waiting)
        orders.revoke(token)
        await publish(orders, "a")
        with pytest.raises(TokenRevoked):
            await waiting


async def test_deleted_records_of_a_batch_are_cut(orders: Any) -> None:
    await publish(orders, "a", "b", "c")
    await orders.engine.delete_records("orders", 0, 2)
    [read] = await fetch(orders, await orders.session("subscriber"), ("orders", 0, 2))
    assert seen(read) == [(2, b"c")]
    assert read.log_start == 2


async def test_expired_records_are_cut_where_the_topic_says_so(door: Any) -> None:
    session = await door.session("subscriber")
    for name, configs in (("loose", {}), ("strict", {"strict.ttl": "true"})):
        await door.engine.create_topic(name, 1, configs)
        await publish(door, "a", topic=name, ttl_ms=1_000)
        await publish(door, "b", topic=name)
        await publish(door, "c", topic=name, ttl_ms=1_000)
    door.clock.ahead_ms = 2_000
    loose, strict = await fetch(door, session, ("loose", 0, 0), ("strict", 0, 0))
    assert [key for _, key in seen(loose)] == [b"a", b"b", b"c"]
    assert (seen(strict), goes_on_at(strict)) == ([(1, b"b")], 3)


async def test_a_quota_on_bytes_holds_the_answer_back(open_door: Any) -> None:
    door = open_door(quotas={"bytes_out": RateLimit(2_000, 10)})
    await door.engine.create_topic("orders", 1, {})
    await publish(door, "a")
    session = await door.session("subscriber")
    began_ms = door.clock.monotonic_ms()
    for _ in range(3):
        [read] = await fetch(door, session, ("orders", 0, 0))
        assert seen(read)
    assert door.clock.monotonic_ms() - began_ms >= 50


class TestPlace:
    async def test_earliest_latest_and_by_time(self, orders: Any) -> None:
        for at_ms in (1_000, 3_000, 2_000):
            await publish(orders, "k", timestamp_ms=at_ms)
        place, session = orders.pipeline.fetching.place, await orders.session("subscriber")
        asked = ["earliest", "latest", "newest", 0, 2_000, 3_000, 3_001]
        found = [await place(session, "orders", 0, at) for at in asked]
        assert [(one.offset, one.timestamp_ms) for one in found] == [
            (0, -1),
            (3, -1),
            (1, 3_000),
            (0, 1_000),
            (1, 3_000),
            (1, 3_000),
            (-1, -1),
        ]

    async def test_who_may_not_know_of_the_topic_is_told_nothing(self, orders: Any) -> None:
        place, session = orders.pipeline.fetching.place, await orders.session("eu-writer")
        for topic in ("orders", "nowhere"):
            with pytest.raises(AccessDenied):
                await place(session, topic, 0, "latest")
        assert (await place(await orders.session("eu-reader"), "orders", 0, "latest")).offset == 0


class TestTurns:
    """Of a request that names very many partitions, or reads very much, others see little."""

    async def test_what_is_at_hand_is_answered_in_the_same_turn(self, orders: Any) -> None:
        await publish(orders, "a")
        session = await orders.session("subscriber")
        found = orders.pipeline.fetching.begin(session, [FetchWanted("orders", 0, 0, 1 << 20)], WAITING)
        assert isinstance(found, list)
        assert seen(found[0]) == [(0, b"a")]

    async def test_others_have_their_turn_after_so_many_topics(self, orders: Any) -> None:
        session = await orders.session()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        wanted = [FetchWanted(f"nowhere-{number}", 0, 0, 1) for number in range(1_000)]
        reads = await orders.pipeline.fetching.fetch(session, wanted, AT_ONCE)
        other.cancel()
        assert turns > 1_000 * TOPIC_LOOKS // TURN_LOOKS - 2
        assert all(isinstance(read.error, UnknownTopic) for read in reads)

    async def test_others_have_their_turn_after_so_many_bytes(self, orders: Any) -> None:
        session = await orders.session()
        for partition in (0, 1):
            for _ in range(2):
                await orders.publish("orders", Incoming(None, bytes(TURN_BYTES // 2), partition=partition))
        wanted = [FetchWanted("orders", partition, 0, 4 * TURN_BYTES) for partition in (0, 1)]
        found = orders.pipeline.fetching.begin(session, wanted, FetchLimits(1, 8 * TURN_BYTES, 0))
        assert not isinstance(found, list)
        assert [len(seen(read)) for read in await found] == [2, 2]

    async def test_only_partitions_of_what_woke_it_are_looked_at_again(
        self, orders: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await orders.engine.create_topic("others", 100, {})
        session = await orders.session("subscriber")
        wanted = [FetchWanted("others", number, 0, 1 << 20) for number in range(100)] + [FetchWanted("orders", 0, 0, 1 << 20)]
        waiting = asyncio.create_task(orders.pipeline.fetching.fetch(session, wanted, WAITING))
        await until_waiting(orders, waiting)
        looked_at: list[str] = []
        read = Look._read

        def counted(self: Look, one: FetchWanted) -> PartitionRead | None:
            looked_at.append(one.topic)
            return read(self, one)

        monkeypatch.setattr(Look, "_read", counted)
        await publish(orders, "a")
        assert seen((await waiting)[-1]) == [(0, b"a")]
        assert looked_at == ["orders"]

    async def test_a_commit_while_very_many_topics_begin_to_be_watched(self, orders: Any) -> None:
        session = await orders.session("subscriber")
        names = [f"topic-{number}" for number in range(2 * WATCHES_TURN)]
        for name in names:
            await orders.engine.create_topic(name, 1, {})
        wanted = [FetchWanted(name, 0, 0, 1 << 20) for name in names]
        waiting = asyncio.create_task(orders.pipeline.fetching.fetch(session, wanted, WAITING))
        await until_waiting(orders, waiting, names[0])
        await publish(orders, "a", topic=names[-1])
        assert seen((await waiting)[-1]) == [(0, b"a")]
        assert not orders.engine._watchers


async def test_what_does_not_fit_any_more_is_not_read_in_vain(orders: Any) -> None:
    await publish(orders, *"abcd")
    await publish(orders, *"abcd", partition=1)
    size = len((await orders.engine.fetch("orders", 0, 0, bytes_max=1)).batches[0].batch)
    session = await orders.session("subscriber")
    first, second = await fetch(orders, session, ("orders", 0, 0), ("orders", 1, 0), limits=FetchLimits(1, size + 10, 0))
    assert (len(seen(first)), seen(second), second.high_watermark) == (4, [], 4)
