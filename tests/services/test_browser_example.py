"""The example page (examples/browser) in a real browser, Debian's Chromium, against a real node over TLS."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.services.node_process import NodeProcess
from tests.services.seen_page import SeenPage

pytestmark = [pytest.mark.services, pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"
ANSWER_MS = 10_000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Not to the terminal."""


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The example's folder, served as `python -m http.server` does; the origin."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(EXAMPLE)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture
def node(tmp_path: Path, pages: str) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path / "node", **{"websocket.origins": json.dumps([pages])}) as found:
        yield found


class Example(SeenPage):
    def __init__(self, page: Page, pages: str, node: NodeProcess) -> None:
        super().__init__(page)
        self.node = node
        page.set_default_timeout(ANSWER_MS)
        page.goto(pages)

    @property
    def texts(self) -> list[str]:
        """Newest first."""
        return self.page.locator("#records tr td:nth-child(4)").all_inner_texts()

    def connect(self, token: str | None = None) -> None:
        self.page.fill("#url", self.node.url.replace("https", "wss") + "/v1/ws")
        self.page.fill("#token", token or self.node.token)
        self.page.click("#connect")

    def publish(self, address: str, text: str) -> None:
        self.page.fill("#address", address)
        self.page.fill("#text", text)
        self.page.click("#publish")

    def subscribe(self, wanted: str, start: str = "latest") -> None:
        self.page.fill("#filter", wanted)
        self.page.select_option("#from", start)
        self.page.click("#subscribe")
        expect(self.page.locator("#pause")).to_be_enabled()

    def shows(self, *texts: str) -> None:
        expect(self.page.locator("#records tr td:nth-child(4)")).to_have_text(list(texts))


@pytest.fixture
def example(browser: Browser, pages: str, node: NodeProcess) -> Iterator[Example]:
    context = browser.new_context(ignore_https_errors=True)
    yield Example(context.new_page(), pages, node)
    context.close()


def test_publish_subscribe_pause_and_lose_the_node(example: Example, tmp_path: Path) -> None:
    page = example.page
    example.connect()
    expect(page.locator("#status")).to_have_attribute("data-state", "open")
    example.publish("orders/eu/1", "first")
    example.subscribe("orders/eu/+", "earliest")
    example.shows("first")

    # Filters are the node's; what is shown is text, whoever wrote it.
    example.publish("orders/us/1", "not for this filter")
    hostile = "<img src=x onerror=\"document.title='taken'\">"
    example.publish("orders/eu/2", hostile)
    example.shows(hostile, "first")
    assert page.title() == "Sprawl in a browser"
    assert page.locator("#records img").count() == 0

    page.click("#pause")
    expect(page.locator("#pause")).to_have_text("Resume")
    example.publish("orders/eu/3", "while paused")
    page.click("#pause")
    example.shows("while paused", hostile, "first")

    # The node dies and comes back: the page connects again and goes on where it was.
    example.node.kill()
    expect(page.locator("#status")).to_have_attribute("data-state", "closed")
    example.node.start()
    expect(page.locator("#status")).to_have_attribute("data-state", "open", timeout=30_000)
    example.publish("orders/eu/4", "after the restart")
    example.shows("after the restart", "while paused", hostile, "first")

    assert example.hosts <= {urlsplit(page.url).netloc, urlsplit(example.node.url).netloc}
    foreign = [text for text in example.said if "ERR_CONNECTION_REFUSED" not in text and "WebSocket" not in text]
    assert foreign == []
    page.screenshot(path=tmp_path / "example.png")


def test_refusals_are_told(example: Example) -> None:
    page = example.page
    example.connect("sprawl_wrong")
    expect(page.locator("#status")).to_contain_text("4401")
    expect(page.locator("#publish")).to_be_disabled()
    example.connect()
    expect(page.locator("#status")).to_have_attribute("data-state", "open")
    page.fill("#filter", "orders/#/x")
    page.click("#subscribe")
    expect(page.locator("#told")).to_contain_text("filter")
    expect(page.locator("#pause")).to_be_disabled()
    example.publish("bad topic/x", "text")
    expect(page.locator("#told")).to_contain_text("bad topic")


def test_a_page_of_another_origin_is_not_let_in(browser: Browser, node: NodeProcess, example: Example) -> None:
    page = example.page
    page.goto(page.url.replace("127.0.0.1", "localhost"))
    example.connect()
    expect(page.locator("#status")).to_contain_text("1006")
