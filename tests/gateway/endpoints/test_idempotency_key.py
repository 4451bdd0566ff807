"""The header Idempotency-Key on publishing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.conftest import Answer, Call, Door

RECORDS = "/v1/topics/orders/records"


async def publish(door: Door, key: str | None, document: Any = None, **options: Any) -> Answer:
    headers = {} if key is None else {"idempotency-key": key}
    return await door.post(options.pop("target", RECORDS), document or {"key": "eu/7", "value": 12}, headers=headers, **options)


async def stored(door: Door) -> int:
    return sum(offsets.high_watermark for offsets in door.pipeline.broker.offsets("orders"))


class TestTheSameRequestAgain:
    async def test_gets_the_same_answer_and_stores_nothing(self, door: Door) -> None:
        first = await publish(door, "8e03978e")
        again = await publish(door, "8e03978e")
        assert (first.status, again.status) == (200, 200)
        assert again.json == first.json
        assert "idempotency-replayed" not in first.headers
        assert again.headers["idempotency-replayed"] == "true"
        assert await stored(door) == 1

    async def test_whatever_the_form_of_the_body(self, door: Door) -> None:
        first = await publish(door, "k1", [{"key": "a", "value": 1}, {"key": "b", "value": 2}])
        lines = b'{"key":"a","value":1}\n{"key":"b","value":2}'
        headers = {"content-type": "application/x-ndjson", "idempotency-key": '"k1"'}
        again = await door.call("POST", RECORDS, lines, headers=headers)
        assert (again.json, again.headers["idempotency-replayed"]) == (first.json, "true")

    async def test_raw_values_and_records_with_everything(self, door: Door) -> None:
        raw = {"content-type": "image/png", "idempotency-key": "raw", "sprawl-header-source": "till"}
        full = {"key": "k", "text": "v", "headers": {"a": "b"}, "timestamp": 5, "partition": 1, "ttl_ms": 60_000}
        for _ in range(2):
            assert (await door.call("POST", RECORDS, b"\x00\x01", headers=raw)).status == 200
            assert (await publish(door, "full", full)).status == 200
        assert await stored(door) == 2

    async def test_without_waiting_it_waits_all_the_same(self, door: Door) -> None:
        first = await publish(door, "k", target=RECORDS + "?acks=none")
        again = await publish(door, "k", target=RECORDS + "?acks=none")
        assert (first.status, again.status, again.json) == (202, 202, first.json)
        assert "offset" not in first.json["records"][0]
        assert await stored(door) == 1

    async def test_is_counted_and_audited_and_not_counted_as_records(self, door: Door) -> None:
        for _ in range(3):
            await publish(door, "k")
        assert door.count("records_in_total", protocol="rest") == 1
        assert [entry[0] for entry in door.audited if entry[2] == "publish"] == ["access"] * 3


class TestAnotherRequest:
    @pytest.mark.parametrize(
        "other",
        [{"key": "eu/7", "value": 13}, {"key": "eu/8", "value": 12}, {"value": 12}, [{"key": "eu/7", "value": 12}] * 2],
        ids=str,
    )
    async def test_with_the_same_key_is_a_conflict(self, door: Door, other: Any) -> None:
        await publish(door, "k")
        refused = await publish(door, "k", other)
        assert (refused.status, refused.slug) == (409, "idempotency-key-reused")
        assert "k" not in refused.problem.get("key", "")
        assert await stored(door) == 1

    async def test_one_under_way_is_a_conflict_that_says_when_to_come_back(self, door: Door) -> None:
        await door.publish("orders", ("a", "v"))
        headers = {"content-type": "application/json", "idempotency-key": "k"}
        body = json.dumps({"value": 1}).encode()
        calls = [door.begin("POST", RECORDS, body, headers=headers) for _ in range(5)]
        answers = [await call.answer() for call in calls]
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
        for answer in answers:
            if answer.status == 409:
                assert answer.slug == "idempotency-key-in-use"
                assert int(answer.headers["retry-after"]) >= 1
        assert await stored(door) == 2

    async def test_of_another_principal_is_its_own(self, door: Door) -> None:
        first = await publish(door, "k")
        other = await publish(door, "k", {"key": "eu/9", "value": "mine"}, token=door.token("publisher"))
        assert other.status == 200
        assert other.json != first.json
        assert "idempotency-replayed" not in other.headers


class TestRights:
    async def test_the_earlier_answer_is_for_those_who_may_publish(self, door: Door) -> None:
        token = door.token("creator")
        assert (await publish(door, "k", token=token)).status == 200
        door.grant({"creator": []})
        assert (await publish(door, "k", token=token)).status == 403
        door.revoke(token)
        assert (await publish(door, "k", token=token)).status == 401

    async def test_and_for_whom_the_key_is_allowed(self, door: Door) -> None:
        await door.publish("orders", ("a", "v"))
        token = door.token("eu-writer")
        assert (await publish(door, "k", token=token)).status == 200
        assert (await publish(door, "k", token=token)).headers["idempotency-replayed"] == "true"
        assert (await publish(door, "k2", {"key": "us/1", "value": 1}, token=token)).status == 403
        assert (await publish(door, "k2", token=token)).status == 200  # the refused one left no trace


class TestHostileKeys:
    @pytest.mark.parametrize(
        "key",
        [
            "",
            " ",
            '""',
            "x" * 256,
            '"' + "x" * 256 + '"',
            "a b",
            '"a',
            'a"',
            '"a"b',
            '"a";p=1',
            '"a\\n"',
            "a\\b",
            "caf\u00e9",
            '"caf\u00e9"',
            "a\tb",
            '"a\tb"',
            "a\x00b",
            '"a\x7fb"',
            '"a\x1b[31m"',
        ],
    )
    async def test_are_refused_and_nothing_is_stored(self, door: Door, key: str) -> None:
        await door.publish("orders", ("a", "v"))
        refused = await publish(door, key)
        assert (refused.status, refused.slug, refused.problem["name"]) == (400, "parameter-invalid", "Idempotency-Key")
        assert await stored(door) == 1

    @pytest.mark.parametrize(
        "key", ["x", "x" * 255, '"' + "x" * 255 + '"', '"a b"', '"a\\"b\\\\"', "a,b;c=d/../%00", "[redacted]"]
    )
    async def test_strange_ones_that_are_legal_work(self, door: Door, key: str) -> None:
        assert (await publish(door, key)).status == 200
        assert (await publish(door, f"  {key} ")).headers["idempotency-replayed"] == "true"

    async def test_quoted_or_bare_it_is_one_key(self, door: Door) -> None:
        await publish(door, '"abc"')
        assert (await publish(door, "abc")).headers["idempotency-replayed"] == "true"

    async def test_two_keys_are_none(self, door: Door) -> None:
        call = door.begin("POST", RECORDS, b'{"value":1}', headers={"content-type": "application/json"})
        call.task.cancel()
        scope = call.scope | {"headers": [*call.scope["headers"], (b"idempotency-key", b"a"), (b"idempotency-key", b"b")]}
        answer = await Call(door.app, scope, [b'{"value":1}']).answer()
        assert (answer.status, answer.slug) == (400, "parameter-invalid")
