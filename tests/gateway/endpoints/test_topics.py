"""/v1/topics over the application."""

from __future__ import annotations

from typing import Any

TOPICS = "/v1/topics"


async def test_the_whole_life(door: Any) -> None:
    made = await door.post(TOPICS, {"name": "orders", "partitions": 2, "configs": {"max.message.bytes": "9999"}})
    assert (made.status, made.headers["location"]) == (201, "/v1/topics/orders")
    document = made.json
    assert document.pop("created_at_ms") > 0
    assert len(document.pop("id")) == 36
    assert document == {"name": "orders", "partitions": 2, "configs": {"max.message.bytes": "9999"}}

    await door.publish("orders", ("a", "v"), ("a", "v"))
    described = (await door.get(f"{TOPICS}/orders")).json
    assert [part["partition"] for part in described["partitions"]] == [0, 1]
    assert sum(part["high_watermark"] - part["log_start"] for part in described["partitions"]) == 2

    altered = await door.call(
        "PATCH",
        f"{TOPICS}/orders",
        b'{"partitions":3,"configs":{"max.message.bytes":null}}',
        headers={"content-type": "application/json"},
    )
    assert (altered.status, altered.json["partitions"], altered.json["configs"]) == (200, 3, {})

    listed = (await door.get(TOPICS)).json["topics"]
    assert [(topic["name"], topic["partitions"]) for topic in listed] == [("orders", 3)]

    deleted = await door.call("DELETE", f"{TOPICS}/orders")
    assert (deleted.status, deleted.body) == (204, b"")
    assert (await door.get(f"{TOPICS}/orders")).slug == "unknown-topic"
    assert (await door.get(TOPICS)).json == {"topics": []}


async def test_the_default_number_of_partitions(door: Any) -> None:
    assert (await door.post(TOPICS, {"name": "orders"})).json["partitions"] == 4


async def test_creations_that_are_refused(door: Any) -> None:
    rows = [
        ({"name": "a b"}, 400, "illegal-topic-name"),
        ({"name": ""}, 400, "illegal-topic-name"),
        ({"name": "x" * 250}, 400, "illegal-topic-name"),
        ({"name": "taken"}, 409, "topic-exists"),
        ({"name": "new", "partitions": 0}, 409, "partitions-refused"),
        ({"name": "new", "partitions": -1}, 409, "partitions-refused"),
        ({"name": "new", "partitions": 10**9}, 409, "partitions-refused"),
        ({"name": "new", "configs": {"max.message.byte": "1"}}, 400, "invalid-config"),
        ({"name": "new", "configs": {"max.message.bytes": "lots"}}, 400, "invalid-config"),
        ({"name": "new", "configs": {"max.message.bytes": 5}}, 400, "body-malformed"),
        ({"name": "new", "partitions": "4"}, 400, "body-malformed"),
        ({"name": "new", "colour": "red"}, 400, "body-malformed"),
        ({"partitions": 4}, 400, "body-malformed"),
        ([], 400, "body-malformed"),
    ]
    for document, status, slug in rows:
        await door.post(TOPICS, {"name": "taken"})
        answer = await door.post(TOPICS, document)
        assert (answer.status, answer.slug) == (status, slug)
        assert list(door.engine.topics()) == ["taken"]


async def test_changes_that_are_refused(door: Any) -> None:
    await door.post(TOPICS, {"name": "orders"})
    for body, status, slug in (
        (b'{"partitions":3}', 409, "partitions-refused"),
        (b'{"configs":{"nothing":"1"}}', 400, "invalid-config"),
        (b'{"name":"other"}', 400, "body-malformed"),
        (b"\xff", 400, "body-malformed"),
    ):
        answer = await door.call("PATCH", f"{TOPICS}/orders", body, headers={"content-type": "application/json"})
        assert (answer.status, answer.slug) == (status, slug)
    assert door.engine.topics()["orders"].partitions == 4


async def test_bodies_of_other_types_and_sizes(door: Any) -> None:
    for media_type in ("text/plain", "application/x-ndjson", ""):
        headers = {"content-type": media_type} if media_type else {}
        answer = await door.call("POST", TOPICS, b'{"name":"a"}', headers=headers)
        assert (answer.status, answer.slug) == (415, "media-type-unsupported")
    answer = await door.post(TOPICS, {"name": "a", "configs": {"x": "y" * 100_000}})
    assert (answer.status, answer.slug) == (413, "body-too-large")


async def test_a_topic_one_may_not_know_of_answers_like_one_that_is_not_there(door: Any) -> None:
    """Only the id of the request differs."""
    await door.publish("orders", ("a", "v"))
    token = door.token("eu-writer")
    for method, body in (("GET", b""), ("PATCH", b'{"partitions":9}'), ("DELETE", b"")):
        answers = []
        for name in ("orders", "absent"):
            answer = await door.call(
                method,
                f"{TOPICS}/{name}",
                body,
                token=token,
                headers={"content-type": "application/json", "x-request-id": "same"},
            )
            assert answer.status == 403
            answers.append(answer.body.replace(name.encode(), b"NAME"))
        assert answers[0] == answers[1]
    assert (await door.get(TOPICS, token=token)).json == {"topics": []}


async def test_roles(door: Any) -> None:
    await door.publish("orders", ("a", "v"))
    reader = door.token("orders-reader")
    assert (await door.get(f"{TOPICS}/orders", token=reader)).status == 200
    assert [topic["name"] for topic in (await door.get(TOPICS, token=reader)).json["topics"]] == ["orders"]
    assert (await door.post(TOPICS, {"name": "new"}, token=reader)).status == 403
    assert (await door.call("DELETE", f"{TOPICS}/orders", token=door.token("creator"))).status == 403


async def test_records_are_deleted_up_to_an_offset(door: Any) -> None:
    await door.post(TOPICS, {"name": "orders", "partitions": 1})
    await door.publish("orders", ("a", "1"), ("a", "2"), ("a", "3"))
    path = f"{TOPICS}/orders/delete-records"
    answer = await door.post(path, {"partition": 0, "before_offset": 2})
    assert (answer.status, answer.json) == (200, {"partition": 0, "log_start": 2})
    (part,) = (await door.get(f"{TOPICS}/orders")).json["partitions"]
    assert (part["log_start"], part["high_watermark"]) == (2, 3)
    assert (await door.post(path, {"partition": 0})).json == {"partition": 0, "log_start": 3}


async def test_deletions_of_records_that_are_refused(door: Any) -> None:
    await door.post(TOPICS, {"name": "orders", "partitions": 1})
    rows = [
        ("orders", {"partition": 1}, 409, "partition-not-there"),
        ("orders", {"partition": 0, "before_offset": 1}, 416, "offset-out-of-range"),
        ("orders", {"partition": 0, "before_offset": -1}, 400, "body-malformed"),
        ("orders", {"before_offset": 0}, 400, "body-malformed"),
        ("orders", {"partition": "0"}, 400, "body-malformed"),
        ("orders", {"partition": 1 << 70}, 400, "body-malformed"),
        ("nowhere", {"partition": 0}, 404, "unknown-topic"),
    ]
    for topic, document, status, slug in rows:
        answer = await door.post(f"{TOPICS}/{topic}/delete-records", document)
        assert (answer.status, answer.slug) == (status, slug), document
