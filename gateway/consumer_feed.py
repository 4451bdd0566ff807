"""A durable consumer on the way out: what `Pipeline.consume` gives to an endpoint.

As with a `Feed`, every delivery is authorised at the moment it is made, first ones and later ones alike, cut to what is allowed
and paid for. What is cut counts as settled for this consumer: rights that come later bring nothing back, and nothing forbidden
holds its place among the open records.

Acknowledgements need no right beyond the connection's credential: they say nothing about records, only about this consumer.
But what may end in a dead-letter topic that the consumer chose itself needs the right to publish there, at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.delivery.consumer import Consumed, Consumer, Settled
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor
from broker.engine.base import Damage, Gap
from gateway.feed import Rights
from gateway.place import Place
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline


class ConsumerFeed:
    """One caller calls `next`, one call at a time, and writes what it got in the same turn of the loop; the rest at any time.

    All of it raises ConsumerTakenOver and ConsumerDeleted from then on, and IdentityProblem as soon as the credential ends.
    """

    def __init__(self, pipeline: Pipeline, session: Session, rights: Rights, consumer: Consumer) -> None:
        self._pipeline, self._session, self._rights, self._consumer = pipeline, session, rights, consumer
        self._place = Place(pipeline, session)

    @property
    def name(self) -> str:
        return self._consumer.name

    @property
    def filter(self) -> Filter:
        return self._consumer.filter

    @property
    def created(self) -> bool:
        """It did not exist before this feed was opened."""
        return self._consumer.created

    @property
    def cursor(self) -> Cursor:
        """All before it is settled or in flight."""
        return self._consumer.cursor

    @property
    def in_flight(self) -> int:
        return self._consumer.in_flight

    @property
    def paused(self) -> bool:
        return self._consumer.paused

    def take_damage(self) -> list[Damage]:
        """Ranges lost by the media that were crossed since the last call."""
        return self._consumer.take_damage()

    def take_gaps(self) -> list[Gap]:
        """Ranges that retention, or a deletion, took before this consumer came; since the last call."""
        return self._consumer.take_gaps()

    async def next(self, *, bytes_max: int, records_max: int, wait_max_ms: int) -> list[Consumed]:
        """What is due and what is new, up to the bounds; waits while there is nothing, no credit, no room in flight or a pause.

        Raises AccessDenied and IdentityProblem as soon as they hold, the first time before any wait.
        """
        deadline_ms = self._now_ms() + wait_max_ms
        self._rights.require()
        self._may_bury()
        if not await self._place.paid(deadline_ms):
            return []
        left_ms = max(0, deadline_ms - self._now_ms())
        found = await self._consumer.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=left_ms, cut=self._rights.cut)
        self._place.deliver(found)
        return found

    async def ack(self, tags: Sequence[str]) -> Settled:
        """Durable when it returns; may be repeated."""
        self._still_valid()
        return await self._consumer.ack(tags)

    async def nack(self, tags: Sequence[str], *, delay_ms: int | None = None, reason: str = "") -> Settled:
        """Deliver again after `delay_ms`, None: after a pause that grows with each attempt. ConsumerInvalid."""
        self._still_valid()
        self._may_bury()
        return await self._consumer.nack(tags, delay_ms=delay_ms, reason=reason)

    async def reject(self, tags: Sequence[str], *, reason: str = "") -> Settled:
        """To the dead-letter topic. ConsumerInvalid."""
        self._still_valid()
        self._may_bury()
        return await self._consumer.reject(tags, reason=reason)

    def extend(self, tags: Sequence[str], *, timeout_ms: int | None = None) -> Settled:
        """The time for the acknowledgement begins anew. ConsumerInvalid."""
        self._still_valid()
        return self._consumer.extend(tags, timeout_ms=timeout_ms)

    def credit(self, records: int) -> None:
        """So many records more; before the first call there is no such bound. ConsumerInvalid."""
        self._consumer.credit(records)

    def pause(self) -> None:
        self._consumer.pause()

    def resume(self) -> None:
        self._consumer.resume()

    def close(self) -> None:
        """Give its place back; what was in flight is due at once for whoever uses the consumer next. Twice does no harm."""
        if self._place.leave():
            self._consumer.close()

    def _still_valid(self) -> None:
        self._pipeline.chain.still_valid(self._session.principal)

    def _may_bury(self) -> None:
        """What comes now may put letters into the topic of the consumer's own choice."""
        self._pipeline.require_dead_letters(self._session, self._consumer.dead_letter_topic)

    def _now_ms(self) -> int:
        return self._pipeline.clock.monotonic_ms()
