"""Feeds of a filter over many topics: each topic by its own rights, at the moment of delivery."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.delivery.filter import Filter
from broker.delivery.position import AtOffset, AtTime, PositionRefused
from broker.errors import UnknownTopic
from gateway.errors import Busy
from gateway.pipeline import Incoming, PipelineOptions
from security.errors import AccessDenied, TokenRevoked

EVERYTHING = {"bytes_max": 1 << 20, "records_max": 1_000, "wait_max_ms": 0}
PAYMENTS_TOO: dict[str, Any] = {
    "eu-reader": [
        {"actions": ["read"], "topic": "orders", "key": "eu/*"},
        {"actions": ["read"], "topic": "payments"},
    ]
}


def record(key: str | None, value: str = "v", **members: Any) -> Incoming:
    return Incoming(None if key is None else key.encode(), value.encode(), partition=0, **members)


async def fill(door: Any) -> None:
    await door.publish("orders", record("eu/1"), record("us/1"), record(None))
    await door.publish("payments", record("eu/1"), record("us/1"))
    await door.publish("secrets", record("eu/1"), record("us/1"))


async def addresses(feed: Any) -> list[str]:
    found: list[str] = []
    while page := await feed.next(**EVERYTHING):
        found += [f"{one.topic}/{(one.record.key or b'-').decode()}" for one in page]
    return found


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("#", ["orders/eu/1", "payments/eu/1", "payments/us/1"]),
        ("+", ["orders/eu/1", "payments/eu/1", "payments/us/1"]),
        ("+/eu/+", ["orders/eu/1", "payments/eu/1"]),
        ("+/us/#", ["payments/us/1"]),
        ("orders", ["orders/eu/1"]),
        ("orders/eu/+", ["orders/eu/1"]),
        ("orders/us/+", []),
        ("payments/us/1", ["payments/us/1"]),
    ],
)
async def test_some_keys_of_one_topic_all_of_another_nothing_of_a_third(door: Any, address: str, seen: list[str]) -> None:
    await fill(door)
    door.grant(PAYMENTS_TOO)
    feed = await door.pipeline.subscribe_filter(await door.session("eu-reader"), Filter.parse(address), "earliest")
    assert await addresses(feed) == seen
    assert feed.at_end


async def test_batches_of_a_forbidden_topic_are_not_even_read(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(door)
    asked: list[str] = []
    scan = door.engine.scan

    async def watched(*args: Any, **members: Any) -> Any:
        found = await scan(*args, **members)
        asked.extend(topic for topic, _ in found.batches)
        return found

    monkeypatch.setattr(door.engine, "scan", watched)
    feed = await door.pipeline.subscribe_filter(await door.session("eu-reader"), Filter.parse("#"), "earliest")
    assert await addresses(feed) == ["orders/eu/1"]
    assert set(asked) == {"orders"}


async def test_who_may_read_nothing_is_refused_and_not_left_waiting(door: Any) -> None:
    await fill(door)
    for session in (await door.session("eu-writer"), await door.session("admin", scopes=["publish:*"])):
        with pytest.raises(AccessDenied):
            await door.pipeline.subscribe_filter(session, Filter.parse("#"), "earliest")
    assert door.audited[-1][-2] == "denied"


@pytest.mark.parametrize("address", ["secrets", "secrets/eu/1", "secrets/#", "nothing-here", "orders/us/1"])
async def test_a_topic_named_without_rights_is_refused_whether_it_exists_or_not(door: Any, address: str) -> None:
    await fill(door)
    with pytest.raises(AccessDenied):
        await door.pipeline.subscribe_filter(await door.session("eu-reader"), Filter.parse(address), "earliest")


async def test_a_topic_named_with_rights_must_exist(door: Any) -> None:
    with pytest.raises(UnknownTopic):
        await door.pipeline.subscribe_filter(await door.session("admin"), Filter.parse("orders/+"), "earliest")


async def test_topics_made_later_are_met(door: Any) -> None:
    feed = await door.pipeline.subscribe_filter(await door.session("admin"), Filter.parse("+/eu/+"), "latest")
    waiting = asyncio.create_task(feed.next(bytes_max=1 << 20, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0)
    await door.publish("orders", record("us/1"))
    await door.publish("payments", record("eu/7"))
    [found] = await waiting
    assert (found.topic, found.record.key) == ("payments", b"eu/7")


async def test_rights_are_asked_at_the_moment_of_delivery(door: Any) -> None:
    door.grant(PAYMENTS_TOO)
    await fill(door)
    feed = await door.pipeline.subscribe_filter(await door.session("eu-reader"), Filter.parse("#"), "latest")
    waiting = asyncio.create_task(feed.next(bytes_max=1 << 20, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    door.grant({})  # payments are taken away while the read is pending
    await door.publish("payments", record("eu/2"))
    await door.publish("orders", record("eu/3"))
    [found] = await waiting
    assert (found.topic, found.record.key) == ("orders", b"eu/3")
    door.grant({"eu-reader": [{"actions": ["publish"], "topic": "orders"}]})
    with pytest.raises(AccessDenied):
        await feed.next(**EVERYTHING)


async def test_a_revoked_token_ends_a_pending_read(door: Any) -> None:
    await fill(door)
    token = door.token("admin")
    feed = await door.pipeline.subscribe_filter(await door.session(token=token), Filter.parse("#"), "latest")
    waiting = asyncio.create_task(feed.next(bytes_max=1 << 20, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    door.revoke(token)
    await door.publish("orders", record("eu/2"))
    with pytest.raises(TokenRevoked):
        await waiting


async def test_a_narrowed_token_narrows_the_filter(door: Any) -> None:
    await fill(door)
    session = await door.session("admin", scopes=["read:pay*:us/*"])
    feed = await door.pipeline.subscribe_filter(session, Filter.parse("#"), "earliest")
    assert await addresses(feed) == ["payments/us/1"]


async def test_headers_and_key_prefix(door: Any) -> None:
    paid = ((b"type", b"paid"),)
    await door.publish("orders", record("eu/1", headers=paid), record("eu/2"), record("us/1", headers=paid))
    filter = Filter.parse("+", key_prefix=b"eu/", headers={"type": "paid"})
    feed = await door.pipeline.subscribe_filter(await door.session("admin"), filter, "earliest")
    assert await addresses(feed) == ["orders/eu/1"]


async def test_from_a_time_over_topics(door: Any) -> None:
    for number in range(3):
        await door.publish("orders", record(f"{number}", timestamp_ms=1_000 * number))
        await door.publish("payments", record(f"{number}", timestamp_ms=1_000 * number + 500))
    feed = await door.pipeline.subscribe_filter(await door.session("admin"), Filter.parse("#"), AtTime(1_200))
    assert await addresses(feed) == ["payments/1", "orders/2", "payments/2"]


async def test_an_offset_is_no_position_among_topics(door: Any) -> None:
    await fill(door)
    session = await door.session("admin")
    with pytest.raises(PositionRefused):
        await door.pipeline.subscribe_filter(session, Filter.parse("+/eu/1"), AtOffset(0, 1))
    feed = await door.pipeline.subscribe_filter(session, Filter.parse("orders"), AtOffset(0, 1))
    assert await addresses(feed) == ["orders/us/1", "orders/-"]


async def test_feeds_of_filters_count_against_the_same_bound(open_door: Any) -> None:
    door = open_door(pipeline=PipelineOptions(feeds_max=1))
    await fill(door)
    session = await door.session("admin")
    feed = await door.pipeline.subscribe_filter(session, Filter.parse("#"), "earliest")
    with pytest.raises(Busy):
        await door.pipeline.subscribe_filter(session, Filter.parse("orders"), "earliest")
    feed.close()
    (await door.pipeline.subscribe_filter(session, Filter.parse("#"), "earliest")).close()


async def test_expired_records_are_left_out(door: Any) -> None:
    await door.publish("orders", record("a", ttl_ms=60_000), record("b"))
    door.clock.ahead_ms = 60_001
    feed = await door.pipeline.subscribe_filter(await door.session(token=door.token("admin")), Filter.parse("#"), "earliest")
    assert await addresses(feed) == ["orders/b"]


keys = st.sampled_from(["eu/1", "eu/2", "us/1", "eu", None])
topics = st.sampled_from(["orders", "payments", "secrets"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(topics, keys), max_size=12),
    st.sampled_from(["#", "+/eu/+", "orders/eu/#", "+/eu", "payments/#"]),
    st.integers(1, 4),
)
async def test_any_filter_gives_what_single_feeds_give_together(
    door: Any, published: list[tuple[str, str | None]], address: str, records_max: int
) -> None:
    door.grant(PAYMENTS_TOO)
    session, begin = await door.session("eu-reader"), door.engine.next_sequence()
    for topic in ("orders", "payments", "secrets"):
        await door.publish(topic, record("begin"))
    for topic, key in published:
        await door.publish(topic, record(key))
    filter, wanted = Filter.parse(address), set()
    for topic in ("orders", "payments"):
        if filter.topics(topic):
            single = await door.pipeline.subscribe(session, topic, None, "earliest")
            while page := await single.next(**EVERYTHING):
                wanted |= {one.cursor for one in page if one.cursor.sequence > begin and filter.matches(one.topic, one.record)}
            single.close()
    feed, found = await door.pipeline.subscribe_filter(session, filter, "earliest"), []
    while page := await feed.next(bytes_max=1 << 20, records_max=records_max, wait_max_ms=0):
        assert len(page) <= records_max
        found += [one.cursor for one in page if one.cursor.sequence > begin]
    feed.close()
    assert found == sorted(wanted)
