"""/docs: what it may load, and from where. How it looks and works in a browser: tests/services/test_docs_page.py."""

from __future__ import annotations

import re
from typing import Any

from gateway.endpoints.docs_page import FILES, FOLDER, POLICY


async def test_everybody_gets_it(door: Any) -> None:
    for path, (name, media_type) in FILES.items():
        answer = await door.get(path, token="")
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, media_type, (FOLDER / name).read_bytes())


async def test_the_policy_lets_nothing_else_in(door: Any) -> None:
    for path in FILES:
        headers = (await door.get(path, token="")).headers
        assert headers["content-security-policy"].encode() == POLICY
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    directives = dict(part.strip().split(" ", 1) for part in POLICY.decode().split(";"))
    assert directives["default-src"] == "'none'"
    sources = {source for name, text in directives.items() if name.endswith("-src") for source in text.split()}
    assert sources == {"'none'", "'self'"}
    assert directives["frame-ancestors"] == directives["base-uri"] == "'none'"


def test_no_other_host_and_nothing_inline() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {name for name, _ in FILES.values()}
    for path in FOLDER.iterdir():
        text = path.read_text()
        hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]{2,})", text))
        assert hosts <= {"www.w3.org"}, path  # the name of SVG, which nothing fetches
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage", text)
    page = (FOLDER / "docs.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\sstyle=|\son[a-z]+=|javascript:", page)
    assert set(re.findall(r'(?:src|href)="([^"#]*)"', page)) <= {*FILES, "/v1/openapi.json", ""}


async def test_a_browser_that_has_it_is_sent_nothing(door: Any) -> None:
    for path in (*FILES, "/v1/openapi.json"):
        first = await door.get(path, token="")
        again = await door.get(path, token="", headers={"if-none-match": first.headers["etag"]})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
        other = await door.get(path, token="", headers={"if-none-match": '"other"'})
        assert other.status == 200
