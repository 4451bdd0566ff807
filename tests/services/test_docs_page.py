"""The docs page of a real node in a real browser (Debian's chromium)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Error, expect

from tests.services.node_process import NodeProcess
from tests.services.seen_page import SeenPage

pytestmark = [pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("docs") / "node") as found:
        yield found


@pytest.fixture
def seen(browser: Browser, node: NodeProcess) -> Iterator[SeenPage]:
    context = browser.new_context(ignore_https_errors=True, base_url=node.url)
    yield SeenPage(context.new_page())
    context.close()


def test_every_operation_is_there_and_opens(seen: SeenPage, node: NodeProcess) -> None:
    page = seen.page
    page.goto("/docs")
    page.wait_for_selector("article")
    document: dict[str, Any] = page.evaluate("fetch('/v1/openapi.json').then((answer) => answer.json())")
    wanted = {
        operation["operationId"]
        for methods in document["paths"].values()
        for method, operation in methods.items()
        if method not in ("head", "options")
    }
    assert {article.get_attribute("id") for article in page.query_selector_all("article")} == wanted
    for name in wanted:
        page.click(f"#{name} > details > summary")
        page.wait_for_selector(f"#{name} .inside table")
    assert seen.said == []
    assert seen.hosts == {urlsplit(node.url).netloc}


def test_an_operation_is_tried_out(seen: SeenPage, node: NodeProcess) -> None:
    page = seen.page
    page.goto("/docs#publish_to_topic")
    page.fill("#token", node.token)
    page.click("#publish_to_topic summary:has-text('Try it')")
    page.fill("#publish_to_topic .try input[name=topic]", "orders")
    page.fill("#publish_to_topic .try textarea", '{"key": "<img src=x onerror=alert(1)>", "value": 1}')
    page.click("#publish_to_topic .try button")
    expect(page.locator("#publish_to_topic .try pre")).to_contain_text("200 OK")
    page.goto("/docs#read_topic")
    page.click("#read_topic summary:has-text('Try it')")
    page.fill("#read_topic .try input[name=topic]", "orders")
    page.click("#read_topic .try button")
    expect(page.locator("#read_topic .try pre")).to_contain_text("onerror=alert")
    assert page.query_selector("img") is None
    assert seen.said == []


def test_nothing_inline_runs(seen: SeenPage) -> None:
    page = seen.page
    page.goto("/docs")
    page.wait_for_selector("article")
    for attack in (
        "document.body.setAttribute('onclick', 'alert(1)')",
        "document.body.innerHTML = '<img src=x onerror=alert(1)>'",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'alert(1)'}))",
    ):
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(attack)
    assert page.evaluate("fetch('https://example.invalid/').then(() => 'went', () => 'kept')") == "kept"
    assert any("Content Security Policy" in text for text in seen.said)
