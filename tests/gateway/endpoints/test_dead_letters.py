"""Dead letters over the application: found, read, replayed, purged, and guarded as the records they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.filter import Filter
from gateway import dead_letters
from gateway.pipeline import Incoming

LETTERS = "/v1/topics/orders.dlq/dead-letters"
REPLAYS = "/v1/topics/orders.dlq/dead-letter-replays"
EVERYTHING = {"bytes_max": 1 << 20, "records_max": 100, "wait_max_ms": 0}


async def bury(door: Any, *values: str, key: str = "eu/1", reason: str = "", topic: str = "orders") -> None:
    """Publish to the topic, and have a consumer reject it all."""
    await door.publish(topic, *[Incoming(key.encode(), value.encode(), [(b"source", b"till")]) for value in values])
    session = await door.session(token=door.admin())
    feed = await door.pipeline.consume(session, Filter.parse(topic), "billing", ConsumerOptions(), "earliest")
    await feed.reject([one.tag for one in await feed.next(**EVERYTHING)], reason=reason)
    feed.close()


async def test_topics_of_dead_letters(door: Any) -> None:
    assert (await door.get("/v1/dead-letters")).json == {"topics": []}
    await bury(door, "a", "b")
    await door.post("/v1/topics", {"name": "returns", "configs": {"dead.letter.topic": "graveyard"}})
    await door.post("/v1/topics", {"name": "graveyard"})
    expected = [{"topic": "graveyard", "of": ["returns"], "letters": 0}, {"topic": "orders.dlq", "of": ["orders"], "letters": 2}]
    assert (await door.get("/v1/dead-letters")).json == {"topics": expected}
    assert (await door.get("/v1/dead-letters", token=door.token("orders-reader"))).json == {"topics": []}


async def test_a_letter_says_what_happened(door: Any) -> None:
    await bury(door, "a", reason="no such customer")
    page = (await door.get(LETTERS)).json
    (letter,) = page["dead_letters"]
    record = letter.pop("record")
    origin = letter.pop("origin")
    assert letter == {
        "reason": "rejected",
        "detail": "no such customer",
        "attempts": 1,
        "consumer": "billing",
        "owner": (await door.get("/v1/whoami")).json["principal"],
    }
    assert (record["topic"], record["key"], record["text"], record["headers"]) == ("orders.dlq", "eu/1", "a", {"source": "till"})
    original = (await door.get(f"/v1/topics/orders/partitions/{origin['partition']}/records")).json["records"][origin["offset"]]
    assert (original["id"], original["timestamp"]) == (record["id"], origin["timestamp"])
    assert page["at_end"]
    one = (await door.get(f"{LETTERS}/{record['partition']}/{record['offset']}")).json
    assert one == letter | {"record": record, "origin": origin}


async def test_pages(door: Any) -> None:
    await bury(door, *[str(number) for number in range(5)])
    first = (await door.get(f"{LETTERS}?limit=3")).json
    second = (await door.get(f"{LETTERS}?cursor={first['next_cursor']}")).json
    texts = [letter["record"]["text"] for page in (first, second) for letter in page["dead_letters"]]
    assert texts == ["0", "1", "2", "3", "4"]
    assert (first["at_end"], second["at_end"]) == (False, True)


async def test_what_is_no_letter_is_passed_over(door: Any) -> None:
    await bury(door, "a")
    await door.publish("orders.dlq", ("k", "no letter"))
    assert len((await door.get(LETTERS)).json["dead_letters"]) == 1
    assert (await door.get(f"{LETTERS}/0/1")).slug == "no-dead-letter"


async def test_replay_goes_where_it_came_from(door: Any) -> None:
    await bury(door, "a", "b", "c")
    letters = (await door.get(LETTERS)).json["dead_letters"]
    answer = await door.post(REPLAYS, {"letters": [{"partition": 0, "offset": 2}, {"partition": 0, "offset": 0}]})
    replayed = answer.json["replayed"]
    assert [(one["partition"], one["offset"]) for one in replayed] == [(0, 0), (0, 2)]
    assert [one["record"]["id"] for one in replayed] == [letters[0]["record"]["id"], letters[2]["record"]["id"]]
    assert {one["record"]["topic"] for one in replayed} == {"orders"}
    session = await door.session(token=door.admin())
    feed = await door.pipeline.consume(session, Filter.parse("orders"), "billing", ConsumerOptions(deliveries_max=1))
    again = await feed.next(**EVERYTHING)
    assert [(one.record.key, one.record.value, one.attempt) for one in again] == [(b"eu/1", b"a", 1), (b"eu/1", b"c", 1)]
    headers = dict(again[0].record.headers)
    assert (headers["source"], headers["sprawl-attempts"], headers["sprawl-replayed-from"]) == (b"till", b"1", b"orders.dlq/0/0")
    assert not [name for name in headers if name.startswith("sprawl-dlq-")]
    await feed.nack([one.tag for one in again])
    letters = (await door.get(LETTERS)).json["dead_letters"]
    assert [letter["attempts"] for letter in letters] == [1, 1, 1, 2, 2]  # those before the replay are counted on
    assert [letter["reason"] for letter in letters[3:]] == ["deliveries-exhausted"] * 2
    feed.close()


async def test_replays_that_are_refused_publish_nothing(door: Any) -> None:
    await bury(door, "a")
    before = (await door.get("/v1/topics/orders")).json["partitions"]
    rows: list[tuple[Any, int, str]] = [
        ({"letters": [{"partition": 0, "offset": 0}, {"partition": 0, "offset": 1}]}, 404, "no-dead-letter"),
        ({"letters": [{"partition": 3, "offset": 0}]}, 404, "unknown-partition"),
        ({"letters": []}, 400, "body-malformed"),
        ({"letters": [{"partition": 0, "offset": -1}]}, 400, "body-malformed"),
        ({"letters": [{"partition": 0}]}, 400, "body-malformed"),
        ({"letters": [{"partition": 0, "offset": 0, "x": 1}]}, 400, "body-malformed"),
        ({"letters": [{"partition": 0, "offset": 0}] * 1_001}, 400, "body-malformed"),
        ({}, 400, "body-malformed"),
        ([], 400, "body-malformed"),
    ]
    for body, status, slug in rows:
        answer = await door.post(REPLAYS, body)
        assert (answer.status, answer.slug) == (status, slug), body
    assert (await door.get("/v1/topics/orders")).json["partitions"] == before


async def test_rights(door: Any) -> None:
    await bury(door, "a")
    await bury(door, "b", key="us/1")
    door.grant(
        {
            "undertaker": [{"actions": ["read", "describe"], "topic": "orders.dlq"}],
            "eu-undertaker": [
                {"actions": ["read"], "topic": "orders.dlq", "key": "eu/*"},
                {"actions": ["publish"], "topic": "orders", "key": "eu/*"},
            ],
        }
    )
    nobody, reader, eu = door.token("orders-reader"), door.token("undertaker"), door.token("eu-undertaker")
    replay = {"letters": [{"partition": 0, "offset": 0}]}
    assert (await door.get(LETTERS, token=nobody)).slug == "access-denied"
    assert (await door.get(f"{LETTERS}/0/0", token=nobody)).slug == "access-denied"
    assert (await door.post(REPLAYS, replay, token=nobody)).slug == "access-denied"
    assert len((await door.get(LETTERS, token=reader)).json["dead_letters"]) == 2
    assert (await door.post(REPLAYS, replay, token=reader)).slug == "access-denied"  # it may not publish to orders
    assert (await door.call("DELETE", LETTERS, token=reader)).slug == "access-denied"
    assert [letter["record"]["key"] for letter in (await door.get(LETTERS, token=eu)).json["dead_letters"]] == ["eu/1"]
    assert (await door.get(f"{LETTERS}/0/1", token=eu)).slug == "no-dead-letter"  # as if it were not there
    assert (await door.post(REPLAYS, {"letters": [{"partition": 0, "offset": 1}]}, token=eu)).slug == "no-dead-letter"
    assert (await door.post(REPLAYS, replay, token=eu)).status == 200


async def test_a_config_sends_letters_only_where_one_may_publish(door: Any) -> None:
    """The node writes them: whoever sets the config would publish there by its hand."""
    await door.publish("victim", ("k", "v"))
    door.grant(
        {
            "mine": [{"actions": ["publish", "read", "describe", "create", "alter"], "topic": "mine*"}],
            "some-keys": [{"actions": ["publish"], "topic": "victim", "key": "eu/*"}],
        }
    )
    token = door.token("mine", "some-keys")
    for topic in ("victim", "none"):
        configs = {"dead.letter.topic": topic}
        assert (await door.post("/v1/topics", {"name": "mine", "configs": configs}, token=token)).slug == "access-denied"
    assert (await door.post("/v1/topics", {"name": "mine"}, token=token)).status == 201
    for topic, slug in (("victim", "access-denied"), ("none", "access-denied"), ("a b", "invalid-config")):
        change = json.dumps({"configs": {"dead.letter.topic": topic}}).encode()
        answer = await door.call("PATCH", "/v1/topics/mine", change, token=token, headers={"content-type": "application/json"})
        assert answer.slug == slug, topic
    change = json.dumps({"configs": {"dead.letter.topic": "mine.letters"}}).encode()
    answer = await door.call("PATCH", "/v1/topics/mine", change, token=token, headers={"content-type": "application/json"})
    assert answer.status == 200


async def test_a_replay_holds_no_more_than_its_bound(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "REPLAY_BYTES_MAX", 4_000)
    await bury(door, *["x" * 990] * 20)
    read = door.count("records_out_total", protocol="rest")
    fetched = []
    fetch = door.pipeline.fetch

    async def counted(*arguments: Any) -> Any:
        page = await fetch(*arguments)
        fetched.extend(page.records)
        return page

    monkeypatch.setattr(door.pipeline, "fetch", counted)
    answer = await door.post(REPLAYS, {"letters": [{"partition": 0, "offset": offset} for offset in range(20)]})
    assert (answer.status, answer.slug) == (413, "body-too-large")
    assert len(fetched) <= 8  # two pages of the bound: one that fits, one that does not any more
    assert door.count("records_out_total", protocol="rest") == read
    few = {"letters": [{"partition": 0, "offset": offset} for offset in range(2)]}
    assert (await door.post(REPLAYS, few)).status == 200


async def test_purging(door: Any) -> None:
    await bury(door, "a", "b", "c")
    left = await door.call("DELETE", f"{LETTERS}?partition=0&before_offset=2")
    assert left.json == {"topic": "orders.dlq", "partitions": [{"partition": 0, "log_start": 2, "high_watermark": 3}]}
    assert [letter["record"]["text"] for letter in (await door.get(LETTERS)).json["dead_letters"]] == ["c"]
    assert (await door.get(f"{LETTERS}/0/1")).slug == "no-dead-letter"
    assert (await door.call("DELETE", LETTERS)).json["partitions"] == [{"partition": 0, "log_start": 3, "high_watermark": 3}]
    assert (await door.get(LETTERS)).json["dead_letters"] == []
    assert ("access", "delete", "dead letters of topic orders.dlq") in [(entry[0], entry[2], entry[3]) for entry in door.audited]


async def test_a_slip_of_the_name_purges_nothing(door: Any) -> None:
    await bury(door, "a")
    before = (await door.get("/v1/topics/orders")).json["partitions"]
    assert (await door.call("DELETE", "/v1/topics/orders/dead-letters")).slug == "not-dead-letters"
    for query in ("partition=0", "before_offset=1", "partition=0&before_offset=x", "partition=-1&before_offset=1"):
        assert (await door.call("DELETE", f"{LETTERS}?{query}")).status == 400
    assert (await door.call("DELETE", f"{LETTERS}?partition=0&before_offset=99")).slug == "offset-out-of-range"
    assert (await door.get("/v1/topics/orders")).json["partitions"] == before


async def test_a_topic_of_the_consumers_own_choice_may_be_purged(door: Any) -> None:
    await door.publish("orders", ("k", "v"))
    session = await door.session(token=door.admin())
    feed = await door.pipeline.consume(
        session, Filter.parse("orders"), "x", ConsumerOptions(dead_letter_topic="mine"), "earliest"
    )
    await feed.reject([one.tag for one in await feed.next(**EVERYTHING)])
    assert (await door.call("DELETE", "/v1/topics/mine/dead-letters")).status == 200


async def test_a_letter_without_its_value_is_not_replayed(door: Any) -> None:
    await door.post("/v1/topics", {"name": "orders.dlq", "partitions": 1, "configs": {"max.message.bytes": "600"}})
    await bury(door, "x" * 600)
    answer = await door.post(REPLAYS, {"letters": [{"partition": 0, "offset": 0}]})
    assert (answer.status, answer.slug) == (400, "request-invalid")
    assert "orders/" in answer.problem["detail"]


@pytest.mark.parametrize("path", ["0/x", "x/0", "0/-1", f"0/{10**20}"])
async def test_places_that_are_none(path: str, door: Any) -> None:
    await bury(door, "a")
    assert (await door.get(f"{LETTERS}/{path}")).slug == "parameter-invalid"
