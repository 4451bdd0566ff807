"""How late the event loop is: a timer that measures by how much it was missed.

One sample each quarter of a second costs nothing that can be measured, and sees every stall that is longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SAMPLE_S = 0.25


class LoopLag:
    """Calls `observe(seconds)` for each sample, from `start` until `stop`."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + SAMPLE_S
        self._timer = loop.call_at(self._due, self._sample, loop)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        self._observe(max(0.0, loop.time() - self._due))
        self.start()
