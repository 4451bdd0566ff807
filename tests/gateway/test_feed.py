"""A live reader: cut, paced, bounded, and gone when it is closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.engine.base import Damage, Tail
from gateway import feed as module
from gateway.pipeline import Incoming
from security.policy.quotas import RateLimit

EVERYTHING = {"bytes_max": 1 << 20, "records_max": 100, "wait_max_ms": 0}


def record(key: str, value: bytes = b"v") -> Incoming:
    return Incoming(key.encode(), value, partition=0)


async def test_cut_records_move_the_cursor(door: Any) -> None:
    await door.publish("orders", record("us/1"), record("eu/1"), record("us/2"))
    feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", None, "earliest")
    [found] = await feed.next(**EVERYTHING)
    assert found.record.key == b"eu/1"
    assert feed.cursor > found.cursor
    assert await feed.next(**EVERYTHING) == []
    assert feed.at_end


async def test_it_reads_on_past_pages_without_a_record_it_may_have(door: Any) -> None:
    for number in range(20):
        await door.publish("orders", record(f"us/{number}"))
    await door.publish("orders", record("eu/1"))
    feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", None, "earliest")
    found = await feed.next(bytes_max=1 << 20, records_max=2, wait_max_ms=0)
    assert [one.record.key for one in found] == [b"eu/1"]


async def test_but_not_for_ever_in_one_call(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCAN_BYTES_MAX", 100)
    for number in range(20):
        await door.publish("orders", record(f"us/{number:02}", b"x" * 20))
    await door.publish("orders", record("eu/1"))
    feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", None, "earliest")
    empty = 0
    while not (found := await feed.next(bytes_max=30, records_max=2, wait_max_ms=0)):
        assert not feed.at_end
        empty += 1
    assert found[0].record.key == b"eu/1"
    assert empty == 5


async def test_forbidden_records_do_not_end_a_wait(door: Any) -> None:
    await door.publish("orders", record("us/1"))
    feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", None, "latest")
    waiting = asyncio.create_task(feed.next(bytes_max=1 << 20, records_max=10, wait_max_ms=30_000))
    for number in range(5):
        await door.publish("orders", record(f"us/{number}"))
    assert not waiting.done()
    await door.publish("orders", record("eu/1"))
    assert [one.record.key for one in await waiting] == [b"eu/1"]


async def test_it_is_paced_by_the_quota_of_its_principal(open_door: Any) -> None:
    door = open_door(quotas={"bytes_out": RateLimit(2_000, 100)})
    await door.publish("orders", *[record("k", b"x" * 99)] * 4)
    feed = await door.pipeline.subscribe(await door.session(), "orders", None, "earliest")
    bounds = {"bytes_max": 100, "records_max": 100}
    assert len(await feed.next(**bounds, wait_max_ms=0)) == 1
    assert len(await feed.next(**bounds, wait_max_ms=0)) == 1  # the first is paid for with the burst
    assert await feed.next(**bounds, wait_max_ms=0) == []  # the second is owed
    assert len(await feed.next(**bounds, wait_max_ms=30_000)) == 1


async def test_a_feed_that_owes_waits_no_longer_than_asked(open_door: Any) -> None:
    door = open_door(quotas={"bytes_out": RateLimit(0.001, 1)})
    await door.publish("orders", *[record("k")] * 3)
    feed = await door.pipeline.subscribe(await door.session(), "orders", None, "earliest")
    for _ in range(2):
        assert len(await feed.next(bytes_max=1, records_max=1, wait_max_ms=0)) == 1
    assert await feed.next(bytes_max=1, records_max=1, wait_max_ms=5) == []


async def test_lost_ranges_are_handed_over_once(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await door.publish("orders", record("k"))
    lost = Damage("orders", 0, 3, 9, "tag does not match")

    async def tail(*_: object, **__: object) -> Tail:
        return Tail([], door.engine.next_sequence(), [lost])

    monkeypatch.setattr(door.engine, "tail", tail)
    feed = await door.pipeline.subscribe(await door.session(), "orders", None, "earliest")
    assert await feed.next(**EVERYTHING) == []
    assert feed.take_damage() == [lost]
    assert feed.take_damage() == []
