"""One timer for each group: it is woken when it has something to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarms:
    """On the event loop."""

    def __init__(self) -> None:
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}

    def arm(self, name: str, at_ms: int, now_ms: int, wake: Callable[[], None]) -> None:
        """An earlier alarm stays: heartbeats only ever put things off, so who is woken too early asks for another. Both times are
        of one clock."""
        if (armed := self._timers.get(name)) is not None:
            if armed[0] <= at_ms:
                return
            armed[1].cancel()
        timer = asyncio.get_running_loop().call_later(max(0, at_ms - now_ms) / 1_000, self._ring, name, wake)
        self._timers[name] = (at_ms, timer)

    def cancel(self, name: str) -> None:
        if (armed := self._timers.pop(name, None)) is not None:
            armed[1].cancel()

    def close(self) -> None:
        for name in list(self._timers):
            self.cancel(name)

    def _ring(self, name: str, wake: Callable[[], None]) -> None:
        self._timers.pop(name, None)
        wake()
