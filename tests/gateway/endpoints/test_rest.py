"""The application: routes, methods, who is asked, what goes wrong; and the main paths over a real connection."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest

from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Answer, Operation
from gateway.endpoints.rest import RestApp
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.observe.logs import request_id

OF_TOPIC = ["GET", "HEAD", "POST", "OPTIONS"]
ROUTES = {
    "/v1/topics": OF_TOPIC,
    "/v1/topics/orders": ["GET", "HEAD", "PATCH", "DELETE", "OPTIONS"],
    "/v1/topics/orders/records": OF_TOPIC,
    "/v1/topics/orders/partitions/0/records": ["GET", "HEAD", "OPTIONS"],
    "/v1/topics/orders/events": ["GET", "HEAD", "OPTIONS"],
    "/v1/records/orders": OF_TOPIC,
    "/v1/records/orders/k": OF_TOPIC,
    "/v1/tokens": OF_TOPIC,
    "/v1/tokens/abcdefghijkl": ["DELETE", "OPTIONS"],
    "/v1/whoami": ["GET", "HEAD", "OPTIONS"],
}


class TestMethods:
    async def test_options_name_them(self, door: Any) -> None:
        rows = ROUTES.items()
        for path, allowed in rows:
            answer = await door.call("OPTIONS", path)
            assert (answer.status, answer.body) == (204, b"")
            assert sorted(answer.headers["allow"].split(", ")) == sorted(allowed)

    async def test_others_are_refused_with_the_list(self, door: Any) -> None:
        for path, allowed in ROUTES.items():
            for method in sorted({"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - set(allowed)):
                answer = await door.call(method, path)
                assert (answer.status, answer.slug) == (405, "method-not-allowed")
                assert sorted(answer.headers["allow"].split(", ")) == sorted(allowed)

    async def test_head_is_get_without_the_body(self, door: Any, http: httpx.AsyncClient) -> None:
        await door.publish("orders", ("k", "value"))
        rows = ["/v1/topics", "/v1/topics/orders", "/v1/topics/orders/records", "/v1/records/orders/k"]
        for path in rows:
            whole, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(whole.content))
            assert head.headers["content-type"] == whole.headers["content-type"]


class TestRoutes:
    async def test_paths_that_lead_nowhere(self, door: Any) -> None:
        rows = [
            "/",
            "/v1",
            "/v1/",
            "/v1/topics/",
            "/v1/topics/orders/",
            "/v1/topics/orders/records/",
            "/v1/topics/orders/partitions/0",
            "/v1/topics/orders/partitions/0/records/0",
            "/v1/topics/a/b/records",
            "/V1/topics",
            "//v1/topics",
            "*",
        ]
        for path in rows:
            answer = await door.get(path)
            assert (answer.status, answer.slug) == (404, "route-unknown")
            assert (await door.call("OPTIONS", path)).status == 404

    async def test_every_path_asks_who_it_is(self, door: Any) -> None:
        for path in (*ROUTES, "/nowhere"):
            answer = await door.get(path, token="")
            if answer.status != 405:
                assert (answer.status, answer.slug) == (401, "credentials-missing")
                assert answer.headers["www-authenticate"] == 'Bearer realm="sprawl"'

    async def test_routes_of_the_node(self, door: Any) -> None:
        """Open ones are answered to everybody, the others know who asks."""

        async def live(exchange: Exchange) -> None:
            await exchange.answer(200, b"text/plain", b"alive")

        async def who(exchange: Exchange) -> None:
            await exchange.answer(200, b"text/plain", exchange.session.principal.proved_by.encode())

        rows = [
            Operation("GET", "/v1/node", who, "who", "", {200: Answer("")}),
            Operation("GET", "/livez", live, "live", "", {200: Answer("")}, open=True),
        ]
        door.app = RestApp(door.pipeline, door.metrics, RestOptions(), SseOptions(), door.store, rows)
        answer = await door.get("/livez", token="")
        assert (answer.status, answer.body) == (200, b"alive")
        assert answer.headers["x-request-id"]
        assert (await door.get("/v1/node", token="")).status == 401
        assert (await door.get("/v1/node")).body == b"token"
        assert (await door.call("POST", "/livez", token="")).status == 405

    async def test_only_http_is_spoken(self, door: Any) -> None:
        with pytest.raises(RuntimeError, match="not websocket"):
            await door.app({"type": "websocket"}, None, None)


class TestCredentials:
    async def test_malformed_and_unknown(self, door: Any) -> None:
        rows = [
            "Bearer",
            "Bearer ",
            "Bearer nonsense",
            "Bearer sprawl_",
            "Bearer sprawl_abcdefghijkl_" + "a" * 43,
            "Bearer \xff\xfe",
            "Basic dXNlcjpwYXNz",
            "sprawl_abcdefghijkl_x",
            "",
            "Bearer " + "x" * 10_000,
        ]
        for authorization in rows:
            answer = await door.get("/v1/topics", token="", headers={"authorization": authorization})
            assert (answer.status, answer.slug) == (401, "credentials-invalid")
            assert answer.headers["www-authenticate"] == 'Bearer realm="sprawl", error="invalid_token"'

    async def test_the_scheme_in_any_case(self, door: Any) -> None:
        for scheme in ("bearer", "BEARER"):
            answer = await door.get("/v1/topics", token="", headers={"authorization": f"{scheme} {door.admin()}"})
            assert answer.status == 200

    async def test_expired(self, door: Any) -> None:
        token = door.token("admin", ttl_ms=1_000)
        assert (await door.get("/v1/topics", token=token)).status == 200
        door.clock.ahead_ms = 1_000
        answer = await door.get("/v1/topics", token=token)
        assert (answer.status, answer.slug) == (401, "token-expired")

    async def test_the_wrong_scope(self, door: Any) -> None:
        await door.publish("orders", ("k", "v"))
        token = door.token("admin", scopes=["read:invoices"])
        answer = await door.get("/v1/topics/orders/records", token=token)
        assert (answer.status, answer.slug) == (403, "access-denied")
        assert (answer.problem["action"], answer.problem["resource"]) == ("read", "topic orders")

    async def test_no_token_is_ever_repeated(self, door: Any, caplog: pytest.LogCaptureFixture) -> None:
        secret = "sprawl_abcdefghijkl_" + "s3cret" * 8
        answer = await door.get("/v1/topics", token="", headers={"authorization": f"Bearer {secret[:63]}"})
        assert "s3cret" not in f"{answer.body!r} {door.audited} {caplog.text}"


class TestAnswers:
    async def test_the_request_id_is_the_clients_if_it_can_be(self, door: Any) -> None:
        answer = await door.get("/v1/topics", headers={"x-request-id": "Trace.7_a-b"})
        assert answer.headers["x-request-id"] == "Trace.7_a-b"
        for hostile in ("", "a b", "a\tb", "x" * 65, "ü", "a/b"):
            assert (await door.get("/v1/topics", headers={"x-request-id": hostile})).headers["x-request-id"] != hostile
        problem = (await door.get("/nowhere", headers={"x-request-id": "r1"})).problem
        assert problem["instance"] == "r1"

    async def test_what_nobody_foresaw(
        self, door: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("s3cret inner text")

        monkeypatch.setattr(door.pipeline, "list_topics", fail)
        with caplog.at_level(logging.ERROR):
            answer = await door.get("/v1/topics", headers={"x-request-id": "r7"})
        assert (answer.status, answer.slug) == (500, "internal-error")
        assert b"s3cret" not in answer.body
        assert [record.__dict__["request_id"] for record in caplog.records] == ["r7"]

    async def test_what_is_logged_within_a_request_carries_its_id(self, door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []
        monkeypatch.setattr(door.pipeline, "list_topics", lambda *_: seen.append(request_id.get()) or [])
        await door.get("/v1/topics", headers={"x-request-id": "r8"})
        await door.get("/v1/topics", headers={"x-request-id": "r9"})
        assert seen == ["r8", "r9"]
        assert request_id.get() == ""

    async def test_a_failure_within_an_answer_ends_it(self, door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        await door.publish("orders", ("k", "v"))
        monkeypatch.setattr("gateway.endpoints.sse_live.to_answer", lambda *_: 1 / 0)
        call = door.begin("GET", "/v1/topics/orders/events?from=earliest")
        await call.task
        assert (call.status, call.complete) == (200, False)
        assert door.pipeline.feeds == 0

    async def test_requests_are_counted_by_operation_and_outcome(self, door: Any) -> None:
        await door.post("/v1/topics/orders/records", {"text": "a"})
        await door.post("/v1/topics/orders/records", [])
        await door.get("/v1/topics/orders/records", token="")
        counted = {
            (operation, outcome): door.count("requests_total", protocol="rest", operation=operation, outcome=outcome)
            for operation, outcome in (("publish", "ok"), ("publish", "body-malformed"), ("read", "credentials-missing"))
        }
        assert set(counted.values()) == {1}
        assert door.count("refused_total", protocol="rest", reason="body-malformed") == 1
        assert door.count("request_seconds_count", protocol="rest", operation="publish") == 2


class TestOverARealConnection:
    async def test_publish_and_read_back(self, http: httpx.AsyncClient) -> None:
        body = "\n".join(json.dumps({"key": f"k{number}", "value": {"n": number}}) for number in range(500))
        answer = await http.post("/v1/topics/orders/records", content=body, headers={"content-type": "application/x-ndjson"})
        assert answer.status_code == 200
        assert len({record["id"] for record in answer.json()["records"]}) == 500
        found, cursor = [], "0-0"
        while True:
            page = (await http.get("/v1/topics/orders/records", params={"cursor": cursor, "limit": 150})).json()
            found += page["records"]
            cursor = page["next_cursor"]
            if page["at_end"]:
                break
        assert sorted(record["value"]["n"] for record in found) == list(range(500))

    async def test_the_largest_request(self, http: httpx.AsyncClient) -> None:
        """8 MiB in one partition: several batches, one append."""
        lines = [json.dumps({"key": "k", "text": "x" * 8_000}) for _ in range(1_000)]
        answer = await http.post(
            "/v1/topics/orders/records", content="\n".join(lines), headers={"content-type": "application/x-ndjson"}, timeout=60
        )
        assert [record["offset"] for record in answer.json()["records"]] == list(range(1_000))

    async def test_a_body_beyond_the_limit_gets_its_answer(self, http: httpx.AsyncClient) -> None:
        async def chunks() -> Any:
            for _ in range(9):
                yield b"x" * 1024 * 1024

        for content in (b"x" * (8 * 1024 * 1024 + 1), chunks()):
            answer = await http.post("/v1/topics/orders/records", content=content)
            assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")

    async def test_an_address_and_its_latest_value(self, http: httpx.AsyncClient) -> None:
        await http.post("/v1/records/orders/eu/7", content=b"first", headers={"content-type": "text/plain"})
        await http.post("/v1/records/orders/eu/7", content=b"second", headers={"content-type": "text/plain"})
        answer = await http.get("/v1/records/orders/eu/7")
        assert (answer.text, answer.headers["content-type"]) == ("second", "text/plain")

    async def test_keys_of_any_bytes_in_the_path(self, http: httpx.AsyncClient) -> None:
        for path in ("a%2Fb", "%FF%00", "%C3%A4", "a//b", "$key/_w"):
            await http.post(f"/v1/records/orders/{path}", content=path.encode())
            assert (await http.get(f"/v1/records/orders/{path}")).content == path.encode()

    async def test_a_long_poll_is_woken_by_another_connection(self, http: httpx.AsyncClient, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        waiting = asyncio.create_task(http.get("/v1/topics/orders/partitions/0/records?wait_ms=30000", timeout=40))
        await door.until(lambda: bool(door.engine._watchers))
        await http.post("/v1/records/orders/k", content=b"v")
        assert (await waiting).json()["records"][0]["text"] == "v"

    async def test_a_client_that_leaves_a_long_poll(self, http: httpx.AsyncClient, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        waiting = asyncio.create_task(http.get("/v1/topics/orders/records?wait_ms=60000", timeout=70))
        await door.until(lambda: bool(door.engine._watchers))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await door.until(lambda: not door.engine._watchers and door.pipeline.feeds == 0)

    async def test_many_connections_at_once_keep_their_order(self, http: httpx.AsyncClient) -> None:
        async def publisher(name: str) -> None:
            for number in range(10):
                answer = await http.post(f"/v1/records/orders/{name}", content=b"%d" % number)
                assert answer.status_code == 200

        await http.post("/v1/topics", json={"name": "orders"})
        await asyncio.gather(*(publisher(f"p{number}") for number in range(10)))
        for number in range(10):
            page = (await http.get("/v1/topics/orders/records", params={"key": f"p{number}"})).json()
            assert [int(record["text"]) for record in page["records"]] == list(range(10))
