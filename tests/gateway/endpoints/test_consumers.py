"""/v1/consumers over the application."""

from __future__ import annotations

from typing import Any

import pytest

from broker.delivery.consumer_errors import ConsumersFull
from broker.delivery.consumer_options import ConsumerOptions, DeliveryOptions
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor
from gateway.pipeline import Incoming

CONSUMERS = "/v1/consumers"
EVERYTHING = {"bytes_max": 1 << 20, "records_max": 100, "wait_max_ms": 0}


async def open_consumer(door: Any, token: str, name: str = "billing", address: str = "orders", **options: Any) -> Any:
    session = await door.session(token=token)
    return await door.pipeline.consume(session, Filter.parse(address), name, ConsumerOptions(**options), "earliest")


async def test_what_it_says_of_itself(door: Any) -> None:
    await door.publish("orders", *[("k", str(number)) for number in range(5)])
    admin = door.admin()
    feed = await open_consumer(door, admin, deliveries_max=7)
    found = await feed.next(**EVERYTHING | {"records_max": 3})
    await feed.ack([found[0].tag])
    document = (await door.get(f"{CONSUMERS}/billing")).json
    assert document.pop("owner") == (await door.get("/v1/whoami")).json["principal"]
    assert document.pop("created_at_ms") <= document.pop("changed_at_ms")
    assert document == {
        "name": "billing",
        "filter": {"address": "orders/#"},
        "options": {
            "ack_timeout_ms": 30_000,
            "deliveries_max": 7,
            "retry_backoff_ms": 1_000,
            "retry_backoff_max_ms": 60_000,
            "in_flight_max": 1_000,
            "dead_letter_topic": None,
        },
        "position": str(found[1].cursor),
        "next": str(found[2].cursor),
        "pending": 2,
        "in_flight": 2,
        "connected": True,
        "lag_records": 4,
    }
    feed.close()
    listed = (await door.get(CONSUMERS)).json["consumers"]
    assert [(one["name"], one["connected"], one["pending"]) for one in listed] == [("billing", False, 2)]


async def test_everybody_sees_their_own(door: Any) -> None:
    await door.publish("orders", ("k", "v"))
    mine, other = door.token("subscriber"), door.token("subscriber")
    for token, name in ((mine, "billing"), (other, "billing"), (other, "other")):
        (await open_consumer(door, token, name)).close()
    owner = (await door.get("/v1/whoami", token=other)).json["principal"]
    names = [one["name"] for one in (await door.get(CONSUMERS, token=mine)).json["consumers"]]
    assert names == ["billing"]
    assert (await door.get(f"{CONSUMERS}/other", token=mine)).slug == "unknown-consumer"
    for method, target in (
        ("GET", f"{CONSUMERS}?all=true"),
        ("GET", f"{CONSUMERS}/other?owner={owner}"),
        ("DELETE", f"{CONSUMERS}/other?owner={owner}"),
        ("POST", f"{CONSUMERS}/other/seek?owner={owner}&offset=latest"),
    ):
        assert (await door.call(method, target, token=mine)).slug == "access-denied"
    assert len((await door.get(f"{CONSUMERS}?all=true")).json["consumers"]) == 3
    assert (await door.get(f"{CONSUMERS}/other?owner={owner}")).json["owner"] == owner
    assert (await door.call("DELETE", f"{CONSUMERS}/other?owner={owner}")).status == 204
    assert [entry[2:4] for entry in door.audited if entry[0] == "consumer"] == [("delete", f"consumer other of {owner}")]


async def test_seeking(door: Any) -> None:
    await door.publish("orders", *[("k", str(number)) for number in range(3)])
    feed = await open_consumer(door, door.admin())
    first = await feed.next(**EVERYTHING)
    assert (await door.call("POST", f"{CONSUMERS}/billing/seek?offset=earliest")).json["pending"] == 0
    again = await feed.next(**EVERYTHING)
    assert [one.attempt for one in again] == [1, 1, 1]
    partition = again[0].partition
    sought = await door.call("POST", f"{CONSUMERS}/billing/seek?partition={partition}&offset=2")
    assert sought.status == 200
    assert [one.record.value for one in await feed.next(**EVERYTHING)] == [b"2"]
    feed.close()
    sought = await door.call("POST", f"{CONSUMERS}/billing/seek?cursor={first[0].cursor}")
    assert sought.json["lag_records"] == 2
    for query, status in (("cursor=9999-0", 416), ("cursor=x", 400), ("offset=99", 400), ("offset=99&partition=0", 416)):
        assert (await door.call("POST", f"{CONSUMERS}/billing/seek?{query}")).status == status
    assert (await door.call("POST", f"{CONSUMERS}/none/seek")).slug == "unknown-consumer"


async def test_a_new_token_is_given_the_consumer(door: Any) -> None:
    await door.publish("orders", ("k", "0"), ("k", "1"))
    old, new = door.token("subscriber"), door.token("subscriber")
    feed = await open_consumer(door, old)
    found = await feed.next(**EVERYTHING)
    await feed.ack([found[0].tag])
    heir = (await door.get("/v1/whoami", token=new)).json["principal"]
    owner = (await door.get("/v1/whoami", token=old)).json["principal"]
    give = f"{CONSUMERS}/billing/give?owner={owner}"
    assert (await door.post(give, {"to": heir})).status == 204
    feed.close()
    assert (await door.get(CONSUMERS, token=old)).json == {"consumers": []}
    taken = await open_consumer(door, new)
    again = await taken.next(**EVERYTHING)
    assert [(one.record.value, one.attempt) for one in again] == [(b"1", 2)]
    taken.close()
    (await open_consumer(door, old)).close()
    assert (await door.post(give, {"to": heir})).slug == "consumer-conflict"
    for body in ({"to": ""}, {"to": "a\nb"}, {"to": "x" * 257}, {}, {"to": 5}, {"to": "x", "y": 1}):
        assert (await door.post(give, body)).slug == "body-malformed"


async def test_nobody_takes_the_names_of_others(door: Any) -> None:
    """By giving away one made up after the other: past the bound for each owner, and in the place of what an heir will make."""
    await door.publish("orders", ("k", "v"))
    token = door.token("subscriber")
    (await open_consumer(door, token)).close()
    assert (await door.post(f"{CONSUMERS}/billing/give", {"to": "token:victim"}, token=token)).slug == "access-denied"
    assert [one["name"] for one in (await door.get(CONSUMERS, token=token)).json["consumers"]] == ["billing"]


async def test_nothing_is_told_of_topics_that_may_not_be_read(door: Any) -> None:
    """Neither by the lag, nor by where a position is found, nor by which cursors there are."""
    await door.publish("orders", Incoming(b"k", b"v", timestamp_ms=1_000))
    secrets = [Incoming(b"k", b"v", timestamp_ms=5_000)] * 7
    await door.publish("secrets", *secrets)
    await door.publish("orders", Incoming(b"k", b"v", timestamp_ms=1_000))
    token = door.token("orders-reader")
    (await open_consumer(door, token, address="#")).close()
    billing = f"{CONSUMERS}/billing"
    assert (await door.get(billing, token=token)).json["lag_records"] == 2
    assert [one["lag_records"] for one in (await door.get(CONSUMERS, token=token)).json["consumers"]] == [2]
    end = (await door.call("POST", f"{billing}/seek?offset=latest", token=token)).json["next"]
    found = await door.call("POST", f"{billing}/seek?timestamp=4000", token=token)
    assert found.json["next"] == end
    inside = [await door.call("POST", f"{billing}/seek?cursor=1-{index}", token=token) for index in (1, 6, 7, 99)]
    assert {answer.status for answer in inside} == {416}  # 1 is the first of orders, where only 1-0 is
    beyond = [await door.call("POST", f"{billing}/seek?cursor=2-{index}", token=token) for index in (1, 6, 7, 99)]
    assert {answer.status for answer in beyond} == {200}
    session = await door.session(token=token)
    for index in (1, 99):
        feed = await door.pipeline.consume(session, Filter.parse("#"), f"at-{index}", ConsumerOptions(), Cursor(2, index))
        feed.close()


async def test_who_may_read_no_more_is_told_no_more(door: Any) -> None:
    await door.publish("orders", ("k", "v"))
    token = door.token("orders-reader")
    (await open_consumer(door, token)).close()
    door.grant({"orders-reader": [{"actions": ["describe"], "topic": "orders"}]})
    assert (await door.get(f"{CONSUMERS}/billing", token=token)).json["lag_records"] is None
    assert (await door.call("POST", f"{CONSUMERS}/billing/seek?offset=earliest", token=token)).slug == "access-denied"
    assert (await door.call("DELETE", f"{CONSUMERS}/billing", token=token)).status == 204


@pytest.mark.parametrize("name", ["none", "%00", "a%2Fb", "%FF", "x" * 300])
async def test_names_of_none(name: str, door: Any) -> None:
    assert (await door.get(f"{CONSUMERS}/{name}")).slug == "unknown-consumer"
    assert (await door.call("DELETE", f"{CONSUMERS}/{name}")).slug == "unknown-consumer"


async def test_bounds_on_how_many(open_door: Any) -> None:
    door = open_door(delivery=DeliveryOptions(consumers_max=3, consumers_per_owner_max=2))
    await door.publish("orders", ("k", "v"))
    one, two = door.token("subscriber"), door.token("subscriber")
    for name in ("a", "b"):
        await open_consumer(door, one, name)
    with pytest.raises(ConsumersFull) as refused:
        await open_consumer(door, one, "c")
    assert refused.value.limit_name == "delivery.consumers_per_owner_max"
    await open_consumer(door, two, "a")
    with pytest.raises(ConsumersFull) as refused:
        await open_consumer(door, two, "b")
    assert refused.value.limit_name == "delivery.consumers_max"
    assert (await door.call("DELETE", f"{CONSUMERS}/a", token=one)).status == 204
    await open_consumer(door, two, "b")
