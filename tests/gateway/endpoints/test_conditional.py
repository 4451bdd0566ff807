"""Conditional reads of the latest record: who has it is sent nothing; who has another is sent this one."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest

from gateway.endpoints.conditional import SETTLED_MS, last_modified

PATH = "/v1/records/orders/k"


async def test_by_version(door: Any) -> None:
    await door.publish("orders", ("k", "one"))
    first = await door.get(PATH)
    assert first.headers["cache-control"] == "private, no-cache"
    again = await door.get(PATH, headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert "content-length" not in again.headers
    await door.publish("orders", ("k", "one"))  # the same bytes, another record
    changed = await door.get(PATH, headers={"if-none-match": first.headers["etag"]})
    assert (changed.status, changed.body) == (200, b"one")
    assert changed.headers["etag"] != first.headers["etag"]


async def test_forms_have_versions_of_their_own(door: Any) -> None:
    await door.publish("orders", ("k", "one"))
    forms = [
        await door.get(PATH),
        await door.get(f"{PATH}?envelope=true"),
        await door.get(PATH, headers={"accept": "application/cloudevents+json"}),
    ]
    assert len({answer.headers["etag"] for answer in forms}) == 3
    assert {answer.headers["vary"] for answer in forms} == {"accept"}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("{tag}", 304),
        ('"other", {tag}', 304),
        ("*", 304),
        ("{strong}", 304),
        ('"other"', 200),
        ("", 200),
        ("{bare}", 200),
        ('W/"', 200),
        ("\xff", 200),
        (", " * 5_000, 200),
    ],
)
async def test_what_a_caller_may_say(door: Any, given: str, status: int) -> None:
    await door.publish("orders", ("k", "one"))
    tag = (await door.get(PATH)).headers["etag"]
    text = given.format(tag=tag, strong=tag.removeprefix("W/"), bare=tag.removeprefix("W/").strip('"'))
    assert (await door.get(PATH, headers={"if-none-match": text})).status == status


async def test_by_time(door: Any) -> None:
    await door.post("/v1/topics/orders/records", {"key": "k", "text": "a", "timestamp": "2026-11-01T12:00:00.700Z"})
    first = await door.get(PATH)
    assert first.headers["last-modified"] == "Sun, 01 Nov 2026 12:00:00 GMT"
    assert (await door.get(PATH, headers={"if-modified-since": first.headers["last-modified"]})).status == 304
    for other in ("Sun, 01 Nov 2026 12:00:01 GMT", "Sun, 01 Nov 2020 12:00:00 GMT", "yesterday", ""):
        assert (await door.get(PATH, headers={"if-modified-since": other})).status == 200
    # The version decides where both are given.
    both = {"if-modified-since": first.headers["last-modified"], "if-none-match": '"other"'}
    assert (await door.get(PATH, headers=both)).status == 200


async def test_a_newer_value_with_an_older_time_is_new(door: Any) -> None:
    for text, timestamp in (("new", "2026-11-01T12:00:00Z"), ("newer", "2026-10-01T12:00:00Z")):
        await door.post("/v1/topics/orders/records", {"key": "k", "text": text, "timestamp": timestamp})
    answer = await door.get(PATH, headers={"if-modified-since": "Sun, 01 Nov 2026 12:00:00 GMT"})
    assert (answer.status, answer.body) == (200, b"newer")


def test_times_that_may_still_be_those_of_a_later_value() -> None:
    now_ms = 1_795_438_800_500
    assert last_modified(now_ms - SETTLED_MS, now_ms) == formatdate((now_ms - SETTLED_MS) // 1_000, usegmt=True).encode()
    for timestamp_ms in (now_ms - SETTLED_MS + 1, now_ms, now_ms + 1, 2**62, -1):
        assert last_modified(timestamp_ms, now_ms) is None


async def test_whoever_may_not_read_learns_nothing(door: Any) -> None:
    await door.publish("orders", ("k", "one"))
    token = door.token("eu-reader")
    answer = await door.get(PATH, token=token, headers={"if-none-match": "*"})
    assert (answer.status, answer.slug) == (403, "access-denied")


async def test_what_is_gone_is_gone(door: Any) -> None:
    await door.publish("orders", ("k", "one"))
    tag = (await door.get(PATH)).headers["etag"]
    await door.post("/v1/topics/orders/records", {"key": "k", "value": None})
    assert (await door.get(PATH, headers={"if-none-match": tag})).status == 404
    assert (await door.get(PATH, headers={"if-none-match": "*"})).status == 404
