"""Who comes in, and how everybody else is told why not."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets import InvalidStatus

from security.identity.failed_logins import FailedLoginOptions, FailedLogins
from tests.gateway.endpoints.websocket.conftest import masked, until, upgrade


async def refusal(node, request: bytes) -> tuple[int, dict]:
    """Status and problem document of a handshake that is refused."""
    client = await node.tcp()
    client.send(request)
    answer = await client.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return int(head.split()[1]), json.loads(body)


class TestCredentials:
    async def test_bearer_header(self, node):
        async with node.anybody(additional_headers={"Authorization": f"bearer {node.token()}"}) as client:
            ready = await client.hear()
            assert ready["op"] == "ready"
            assert ready["principal"].startswith("token:")

    async def test_subprotocol(self, node):
        async with node.anybody(subprotocols=["sprawl.v1.json", f"bearer.{node.token()}"]) as client:
            assert client.connection.subprotocol == "sprawl.v1.json"
            assert (await client.hear())["op"] == "ready"

    async def test_first_message(self, node):
        async with node.anybody(subprotocols=["sprawl.v1.json"]) as client:
            assert (await client.ask({"op": "auth", "token": node.token()}))["op"] == "ready"
            assert (await client.ask({"op": "ping"}))["op"] == "pong"

    async def test_first_message_may_carry_more_operations(self, node):
        async with node.anybody() as client:
            await client.say([{"op": "auth", "token": node.token()}, {"op": "ping", "ref": 1}])
            assert [(await client.hear())["op"] for _ in range(2)] == ["ready", "pong"]

    async def test_client_certificate(self, start_node):
        node = await start_node(mutual=True)
        async with node.anybody() as client:
            assert (await client.hear())["principal"] == "cert:device-7"
            assert (await client.ask({"op": "publish", "address": "orders", "text": "x"}))["op"] == "ack"

    async def test_anonymous_listener(self, start_node):
        node = await start_node(anonymous=True)
        async with node.anybody() as client:
            assert (await client.hear())["principal"] == "anonymous"
            denied = await client.ask({"op": "publish", "address": "orders", "text": "x"})
            assert denied["problem"]["status"] == 403
            assert (await client.ask({"op": "auth", "token": node.token()}))["principal"].startswith("token:")
            assert (await client.ask({"op": "publish", "address": "orders", "text": "x"}))["op"] == "ack"

    @pytest.mark.parametrize(
        "authorization", ["Bearer sprawl_aaaaaaaaaaaa_" + "x" * 43, "Bearer x", "Bearer ", "Basic YTpi", "x"]
    )
    async def test_bad_header_is_refused_before_the_upgrade(self, node, authorization):
        with pytest.raises(InvalidStatus) as refused:
            async with node.anybody(additional_headers={"Authorization": authorization}):
                pass
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="sprawl", error="invalid_token"'
        problem = json.loads(response.body)
        assert problem["instance"] == response.headers["X-Request-Id"]
        assert node.count("refused_total", reason="credentials-invalid") == 1
        assert [(entry[0], entry[4]) for entry in node.audited] == [("identity", "refused")]

    async def test_bad_subprotocol_token_closes_with_a_code_a_page_can_see(self, node):
        async with node.anybody(subprotocols=["sprawl.v1.json", "bearer.wrong"]) as client:
            assert (await client.hear())["problem"]["type"] == "/problems/credentials-invalid"
            assert (await client.closed())[0] == 4401

    async def test_who_has_failed_too_often_is_told_to_come_later(self, node):
        options = FailedLoginOptions(failures_free=1, delay_ms=60_000, delay_ms_max=60_000)
        node.pipeline.failed_logins = FailedLogins(options, node.clock.monotonic_ms)
        for code, slug in ((4401, "credentials-invalid"), (4429, "logins-throttled")):
            async with node.anybody() as client:
                problem = (await client.ask({"op": "auth", "token": "wrong"}))["problem"]
                assert problem["type"] == f"/problems/{slug}"
                assert (await client.closed())[0] == code
        async with node.anybody() as client:
            assert (await client.ask({"op": "auth", "token": node.token()}))["op"] == "ready"

    async def test_bad_first_message_token(self, node):
        async with node.anybody() as client:
            error = await client.ask({"op": "auth", "token": "wrong", "ref": 5})
            assert (error["op"], error["ref"]) == ("error", 5)
            assert (await client.closed())[0] == 4401

    async def test_an_expired_token_is_told_so(self, node):
        token = node.token(ttl_ms=1)
        await asyncio.sleep(0.005)
        async with node.anybody() as client:
            assert (await client.ask({"op": "auth", "token": token}))["problem"]["type"] == "/problems/token-expired"
            assert (await client.closed())[0] == 4401

    @pytest.mark.parametrize(
        "message",
        [
            {"op": "publish", "address": "orders", "text": "x"},
            {"op": "subscribe", "address": "orders"},
            {"op": "ping"},
            "no json",
            [{"op": "ping"}, {"op": "auth", "token": "x"}],
        ],
    )
    async def test_nothing_before_auth(self, node, message):
        async with node.anybody() as client:
            await client.say(message if isinstance(message, str) else json.dumps(message))
            code, reason = await client.closed()
        assert code == 4401
        assert '{"op":"auth"' in reason
        assert "orders" not in node.engine.topics()

    async def test_messages_before_auth_are_small(self, start_node):
        node = await start_node(auth_message_bytes_max=1000)
        async with node.anybody() as client:
            await client.say({"op": "auth", "token": "x" * 1000})
            assert (await client.closed())[0] == 1009

    async def test_auth_timeout(self, start_node):
        node = await start_node(auth_timeout_ms=50)
        async with node.anybody() as client:
            code, reason = await client.closed()
        assert code == 4408
        assert "websocket.auth_timeout_ms (50 ms)" in reason
        assert node.count("refused_total", reason="auth-timeout") == 1

    async def test_the_timeout_ends_with_the_authentication(self, start_node):
        node = await start_node(auth_timeout_ms=50, recheck_ms=20)
        async with node.client() as client:
            await asyncio.sleep(0.1)
            assert (await client.ask({"op": "ping"}))["op"] == "pong"

    async def test_the_request_id_is_kept_if_it_is_one(self, node):
        headers = {"Authorization": f"Bearer {node.token()}"}
        async with node.anybody(additional_headers=headers | {"X-Request-Id": "job-17.a"}) as client:
            assert client.connection.response.headers["X-Request-Id"] == "job-17.a"
            assert (await client.hear())["session"] == "job-17.a"
        async with node.anybody(additional_headers=headers | {"X-Request-Id": "a b"}) as client:
            assert client.connection.response.headers["X-Request-Id"] != "a b"


class TestLiveCredentials:
    async def test_revocation_closes_within_the_recheck(self, start_node):
        node = await start_node(recheck_ms=20)
        token = node.token()
        async with node.client(token) as idle, node.client() as other:
            node.revoke(token)
            code, reason = await idle.closed()
            assert code == 4403
            assert "revoked" in reason
            assert (await other.ask({"op": "ping"}))["op"] == "pong"

    async def test_expiry_closes(self, start_node):
        node = await start_node(recheck_ms=20)
        async with node.client(node.token(ttl_ms=300)) as client:
            code, reason = await client.closed()
        assert code == 4403
        assert "expired" in reason

    async def test_a_revoked_token_publishes_nothing_before_the_recheck(self, start_node):
        node = await start_node(recheck_ms=60_000)
        token = node.token()
        async with node.client(token) as client:
            node.revoke(token)
            assert (await client.ask({"op": "publish", "address": "orders", "text": "x"}))["problem"]["status"] == 401
            assert (await client.closed())[0] == 4403
        assert "orders" not in node.engine.topics()

    async def test_a_renewed_token_carries_on(self, start_node):
        node = await start_node(recheck_ms=20)
        old = node.token()
        await node.publish("orders", 1)
        async with node.client(old) as client:
            assert (await client.ask({"op": "subscribe", "address": "orders", "from": "latest"}))["op"] == "subscribed"
            assert (await client.ask({"op": "auth", "token": node.token()}))["op"] == "ready"
            node.revoke(old)
            await asyncio.sleep(0.1)
            await node.publish("orders", 1, first=1)
            assert [record["text"][:2] for record in await client.records(1)] == ["1|"]


class TestRefusedHandshakes:
    async def test_other_paths(self, node):
        status, problem = await refusal(node, upgrade("/v1/other"))
        assert (status, problem["type"]) == (404, "/problems/route-unknown")

    @pytest.mark.parametrize("origin", ["https://evil.test", "http://localhost:1", "null", "https://localhost.evil.test"])
    async def test_pages_of_other_origins(self, node, origin):
        status, problem = await refusal(node, upgrade(Origin=origin, Authorization=f"Bearer {node.token()}"))
        assert (status, problem["type"]) == (403, "/problems/origin-refused")
        assert origin in problem["detail"]
        assert "websocket.origins" in problem["detail"]

    async def test_pages_of_this_host(self, node):
        client = await node.raw(Origin="http://localhost")
        client.send(masked(1, b'{"op":"ping"}'))
        assert await client.frame() == (1, b'{"op":"pong"}')

    async def test_listed_origins(self, start_node):
        node = await start_node(origins=("https://app.test",))
        await node.raw(Origin="https://app.test")
        assert (await refusal(node, upgrade(Origin="http://localhost")))[0] == 403

    async def test_credentials_do_not_show_in_answers(self, node):
        client = await node.tcp()
        client.send(upgrade(Sec_WebSocket_Protocol="mqtt, bearer.s3cret"))
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"sprawl.v1.json" in answer
        assert b"s3cret" not in answer

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"Sec_WebSocket_Key": "short"}, 400),
            ({"Sec_WebSocket_Version": "8"}, 400),
            ({"Sec_WebSocket_Version": "13\r\nContent-Length: 5"}, 400),
        ],
    )
    async def test_broken_handshakes(self, node, changes, status):
        client = await node.tcp()
        client.send(upgrade(**changes))
        answer = await client.rest()
        assert answer == b"" or answer.startswith(f"HTTP/1.1 {status} ".encode())

    async def test_a_handshake_that_never_ends_leaves_nothing(self, node):
        client = await node.tcp()
        client.send(upgrade()[:-2])
        await asyncio.sleep(0.02)
        client.writer.close()
        await until(lambda: node.server.connections == 0)
        assert node.count("connections") == 0


async def test_connections_are_counted(node):
    async with node.client(), node.client():
        assert node.count("connections") == 2
    await until(lambda: node.count("connections") == 0)
    assert node.server.connections == 0
