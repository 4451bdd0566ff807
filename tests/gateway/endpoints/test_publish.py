"""POST of records: every form of a body, and every way to get it wrong."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from broker.record import valid_message_id

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
RECORDS = "/v1/topics/orders/records"


async def stored(door: Any, topic: str = "orders") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await door.get(f"/v1/topics/{topic}/records")).json["records"]
    return found


class TestForms:
    async def test_one_json_record(self, door: Any) -> None:
        answer = await door.post(RECORDS, {"key": "eu/7", "value": {"amount": 12}})
        assert answer.status == 200
        [receipt] = answer.json["records"]
        assert list(receipt) == ["id", "topic", "partition", "offset"]
        assert valid_message_id(receipt["id"])
        [record] = await stored(door)
        assert record["value"] == {"amount": 12}
        assert {name: record[name] for name in receipt} == receipt

    async def test_an_array_is_one_append(self, door: Any) -> None:
        answer = await door.post(RECORDS, [{"key": f"k{number}", "text": str(number)} for number in range(50)])
        receipts = answer.json["records"]
        assert len({one["id"] for one in receipts}) == 50
        by_place = {(record["partition"], record["offset"]): record for record in await stored(door)}
        assert [by_place[one["partition"], one["offset"]]["text"] for one in receipts] == [str(number) for number in range(50)]

    async def test_ndjson(self, door: Any) -> None:
        body = b'{"key":"a","value":1}\n{"key":"a","value":2}\n'
        answer = await door.call("POST", RECORDS, body, headers={"content-type": "application/x-ndjson"})
        assert [one["offset"] for one in answer.json["records"]] == [0, 1]

    async def test_a_given_id_is_kept(self, door: Any) -> None:
        answer = await door.post(RECORDS, {"id": ID, "text": "a"})
        assert answer.json["records"][0]["id"] == ID

    async def test_raw_bytes_with_all_about_the_record_outside(self, door: Any) -> None:
        answer = await door.call(
            "POST",
            f"{RECORDS}?key64=_w&timestamp=1970-01-01T00:00:01Z&partition=2",
            b"\x00\x01",
            headers={"content-type": "image/png", "message-id": ID, "sprawl-header-source": "till", "Sprawl-Header-Empty": ""},
        )
        assert answer.json["records"] == [{"id": ID, "topic": "orders", "partition": 2, "offset": 0}]
        [record] = await stored(door)
        assert (record["key64"], record["timestamp"]) == ("/w==", 1_000)
        assert record["text"] == "\x00\x01"
        assert record["headers"] == {"content-type": "image/png", "source": "till", "empty": ""}

    async def test_raw_without_a_type(self, door: Any) -> None:
        await door.call("POST", f"{RECORDS}?key=k", b"hello")
        [record] = await stored(door)
        assert (record["key"], record["text"]) == ("k", "hello")
        assert "headers" not in record

    async def test_an_empty_raw_body_is_an_empty_value(self, door: Any) -> None:
        await door.call("POST", RECORDS, b"", headers={"content-type": "text/plain"})
        [record] = await stored(door)
        assert record["text"] == ""

    async def test_a_body_in_pieces(self, door: Any) -> None:
        body = json.dumps({"text": "x" * 100}).encode()
        answer = await door.call(
            "POST", RECORDS, [body[:10], b"", body[10:50], body[50:]], headers={"content-type": "application/json"}
        )
        assert answer.status == 200

    async def test_the_path_is_the_key(self, door: Any) -> None:
        rows = [
            ("eu/7", "eu/7"),
            ("", ""),
            ("%2Fa//b", "/a//b"),
            ("gr%C3%BC%C3%9Fe", "grüße"),
            ("a%20b+c", "a b+c"),
            ("..", ".."),
            ("a?", "a"),
        ]
        for path, key in rows:
            await door.post(f"/v1/records/orders/{path}", {"text": path})
            [record] = [one for one in await stored(door) if one["text"] == path]
            assert record["key"] == key
            assert (await door.get(f"/v1/records/orders/{path}")).body == path.encode()

    async def test_keys_that_are_no_text(self, door: Any) -> None:
        rows = [("%FF%00", b"\xff\x00"), ("$key/_wA", b"\xff\x00"), ("$key/", b"")]
        for path, key in rows:
            await door.call("POST", f"/v1/records/orders/{path}", path.encode())
            [record] = [one for one in await stored(door) if one.get("text") == path]
            assert base64.b64decode(record.get("key64", "")) == key
            assert (await door.get(f"/v1/records/orders/{path}")).body == path.encode()

    async def test_no_slash_is_no_key(self, door: Any) -> None:
        await door.post("/v1/records/orders", {"text": "v"})
        [record] = await stored(door)
        assert record["key"] is None
        assert (await door.get("/v1/records/orders")).body == b"v"

    async def test_many_records_of_one_address(self, door: Any) -> None:
        await door.post("/v1/records/orders/k", [{"text": "1"}, {"text": "2"}])
        assert [(record["key"], record["text"]) for record in await stored(door)] == [("k", "1"), ("k", "2")]

    async def test_acks(self, door: Any) -> None:
        assert (await door.post(f"{RECORDS}?acks=durable", {"text": "a"})).status == 200
        answer = await door.post(f"{RECORDS}?acks=none", {"text": "a"})
        assert answer.status == 202
        [receipt] = answer.json["records"]
        assert list(receipt) == ["id", "topic", "partition"]

    async def test_a_partition_for_all(self, door: Any) -> None:
        answer = await door.post(f"{RECORDS}?partition=3", [{"key": "a", "text": ""}, {"key": "b", "text": "", "partition": 3}])
        assert {one["partition"] for one in answer.json["records"]} == {3}

    async def test_ways_to_say_json(self, door: Any) -> None:
        plain, quoted = "application/json; charset=utf-8", 'application/json;charset="UTF-8"'
        for media_type in (plain, quoted, "Application/JSON", "application/json ;q=1"):
            await door.post("/v1/records/orders/k", {"value": media_type}, headers={"content-type": media_type})
            assert (await door.get("/v1/records/orders/k?envelope=true")).json["value"] == media_type

    async def test_the_most_records_and_one_more(self, open_door: Any) -> None:
        door = open_door(records_max=100)
        assert (await door.post(RECORDS, [{"text": ""}] * 100)).status == 200
        answer = await door.post(RECORDS, [{"text": ""}] * 101)
        assert (answer.status, answer.slug) == (413, "body-too-large")
        assert len(await stored(door)) == 100


class TestRefusals:
    """Nothing of a refused request is stored."""

    async def test_bodies_that_cannot_be_read(self, door: Any) -> None:
        rows = [
            (b'{"text":"\xff"}', "byte 9"),
            (b'{"text":"a"', None),
            (b'{"text":"a","colour":"red"}', None),
            (b'[{"text":"a"},{"text":1}]', "$[1].text"),
            (b"", None),
            (b"[]", None),
        ]
        for body, where in rows:
            answer = await door.call("POST", RECORDS, body, headers={"content-type": "application/json"})
            assert (answer.status, answer.slug) == (400, "body-malformed")
            assert answer.problem.get("where") == where
            assert not door.engine.topics()

    async def test_records_that_are_not_valid(self, door: Any) -> None:
        rows = [
            ([{"text": "a"}, {"text": "a", "id": "nope"}], 1),
            ([{"text": "a", "timestamp": "yesterday"}], 0),
            ([{"text": "a", "timestamp": -1}], 0),
            ([{"text": "a"}] * 3 + [{"text": "a", "headers": {"sprawl-x": "1"}}], 3),
            ([{"text": "a", "key": "a", "key64": "YQ=="}], 0),
        ]
        for documents, index in rows:
            answer = await door.post(RECORDS, documents)
            assert (answer.status, answer.slug, answer.problem["index"]) == (400, "record-invalid", index)
            assert not door.engine.topics()

    async def test_parameters(self, door: Any) -> None:
        rows = [
            (f"{RECORDS}?acks=all", "acks"),
            (f"{RECORDS}?acks=", "acks"),
            (f"{RECORDS}?acks=none&acks=none", "acks"),
            (f"{RECORDS}?partition=-1", "partition"),
            (f"{RECORDS}?partition=one", "partition"),
            (f"{RECORDS}?key=a&key64=YQ", "key64"),
            (f"{RECORDS}?timestamp=noon", "timestamp"),
            (f"{RECORDS}?Acks=none", "Acks"),
        ]
        for target, name in rows:
            answer = await door.post(target, {"text": "a"})
            assert (answer.status, answer.slug, answer.problem["name"]) == (400, "parameter-invalid", name)

    async def test_parameters_of_raw_bodies(self, door: Any) -> None:
        rows = [
            (f"{RECORDS}?key=a&key64=YQ", {}, "key64"),
            (f"{RECORDS}?key64=Y", {}, "key64"),
            (f"{RECORDS}?timestamp=noon", {}, "timestamp"),
            ("/v1/records/orders/k?key=a", {}, "key"),
            (RECORDS, {"message-id": "1"}, "Message-Id"),
            (RECORDS, {"message-id": ID.upper()}, "Message-Id"),
            (RECORDS, {"message-id": "ü"}, "Message-Id"),
        ]
        for target, headers, name in rows:
            answer = await door.call("POST", target, b"v", headers={"content-type": "text/plain"} | headers)
            assert (answer.status, answer.slug, answer.problem["name"]) == (400, "parameter-invalid", name)

    async def test_no_body_at_all(self, door: Any) -> None:
        """Forgotten, most likely; whoever means the empty value says what it is."""
        answer = await door.call("POST", "/v1/records/orders/k", b"")
        assert (answer.status, answer.slug) == (400, "body-malformed")
        for headers in (
            {"content-type": "text/plain"},
            {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/", "ce-type": "t"},
        ):
            assert (await door.call("POST", "/v1/records/orders/k", b"", headers=headers)).status == 200
            assert (await door.get("/v1/records/orders/k")).body == b""

    async def test_reserved_headers_of_raw_bodies(self, door: Any) -> None:
        answer = await door.call("POST", RECORDS, b"v", headers={"sprawl-header-sprawl-message-id": ID})
        assert (answer.status, answer.slug) == (400, "record-invalid")

    async def test_content_types(self, door: Any) -> None:
        rows = [
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=latin-1",
            "application/json; charset=utf-16",
            "json",
            "application/",
            "/json",
            "application /json",
            "text/plain, application/json",
            "a/b/c",
            "text/plüin",
        ]
        for media_type in rows:
            answer = await door.call("POST", RECORDS, b'{"text":"a"}', headers={"content-type": media_type})
            assert (answer.status, answer.slug) == (415, "media-type-unsupported")
            assert answer.problem["supported"]

    async def test_content_encodings(self, door: Any) -> None:
        for encoding in ("br", "deflate, gzip"):
            answer = await door.post(RECORDS, {"text": "a"}, headers={"content-encoding": encoding})
            assert (answer.status, answer.slug) == (415, "content-encoding-unsupported")

    async def test_key_and_time_of_the_query_are_for_records_without(self, door: Any) -> None:
        records = [{"text": "a"}, {"text": "b", "key": "own", "timestamp": 7}, {"value64": "/w=="}]
        for number, body in enumerate((records, {"value": 1}, {"value": 2, "headers": {"a": "b"}})):
            assert (await door.post(f"{RECORDS}?key=k{number}&timestamp=5", body)).status == 200
        found = (await door.get(RECORDS)).json["records"]
        assert sorted((record["key"], record["timestamp"]) for record in found) == [
            ("k0", 5),
            ("k0", 5),
            ("k1", 5),
            ("k2", 5),
            ("own", 7),
        ]

    async def test_a_key_beside_the_one_in_the_path(self, door: Any) -> None:
        answer = await door.post("/v1/records/orders/k", [{"text": "a"}, {"text": "a", "key": "k"}])
        assert (answer.slug, answer.problem["index"]) == ("record-invalid", 1)

    async def test_the_partition_of_the_query_is_for_records_without(self, door: Any) -> None:
        answer = await door.post(f"{RECORDS}?partition=1", [{"text": "a", "partition": 2}, {"text": "b"}])
        assert [record["partition"] for record in answer.json["records"]] == [2, 1]

    async def test_a_partition_that_is_not_there(self, door: Any) -> None:
        answer = await door.post(f"{RECORDS}?partition=4", {"text": "a"})
        assert (answer.status, answer.slug, answer.problem["partitions"]) == (404, "unknown-partition", 4)

    async def test_illegal_topic_names(self, door: Any) -> None:
        rows = ["a%20b", "%2E", "..", "x" * 250, "%FF", "%00", "%0A", "a%2Fb", "gr%C3%BCn"]
        for topic in rows:
            for target in (f"/v1/topics/{topic}/records", f"/v1/records/{topic}/k"):
                answer = await door.post(target, {"text": "a"})
                assert (answer.status, answer.slug) == (400, "illegal-topic-name")

    async def test_a_record_that_is_too_large(self, door: Any) -> None:
        answer = await door.post(RECORDS, [{"text": "small"}, {"text": "x" * (1024 * 1024 + 1)}])
        assert (answer.status, answer.slug) == (413, "record-too-large")
        assert await stored(door) == []

    async def test_scopes_and_keys(self, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        token = door.token("eu-writer")
        assert (await door.post(RECORDS, {"key": "eu/1", "text": "a"}, token=token)).status == 200
        refused = [
            await door.post(RECORDS, [{"key": "eu/1", "text": "a"}, {"key": "us/1", "text": "a"}], token=token),
            await door.post("/v1/records/orders/us/1", {"text": "a"}, token=token),
            await door.call("POST", f"{RECORDS}?key=us/1", b"a", token=token),
            await door.post(RECORDS, {"text": "a"}, token=door.token("admin", scopes=["read:orders"])),
            await door.post(RECORDS, {"text": "a"}, token=door.token("subscriber")),
        ]
        assert [(answer.status, answer.slug) for answer in refused] == [(403, "access-denied")] * 5
        assert len(await stored(door)) == 1

    async def test_a_topic_that_may_not_be_made(self, door: Any) -> None:
        answer = await door.post(RECORDS, {"text": "a"}, token=door.token("publisher"))
        assert (answer.status, answer.slug, answer.problem["topic"]) == (404, "unknown-topic", "orders")


class TestBodies:
    """How much of a body is held, and for how long."""

    async def test_a_length_that_is_too_large_is_refused_before_the_body_comes(self, open_door: Any) -> None:
        door = open_door(body_bytes_max=1_000)
        headers = {"content-type": "text/plain", "content-length": "1001"}
        answer = await door.begin("POST", RECORDS, [], headers=headers, complete=False).answer()
        assert (answer.status, answer.slug, answer.problem["limit"]) == (413, "body-too-large", 1_000)

    async def test_chunks_are_counted_as_they_come(self, open_door: Any) -> None:
        door = open_door(body_bytes_max=1_000)
        whole = await door.call("POST", RECORDS, [b"x" * 500, b"x" * 500], headers={"content-type": "text/plain"})
        assert whole.status == 200
        call = door.begin("POST", RECORDS, [b"x" * 500, b"x" * 501], headers={"content-type": "text/plain"}, complete=False)
        assert (await call.answer()).status == 413

    async def test_lengths_that_are_none_do_not_matter(self, open_door: Any) -> None:
        """The server in front has refused them already; here only what comes is counted."""
        door = open_door(body_bytes_max=10)
        rows = ["", "-1", "1e3", "²", "9" * 30]
        for length in rows:
            answer = await door.call("POST", RECORDS, b"x" * 11, headers={"content-length": length})
            assert answer.status == 413

    async def test_all_bodies_together_are_bounded(self, open_door: Any) -> None:
        door = open_door(bodies_bytes_max=1_000)
        first = door.begin("POST", RECORDS, [b"x" * 900], headers={"content-type": "text/plain"}, complete=False)
        await asyncio.sleep(0)
        refused = await door.call("POST", RECORDS, b"x" * 101, headers={"content-type": "text/plain"})
        assert (refused.status, refused.slug, refused.headers["retry-after"]) == (503, "busy", "1")
        first.feed(b"x" * 100, last=True)
        assert (await first.answer()).status == 200
        assert (await door.call("POST", RECORDS, b"x" * 1_000, headers={"content-type": "text/plain"})).status == 200
        assert door.app._bodies.held_bytes == 0

    async def test_a_client_that_leaves_within_its_body(self, open_door: Any) -> None:
        door = open_door()
        call = door.begin("POST", RECORDS, [b"x" * 900], headers={"content-type": "text/plain"}, complete=False)
        await asyncio.sleep(0)
        assert door.app._bodies.held_bytes == 900
        call.leave()
        await call.task
        assert door.app._bodies.held_bytes == 0
        assert not door.engine.topics()
        assert door.count("requests_total", protocol="rest", operation="publish", outcome="client-gone") == 1

    async def test_a_client_that_leaves_while_the_log_writes_changes_nothing(self, door: Any) -> None:
        call = door.begin("POST", RECORDS, b"v")
        call.leave()
        await call.answer()
        assert len(await stored(door)) == 1
