"""/v1/tokens and /v1/whoami over the application."""

from __future__ import annotations

from typing import Any

TOKENS = "/v1/tokens"


async def test_the_whole_life(door: Any) -> None:
    made = await door.post(TOKENS, {"name": "lift-7", "roles": ["publisher"], "scopes": ["publish:lifts:7/*"], "ttl_ms": 60_000})
    assert (made.status, made.headers["cache-control"]) == (201, "no-store")
    document = made.json
    token = document.pop("token")
    assert token.startswith(f"sprawl_{document['id']}_")
    assert document["expires_at_ms"] - document["created_at_ms"] == 60_000
    assert (document["name"], document["roles"], document["scopes"]) == ("lift-7", ["publisher"], ["publish:lifts:7/*"])

    listed = (await door.get(TOKENS)).json["tokens"]
    assert document in listed
    assert token not in str(listed)

    me = (await door.get("/v1/whoami", token=token)).json
    assert (me["principal"], me["kind"], me["proved_by"]) == (f"token:{document['id']}", "service", "token")
    assert (me["roles"], me["scopes"], me["expires_at_ms"]) == (["publisher"], ["publish:lifts:7/*"], document["expires_at_ms"])

    assert (await door.call("DELETE", f"{TOKENS}/{document['id']}")).status == 204
    revoked = await door.get("/v1/whoami", token=token)
    assert (revoked.status, revoked.slug) == (401, "token-revoked")
    [found] = [one for one in (await door.get(TOKENS)).json["tokens"] if one["id"] == document["id"]]
    assert found["revoked_at_ms"] > 0


async def test_the_secret_is_told_once_and_audited_never(door: Any) -> None:
    token = (await door.post(TOKENS, {"name": "a", "roles": []})).json["token"]
    assert token.split("_", 2)[2] not in str(door.audited)
    assert ("access", "tokens", "create a token", "allowed") in [(entry[0], *entry[2:5]) for entry in door.audited]


async def test_tokens_that_cannot_be(door: Any) -> None:
    rows = [
        {"name": "", "roles": []},
        {"name": "a\n", "roles": []},
        {"name": "a", "roles": ["no role name"]},
        {"name": "a", "roles": [], "scopes": []},
        {"name": "a", "roles": [], "scopes": ["nonsense"]},
        {"name": "a", "roles": [], "scopes": ["fly:orders"]},
        {"name": "a", "roles": [], "ttl_ms": 0},
        {"name": "a", "roles": [], "ttl_ms": -5},
        {"name": "a", "roles": ["publisher"] * 33},
    ]
    for document in rows:
        door.admin()
        before = len(door.store.list())
        answer = await door.post(TOKENS, document)
        assert (answer.status, answer.slug) == (400, "parameter-invalid")
        assert len(door.store.list()) == before


async def test_documents_that_cannot_be_read(door: Any) -> None:
    for document in ({"name": "a"}, {"name": 1, "roles": []}, {"name": "a", "roles": [], "admin": True}, []):
        answer = await door.post(TOKENS, document)
        assert (answer.status, answer.slug) == (400, "body-malformed")


async def test_it_needs_the_right_to(door: Any) -> None:
    token = door.token("publisher", "monitor")
    for answer in (
        await door.get(TOKENS, token=token),
        await door.post(TOKENS, {"name": "a", "roles": ["publisher"]}, token=token),
        await door.call("DELETE", f"{TOKENS}/{token.split('_')[1]}", token=token),
    ):
        assert (answer.status, answer.slug) == (403, "access-denied")


async def test_nobody_makes_a_token_that_may_more_than_they(door: Any) -> None:
    maker = door.token("token-maker", "publisher")
    assert (await door.post(TOKENS, {"name": "a", "roles": ["publisher"]}, token=maker)).status == 201
    assert (await door.post(TOKENS, {"name": "a", "roles": ["admin"]}, token=maker)).status == 403
    narrowed = door.token("admin", scopes=["tokens:*", "read:orders"])
    assert (await door.post(TOKENS, {"name": "a", "roles": ["admin"], "scopes": ["read:orders"]}, token=narrowed)).status == 201
    assert (await door.post(TOKENS, {"name": "a", "roles": ["admin"]}, token=narrowed)).status == 403


async def test_revoking_what_is_not_there(door: Any) -> None:
    answer = await door.call("DELETE", f"{TOKENS}/abcdefghijkl")
    assert (answer.status, answer.slug) == (404, "unknown-token")


async def test_a_revocation_is_felt_at_the_next_request(door: Any) -> None:
    token = door.token("admin")
    assert (await door.get("/v1/topics", token=token)).status == 200
    door.revoke(token)
    answer = await door.get("/v1/topics", token=token)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="sprawl", error="invalid_token"')
