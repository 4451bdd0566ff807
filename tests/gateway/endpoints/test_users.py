"""/v1/users over the application."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gateway.endpoints.rest import RestApp
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.users import UserRoutes
from security.identity.users import UserStore
from security.policy.rbac import policy_from_mapping

USERS = "/v1/users"
JSON = {"content-type": "application/json"}
PASSWORD = "correct horse"


@pytest.fixture
def users(door: Any, tmp_path: Path) -> UserStore:
    store = UserStore(tmp_path / "users.json", door.clock.now_ms, os.urandom)
    rows = UserRoutes(door.pipeline, store).operations()
    door.app = RestApp(door.pipeline, door.metrics, RestOptions(), SseOptions(), door.store, rows)
    return store


async def send(door: Any, method: str, path: str, document: dict[str, Any] | None, **options: Any) -> Any:
    body = b"" if document is None else json.dumps(document).encode()
    return await door.call(method, path, body, headers=JSON if body else {}, **options)


async def test_the_whole_life(door: Any, users: UserStore) -> None:
    made = await door.post(USERS, {"name": "alice", "roles": ["publisher"], "password": PASSWORD})
    assert made.status == 201
    mechanisms = {"SCRAM-SHA-256": 8192, "SCRAM-SHA-512": 8192}
    expected = {"name": "alice", "roles": ["publisher"], "mechanisms": mechanisms}
    assert {name: made.json[name] for name in expected} == expected
    assert (await door.get(USERS)).json == {"users": [made.json]}

    before = users.secret("SCRAM-SHA-256", "alice")
    assert (await send(door, "PUT", f"{USERS}/alice/password", {"password": "another horse"})).status == 204
    assert users.secret("SCRAM-SHA-256", "alice") != before

    assert (await door.call("DELETE", f"{USERS}/alice")).status == 204
    assert (await door.get(USERS)).json == {"users": []}


async def test_passwords_salted_at_once_have_a_bound(door: Any, users: UserStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to retry, whether it would make a user or change a password; the others come to their end."""
    salting, go_on = threading.Semaphore(0), threading.Event()

    def slow(*arguments: Any) -> Any:
        salting.release()
        assert go_on.wait(30)
        return create(*arguments)

    create = users.create
    monkeypatch.setattr(users, "create", slow)
    under_way = [asyncio.create_task(door.post(USERS, {"name": f"u{number}", "password": PASSWORD})) for number in range(2)]
    for _ in under_way:
        await asyncio.to_thread(salting.acquire)
    for method, path, document in (
        ("POST", USERS, {"name": "u2", "password": PASSWORD}),
        ("PUT", f"{USERS}/u0/password", {"password": PASSWORD}),
    ):
        answer = await send(door, method, path, document)
        assert (answer.status, answer.problem["limit_name"], answer.problem["limit"]) == (503, "users.hashings_max", 2)
        assert answer.headers["retry-after"] == "1"
    go_on.set()
    assert [answer.status for answer in await asyncio.gather(*under_way)] == [201, 201]
    assert (await send(door, "PUT", f"{USERS}/u0/password", {"password": PASSWORD})).status == 204


async def test_passwords_are_audited_and_answered_never(door: Any, users: UserStore) -> None:
    answer = await door.post(USERS, {"name": "alice", "password": PASSWORD})
    assert PASSWORD not in str(door.audited) + str(answer.json)
    assert ("access", "tokens", "create a user", "allowed") in [(entry[0], *entry[2:5]) for entry in door.audited]


async def test_users_that_cannot_be(door: Any, users: UserStore) -> None:
    for document in (
        {"name": "", "password": PASSWORD},
        {"name": "a\n", "password": PASSWORD},
        {"name": "a" * 129, "password": PASSWORD},
        {"name": "a", "password": "short"},
        {"name": "a", "password": PASSWORD, "roles": ["no role name"]},
    ):
        answer = await door.post(USERS, document)
        assert (answer.status, answer.slug) == (400, "parameter-invalid"), document
    assert users.list() == []


async def test_names_that_are_taken_or_unknown(door: Any, users: UserStore) -> None:
    await door.post(USERS, {"name": "alice", "password": PASSWORD})
    taken = await door.post(USERS, {"name": "alice", "password": PASSWORD})
    assert (taken.status, taken.slug) == (409, "user-exists")
    for method, path, document in (
        ("DELETE", f"{USERS}/bob", None),
        ("PUT", f"{USERS}/bob/password", {"password": PASSWORD}),
        ("DELETE", f"{USERS}/bob%0a", None),
    ):
        answer = await send(door, method, path, document)
        assert (answer.status, answer.slug) == (404, "unknown-user")


async def test_who_may_not_is_refused(door: Any, users: UserStore) -> None:
    token = door.token("subscriber")
    for method, path, document in (
        ("GET", USERS, None),
        ("POST", USERS, {"name": "alice", "password": PASSWORD}),
        ("DELETE", f"{USERS}/alice", None),
        ("PUT", f"{USERS}/alice/password", {"password": PASSWORD}),
    ):
        answer = await send(door, method, path, document, token=token)
        assert (answer.status, answer.slug) == (403, "access-denied")


async def test_nobody_takes_over_an_account_with_more_rights_than_their_own(door: Any, users: UserStore) -> None:
    roles = {"clerk": [{"actions": ["tokens"], "topic": "*"}]}
    bindings = [{"role": "admin", "principals": ["user:root"]}]
    door.policy.replace(policy_from_mapping({"roles": roles, "bindings": bindings}))
    users.create("boss", ["admin"], PASSWORD)
    users.create("peer", [], PASSWORD)
    clerk = door.token("clerk")
    for method, path, document, status in (
        ("POST", USERS, {"name": "root", "password": PASSWORD}, 403),
        ("POST", USERS, {"name": "new", "password": PASSWORD, "roles": ["admin"]}, 403),
        ("PUT", f"{USERS}/boss/password", {"password": PASSWORD}, 403),
        ("DELETE", f"{USERS}/boss", None, 403),
        ("POST", USERS, {"name": "new", "password": PASSWORD, "roles": ["clerk"]}, 201),
        ("PUT", f"{USERS}/peer/password", {"password": PASSWORD}, 204),
    ):
        answer = await send(door, method, path, document, token=clerk)
        assert answer.status == status, (method, path)
    assert {record.name for record, _ in users.list()} == {"boss", "peer", "new"}
