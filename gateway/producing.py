"""Whole batches on the way in: what a Kafka producer's request goes through, step by step as in `gateway/pipeline.py`.

Each batch is refused for itself, in Kafka's manner, and those of one request that pass are one append: stored together, or none.
Up to that append nothing waits, unless a quota makes it: so batches land in the order in which requests came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from broker.batch_errors import IllegalBatch
from broker.batch_header import BatchHeader
from broker.engine.base import Append, Appended, StateChange, Topic
from broker.errors import BrokerError, UnknownPartition
from broker.produced import Rules, check_produced, checked_keys, rules_of
from broker.producers.producers import Admission, Duplicate
from gateway.errors import Busy, GatewayError
from security.errors import AccessDenied, IdentityProblem, SecurityError
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline

RETRY_AFTER_MS = 100
RULES_MAX = 1_024

# What one batch, or the append of all, may be refused with; anything else is a mistake of ours and ends the request.
REFUSALS = (BrokerError, SecurityError, GatewayError)


class ProducedBatch(msgspec.Struct, frozen=True, gc=False):
    """`batch` is one record batch as it was received; it is looked at before anything waits, and never after. `problem`: what it
    is refused with if only its partition is there."""

    topic: str
    partition: int
    batch: memoryview
    problem: Exception | None = None


class Produced(msgspec.Struct, gc=False):
    """`error`, or where the batch landed. `append_time_ms` is -1 where records keep their producer's time."""

    error: Exception | None = None
    base_offset: int = -1
    append_time_ms: int = -1
    log_start: int = -1


class _Append(msgspec.Struct, frozen=True):
    """A batch that passed, and where its answer goes."""

    produced: Produced
    append: Append
    rules: Rules
    header: BatchHeader
    admission: Admission | None


class Producing:
    """The way in of whole batches; one for the node."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._rules: dict[str, Rules] = {}
        self._under_way = 0

    async def produce(
        self,
        session: Session,
        batches: Sequence[ProducedBatch],
        *,
        durable: bool,
        transactional_id: str | None = None,
        joins: bool = False,
    ) -> list[Produced]:
        """One answer for each batch, in their order; with `durable` False it says where the batch is to land, no more.

        `joins`: partitions join the transaction with their first batch (KIP-890). QuotaExceeded, Busy and IdentityProblem are
        about the request, and are raised.
        """
        self._admit(session, batches)
        produced = [Produced() for _ in batches]
        duplicates: list[tuple[Produced, Duplicate]] = []
        passed = self._check(session, batches, produced, duplicates, transactional_id, joins)
        if passed:
            await self._append(passed, durable)
        for answer, duplicate in duplicates:
            await _settle(answer, duplicate)
        self._acknowledge(session, batches, produced, passed)
        return produced

    # 3. Admit

    def _admit(self, session: Session, batches: Sequence[ProducedBatch]) -> None:
        pipeline = self._pipeline
        if self._under_way >= pipeline.options.publishes_max:
            raise Busy("pipeline.publishes_max", pipeline.options.publishes_max, RETRY_AFTER_MS)
        if not pipeline.quotas.unlimited:
            size = sum([len(one.batch) for one in batches])
            pipeline.charge(session, Quota.BYTES_IN, size)  # first: what waits for it is not charged as a request again
            pipeline.charge(session, Quota.REQUESTS, 1)

    # 2 and 4. Authorise, validate

    def _check(
        self,
        session: Session,
        batches: Sequence[ProducedBatch],
        produced: Sequence[Produced],
        duplicates: list[tuple[Produced, Duplicate]],
        transactional_id: str | None,
        joins: bool,
    ) -> list[_Append]:
        decisions: dict[str, Decision | AccessDenied] = {}
        passed: list[_Append] = []
        named: set[tuple[str, int]] = set()
        now_ms = self._pipeline.clock.now_ms()
        for one, answer in zip(batches, produced, strict=True):
            try:
                decision = decisions.get(one.topic)
                if decision is None:
                    decision = decisions[one.topic] = self._authorise(session, one.topic)
                if isinstance(decision, AccessDenied):
                    raise decision
                if (place := (one.topic, one.partition)) in named:
                    raise IllegalBatch("a partition that the request names twice")
                named.add(place)
                found = self._check_one(session, one, answer, decision, now_ms, transactional_id, joins)
                if found is None:
                    answer.error = one.problem
                    continue
            except IdentityProblem:
                raise  # it is about the request, of which nothing is stored yet
            except REFUSALS as refusal:
                answer.error = refusal
                continue
            if isinstance(found, Duplicate):
                duplicates.append((answer, found))
            else:
                passed.append(found)
        return passed

    def _authorise(self, session: Session, topic: str) -> Decision | AccessDenied:
        """Once for each topic of a request: a refusal is audited once too."""
        try:
            return self._pipeline.authorise(session, Action.PUBLISH, topic)
        except AccessDenied as denied:
            return denied

    def _check_one(
        self,
        session: Session,
        one: ProducedBatch,
        answer: Produced,
        decision: Decision,
        now_ms: int,
        transactional_id: str | None,
        joins: bool,
    ) -> _Append | Duplicate | None:
        topic = self._pipeline.broker.topic(one.topic)
        if not 0 <= one.partition < topic.partitions:
            raise UnknownPartition(topic.name, one.partition, topic.partitions)
        if one.problem is not None:
            return None
        rules = self._rules_of(topic)
        header = check_produced(rules, one.batch, now_ms)
        keys = None
        if rules.compacted or decision.form is not Decision.ALL:
            keys = checked_keys(rules, one.batch, wanted=True)
            if keys is not None and decision.form is not Decision.ALL:
                self._pipeline.check_keys(session, one.topic, keys, decision)
        admission = None
        if header.producer_id >= 0:
            producers = self._pipeline.broker.producers
            found = producers.check(topic, one.partition, header, transactional_id=transactional_id, joins=joins)
            if isinstance(found, Duplicate):
                if rules.dated_by_node:
                    answer.append_time_ms = found.append_time_ms
                return found
            admission = found
        return _Append(answer, Append(one.topic, one.partition, one.batch, keys), rules, header, admission)

    def _rules_of(self, topic: Topic) -> Rules:
        found = self._rules.get(topic.name)
        if found is None or found.topic is not topic:
            if len(self._rules) >= RULES_MAX:
                self._rules.clear()
            found = self._rules[topic.name] = rules_of(topic)
        return found

    # 5. Append

    async def _append(self, passed: Sequence[_Append], durable: bool) -> None:
        """One append for all; a refusal of it is the answer to each."""
        numbered = any(one.admission is not None for one in passed)
        self._under_way += 1
        try:
            landed, waiter = self._pipeline.broker.submit(
                [one.append for one in passed], durable=durable or numbered, changes=_Changes(passed) if numbered else ()
            )
            if numbered:
                for one in passed:
                    if one.admission is not None:
                        one.admission.submitted(waiter)
            if durable and waiter is not None:
                # What producers number is decided by the waiter: a connection that goes away must not end it.
                await (asyncio.shield(waiter) if numbered else waiter)
        except REFUSALS as refusal:
            for one in passed:
                one.produced.error = refusal
            return
        finally:
            self._under_way -= 1
        for one, appended in zip(passed, landed, strict=True):
            one.produced.base_offset = appended.base_offset
            if one.rules.dated_by_node:
                one.produced.append_time_ms = appended.append_time_ms

    # 6 and 7. Audit, acknowledge

    def _acknowledge(
        self, session: Session, batches: Sequence[ProducedBatch], produced: Sequence[Produced], passed: Sequence[_Append]
    ) -> None:
        pipeline = self._pipeline
        audited: dict[str, GatewayError | None] = {}
        for one, answer in zip(batches, produced, strict=True):
            if answer.error is not None:
                continue
            if one.topic not in audited:
                audited[one.topic] = self._audit(session, one.topic)
            answer.error = audited[one.topic]
            answer.log_start = self._log_start(one)
        records = size = 0
        for accepted in passed:
            if accepted.produced.error is None:
                records += accepted.header.count
                size += accepted.header.size
        if records:
            pipeline.metrics.records_in_total.labels(session.protocol).inc(records)
            pipeline.metrics.bytes_in_total.labels(session.protocol).inc(size)

    def _audit(self, session: Session, topic: str) -> GatewayError | None:
        """What cannot be audited is not acknowledged."""
        try:
            self._pipeline.audit(session, Action.PUBLISH, topic)
        except GatewayError as refusal:
            return refusal
        return None

    def _log_start(self, one: ProducedBatch) -> int:
        try:
            return self._pipeline.broker.partition_offsets(one.topic, one.partition).log_start
        except BrokerError:  # deleted while the append was waited for
            return -1


class _Changes:
    """What is committed with the batches, once it is known where they land."""

    __slots__ = ("_passed",)

    def __init__(self, passed: Sequence[_Append]) -> None:
        self._passed = passed

    def __call__(self, landed: Sequence[Appended]) -> list[StateChange]:
        changes: list[StateChange] = []
        for one, appended in zip(self._passed, landed, strict=True):
            if one.admission is not None:
                changes += one.admission.changes(appended)
        return changes


async def _settle(answer: Produced, duplicate: Duplicate) -> None:
    """A batch that came before: it is acknowledged when the first one is."""
    try:
        if duplicate.pending is not None:
            await asyncio.shield(duplicate.pending)
    except REFUSALS as refusal:
        answer.error = refusal
        return
    answer.base_offset = duplicate.base_offset
