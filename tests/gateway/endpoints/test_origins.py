"""Pages of other origins: refused, unless they are named."""

from __future__ import annotations

from typing import Any

import pytest

APP = "https://app.example"
FOREIGN = [
    APP,
    "https://evil.example",
    "https://localhost",
    "http://localhost:444",
    "null",
    "",
    "https://localhost.evil.example",
    "\xff",
]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_nobody_by_default(door: Any, origin: str) -> None:
    await door.publish("orders", ("k", "v"))
    for method, path in (
        ("GET", "/v1/records/orders/k"),
        ("POST", "/v1/records/orders/k"),
        ("OPTIONS", "/v1/topics"),
        ("GET", "/docs"),
    ):
        headers = {"origin": origin, "host": "localhost", "access-control-request-method": "GET"}
        answer = await door.call(method, path, b"x", headers=headers)
        assert (answer.status, answer.slug) == (403, "origin-refused")
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await door.get("/v1/records/orders/k")).body == b"v"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_parts_of_foreign_pages(door: Any, site: str) -> None:
    """`<script src=...>` sends no Origin, but may send a client certificate, and runs what comes."""
    await door.publish("orders", ("k", "v"))
    script = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}
    for path in ("/v1/records/orders/k", "/v1/topics/orders/events", "/v1/topics", "/docs/docs.js"):
        assert (await door.get(path, headers=script)).slug == "origin-refused"
    for said in ({"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {"sec-fetch-mode": "navigate"}):
        assert (await door.get("/v1/records/orders/k", headers=script | said)).body == b"v"


async def test_those_that_are_named(open_door: Any) -> None:
    door = open_door(origins=(APP,))
    await door.publish("orders", ("k", "v"))
    answer = await door.get("/v1/records/orders/k", headers={"origin": APP})
    assert (answer.status, answer.body) == (200, b"v")
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert (await door.get("/v1/topics", headers={"origin": "https://evil.example"})).status == 403
    assert (await door.get("/v1/topics", headers={"origin": APP.upper()})).status == 403


async def test_refusals_can_be_read_as_well(open_door: Any) -> None:
    door = open_door(origins=(APP,))
    answer = await door.get("/v1/topics", token="", headers={"origin": APP})
    assert (answer.status, answer.slug, answer.headers["access-control-allow-origin"]) == (401, "credentials-missing", APP)


async def test_what_a_browser_asks_first(open_door: Any) -> None:
    door = open_door(origins=(APP,))
    headers = {
        "origin": APP,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, sprawl-header-a",
    }
    answer = await door.call("OPTIONS", "/v1/topics/orders/records", token="", headers=headers)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, OPTIONS"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type, sprawl-header-a"
    assert int(answer.headers["access-control-max-age"]) > 0
    hostile = headers | {"access-control-request-headers": "a\x0bb"}
    assert "access-control-allow-headers" not in (await door.call("OPTIONS", "/v1/topics", token="", headers=hostile)).headers


async def test_pages_of_this_very_host(http: Any) -> None:
    """Over a real connection, which knows its scheme and port."""
    here = str(http.base_url).rstrip("/")
    for origin, status in ((here, 200), (here.replace("https", "http"), 403), (f"{here}0", 403)):
        assert (await http.get("/v1/topics", headers={"origin": origin})).status_code == status
