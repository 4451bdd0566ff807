"""A page in a real browser, Debian's Chromium, as a user has it."""

from __future__ import annotations

from urllib.parse import urlsplit

from playwright.sync_api import Page


class SeenPage:
    """With what it said and asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
