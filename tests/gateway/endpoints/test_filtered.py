"""GET /v1/records: filters over the topics that may be read."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest


async def fill(door: Any) -> None:
    await door.publish("orders", ("eu/1", "a"), ("us/1", "b"))
    await door.publish("payments", ("eu/1", "c"), ("us/1", "d"))


def seen(page: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((record["topic"], record["key"]) for record in page["records"])


async def test_records_of_all_topics_in_commit_order(door: Any) -> None:
    await fill(door)
    page = (await door.get("/v1/records?address=%2B/eu/%2B")).json
    assert seen(page) == [("orders", "eu/1"), ("payments", "eu/1")]
    assert [record["topic"] for record in page["records"]] == ["orders", "payments"]
    assert page["at_end"] is True
    assert (page["damage"], page["gaps"]) == ([], [])


async def test_without_a_filter_everything(door: Any) -> None:
    await fill(door)
    assert len((await door.get("/v1/records")).json["records"]) == 4


async def test_pages_go_on_at_the_cursor(door: Any) -> None:
    await fill(door)
    found, cursor = [], "0-0"
    for _ in range(4):
        page = (await door.get(f"/v1/records?address=%23&limit=1&cursor={cursor}")).json
        found += page["records"]
        cursor = page["next_cursor"]
    assert len({(record["topic"], record["key"]) for record in found}) == 4
    assert (await door.get(f"/v1/records?cursor={cursor}")).json["records"] == []


async def test_each_record_has_the_cursor_that_goes_on_after_it(door: Any) -> None:
    await door.publish("orders", *[(f"{number}", "x") for number in range(5)])
    await fill(door)
    records = (await door.get("/v1/records")).json["records"]
    for number, record in enumerate(records):
        rest = (await door.get(f"/v1/records?cursor={record['cursor']}")).json["records"]
        assert rest == records[number + 1 :]


async def test_until_a_cursor(door: Any) -> None:
    await fill(door)
    end = (await door.get("/v1/records?offset=latest&limit=1")).json["next_cursor"]
    await fill(door)
    for limit in (1, 3, 100):
        found: list[Any] = []
        cursor, at_end = "0-0", False
        while not at_end:
            page = (await door.get(f"/v1/records?limit={limit}&cursor={cursor}&until={end}")).json
            found, cursor, at_end = found + page["records"], page["next_cursor"], page["at_end"]
        assert len(found) == 4
        assert cursor == end


async def test_from_an_offset_of_one_topic(door: Any) -> None:
    await door.post("/v1/topics/orders/records?partition=1", [{"key": str(n), "value": n} for n in range(4)])
    page = (await door.get("/v1/records?address=orders&offset=2&partition=1")).json
    assert [record["value"] for record in page["records"]] == [2, 3]
    assert (await door.get("/v1/records?address=orders&offset=9&partition=1")).status == 416


async def test_lines(door: Any) -> None:
    await fill(door)
    answer = await door.get("/v1/records?address=orders", headers={"accept": "application/x-ndjson"})
    assert [line["topic"] for line in answer.lines] == ["orders", "orders"]
    assert answer.headers["at-end"] == "true"
    assert answer.headers["next-cursor"]


async def test_key_prefix_and_headers(door: Any) -> None:
    body = [{"key": "eu/1", "value": 1, "headers": {"type": "paid", "to": "a:b"}}, {"key": "eu/2", "value": 2}]
    assert (await door.post("/v1/topics/orders/records", body)).status == 200
    for query, count in [
        ("key_prefix=eu/", 2),
        ("key_prefix=us/", 0),
        ("headers=type:paid", 1),
        ("headers=" + quote("type:paid\nto:a:b"), 1),
        ("headers=" + quote("type:paid\ntype:paid"), 1),
        ("headers=type:", 0),
    ]:
        assert len((await door.get(f"/v1/records?{query}")).json["records"]) == count, query


async def test_some_keys(door: Any) -> None:
    await fill(door)
    page = (await door.get("/v1/records?address=%23", token=door.token("eu-reader"))).json
    assert seen(page) == [("orders", "eu/1")]


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ("address=orders%23", 400, "filter-invalid", "stand alone"),
        ("address=%23/x", 400, "filter-invalid", "not the last"),
        ("address=", 400, "filter-invalid", "no topic's name"),
        ("address=o/" + "%2B/" * 70, 400, "filter-invalid", "levels"),
        ("address=o/" + "x" * 3000, 400, "filter-invalid", "3002 bytes"),
        ("key_prefix=" + "x" * 1025, 400, "filter-invalid", "1025 bytes"),
        ("headers=type", 400, "parameter-invalid", "name:value"),
        ("headers=" + quote("\n".join(f"{n}:x" for n in range(17))), 400, "filter-invalid", "17"),
        ("headers=:x", 400, "filter-invalid", "no name"),
        ("address=nothing/%2B", 404, "unknown-topic", "nothing"),
        ("offset=3&partition=0", 416, "position-refused", "many topics"),
        ("until=x", 400, "parameter-invalid", "1042-7"),
        ("offset=3", 400, "parameter-invalid", "partition"),
        ("cursor=99-0", 416, "cursor-ahead", "99-0"),
        ("filter=x", 400, "parameter-invalid", "no such parameter"),
    ],
)
async def test_bad_filters_are_refused_by_name(door: Any, query: str, status: int, slug: str, says: str) -> None:
    answer = await door.get(f"/v1/records?{query}")
    assert (answer.status, answer.slug) == (status, slug)
    assert says in answer.problem["detail"]


async def test_who_may_read_nothing_is_refused(door: Any) -> None:
    await fill(door)
    assert (await door.get("/v1/records", token=door.token("eu-writer"))).status == 403
    assert (await door.get("/v1/records?address=payments", token=door.token("eu-reader"))).status == 403
    assert (await door.get("/v1/records", token="")).status == 401


async def test_it_waits_for_what_comes(door: Any) -> None:
    await fill(door)
    call = door.begin("GET", "/v1/records?address=%2B/eu/%2B&offset=latest&wait_ms=20000")
    await door.until(lambda: door.pipeline.feeds == 1)
    await door.publish("news", ("us/1", "x"))
    await door.publish("news", ("eu/9", "y"))
    assert seen((await call.answer()).json) == [("news", "eu/9")]
    assert door.pipeline.feeds == 0


async def test_what_retention_took_is_told(door: Any) -> None:
    for number in range(6):
        await door.post("/v1/topics/orders/records?partition=0", {"key": "a", "value": number})
    begin = (await door.get("/v1/records?limit=2")).json["next_cursor"]
    await door.engine.delete_records("orders", 0, 4)
    page = (await door.get(f"/v1/records?cursor={begin}")).json
    assert [record["value"] for record in page["records"]] == [4, 5]
    [gap] = page["gaps"]
    assert (gap["topic"], gap["partition"], gap["to_offset"]) == ("orders", 0, 4)
    answer = await door.get(f"/v1/records?cursor={begin}", headers={"accept": "application/x-ndjson"})
    assert answer.headers["gaps"].startswith("orders/0/")


# Time to live at the edges


async def test_time_to_live_as_a_member_and_as_a_header(door: Any) -> None:
    assert (await door.post("/v1/topics/orders/records", {"key": "a", "value": 1, "ttl_ms": 5_000})).status == 200
    raw = {"content-type": "text/plain", "sprawl-ttl-ms": "5000"}
    assert (await door.call("POST", "/v1/records/orders/b", b"text", headers=raw)).status == 200
    assert (await door.post("/v1/records/orders/c", {"value": 3})).status == 200
    partitions = range(4)

    async def all_ways() -> list[list[str]]:
        by_partition = [
            record["key"]
            for partition in partitions
            for record in (await door.get(f"/v1/topics/orders/partitions/{partition}/records")).json["records"]
        ]
        return [
            sorted(by_partition),
            sorted(record["key"] for record in (await door.get("/v1/topics/orders/records")).json["records"]),
            sorted(record["key"] for record in (await door.get("/v1/records?address=%23")).json["records"]),
            [
                key
                for key in "abc"
                if (await door.get(f"/v1/topics/orders/records?key={key}")).json["records"]
                and (await door.get(f"/v1/records/orders/{key}")).status == 200
            ],
        ]

    assert await all_ways() == [["a", "b", "c"]] * 4
    door.clock.ahead_ms = 5_001
    assert await all_ways() == [["c"]] * 4
    assert (await door.get("/v1/records/orders/a")).slug == "no-record"


async def test_what_was_read_can_be_published_again_and_ends_at_the_same_moment(door: Any) -> None:
    await door.post("/v1/topics/orders/records", {"key": "a", "value": 1, "ttl_ms": 60_000})
    [record] = (await door.get("/v1/topics/orders/records")).json["records"]
    at_ms = record["expires_at"]
    assert 0 < at_ms - door.clock.now_ms() <= 60_000
    again = {name: record[name] for name in ("key", "value", "expires_at", "timestamp", "id")}
    assert (await door.post("/v1/topics/copies/records", again)).status == 200
    [copy] = (await door.get("/v1/topics/copies/records")).json["records"]
    assert copy["expires_at"] == at_ms
    door.clock.ahead_ms = 60_001
    assert (await door.get("/v1/topics/copies/records")).json["records"] == []


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"ttl_ms": 0}, "ttl_ms is not from 1"),
        ({"ttl_ms": -1}, "ttl_ms is not from 1"),
        ({"ttl_ms": 10**13}, "ten years"),
        ({"expires_at": -1}, "expires_at is not from 0"),
        ({"expires_at": 10**15}, "expires_at is not from 0"),
        ({"ttl_ms": 1, "expires_at": 1}, "both ttl_ms and expires_at"),
        ({"ttl_ms": "5s"}, "Expected `int"),
        ({"ttl_ms": 1.5}, "Expected `int"),
        ({"ttl_ms": True}, "Expected `int"),
        ({"headers": {"sprawl-expires-at": "1"}}, "node's own"),
    ],
)
async def test_bad_times_to_live_are_refused(door: Any, members: dict[str, Any], says: str) -> None:
    answer = await door.post("/v1/topics/orders/records", {"key": "a", "value": 1, **members})
    assert answer.status == 400
    assert says.replace("`", "") in answer.problem["detail"].replace("`", "")


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "0", "9" * 13, "99999999999999999999"])
async def test_bad_ttl_headers_are_refused(door: Any, text: str) -> None:
    raw = {"content-type": "text/plain", "sprawl-ttl-ms": text}
    assert (await door.call("POST", "/v1/records/orders/b", b"text", headers=raw)).status == 400


async def test_events_leave_expired_records_out(door: Any) -> None:
    await door.post("/v1/topics/orders/records", [{"key": "a", "value": 1, "ttl_ms": 50}, {"key": "b", "value": 2}])
    door.clock.ahead_ms = 60
    call = door.begin("GET", "/v1/topics/orders/events?from=earliest")
    body = await call.until(b"data:")
    call.leave()
    await call.task
    records = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
    assert [record["key"] for record in records] == ["b"]
