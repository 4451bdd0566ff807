"""Server-Sent Events: resume exactly, hold little, end when rights or the node do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.endpoints.rest_options import SseOptions
from gateway.pipeline import Incoming

EVENTS = "/v1/topics/orders/events"


def record(key: str, text: str = "v", **more: Any) -> Incoming:
    return Incoming(key.encode(), text.encode(), **({"partition": 0} | more))


class Event:
    """One block of the stream, read as the HTML standard says."""

    def __init__(self, block: bytes) -> None:
        self.kind, self.id, data, self.comments = "message", "", [], 0
        for line in block.decode().split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "":
                self.comments += 1
            elif name == "id":
                self.id = value
            elif name == "event":
                self.kind = value
            elif name == "data":
                data.append(value)
        self.data = "\n".join(data)

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def events(body: bytes) -> list[Event]:
    """Those with data; comments and moves of the position make no event."""
    return [event for block in body.split(b"\n\n") if (event := Event(block)).data]


def last_id(body: bytes) -> str:
    return [event.id for block in body.split(b"\n\n") if (event := Event(block)).id][-1]


async def ended(call: Any) -> bytes:
    call.leave()
    await call.task
    body: bytes = call.body
    return body


async def follow(door: Any, target: str = f"{EVENTS}?from=earliest", **options: Any) -> Any:
    """A stream that has begun."""
    call = door.begin("GET", target, **options)
    await call.until(b"id: ")
    return call


async def test_what_is_published_arrives(door: Any) -> None:
    await door.publish("orders", record("a", "before"))
    call = await follow(door)
    await call.until(b"before")
    await door.post("/v1/topics/orders/records", {"key": "b", "value": {"after": True}})
    await call.until(b"after")
    assert dict(call.headers)[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert dict(call.headers)[b"cache-control"] == b"no-store"
    found = [event.json for event in events(await ended(call))]
    assert [(one["key"], one.get("text"), one.get("value")) for one in found] == [
        ("a", "before", None),
        ("b", None, {"after": True}),
    ]


async def test_latest_is_where_it_begins_unless_told_otherwise(door: Any) -> None:
    await door.publish("orders", record("a", "old"))
    call = await follow(door, EVENTS)
    await door.publish("orders", record("a", "new"))
    await call.until(b"new")
    assert b"old" not in await ended(call)


async def test_beginnings(door: Any) -> None:
    rows = ["earliest", "0-0", "0", "1970-01-01T00:00:00Z"]
    for start in rows:
        await door.publish("orders", record("a", "old"))
        call = await follow(door, f"{EVENTS}?from={start}")
        await call.until(b"old")
        await ended(call)


async def test_it_resumes_exactly_after_each_event_also_inside_a_batch(door: Any) -> None:
    for batch in range(3):
        await door.publish("orders", *[record("k", f"{batch}.{number}", partition=number % 2) for number in range(4)])
    call = await follow(door)
    await call.until(b"2.3")
    whole = events(await ended(call))
    assert len(whole) == 12
    for position, event in enumerate(whole[:-1]):
        call = await follow(door, EVENTS, headers={"last-event-id": event.id})
        await call.until(whole[-1].data.encode())
        rest = events(await ended(call))
        assert [one.data for one in rest] == [one.data for one in whole[position + 1 :]]


async def test_last_event_id_wins_over_from(door: Any) -> None:
    await door.publish("orders", record("a", "first"), record("a", "second"))
    call = await follow(door)
    await call.until(b"second")
    first = events(await ended(call))[0]
    call = await follow(door, f"{EVENTS}?from=earliest", headers={"last-event-id": first.id})
    await call.until(b"second")
    assert b"first" not in await ended(call)


async def test_a_stream_without_events_can_be_resumed_too(door: Any) -> None:
    """Its position comes first, so nothing that is published while the reader is away is lost."""
    await door.publish("orders", record("a", "old"))
    body = await ended(await follow(door, EVENTS))
    assert body.startswith(b"retry: 1000\n")
    await door.publish("orders", record("a", "meanwhile"))
    call = await follow(door, EVENTS, headers={"last-event-id": last_id(body)})
    await call.until(b"meanwhile")
    assert b"old" not in await ended(call)


async def test_one_key(door: Any) -> None:
    await door.publish("orders", record("a", "1"), record("b", "2"), record("a", "3"))
    call = await follow(door, f"{EVENTS}?from=earliest&key=a")
    await call.until(b'"3"')
    assert [event.json["text"] for event in events(await ended(call))] == ["1", "3"]


async def test_some_keys(door: Any) -> None:
    await door.publish("orders", record("us/1", "no"), record("eu/1", "yes"))
    for target in (f"{EVENTS}?from=earliest", f"{EVENTS}?from=earliest&key=eu/1", f"{EVENTS}?from=0", f"{EVENTS}?from=0-0"):
        call = await follow(door, target, token=door.token("eu-reader"))
        await call.until(b"yes")
        await door.publish("orders", record("us/1", "no"), record("eu/1", "live"))
        await call.until(b"live")
        assert b'"no"' not in await ended(call)
    refused = await door.get(f"{EVENTS}?key=us/1", token=door.token("eu-reader"))
    assert (refused.status, refused.slug) == (403, "access-denied")


async def test_a_value_cannot_end_its_event_and_begin_another(door: Any) -> None:
    hostile = '{\r\n"a":\n\n"id: 9-9",\r"b":"data: x"\n}'
    headers = ((b"content-type", b"application/json"),)
    await door.publish(
        "orders", record("k", hostile, headers=headers), record("k", "x\n\nevent: bad\ndata: y\r\rid: 7-7"), record("k", "end")
    )
    call = await follow(door)
    await call.until(b"end")
    found = events(await ended(call))
    assert len(found) == 3
    assert {event.kind for event in found} == {"message"}
    assert found[0].json["value"] == {"a": "id: 9-9", "b": "data: x"}


async def test_heartbeats_move_the_position(open_door: Any) -> None:
    door = open_door(sse=SseOptions(heartbeat_ms=10))
    await door.publish("orders", record("a"))
    call = await follow(door, f"{EVENTS}?key=none")
    first = last_id(call.body)
    await call.until(b":\n")
    await door.publish("orders", record("a"))
    await door.until(lambda: last_id(call.body) > first)
    assert events(await ended(call)) == []


async def test_a_slow_reader_holds_one_chunk(open_door: Any) -> None:
    """Nothing more is read from the log while what was written has not left."""
    door = open_door(sse=SseOptions(buffer_bytes_max=10_000))
    for _ in range(50):
        await door.publish("orders", *[record("k", "x" * 990)] * 10)
    call = door.begin("GET", f"{EVENTS}?from=earliest")
    call.pause_at = b"data: "
    await door.until(lambda: not call.going.is_set())
    await asyncio.sleep(0.02)
    assert len(events(call.body)) == 10  # one batch: two would cross the bound
    assert door.count("records_out_total", protocol="sse") == 10
    call.going.set()
    await door.until(lambda: len(events(call.body)) == 500)
    await ended(call)


async def test_the_drain_ends_it(door: Any) -> None:
    await door.publish("orders", record("a", "old"))
    call = await follow(door)
    await call.until(b"old")
    door.app.drain()
    answer = await call.answer()
    assert answer.status == 200
    assert door.pipeline.feeds == 0
    assert not door.engine._watchers
    late = await door.get(EVENTS)
    assert (late.status, late.slug, late.headers["retry-after"]) == (503, "draining", "1")


async def test_a_reader_that_leaves_takes_everything_along(door: Any) -> None:
    await door.publish("orders", record("a"))
    call = await follow(door)
    await door.until(lambda: bool(door.engine._watchers))
    assert door.count("subscriptions", protocol="sse") == 1
    call.leave()
    await call.task
    assert not door.engine._watchers
    assert (door.pipeline.feeds, len(door.app._streams)) == (0, 0)
    assert door.count("subscriptions", protocol="sse") == 0


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        (lambda door, token: door.grant({"eu-reader": [{"actions": ["describe"], "topic": "orders"}]}), "access-denied"),
        (lambda door, token: door.revoke(token), "token-revoked"),
        (lambda door, token: setattr(door.clock, "ahead_ms", 3_600_000), "token-expired"),
    ],
)
async def test_rights_that_end_end_the_stream_and_nothing_more_is_told(door: Any, change: Any, slug: str) -> None:
    await door.publish("orders", record("eu/1", "old"))
    token = door.token("eu-reader", ttl_ms=3_600_000)
    call = await follow(door, token=token)
    await call.until(b"old")
    await door.until(lambda: bool(door.engine._watchers))
    admin = await door.session()
    change(door, token)
    if slug != "token-expired":
        await door.pipeline.publish(admin, "orders", [record("eu/1", "planted")])
    else:
        await door.publish("orders", record("eu/1", "planted"))
    answer = await call.answer()
    assert b"planted" not in answer.body
    [_, error] = events(answer.body)
    assert (error.kind, error.json["type"]) == ("error", f"/problems/{slug}")
    assert not error.id


async def test_keys_that_change_change_what_arrives(door: Any) -> None:
    await door.publish("orders", record("eu/1", "old"))
    call = await follow(door, token=door.token("eu-reader"))
    await call.until(b"old")
    door.grant({"eu-reader": [{"actions": ["read"], "topic": "orders", "key": "us/*"}]})
    await door.publish("orders", record("eu/1", "planted"), record("us/1", "allowed"))
    await call.until(b"allowed")
    assert b"planted" not in await ended(call)


async def test_rights_that_end_while_a_slow_reader_keeps_it_waiting(door: Any) -> None:
    """Records are taken from the log only when they can be written: nothing waits with the rights of yesterday."""
    await door.publish("orders", record("eu/1", "old"))
    token = door.token("eu-reader")
    call = await follow(door, EVENTS, token=token)
    await door.until(lambda: bool(door.engine._watchers))
    call.going.clear()
    await door.publish("orders", record("eu/1", "first"))
    await door.publish("orders", record("eu/1", "planted"))
    await asyncio.sleep(0.01)
    door.revoke(token)
    call.going.set()
    assert b"planted" not in (await call.answer()).body


async def test_streams_are_bounded(open_door: Any) -> None:
    door = open_door(sse=SseOptions(streams_max=1))
    await door.publish("orders", record("a"))
    call = await follow(door)
    refused = await door.get(EVENTS)
    assert (refused.status, refused.slug, refused.problem["limit_name"]) == (503, "busy", "sse.streams_max")
    await ended(call)
    await ended(await follow(door))


async def test_refusals(door: Any) -> None:
    rows = [
        (f"{EVENTS}?from=noon", {}, 400, "parameter-invalid"),
        (f"{EVENTS}?from=1-", {}, 400, "parameter-invalid"),
        (f"{EVENTS}?from=-1", {}, 400, "parameter-invalid"),
        (f"{EVENTS}?since=1", {}, 400, "parameter-invalid"),
        (EVENTS, {"last-event-id": "17"}, 400, "parameter-invalid"),
        (EVENTS, {"last-event-id": "ü"}, 400, "parameter-invalid"),
        (EVENTS, {"last-event-id": "99999-0"}, 416, "cursor-ahead"),
        ("/v1/topics/other/events", {}, 404, "unknown-topic"),
        ("/v1/topics/a%20b/events", {}, 400, "illegal-topic-name"),
    ]
    for target, headers, status, slug in rows:
        await door.publish("orders", record("a"))
        answer = await door.get(target, headers=headers)
        assert (answer.status, answer.slug) == (status, slug)
        assert door.pipeline.feeds == 0


async def test_head_has_the_headers_and_ends(door: Any) -> None:
    await door.publish("orders", record("a"))
    answer = await door.call("HEAD", EVENTS)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_over_a_real_connection(door: Any, http: httpx.AsyncClient) -> None:
    """Publish over REST, receive over SSE, leave, come back."""
    await http.post("/v1/records/orders/k", content=b"one")
    seen = ""
    async with http.stream("GET", f"{EVENTS}?from=earliest") as stream:
        lines = stream.aiter_lines()
        async for line in lines:
            seen = line.removeprefix("id: ") if line.startswith("id: ") else seen
            if "one" in line:
                break
    await door.until(lambda: door.pipeline.feeds == 0)
    await http.post("/v1/records/orders/k", content=b"two")
    async with http.stream("GET", EVENTS, headers={"last-event-id": seen}) as stream:
        async for line in stream.aiter_lines():
            assert "one" not in line
            if "two" in line:
                break


async def test_a_reader_that_stops_reading_stops_the_node_from_reading(door: Any, http: httpx.AsyncClient) -> None:
    """24 MB wait in the log for a reader that takes its time, not in memory; it gets all of them in the end."""
    for number in range(24):
        await door.publish("orders", *[record("k", f"{number * 1_000 + step:05}" + "x" * 995) for step in range(1_000)])

    def delivered() -> float:
        return door.count("bytes_out_total", protocol="sse")

    async with http.stream("GET", f"{EVENTS}?from=earliest", timeout=30) as stream:
        lines = stream.aiter_lines()
        await anext(lines)
        before = -1.0
        while delivered() != before:  # until the node has found out that nobody reads
            before = delivered()
            await asyncio.sleep(0.1)
        assert before < 16_000_000
        seen = [line[line.index('"text":"') + 8 :][:5] async for line in _first(lines, "data: ", 24_000)]
    assert seen == [f"{number:05}" for number in range(24_000)]


async def _first(lines: Any, prefix: str, count: int) -> Any:
    async for line in lines:
        if line.startswith(prefix):
            yield line
            count -= 1
            if count == 0:
                return


class TestForgedLastEventId:
    """A browser sends back what it was given, anybody else what they like: it is a place in the log, and never a right."""

    @pytest.mark.parametrize(
        ("forged", "status", "slug"),
        [
            ("", 200, ""),  # as a browser without an id says it
            ("abc", 400, "parameter-invalid"),
            ("1", 400, "parameter-invalid"),
            ("-1-0", 400, "parameter-invalid"),
            ("1-0-0", 400, "parameter-invalid"),
            ("1 - 0", 400, "parameter-invalid"),
            ("0x1-0", 400, "parameter-invalid"),
            ("\u0661-0", 400, "parameter-invalid"),  # another alphabet's digit
            ("1-0, 2-0", 400, "parameter-invalid"),
            ("1-0\x00", 400, "parameter-invalid"),
            ("9" * 5_000 + "-0", 400, "parameter-invalid"),
            ("9223372036854775808-0", 400, "parameter-invalid"),
            ("9223372036854775807-9999999999", 416, "cursor-ahead"),
            ("{next}-1", 416, "cursor-ahead"),
            ("{last}-3", 416, "cursor-unknown"),
            ("{last}-9999999999", 416, "cursor-unknown"),
            ("{next}-0", 200, ""),
            ("{last}-2", 200, ""),
            ("0-0", 200, ""),
            ("0-99", 200, ""),  # before the first: nothing is stepped over
        ],
    )
    @pytest.mark.parametrize("target", [EVENTS, "/v1/events", f"{EVENTS}?headers=a:b", f"{EVENTS}?key=k"])
    async def test_it_is_refused_clearly_or_a_place(self, door: Any, target: str, forged: str, status: int, slug: str) -> None:
        await door.publish("orders", record("k", "1"), record("k", "2"), record("k", "3"))
        next_sequence = door.engine.next_sequence()
        text = forged.format(next=next_sequence, last=next_sequence - 1)
        headers = {"last-event-id": text.encode("utf-8").decode("latin-1")}
        call = door.begin("GET", target, headers=headers)
        if status == 200:
            await call.until(b"id: ")
            assert call.status == 200
            await ended(call)
        else:
            answer = await call.answer()
            assert (answer.status, answer.slug) == (status, slug)
        assert door.pipeline.feeds == 0

    async def test_the_place_of_a_topic_that_may_not_be_read_shows_nothing_of_it(self, door: Any) -> None:
        await door.publish("secrets", record("k", "planted"))
        await door.publish("orders", record("eu/1", "mine"), record("us/1", "planted"))
        for number in range(door.engine.next_sequence() + 1):
            for target in (EVENTS, "/v1/events"):
                headers = {"last-event-id": f"{number}-0"}
                call = door.begin("GET", target, token=door.token("eu-reader"), headers=headers)
                await call.until(b"id: ")
                await asyncio.sleep(0.005)
                body = await ended(call)
                assert b"planted" not in body
        refused = await door.get("/v1/topics/secrets/events", token=door.token("eu-reader"), headers={"last-event-id": "0-0"})
        assert (refused.status, refused.slug) == (403, "access-denied")

    async def test_it_wins_over_from_and_from_is_still_checked(self, door: Any) -> None:
        await door.publish("orders", record("k", "1"))
        answer = await door.get(f"{EVENTS}?from=earliest", headers={"last-event-id": "abc"})
        assert (answer.status, answer.problem["name"]) == (400, "Last-Event-ID")


class TestFilters:
    async def test_of_one_topic(self, door: Any) -> None:
        paid, new = ((b"type", b"paid"),), ((b"type", b"new"),)
        await door.publish(
            "orders", record("eu/1", "a", headers=paid), record("eu/2", "b", headers=new), record("us/1", "c", headers=paid)
        )
        for target, texts in (
            (f"{EVENTS}?from=earliest&headers=type:paid", ["a", "c"]),
            (f"{EVENTS}?from=earliest&key_prefix=eu/", ["a", "b"]),
            (f"{EVENTS}?from=earliest&key_prefix=eu/&headers=type:paid", ["a"]),
        ):
            call = await follow(door, target)
            await call.until(f'"{texts[-1]}"'.encode())
            assert [event.json["text"] for event in events(await ended(call))] == texts

    async def test_of_all_topics_with_those_made_later(self, door: Any) -> None:
        await door.publish("orders", record("status", "a"), record("x", "no"))
        call = await follow(door, "/v1/events?address=%2B/status&from=earliest")
        await call.until(b'"a"')
        await door.publish("parcels", record("status", "b"))
        await call.until(b'"b"')
        found = [event.json for event in events(await ended(call))]
        assert [(one["topic"], one["text"]) for one in found] == [("orders", "a"), ("parcels", "b")]

    async def test_a_filter_that_matches_everything_gets_what_may_be_read(self, door: Any) -> None:
        await door.publish("secrets", record("eu/1", "planted"))
        await door.publish("orders", record("us/1", "planted"), record("eu/1", "mine"))
        for target in ("/v1/events?address=%23", "/v1/events?address=%23&key_prefix=", "/v1/events"):
            call = await follow(door, target + ("&" if "?" in target else "?") + "from=earliest", token=door.token("eu-reader"))
            await call.until(b"mine")
            await door.publish("secrets", record("eu/2", "planted"))
            await door.publish("orders", record("eu/2", "live"))
            await call.until(b"live")
            assert b"planted" not in await ended(call)

    async def test_resumed_it_goes_on_exactly(self, door: Any) -> None:
        await door.publish("orders", *[record(f"eu/{number}", str(number)) for number in range(6)], record("us/1", "no"))
        call = await follow(door, "/v1/events?address=orders/eu/%2B&from=earliest")
        await call.until(b'"5"')
        whole = events(await ended(call))
        assert len(whole) == 6
        for position, event in enumerate(whole[:-1]):
            call = await follow(door, "/v1/events?address=orders/eu/%2B", headers={"last-event-id": event.id})
            await call.until(b'"5"')
            assert [one.json["text"] for one in events(await ended(call))] == [one.json["text"] for one in whole[position + 1 :]]

    async def test_refusals(self, door: Any) -> None:
        await door.publish("orders", record("a"))
        rows = [
            ("/v1/events?address=or%23ders", 400, "filter-invalid"),
            ("/v1/events?address=" + "a/" * 200, 400, "filter-invalid"),
            ("/v1/events?address=nowhere/%2B", 404, "unknown-topic"),
            ("/v1/events?headers=nothing", 400, "parameter-invalid"),
            ("/v1/events?key=a", 400, "parameter-invalid"),
            (f"{EVENTS}?address=x", 400, "parameter-invalid"),
            (f"{EVENTS}?key_prefix={'x' * 2_000}", 400, "filter-invalid"),
            ("/v1/topics/%2B/events?headers=a:b", 400, "illegal-topic-name"),
            ("/v1/topics/%23/events?key_prefix=a", 400, "illegal-topic-name"),
        ]
        for target, status, slug in rows:
            answer = await door.get(target)
            assert (answer.status, answer.slug) == (status, slug), target
            assert door.pipeline.feeds == 0


class TestManyReaders:
    async def test_what_one_stream_takes_is_less_where_there_are_many(self, open_door: Any) -> None:
        door = open_door(send_buffers_bytes_max=400_000)
        for _ in range(10):
            await door.publish("orders", *[record("k", "x" * 990)] * 10)
        door.buffers.connections = 9
        call = door.begin("GET", f"{EVENTS}?from=earliest")
        call.pause_at = b"data: "
        await door.until(lambda: not call.going.is_set())
        assert len(events(call.body)) == 10  # as many as 10,000 bytes hold
        assert door.buffers.held_bytes > 10_000
        call.going.set()
        await door.until(lambda: len(events(call.body)) == 100)
        await door.until(lambda: door.buffers.held_bytes == 0)
        await ended(call)
        assert door.buffers.connections == 9

    async def test_beyond_the_nodes_bound_the_longest_waiting_stream_ends(self, open_door: Any) -> None:
        door = open_door(send_buffers_bytes_max=50_000)
        await door.publish("orders", *[record("k", "x" * 30_000)] * 4)
        slow = []
        for _ in range(2):
            call = door.begin("GET", f"{EVENTS}?from=earliest")
            call.pause_at = b"data: "
            slow.append(call)
            await door.until(lambda call=call: not call.going.is_set())
        assert door.buffers.stats().cut == 1
        for call in slow:
            call.going.set()
        await door.until(slow[0].task.done)
        assert not slow[1].task.done()
        await ended(slow[1])
        assert door.buffers.held_bytes == 0
