"""A real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")  # not longer: its event loop stands in the way of asynchronous tests
def browser() -> Iterator[Browser]:
    assert Path(CHROMIUM).exists(), "install it: apt-get install --no-install-recommends chromium fonts-dejavu-core"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
