"""Publishing without ASGI: every request here is sent twice at least, so that the second goes by the direct path, and its answer
is held against what the ASGI way says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.endpoints import direct
from gateway.listen.server import HttpServer, bind
from gateway.settings import LimitsSection, Listener
from security.identity.failed_logins import FailedLoginOptions, FailedLogins
from security.policy.quotas import RateLimit
from tests.gateway.conftest import Door, OpenDoor, until

RECORDS = "/v1/topics/orders/records"
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that went by the direct path."""
    bodies: list[bytes] = []
    answer = direct.PreparedPublish.answer

    async def counted(self: direct.PreparedPublish, body: bytes, reply: direct.Reply) -> None:
        bodies.append(body)
        await answer(self, body, reply)

    monkeypatch.setattr(direct.PreparedPublish, "answer", counted)
    return bodies


async def twice(http: httpx.AsyncClient, path: str = RECORDS, **request: Any) -> tuple[httpx.Response, httpx.Response]:
    return await http.post(path, **request), await http.post(path, **request)


def told(answer: httpx.Response) -> tuple[int, str, dict[str, Any]]:
    """What has to be the same both ways: not the request's id."""
    assert answer.headers["x-request-id"]
    document = answer.json()
    if "instance" in document:
        assert document.pop("instance") == answer.headers["x-request-id"]
    return answer.status_code, answer.headers["content-type"], document


class TestRecords:
    async def test_are_stored_and_answered_as_ever(self, door: Door, http: httpx.AsyncClient, taken: list[bytes]) -> None:
        records = [{"key": f"k{n}", "value": {"n": n}} for n in range(30)]
        first, second = await twice(http, json=records)
        assert len(taken) == 1
        assert (first.status_code, second.status_code) == (200, 200)
        for answer in (first, second):
            for record, receipt in zip(records, answer.json()["records"], strict=True):
                page = await door.get(
                    f"/v1/topics/orders/partitions/{receipt['partition']}/records?offset={receipt['offset']}&limit=1"
                )
                [found] = page.json["records"]
                assert (found["id"], found["key"], found["value"]) == (receipt["id"], record["key"], record["value"])
                assert found["headers"] == {"content-type": "application/json"}
        assert door.count("records_in_total", protocol="rest") == 60
        assert door.count("requests_total", protocol="rest", operation="publish", outcome="ok") == 2
        assert door.count("request_seconds_count", protocol="rest", operation="publish") == 2
        assert [entry[2:5] for entry in door.audited if entry[2] == "publish"] == [("publish", "orders", "allowed")] * 2

    @pytest.mark.parametrize(
        "record",
        [
            {"value": 1},
            {"value": None, "key": "gone"},
            {"text": "x", "headers": {"a": ["b", None]}},
            {"value64": "AAEC", "key64": "/w=="},
            {"value": "\u00e9\u4e2d", "key": "\u00e9\u4e2d"},
            {"value": [], "timestamp": 5, "partition": 2, "id": "01890a5d-ac96-774b-bcce-b302099a8057", "ttl_ms": 60_000},
        ],
        ids=str,
    )
    async def test_of_every_form_come_out_alike(
        self, door: Door, http: httpx.AsyncClient, taken: list[bytes], record: Any
    ) -> None:
        receipts = [answer.json()["records"][0] for answer in await twice(http, json=record)]
        assert len(taken) == 1
        found = []
        for receipt in receipts:
            page = await door.get(
                f"/v1/topics/orders/partitions/{receipt['partition']}/records?offset={receipt['offset']}&limit=1"
            )
            [one] = page.json["records"]
            found.append({name: one[name] for name in one if name not in ("id", "offset", "timestamp", "expires_at", "cursor")})
        assert found[0] == found[1]

    async def test_lines(self, http: httpx.AsyncClient, taken: list[bytes]) -> None:
        answers = await twice(http, content=b'{"key":"a","value":1}\n\n{"value":2}\n', headers=NDJSON)
        assert [len(answer.json()["records"]) for answer in answers] == [2, 2]
        assert len(taken) == 1

    async def test_addresses(self, door: Door, http: httpx.AsyncClient, taken: list[bytes]) -> None:
        for path, key in (("eu/7", b"eu/7"), ("", b""), ("%FF", b"\xff")):
            await twice(http, f"/v1/records/orders/{path}", json={"value": path})
            latest = await door.pipeline.broker.latest("orders", key)
            assert latest is not None
            assert json.loads(latest[1].value or b"") == path
        await twice(http, "/v1/records/orders", json=[{"value": 3}])
        assert len(taken) == 4

    @pytest.mark.parametrize("header", ["x-request-id", "idempotency-key", "origin", "content-encoding", "ce-id", "message-id"])
    async def test_with_headers_that_mean_something_go_the_other_way(
        self, http: httpx.AsyncClient, taken: list[bytes], header: str
    ) -> None:
        await twice(http, json={"value": 1}, headers={header: "x"})
        await twice(http, RECORDS + "?acks=none", json={"value": 1})
        await twice(http, content=b"raw", headers={"content-type": "image/png"})
        assert not taken


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (RECORDS, b"{"),
            (RECORDS, b"[]"),
            (RECORDS, b""),
            (RECORDS, b'{"value":1,"unknown":2}'),
            (RECORDS, b'[{"value":1},{"key":"a"}]'),
            (RECORDS, b'{"value":"\xff"}'),
            (RECORDS, b'{"value":1,"key":7}'),
            (RECORDS, b'{"value":1,"text":"2"}'),
            (RECORDS, b'{"value":1,"headers":{"Sprawl-x":"1"}}'),
            (RECORDS, b'{"value":1,"partition":77}'),
            (RECORDS, b"[" * 5_000),
            (RECORDS, b'[{"value":' + b"[" * 3_000 + b"]" * 3_000 + b"}]"),
            (RECORDS, b"[" + b'{"value":1},' * 5_000 + b'{"value":1}]'),
            ("/v1/topics/a%20b/records", b'{"value":1}'),
            ("/v1/topics/%FF/records", b'{"value":1}'),
            ("/v1/records/orders/a", b'[{"value":1},{"key":"b","value":1}]'),
            ("/v1/records/orders/a", b'{"key":"","value":1}'),
        ],
        ids=lambda value: str(value)[:30],
    )
    async def test_are_the_same_both_ways(self, open_door: OpenDoor, taken: list[bytes], path: str, body: bytes) -> None:
        door = open_door(records_max=5_000)
        await door.publish("orders", ("a", "v"))
        async for http in served(door):
            first, second = await twice(http, path, content=body, headers={"content-type": "application/json"})
            assert len(taken) == 1
            assert told(first) == told(second)
            slug = told(first)[2]["type"].removeprefix("/problems/")
            assert door.count("refused_total", protocol="rest", reason=slug) == 2
            assert door.count("requests_total", protocol="rest", operation="publish", outcome=slug) == 2
        assert sum(offsets.high_watermark for offsets in door.pipeline.broker.offsets("orders")) == 1


class TestRights:
    async def test_what_changes_on_a_live_connection_takes_hold_at_once(
        self, door: Door, http: httpx.AsyncClient, taken: list[bytes]
    ) -> None:
        token = door.token("creator")
        headers = {"authorization": f"Bearer {token}"}
        assert [answer.status_code for answer in await twice(http, json={"value": 1}, headers=headers)] == [200, 200]
        door.grant({"creator": []})
        refused = await http.post(RECORDS, json={"value": 1}, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (403, "/problems/access-denied")
        door.grant({})
        assert (await http.post(RECORDS, json={"value": 1}, headers=headers)).status_code == 200
        door.revoke(token)
        for _ in range(2):
            gone = await http.post(RECORDS, json={"value": 1}, headers=headers)
            assert (gone.status_code, gone.json()["type"]) == (401, "/problems/token-revoked")
            assert gone.headers["www-authenticate"].startswith("Bearer")
        assert len(taken) == 5
        assert [entry[0] for entry in door.audited if entry[4] == "refused"] == ["identity"] * 2

    async def test_a_credential_that_ends_does_so_here_too(self, door: Door, http: httpx.AsyncClient) -> None:
        headers = {"authorization": f"Bearer {door.token('admin', ttl_ms=60_000)}"}
        await twice(http, json={"value": 1}, headers=headers)
        door.clock.ahead_ms = 61_000
        ended = await http.post(RECORDS, json={"value": 1}, headers=headers)
        assert (ended.status_code, ended.json()["type"]) == (401, "/problems/token-expired")

    @pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer nonsense", "Basic YTpi", "Bearer sprawl_aaaaaaaaaaaa_b"])
    async def test_nobody_comes_in_with_less(
        self, door: Door, http: httpx.AsyncClient, taken: list[bytes], authorization: str
    ) -> None:
        first, second = await twice(http, json={"value": 1}, headers={"authorization": authorization})
        assert len(taken) == 1
        assert first.status_code == 401
        assert told(first) == told(second)
        assert not door.pipeline.broker.topics()

    async def test_some_keys_are_not_all_keys(self, door: Door, http: httpx.AsyncClient, taken: list[bytes]) -> None:
        await door.publish("orders", ("a", "v"))
        headers = {"authorization": f"Bearer {door.token('eu-writer')}"}
        bad = [{"key": "eu/1", "value": 1}, {"key": "us/1", "value": 2}]
        first, second = await twice(http, json=bad, headers=headers)
        assert told(first) == told(second)
        assert first.status_code == 403
        for forbidden in ({"value": 1}, {"key": "", "value": 1}, {"key64": "ZXUvMg==", "key": None, "value": 1}):
            answers = await twice(http, json=forbidden, headers=headers)
            expected = 200 if "key64" in forbidden else 403
            assert [answer.status_code for answer in answers] == [expected] * 2
        assert (await http.post("/v1/records/orders/us/1", json={"value": 1}, headers=headers)).status_code == 403
        assert (await http.post("/v1/records/orders/us/1", json={"value": 1}, headers=headers)).status_code == 403
        assert len(taken) >= 4

    async def test_quotas_count(self, open_door: OpenDoor) -> None:
        door = open_door(quotas={"requests": RateLimit(0.001, 3)})
        async for http in served(door):
            statuses = [(await http.post(RECORDS, json={"value": 1})).status_code for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]

    async def test_bodies_are_bounded_together(self, open_door: OpenDoor) -> None:
        door = open_door(bodies_bytes_max=2_000)
        async for http in served(door):
            assert [answer.status_code for answer in await twice(http, json={"value": "x" * 1_000})] == [200, 200]
            body = {"value": "x" * 3_000}
            assert [answer.status_code for answer in await twice(http, json=body)] == [503, 503]
            assert (await http.post(RECORDS, json={"value": 1})).status_code == 200
        assert door.app._bodies.held_bytes == 0

    async def test_who_waits_for_a_log_in_holds_nothing_of_it(self, open_door: OpenDoor, taken: list[bytes]) -> None:
        door = open_door(bodies_bytes_max=2_000)
        guessing = FailedLoginOptions(failures_free=2, delay_ms=3_000, delay_ms_max=3_000)
        door.pipeline.failed_logins = FailedLogins(guessing, door.clock.monotonic_ms)
        async for http in served(door):
            request: Any = {"json": {"value": "x" * 1_900}, "headers": {"authorization": "Bearer wrong"}}
            assert [answer.status_code for answer in await twice(http, **request)] == [401, 401]
            waiting = asyncio.create_task(http.post(RECORDS, **request))
            await until(lambda: len(taken) == 2)
            assert door.count("logins_throttled_total", protocol="rest", outcome="delayed") == 1
            assert door.app._bodies.held_bytes == 0
            assert (await http.post(RECORDS, json={"value": "x" * 1_000})).status_code == 200
            waiting.cancel()

    async def test_an_anonymous_listener_has_it_too(self, open_door: OpenDoor, taken: list[bytes]) -> None:
        door = open_door()
        async for http in served(door, Listener(port=0, plain=True, anonymous=True)):
            del http.headers["authorization"]
            first, second = await twice(http, json={"value": 1})
            assert told(first) == told(second)
            assert first.status_code == 403
            assert len(taken) == 1


async def test_publishes_of_one_connection_are_stored_in_their_order(door: Door, http: httpx.AsyncClient) -> None:
    for number in range(20):
        await http.post(RECORDS, json={"key": "k", "value": number})
    page = await door.get("/v1/topics/orders/records?key=k")
    assert [record["value"] for record in page.json["records"]] == list(range(20))


async def test_many_connections_at_once(door: Door, http: httpx.AsyncClient, taken: list[bytes]) -> None:
    for _ in range(5):
        answers = await asyncio.gather(*(http.post(RECORDS, json={"key": "k", "value": n}) for n in range(20)))
        assert {answer.status_code for answer in answers} == {200}
    assert len(taken) > 50
    found = [answer.json()["records"][0]["offset"] for answer in answers]
    assert len(set(found)) == 20


async def served(door: Door, listener: Listener | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this door over plain HTTP."""
    listener = listener or Listener(port=0, plain=True)
    server = HttpServer(door.app, None, listener, None, LimitsSection(), door.metrics, door.app.direct)
    server.start(bind("http", listener))
    assert server.address is not None
    headers = {"Authorization": f"Bearer {door.admin()}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.address[1]}", headers=headers, trust_env=False) as client:
        yield client
    await server.drain(1_000)
