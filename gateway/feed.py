"""A live reader on the way out: what `Pipeline.subscribe` and `Pipeline.subscribe_filter` give to an endpoint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from broker.delivery.filter import Filter
from broker.delivery.position import Cursor
from broker.delivery.subscription import SCAN_BYTES_MAX, Delivered, Subscription, record_bytes
from broker.engine.base import Damage, Gap
from gateway.place import Place
from security.policy.model import Action, Decision
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline


class Rights(Protocol):
    """What the session may have of it. Both raise AccessDenied and IdentityProblem as soon as they hold."""

    def require(self) -> None:
        """That there is something it may have."""

    def cut(self, read: list[Delivered]) -> list[Delivered]:
        """What it may have of these, at this moment."""


class TopicRights:
    """Of a topic, some of its keys at least; or of one key, that key."""

    def __init__(self, pipeline: Pipeline, session: Session, topic: str, key: bytes | None) -> None:
        self._pipeline, self._session, self._topic, self._key = pipeline, session, topic, key

    def require(self) -> None:
        self._decide()

    def cut(self, read: list[Delivered]) -> list[Delivered]:
        decision = self._decide()
        if decision.form is Decision.ALL:
            return read
        return [delivered for delivered in read if decision.allows(delivered.record.key)]

    def _decide(self) -> Decision:
        if self._key is not None:
            return self._pipeline.authorise_key(self._session, self._topic, self._key)
        return self._pipeline.authorise(self._session, Action.READ, self._topic)


class FilterRights:
    """Of many topics, whatever may be read of each: a topic without rights is as one that does not exist."""

    def __init__(self, pipeline: Pipeline, session: Session, filter: Filter) -> None:
        self._pipeline, self._session, self._filter = pipeline, session, filter
        self._epoch: int | None = None

    def require(self) -> None:
        """What its roles reach is looked up once for each policy; whether the credential still holds, every time."""
        epoch = self._pipeline.policy.epoch
        self._pipeline.authorise_reading(self._session, self._filter.address, known=epoch == self._epoch)
        self._epoch = epoch

    def readable(self, topic: str) -> bool:
        """Asked of every topic under each policy: no batch of a forbidden one is opened for this session."""
        return self._pipeline.decide_reading(self._session, topic).form is not Decision.NONE

    def cut(self, read: list[Delivered]) -> list[Delivered]:
        self.require()
        decisions = {topic: self._pipeline.decide_reading(self._session, topic) for topic in {one.topic for one in read}}
        if all(decision.form is Decision.ALL for decision in decisions.values()):
            return read
        return [one for one in read if decisions[one.topic].allows(one.record.key)]


class Feed:
    """One consumer calls `next`, one call at a time, and writes what it got in the same turn of the loop.

    Reading ahead is bounded by the `bytes_max` of `next`, so a consumer that waits for its peer before it calls again holds
    no more than that. What was delivered is paid for (quota bytes_out) before the next read.
    """

    def __init__(self, pipeline: Pipeline, session: Session, rights: Rights, subscription: Subscription) -> None:
        self._pipeline, self._session, self._rights = pipeline, session, rights
        self._subscription = subscription
        self._place = Place(pipeline, session)

    @property
    def cursor(self) -> Cursor:
        """Where to go on: after all that was delivered, or cut."""
        return self._subscription.cursor

    @property
    def at_end(self) -> bool:
        """The last `next` came to the end of the log. False: there may be more, even if it came back empty."""
        return self._subscription.at_end

    @property
    def owes(self) -> bool:
        """What was delivered last is not paid for yet."""
        return self._place.owes

    def seek(self, cursor: Cursor) -> None:
        """Go on there, after a time in which somebody else delivered. The feed has to be at the end of what it has read."""
        self._subscription.seek(cursor)

    def take_damage(self) -> list[Damage]:
        """Ranges lost by the media that were crossed since the last call."""
        crossed = list(self._subscription.damage.values())
        self._subscription.damage.clear()
        return crossed

    def take_gaps(self) -> list[Gap]:
        """Ranges that retention or a deletion took before this reader came, since the last call."""
        crossed = list(self._subscription.gaps.values())
        self._subscription.gaps.clear()
        return crossed

    async def next(self, *, bytes_max: int, records_max: int, wait_max_ms: int) -> list[Delivered]:
        """What there is, up to the bounds; waits only while there is nothing that may be delivered.

        Raises AccessDenied and IdentityProblem as soon as they hold, the first time before any wait.
        """
        deadline_ms = self._now_ms() + wait_max_ms
        cut_bytes = 0
        self._rights.require()
        while await self._place.paid(deadline_ms):
            left_ms = max(0, deadline_ms - self._now_ms())
            read = await self._subscription.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=left_ms)
            found = self._rights.cut(read)
            if found:
                self._place.deliver(found)
                return found
            cut_bytes += sum([record_bytes(delivered.record) for delivered in read])
            if self._now_ms() >= deadline_ms and (self.at_end or cut_bytes >= SCAN_BYTES_MAX or not read):
                break
            await asyncio.sleep(0)
        return []

    def close(self) -> None:
        """Give its place back; more than once does no harm."""
        self._place.leave()

    def _now_ms(self) -> int:
        return self._pipeline.clock.monotonic_ms()
