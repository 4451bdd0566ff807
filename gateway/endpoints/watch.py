"""Ends a wait whose client has gone, or that the node's drain ends."""

from __future__ import annotations

import asyncio
from types import TracebackType

from gateway.endpoints.exchange import Exchange
from gateway.errors import Busy, ClientGone, Draining
from gateway.pipeline import RETRY_AFTER_MS


class Watches:
    """All waits of one application, at most `waits_max` at once; `limit_name` is the setting that says so."""

    def __init__(self, limit_name: str, waits_max: int) -> None:
        self.limit_name, self.waits_max = limit_name, waits_max
        self.draining = False
        self._open: set[Watch] = set()

    def __len__(self) -> int:
        return len(self._open)

    def watch(self, exchange: Exchange) -> Watch:
        """Use it as `async with`: the body is cancelled, and Draining or ClientGone raised instead. Busy at the bound."""
        return Watch(self, exchange)

    def drain(self) -> None:
        """End all waits, now and from now on."""
        self.draining = True
        for watch in list(self._open):
            watch.end(Draining())

    def enter(self, watch: Watch) -> None:
        if self.draining:
            raise Draining
        if len(self._open) >= self.waits_max:
            raise Busy(self.limit_name, self.waits_max, RETRY_AFTER_MS)
        self._open.add(watch)

    def leave(self, watch: Watch) -> None:
        self._open.discard(watch)


class Watch:
    """The body stays in its own task, as under `asyncio.timeout`: so what it reads it may write without a turn in between."""

    def __init__(self, watches: Watches, exchange: Exchange) -> None:
        self._watches, self._exchange = watches, exchange
        self._reason: ClientGone | Draining | None = None

    async def __aenter__(self) -> Watch:
        self._watches.enter(self)
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._watcher = asyncio.create_task(self._wait_gone())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watches.leave(self)
        self._watcher.cancel()
        if self._reason is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._reason from None

    def end(self, reason: ClientGone | Draining) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def _wait_gone(self) -> None:
        await self._exchange.gone()
        self.end(ClientGone())
