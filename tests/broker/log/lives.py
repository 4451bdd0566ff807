"""Started engines of one folder for tests of the log, and waiting for what they do beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from broker.engine.embedded import EmbeddedEngine

Start = Callable[..., Coroutine[Any, Any, EmbeddedEngine]]

NO_MERGE: dict[str, Any] = {"merge_files_min": 10_000, "journal_file_bytes": 2048, "merge_bytes_per_s": 1 << 40}
"""Small journals, and no merge but what is asked for."""


async def sealed(engine: EmbeddedEngine) -> None:
    """All full journals have their footers."""
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
