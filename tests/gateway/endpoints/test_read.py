"""GET of records: from an offset, a time, a cursor, by key, the latest; now or when there is one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.pipeline import Incoming
from security.policy.quotas import RateLimit

PARTITION = "/v1/topics/orders/partitions/0/records"
TOPIC = "/v1/topics/orders/records"
HTML = b"<script>alert(1)</script>"


def record(key: str | None, text: str = "v", **more: Any) -> Incoming:
    return Incoming(None if key is None else key.encode(), text.encode(), **({"partition": 0} | more))


async def ten(door: Any) -> None:
    await door.publish(
        "orders", *[record("eu/1" if number % 2 else "us/1", str(number), timestamp_ms=1_000 * number) for number in range(10)]
    )


def texts(document: dict[str, Any]) -> list[int]:
    return [int(found["text"]) for found in document["records"]]


class TestPartition:
    async def test_from_where(self, door: Any) -> None:
        await ten(door)
        rows = [
            ("", range(10)),
            ("?offset=earliest", range(10)),
            ("?offset=0", range(10)),
            ("?offset=7", range(7, 10)),
            ("?offset=10", []),
            ("?offset=latest", []),
            ("?timestamp=6500", range(7, 10)),
            ("?timestamp=1970-01-01T00:00:09Z", [9]),
            ("?timestamp=99999", []),
            ("?offset=3&limit=2", [3, 4]),
            ("?bytes_max=1", [0]),
        ]
        for query, expected in rows:
            document = (await door.get(PARTITION + query)).json
            assert texts(document) == list(expected)
            assert document["next_offset"] == (document["records"][-1]["offset"] + 1 if expected else 10)
            assert (document["log_start"], document["high_watermark"], document["damage"]) == (0, 10, [])

    async def test_lines_with_the_positions_in_headers(self, door: Any) -> None:
        await ten(door)
        answer = await door.get(f"{PARTITION}?limit=3", headers={"accept": "application/x-ndjson"})
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert [line["text"] for line in answer.lines] == ["0", "1", "2"]
        positions = {name: answer.headers[name] for name in ("next-offset", "log-start", "high-watermark")}
        assert positions == {"next-offset": "3", "log-start": "0", "high-watermark": "10"}

    async def test_some_keys(self, door: Any) -> None:
        await ten(door)
        token = door.token("eu-reader")
        for query in ("?offset=0", "?timestamp=0", "?offset=0&wait_ms=60000"):
            document = (await door.get(PARTITION + query, token=token)).json
            assert texts(document) == [1, 3, 5, 7, 9]
            assert [found["offset"] for found in document["records"]] == [1, 3, 5, 7, 9]
        lines = await door.get(PARTITION, token=token, headers={"accept": "application/x-ndjson"})
        assert [line["offset"] for line in lines.lines] == [1, 3, 5, 7, 9]

    async def test_out_of_range_says_what_there_is(self, door: Any) -> None:
        await ten(door)
        answer = await door.get(f"{PARTITION}?offset=11")
        assert (answer.status, answer.slug) == (416, "offset-out-of-range")
        assert (answer.problem["log_start"], answer.problem["high_watermark"]) == (0, 10)

    async def test_partitions_and_topics_that_are_not_there(self, door: Any) -> None:
        await ten(door)
        answer = await door.get("/v1/topics/orders/partitions/4/records")
        assert (answer.status, answer.slug) == (404, "unknown-partition")
        answer = await door.get("/v1/topics/other/partitions/0/records")
        assert (answer.status, answer.slug) == (404, "unknown-topic")

    async def test_parameters(self, door: Any) -> None:
        rows = [
            ("/v1/topics/orders/partitions/x/records", "partition"),
            ("/v1/topics/orders/partitions/-1/records", "partition"),
            (f"/v1/topics/orders/partitions/{2**31}/records", "partition"),
            (f"{PARTITION}?offset=-1", "offset"),
            (f"{PARTITION}?offset=first", "offset"),
            (f"{PARTITION}?offset={2**63}", "offset"),
            (f"{PARTITION}?offset=1&timestamp=1", "offset"),
            (f"{PARTITION}?timestamp=noon", "timestamp"),
            (f"{PARTITION}?limit=0", "limit"),
            (f"{PARTITION}?limit=10001", "limit"),
            (f"{PARTITION}?bytes_max=0", "bytes_max"),
            (f"{PARTITION}?bytes_max=8388609", "bytes_max"),
            (f"{PARTITION}?wait_ms=60001", "wait_ms"),
            (f"{PARTITION}?key=a", "key"),
            (f"{PARTITION}?cursor=1-1", "cursor"),
        ]
        for target, name in rows:
            answer = await door.get(target)
            assert (answer.status, answer.slug, answer.problem["name"]) == (400, "parameter-invalid", name)


class TestTopic:
    async def test_from_where(self, door: Any) -> None:
        await ten(door)
        rows = [
            ("", range(10)),
            ("?offset=earliest", range(10)),
            ("?offset=latest", []),
            ("?offset=4&partition=0", range(4, 10)),
            ("?timestamp=6500", range(7, 10)),
            ("?cursor=0-0", range(10)),
            ("?key=eu/1", [1, 3, 5, 7, 9]),
            ("?key=eu%2F1&timestamp=5000", [5, 7, 9]),
            ("?key64=ZXUvMQ", [1, 3, 5, 7, 9]),
            ("?key=eu", []),
            ("?key=", []),
            ("?limit=2", [0, 1]),
        ]
        for query, expected in rows:
            document = (await door.get(TOPIC + query)).json
            assert texts(document) == list(expected)
            assert set(document) == {"records", "next_cursor", "at_end", "damage"}

    async def test_cursors_lead_through_everything_and_say_when_it_ends(self, door: Any) -> None:
        for number in range(7):
            await door.publish("orders", record("a", str(number), partition=None), record("b", str(number), partition=None))
        seen, cursor = [], "0-0"
        while True:
            document = (await door.get(f"{TOPIC}?cursor={cursor}&limit=3")).json
            seen += [(found["key"], int(found["text"])) for found in document["records"]]
            cursor = document["next_cursor"]
            if document["at_end"]:
                break
            assert document["records"]
        assert sorted(seen) == [(key, number) for key in "ab" for number in range(7)]
        assert [number for _, number in seen] == sorted(number for _, number in seen)

    async def test_lines_with_the_cursor_in_a_header(self, door: Any) -> None:
        await ten(door)
        answer = await door.get(f"{TOPIC}?limit=10", headers={"accept": "application/x-ndjson, */*"})
        assert len(answer.lines) == 10
        assert answer.headers["at-end"] == "false"  # not looked yet
        again = await door.get(f"{TOPIC}?cursor={answer.headers['next-cursor']}", headers={"accept": "application/x-ndjson"})
        assert (again.body, again.headers["at-end"]) == (b"", "true")

    async def test_some_keys(self, door: Any) -> None:
        await ten(door)
        token = door.token("eu-reader")
        for query in ("", "?key=eu/1", "?timestamp=0", "?offset=0&partition=0", "?cursor=0-0", "?wait_ms=60000"):
            assert texts((await door.get(TOPIC + query, token=token)).json) == [1, 3, 5, 7, 9]
        refused = await door.get(f"{TOPIC}?key=us/1", token=token)
        assert (refused.status, refused.slug) == (403, "access-denied")

    async def test_a_cursor_of_another_node(self, door: Any) -> None:
        await ten(door)
        answer = await door.get(f"{TOPIC}?cursor=99999-0")
        assert (answer.status, answer.slug) == (416, "cursor-ahead")

    async def test_parameters(self, door: Any) -> None:
        await ten(door)
        for query, name in (
            ("cursor=x", "cursor"),
            ("offset=1", "offset"),
            ("offset=1&cursor=1-1", "offset"),
            ("from=latest", "from"),
        ):
            answer = await door.get(f"{TOPIC}?{query}")
            assert (answer.status, answer.problem["name"]) == (400, name)

    async def test_pages_leave_no_feed_behind(self, door: Any) -> None:
        await ten(door)
        await door.get(TOPIC)
        await door.get(f"{TOPIC}?cursor=99999-0")
        assert door.pipeline.feeds == 0


class TestLatest:
    async def test_the_value_as_it_was_published(self, door: Any) -> None:
        headers = {"content-type": "image/png", "sprawl-header-source": "till", "sprawl-header-odd": "a\tb"}
        receipt = (await door.call("POST", "/v1/records/orders/eu/7", b"\x89PNG", headers=headers)).json["records"][0]
        answer = await door.get("/v1/records/orders/eu/7")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"\x89PNG", "image/png")
        assert answer.headers["record-source"] == "latest"
        assert answer.headers["message-id"] == receipt["id"]
        assert answer.headers["record-topic"] == "orders"
        assert answer.headers["record-partition"] == str(receipt["partition"])
        assert answer.headers["record-offset"] == str(receipt["offset"])
        assert answer.headers["record-key64"] == "ZXUvNw"
        assert (answer.headers["sprawl-header-source"], answer.headers["sprawl-header-odd"]) == ("till", "a\tb")
        assert int(answer.headers["record-timestamp"]) > 0

    async def test_the_record_object(self, door: Any) -> None:
        await door.post("/v1/records/orders/eu/7", {"value": {"amount": 12}})
        answer = await door.get("/v1/records/orders/eu/7?envelope=true")
        assert (answer.json["value"], answer.json["key"]) == ({"amount": 12}, "eu/7")
        assert answer.headers["record-source"] == "latest"

    async def test_the_newest(self, door: Any) -> None:
        for number in range(5):
            await door.publish("orders", ("a", str(number)), ("b", "other"))
        assert (await door.get("/v1/records/orders/a")).body == b"4"

    async def test_nothing_there(self, door: Any) -> None:
        await ten(door)
        for path in ("orders/none", "orders/", "orders"):
            answer = await door.get(f"/v1/records/{path}")
            assert (answer.status, answer.slug) == (404, "no-record")
        answer = await door.get("/v1/records/other/k")
        assert (answer.status, answer.slug) == (404, "unknown-topic")

    async def test_a_deleted_one(self, door: Any) -> None:
        await door.post("/v1/records/orders/a", [{"text": "v"}, {"value": None}])
        assert (await door.get("/v1/records/orders/a")).slug == "no-record"
        assert (await door.get("/v1/records/orders/a?envelope=true")).json["value"] is None

    async def test_some_keys(self, door: Any) -> None:
        await door.publish("orders", ("eu/1", "v"), ("us/1", "v"))
        token = door.token("eu-reader")
        assert (await door.get("/v1/records/orders/eu/1", token=token)).body == b"v"
        for path in ("us/1", "none", ""):
            answer = await door.get(f"/v1/records/orders/{path}", token=token)
            assert (answer.status, answer.slug) == (403, "access-denied")

    async def test_a_stored_type_cannot_become_another_header(self, door: Any) -> None:
        rows = [b"text/html\r\nSet-Cookie: a=b", b"text/html\n", b"\x00", "téxt/html".encode(), b"", b" text/html", b"x" * 5_000]
        for hostile in rows:
            await door.publish("orders", Incoming(b"k", HTML, ((b"content-type", hostile), (b"h", hostile), (b"a\r\nb", b"c"))))
            answer = await door.get("/v1/records/orders/k")
            assert answer.headers["content-type"] == "application/octet-stream"
            assert not [name for name in answer.headers if name.startswith("sprawl-header-")]

    async def test_a_stored_page_is_harmless(self, door: Any) -> None:
        await door.publish("orders", Incoming(b"k", HTML, ((b"content-type", b"text/html"),)))
        answer = await door.get("/v1/records/orders/k")
        assert answer.headers["content-security-policy"].startswith("sandbox")
        assert answer.headers["x-content-type-options"] == "nosniff"

    async def test_parameters(self, door: Any) -> None:
        for query, name in (("envelope=1", "envelope"), ("key=a", "key")):
            assert (await door.get(f"/v1/records/orders/k?{query}")).problem["name"] == name


LONG_POLLS = [f"{PARTITION}?wait_ms=60000", f"{TOPIC}?wait_ms=60000", f"{TOPIC}?key=eu/1&wait_ms=60000"]


class TestLongPoll:
    async def pending(self, door: Any, target: str, **options: Any) -> Any:
        """A long-poll at the end of an empty topic."""
        if "orders" not in door.engine.topics():
            await door.engine.create_topic("orders", 1, {})
        before = len(door.engine._watchers.get("orders", ()))
        call = door.begin("GET", target, **options)
        await door.until(lambda: len(door.engine._watchers.get("orders", ())) > before)
        return call

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_it_answers_when_there_is_one(self, door: Any, target: str) -> None:
        call = await self.pending(door, target)
        await door.publish("orders", record("eu/1", "7"))
        assert texts((await call.answer()).json) == [7]

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_or_when_the_time_is_over(self, door: Any, target: str) -> None:
        call = await self.pending(door, target.replace("60000", "20"))
        answer = await call.answer()
        assert (answer.status, answer.json["records"]) == (200, [])

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_a_client_that_leaves_takes_its_wait_along(self, door: Any, target: str) -> None:
        call = await self.pending(door, target)
        call.leave()
        await call.task
        assert (call.status, call.body) == (0, b"")
        assert not door.engine._watchers
        assert (len(door.app._polls), door.pipeline.feeds) == (0, 0)

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_the_drain_answers_with_what_there_is(self, door: Any, target: str) -> None:
        call = await self.pending(door, target)
        door.app.drain()
        answer = await call.answer()
        assert (answer.status, answer.json["records"]) == (200, [])
        assert not door.engine._watchers
        late = await door.get(target)
        assert (late.status, late.json["records"]) == (200, [])

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_a_right_that_went_while_it_waited(self, door: Any, target: str) -> None:
        call = await self.pending(door, target, token=door.token("eu-reader"))
        door.grant({"eu-reader": [{"actions": ["describe"], "topic": "orders"}]})
        await door.publish("orders", record("eu/1", "planted"))
        answer = await call.answer()
        assert (answer.status, answer.slug) == (403, "access-denied")
        assert b"planted" not in answer.body

    @pytest.mark.parametrize("target", LONG_POLLS)
    async def test_a_token_that_was_revoked_while_it_waited(self, door: Any, target: str) -> None:
        token = door.token("eu-reader")
        call = await self.pending(door, target, token=token)
        door.revoke(token)
        await door.publish("orders", record("eu/1", "planted"))
        answer = await call.answer()
        assert (answer.status, answer.slug) == (401, "token-revoked")
        assert answer.headers["www-authenticate"].startswith("Bearer")

    async def test_waits_at_once_are_bounded(self, open_door: Any) -> None:
        door = open_door(waits_max=2)
        calls = [await self.pending(door, LONG_POLLS[0]) for _ in range(2)]
        refused = await door.get(LONG_POLLS[1])
        assert (refused.status, refused.slug, refused.problem["limit_name"]) == (503, "busy", "rest.waits_max")
        calls[0].leave()
        await calls[0].task
        calls.append(await self.pending(door, LONG_POLLS[0]))
        door.app.drain()
        await asyncio.gather(*(call.task for call in calls))

    async def test_the_longest_wait_is_the_configured_one(self, open_door: Any) -> None:
        door = open_door(wait_ms_max=50)
        call = await self.pending(door, PARTITION + "?wait_ms=50")
        assert (await call.answer()).status == 200
        assert (await door.get(PARTITION + "?wait_ms=51")).problem["name"] == "wait_ms"


async def test_what_is_read_counts_against_the_quota(open_door: Any) -> None:
    door = open_door(quotas={"bytes_out": RateLimit(0.01, 10)})
    await ten(door)
    assert (await door.get(PARTITION)).status == 200
    answer = await door.get(PARTITION)
    assert (answer.status, answer.slug, answer.problem["quota"]) == (429, "quota-exceeded", "bytes_out")
    assert int(answer.headers["retry-after"]) > 1


async def test_large_answers_are_held_within_the_bound_until_they_have_left(open_door: Any) -> None:
    door = open_door(bodies_bytes_max=250_000)
    await door.publish("orders", *[record("k", "x" * 990)] * 150)
    slow = door.begin("GET", PARTITION)
    slow.pause_at = b"{"
    await door.until(lambda: not slow.going.is_set())
    refused = await door.get(PARTITION)
    assert (refused.status, refused.slug) == (503, "busy")
    assert (await door.get(f"{PARTITION}?limit=10")).status == 200
    slow.going.set()
    assert len((await slow.answer()).json["records"]) == 150
    assert door.app._bodies.held_bytes == 0
    assert (await door.get(PARTITION)).status == 200
