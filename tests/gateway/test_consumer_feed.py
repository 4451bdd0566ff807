"""A durable consumer through the pipeline: authorised at each delivery, cut, paced, bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.delivery.consumer_errors import ConsumerConflict, ConsumerInvalid, ConsumerTakenOver
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.filter import Filter
from broker.errors import UnknownTopic
from gateway.errors import Busy
from gateway.pipeline import Incoming, PipelineOptions
from security.errors import AccessDenied, IdentityProblem, TokenExpired, TokenRevoked
from security.policy.quotas import RateLimit

EVERYTHING = {"bytes_max": 1 << 20, "records_max": 100, "wait_max_ms": 0}
ORDERS = Filter.parse("orders")


def record(key: str, value: bytes = b"v") -> Incoming:
    return Incoming(key.encode(), value)


def keys(consumed: list[Any]) -> list[bytes]:
    return [one.record.key for one in consumed]


def tags(consumed: list[Any]) -> list[str]:
    return [one.tag for one in consumed]


async def consume(door: Any, session: Any, filter: Filter = ORDERS, name: str = "billing", **options: Any) -> Any:
    return await door.pipeline.consume(session, filter, name, ConsumerOptions(**options), "earliest")


async def test_some_keys_are_cut_and_the_rest_is_acknowledged(door: Any) -> None:
    await door.publish("orders", record("eu/1"), record("us/1"), record("eu/2"))
    session = await door.session("eu-reader")
    feed = await consume(door, session)
    assert feed.created
    found = await feed.next(**EVERYTHING)
    assert keys(found) == [b"eu/1", b"eu/2"]
    await feed.nack(tags(found[:1]), delay_ms=0)
    assert [(one.record.key, one.attempt) for one in await feed.next(**EVERYTHING)] == [(b"eu/1", 2)]
    feed.close()
    feed.close()
    again = await consume(door, session)
    assert not again.created
    assert keys(await again.next(**EVERYTHING)) == [b"eu/1", b"eu/2"]
    assert (again.name, again.filter, again.in_flight, again.paused) == ("billing", ORDERS, 2, False)


async def test_a_policy_that_changes_is_asked_at_each_delivery(door: Any) -> None:
    """First deliveries and later ones alike: what was allowed once is not allowed for good."""
    await door.publish("orders", record("eu/1"), record("us/1"))
    session = await door.session("orders-reader")
    feed = await consume(door, session)
    found = await feed.next(**EVERYTHING)
    await feed.nack(tags(found), delay_ms=0)
    door.grant({"orders-reader": [{"actions": ["read"], "topic": "orders", "key": "us/*"}]})
    assert keys(await feed.next(**EVERYTHING)) == [b"us/1"]
    await door.publish("orders", record("eu/2"), record("us/2"))
    assert keys(await feed.next(**EVERYTHING)) == [b"us/2"]
    door.grant({"orders-reader": [{"actions": ["describe"], "topic": "orders"}]})
    with pytest.raises(AccessDenied):
        await feed.next(**EVERYTHING)
    door.grant({})
    await door.publish("orders", record("eu/3"))
    assert keys(await feed.next(**EVERYTHING)) == [b"eu/3"]  # the refusal lost nothing; what was cut stays cut


async def test_a_right_that_goes_while_it_waits(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    session = await door.session("orders-reader")
    feed = await consume(door, session)
    await feed.next(**EVERYTHING)
    waiting = asyncio.create_task(feed.next(bytes_max=1 << 20, records_max=10, wait_max_ms=30_000))
    await asyncio.sleep(0.01)
    door.grant({"orders-reader": [{"actions": ["describe"], "topic": "orders"}]})
    await door.publish("orders", record("eu/2"))
    with pytest.raises(AccessDenied):
        await waiting


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_a_credential_that_ends(end: str, door: Any) -> None:
    await door.publish("orders", record("eu/1"), record("eu/2"))
    token = door.token("orders-reader", ttl_ms=60_000)
    session = await door.session(token=token)
    feed = await consume(door, session)
    (one, two) = await feed.next(**EVERYTHING)
    assert (await feed.ack([one.tag])).settled == 1
    if end == "revoked":
        door.revoke(token)
    else:
        door.clock.ahead_ms = 60_001
    expected: type[IdentityProblem] = TokenRevoked if end == "revoked" else TokenExpired
    for call in (feed.ack([two.tag]), feed.nack([two.tag]), feed.reject([two.tag]), feed.next(**EVERYTHING)):
        with pytest.raises(expected):
            await call
    with pytest.raises(expected):
        feed.extend([two.tag])
    assert "orders.dlq" not in door.pipeline.broker.topics()


async def test_who_may_consume_what(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    with pytest.raises(AccessDenied):
        await consume(door, await door.session("token-maker"))
    with pytest.raises(AccessDenied):
        await consume(door, await door.session("eu-reader"), Filter.parse("orders/us/1"))
    with pytest.raises(AccessDenied):
        await consume(door, await door.session("orders-reader"), Filter.parse("other"))
    with pytest.raises(UnknownTopic):
        await consume(door, await door.session(), Filter.parse("other"))
    assert (await consume(door, await door.session("eu-reader"), Filter.parse("orders/eu/1"))).created
    assert len(await door.consumers.infos(None, 100)) == 1


async def test_a_filter_over_topics_reaches_those_that_may_be_read(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    await door.publish("secrets", record("eu/2"))
    feed = await consume(door, await door.session("orders-reader"), Filter.parse("#"))
    found = await feed.next(**EVERYTHING)
    assert [one.topic for one in found] == ["orders"]
    await feed.reject(tags(found))
    await door.publish("orders", record("eu/3"))
    assert [one.topic for one in await feed.next(**EVERYTHING)] == ["orders"]  # not the dead letters


async def test_dead_letters_go_where_the_consumer_may_publish(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    door.grant(
        {
            "careful": [{"actions": ["read"], "topic": "orders"}, {"actions": ["publish"], "topic": "mine"}],
            "eu-careful": [{"actions": ["read"], "topic": "orders"}, {"actions": ["publish"], "topic": "mine", "key": "eu/*"}],
        }
    )
    careful = await door.session("careful")
    with pytest.raises(AccessDenied):
        await consume(door, careful, dead_letter_topic="secrets")
    with pytest.raises(UnknownTopic):
        await consume(door, careful, dead_letter_topic="mine")
    await door.publish("mine", record("x"))
    with pytest.raises(AccessDenied):
        await consume(door, await door.session("eu-careful"), dead_letter_topic="mine")
    feed = await consume(door, careful, dead_letter_topic="mine")
    await feed.reject(tags(await feed.next(**EVERYTHING)))
    assert (await door.pipeline.latest(await door.session(), "mine", b"eu/1"))[1].value == b"v"
    feed.close()
    door.grant({"careful": [{"actions": ["read"], "topic": "orders"}]})
    with pytest.raises(AccessDenied):  # kept with the consumer, and asked again at each opening
        await consume(door, careful)
    assert door.pipeline.feeds == 0


async def test_letters_end_with_the_right_to_publish_them(door: Any) -> None:
    """On a connection that stays open too: what may no longer be published goes into no topic of the consumer's choice."""
    await door.publish("orders", record("eu/1"), record("eu/2"))
    door.grant({"careful": [{"actions": ["read"], "topic": "orders"}, {"actions": ["publish"], "topic": "mine"}]})
    await door.publish("mine", record("x"))
    feed = await consume(door, await door.session("careful"), dead_letter_topic="mine", deliveries_max=1)
    (one, two) = await feed.next(**EVERYTHING)
    door.grant({"careful": [{"actions": ["read"], "topic": "orders"}]})
    for call in (feed.reject([one.tag]), feed.nack([two.tag]), feed.next(**EVERYTHING)):
        with pytest.raises(AccessDenied):
            await call
    assert (await feed.ack([one.tag])).settled == 1
    assert await door.pipeline.latest(await door.session(), "mine", b"eu/2") is None


async def test_options_are_kept_and_replaced(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    session = await door.session()
    (await consume(door, session, deliveries_max=2, ack_timeout_ms=500)).close()
    (await consume(door, session, deliveries_max=3)).close()
    (info,) = await door.consumers.infos(None, 10)
    assert (info.terms.deliveries_max, info.terms.ack_timeout_ms, info.terms.retry_backoff_ms) == (3, 500, 1_000)
    with pytest.raises(ConsumerConflict):
        await consume(door, session, Filter.parse("orders/eu/1"))


@pytest.mark.parametrize(
    ("member", "options"),
    [
        ("ack_timeout_ms", {"ack_timeout_ms": 99}),
        ("ack_timeout_ms", {"ack_timeout_ms": 86_400_001}),
        ("deliveries_max", {"deliveries_max": 0}),
        ("deliveries_max", {"deliveries_max": 1_001}),
        ("retry_backoff_ms", {"retry_backoff_ms": -1}),
        ("retry_backoff_max_ms", {"retry_backoff_max_ms": 86_400_001}),
        ("in_flight_max", {"in_flight_max": 0}),
        ("in_flight_max", {"in_flight_max": 1_001}),
    ],
)
async def test_options_out_of_range(member: str, options: dict[str, int], door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    with pytest.raises(ConsumerInvalid) as refused:
        await consume(door, await door.session(), **options)
    assert refused.value.member == member


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a/b", "ä", "a\x00", "\ud800"])
async def test_names_that_are_none(name: str, door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    with pytest.raises(ConsumerInvalid):
        await consume(door, await door.session(), name=name)


async def test_one_principal_one_connection(door: Any) -> None:
    await door.publish("orders", record("eu/1"))
    token = door.token("subscriber")
    first = await consume(door, await door.session(token=token))
    other = await consume(door, await door.session("subscriber"))  # of the same name, and somebody else's
    second = await consume(door, await door.session(token=token))
    with pytest.raises(ConsumerTakenOver):
        await first.next(**EVERYTHING)
    assert len(await second.next(**EVERYTHING)) == len(await other.next(**EVERYTHING)) == 1
    assert door.pipeline.feeds == 3
    first.close()
    assert len(await other.next(**EVERYTHING)) == 0
    assert door.pipeline.feeds == 2


async def test_it_takes_the_place_of_a_feed(open_door: Any) -> None:
    door = open_door(pipeline=PipelineOptions(feeds_max=1))
    await door.publish("orders", record("eu/1"))
    feed = await consume(door, await door.session())
    with pytest.raises(Busy):
        await consume(door, await door.session(), name="other")
    assert len(await door.consumers.infos(None, 10)) == 1  # and makes nothing where there is no place
    assert door.count("subscriptions", protocol="rest") == 1
    feed.close()
    assert door.count("subscriptions", protocol="rest") == 0


async def test_it_is_paced_by_the_quota_and_counted(open_door: Any) -> None:
    door = open_door(quotas={"bytes_out": RateLimit(2_000, 100)})
    await door.publish("orders", *[record("k", b"x" * 99)] * 4)
    feed = await consume(door, await door.session())
    bounds = {"bytes_max": 100, "records_max": 100}
    first = await feed.next(**bounds, wait_max_ms=0)
    assert len(first) == 1
    await feed.nack(tags(first), delay_ms=0)  # a second delivery is paid for like the first
    assert len(await feed.next(**bounds, wait_max_ms=0)) == 1
    assert await feed.next(**bounds, wait_max_ms=0) == []  # it owes
    assert len(await feed.next(**bounds, wait_max_ms=30_000)) == 1
    assert door.count("records_out_total", protocol="rest") == 3
