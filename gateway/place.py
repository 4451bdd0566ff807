"""What every live reader on the way out has, whatever it reads: a place among the node's feeds, and a bill for what it got."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from broker.delivery.subscription import record_bytes
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline


class Place:
    """Taken when it is made, given back by `leave`. What was delivered is paid for (quota bytes_out) before the next read."""

    def __init__(self, pipeline: Pipeline, session: Session) -> None:
        self._pipeline, self._session = pipeline, session
        self._unpaid_bytes = 0
        self._left = False
        pipeline.feeds += 1
        pipeline.metrics.subscriptions.labels(session.protocol).inc()

    @property
    def owes(self) -> bool:
        """What was delivered last is not paid for yet."""
        return self._unpaid_bytes > 0

    def deliver(self, found: Sequence[Any]) -> None:
        """Counts and notes down records (`Delivered`, `Consumed`) that are written in this same turn of the loop."""
        self._unpaid_bytes = sum([record_bytes(one.record) for one in found])
        self._pipeline.deliver(self._session, len(found), self._unpaid_bytes)

    async def paid(self, deadline_ms: int) -> bool:
        """Pay for what was delivered; whether that was possible before the deadline."""
        while self._unpaid_bytes:
            wait_ms = self._pipeline.owed_ms(self._session, Quota.BYTES_OUT, self._unpaid_bytes)
            if wait_ms == 0:
                self._unpaid_bytes = 0
                break
            left_ms = deadline_ms - self._pipeline.clock.monotonic_ms()
            if left_ms <= 0:
                return False
            await asyncio.sleep(min(wait_ms, left_ms) / 1_000)
        return True

    def leave(self) -> bool:
        """Whether it was still taken: more than once does no harm."""
        if self._left:
            return False
        self._left = True
        self._pipeline.feeds -= 1
        self._pipeline.metrics.subscriptions.labels(self._session.protocol).dec()
        return True
