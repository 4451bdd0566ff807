"""Whole batches on the way in: what a Kafka producer's request goes through, step by step as in `gateway/pipeline.py`.

Each batch is refused for itself, in Kafka's manner, and those of one request that pass are one append: stored together, or none.
Up to that append nothing waits: so batches land in the order in which requests came. What follows it runs out of the commit
itself, whoever asked being there or not: what is stored is audited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from broker.batch_errors import IllegalBatch
from broker.batch_header import BatchHeader
from broker.engine.base import Append, Appended, StateChange, Topic
from broker.errors import BrokerError, Closed, Overloaded, UnknownPartition, UnknownTopic
from broker.produced import Rules, check_produced, checked_keys, opens_slowly, rules_of, with_keys
from broker.producers.producers import Admission, Duplicate
from broker.transactions.stability import Waiter
from gateway.errors import Busy, GatewayError, bare
from security.errors import AccessDenied, IdentityProblem, SecurityError
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline

RETRY_AFTER_MS = 100
RULES_MAX = 1_024
WAYS_MAX = 4_096

# What one batch, or the append of all, may be refused with; anything else is a mistake of ours and ends the request.
REFUSALS = (BrokerError, SecurityError, GatewayError)


class ProducedBatch(msgspec.Struct, frozen=True):
    """`batch` is one record batch as it was received; it is looked at before anything waits, and never after. `problem`: what it
    is refused with if only its partition is there."""

    topic: str
    partition: int
    batch: memoryview
    problem: Exception | None = None


class Produced(msgspec.Struct):
    """`error`, bare of its frames, or where the batch landed. `append_time_ms` is -1 where records keep their producer's time."""

    error: Exception | None = None
    base_offset: int = -1
    append_time_ms: int = -1
    log_start: int = -1


Opened: TypeAlias = Mapping[tuple[str, int], Sequence[bytes | None] | Exception]
"""By topic and partition: the keys of a batch, or why it cannot be opened."""
NOTHING_OPENED: Opened = MappingProxyType({})

Done: TypeAlias = Callable[[Sequence[Produced], Exception | None], None]
"""Hears the answers to a request, or what went wrong with all of it and should not have."""


class UnopenedBatch(msgspec.Struct, frozen=True):
    """`open` blocks, on whatever thread."""

    rules: Rules
    one: ProducedBatch

    @property
    def place(self) -> tuple[str, int]:
        return self.one.topic, self.one.partition

    def open(self) -> Sequence[bytes | None] | Exception:
        try:
            return checked_keys(self.rules, self.one.batch, wanted=True) or ()
        except REFUSALS as refusal:
            return bare(refusal)


class Unopened(Exception):
    """Batches whose keys have to be known, and which take too long to open on the event loop."""

    def __init__(self, batches: Sequence[UnopenedBatch]) -> None:
        self.batches = batches
        super().__init__(f"{len(batches)} batches are to be opened first")


async def open_all(batches: Sequence[UnopenedBatch]) -> dict[tuple[str, int], Sequence[bytes | None] | Exception]:
    """Beside the event loop."""
    return {batch.place: await asyncio.to_thread(batch.open) for batch in batches}


class _Slow(Exception):
    def __init__(self, batch: UnopenedBatch) -> None:
        self.batch = batch


class _Way(msgspec.Struct, frozen=True):
    """What was found out about a session and a topic; good for this policy and this very `topic`: an altered one, or one made
    again under the name, is another object. Whether the credential holds is asked each time."""

    topics: Mapping[str, Topic]  # a live view
    topic: Topic
    epoch: int
    decision: Decision
    rules: Rules


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
        self._ways: dict[tuple[Session, str], _Way] = {}
        self._counted: dict[str, tuple[Any, Any]] = {}  # of each protocol: records and bytes
        self.under_way = 0

    async def produce(
        self,
        session: Session,
        batches: Sequence[ProducedBatch],
        *,
        durable: bool,
        transactional_id: str | None = None,
        joins: bool = False,
    ) -> Sequence[Produced]:
        """`begin`, waited for. Who is cancelled meanwhile takes nothing back."""
        future: asyncio.Future[Sequence[Produced]] = asyncio.get_running_loop().create_future()

        def done(produced: Sequence[Produced], error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(produced)
            else:
                future.set_exception(error)

        opened: dict[tuple[str, int], Sequence[bytes | None] | Exception] = {}
        while True:
            try:
                produced = self.begin(
                    session,
                    batches,
                    done,
                    durable=durable,
                    transactional_id=transactional_id,
                    joins=joins,
                    charged=bool(opened),
                    opened=opened,
                )
            except Unopened as unopened:
                opened |= await open_all(unopened.batches)
            else:
                return await future if produced is None else produced

    def begin(
        self,
        session: Session,
        batches: Sequence[ProducedBatch],
        done: Done,
        *,
        durable: bool,
        transactional_id: str | None = None,
        joins: bool = False,
        charged: bool = False,
        judged: bool = False,
        opened: Opened = NOTHING_OPENED,
    ) -> Sequence[Produced] | None:
        """One answer for each batch, in their order; with `durable` False it says where the batch is to land, no more. None where
        something is to be waited for: then `done` is called once, on the loop's thread, after this has returned.

        `joins`: partitions join the transaction with their first batch (KIP-890). QuotaExceeded, Busy, Overloaded and
        IdentityProblem are about the request, of which nothing is stored, and are raised; so is Unopened, whose batches are
        `opened` the next time. `charged`: its quotas were paid before it was asked to come again. `judged`: the credential was
        found to hold in this very turn of the loop.
        """
        if self.under_way >= self._pipeline.options.publishes_max:
            raise Busy("pipeline.publishes_max", self._pipeline.options.publishes_max, RETRY_AFTER_MS)
        if not charged:
            self._charge(session, batches)
        produced = [Produced()] if len(batches) == 1 else [Produced() for _ in batches]
        request = _Request(self, done, session, batches, produced, opened)
        self._check(request, transactional_id, joins, judged)
        if request.passed:
            self._append(request, durable)
        if request.duplicates:
            request.await_duplicates()
        return None if request.open else self.acknowledge(request)

    # 3. Admit

    def _charge(self, session: Session, batches: Sequence[ProducedBatch]) -> None:
        pipeline = self._pipeline
        if not pipeline.quotas.unlimited:
            size = sum([len(one.batch) for one in batches])
            pipeline.charge(session, Quota.BYTES_IN, size)  # first: what waits for it is not charged as a request again
            pipeline.charge(session, Quota.REQUESTS, 1)

    # 2 and 4. Authorise, validate

    def _check(self, request: _Request, transactional_id: str | None, joins: bool, judged: bool) -> None:
        session, several = request.session, len(request.batches) > 1
        ways: dict[str, _Way | Exception] = {}
        named: set[tuple[str, int]] = set()
        now_ms = self._pipeline.clock.now_ms()
        unopened: list[UnopenedBatch] = []
        for one, answer in zip(request.batches, request.produced, strict=True):
            try:
                if several:
                    way = self._way_once(ways, session, one.topic, now_ms, judged)
                    if (place := (one.topic, one.partition)) in named:
                        raise IllegalBatch("a partition that the request names twice")
                    named.add(place)
                else:
                    way = self._way(session, one.topic, now_ms, judged)
                found = self._check_one(request, one, answer, way, now_ms, transactional_id, joins)
            except IdentityProblem:
                raise  # it is about the request, of which nothing is stored yet
            except REFUSALS as refusal:
                answer.error = bare(refusal)
                continue
            except _Slow as slow:
                unopened.append(slow.batch)
                continue
            if found is None:
                answer.error = one.problem
            elif type(found) is Duplicate:
                request.duplicates.append((answer, found))
            else:
                request.passed.append(found)  # type: ignore[arg-type]  # mypy does not narrow by `type`
        if unopened:
            raise Unopened(unopened)

    def _way_once(self, ways: dict[str, _Way | Exception], session: Session, topic: str, now_ms: int, judged: bool) -> _Way:
        """Once for each topic of a request: a refusal is audited once too."""
        found = ways.get(topic)
        if found is None:
            try:
                found = self._way(session, topic, now_ms, judged)
            except (AccessDenied, UnknownTopic) as refusal:
                found = bare(refusal)
            ways[topic] = found
        if isinstance(found, Exception):
            raise found
        return found

    def _way(self, session: Session, topic: str, now_ms: int, judged: bool) -> _Way:
        """Authorised, now: as the last time where neither policy nor topic has changed since and the credential holds."""
        pipeline, principal = self._pipeline, session.principal
        way = self._ways.get((session, topic))
        if way is not None and way.epoch == pipeline.policy.epoch and way.topics.get(topic) is way.topic:
            if not judged:
                pipeline.chain.still_valid(principal)
            if principal.expires_at_ms is None or principal.expires_at_ms > now_ms:
                return way
        epoch = pipeline.policy.epoch
        decision = pipeline.authorise(session, Action.PUBLISH, topic)
        found = pipeline.broker.topic(topic)
        if len(self._ways) >= WAYS_MAX:
            self._ways.clear()
        way = self._ways[session, topic] = _Way(pipeline.broker.topics(), found, epoch, decision, self._rules_of(found))
        return way

    def _check_one(
        self,
        request: _Request,
        one: ProducedBatch,
        answer: Produced,
        way: _Way,
        now_ms: int,
        transactional_id: str | None,
        joins: bool,
    ) -> _Append | Duplicate | None:
        topic, rules, decision = way.topic, way.rules, way.decision
        if not 0 <= one.partition < topic.partitions:
            raise UnknownPartition(topic.name, one.partition, topic.partitions)
        if one.problem is not None:
            return None
        header = check_produced(rules, one.batch, now_ms)
        keys = None
        if rules.compacted or decision.form is not Decision.ALL:
            keys = _keys(request, one, rules, header)
            if keys is not None and decision.form is not Decision.ALL:
                self._pipeline.check_keys(request.session, one.topic, keys, decision)
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
            found = self._rules[topic.name] = rules_of(topic, self._pipeline.options.batch_records_max)
        return found

    # 5. Append

    def _append(self, request: _Request, durable: bool) -> None:
        """One append for all; a refusal of it is the answer to each."""
        passed = request.passed
        numbered = False
        for one in passed:
            numbered = numbered or one.admission is not None
        try:
            landed, waiter = self._pipeline.broker.submit(
                [passed[0].append] if len(passed) == 1 else [one.append for one in passed],
                durable=durable or numbered,
                changes=_Changes(passed) if numbered else (),
                told=request.told if durable else None,
            )
        except Overloaded:
            raise
        except REFUSALS as refusal:
            for one in passed:
                one.produced.error = bare(refusal)
            return
        if durable:
            self.under_way += 1
            request.open += 1
        if numbered:  # what producers number is decided by the waiter, whoever else hears of it
            for one in passed:
                if one.admission is not None:
                    one.admission.submitted(waiter)
        for one, appended in zip(passed, landed, strict=True):
            one.produced.base_offset, one.produced.log_start = appended.base_offset, appended.log_start
            if one.rules.dated_by_node:
                one.produced.append_time_ms = appended.append_time_ms

    # 6 and 7. Audit, acknowledge

    def acknowledge(self, request: _Request) -> Sequence[Produced]:
        session = request.session
        audited: dict[str, GatewayError | None] = {}
        for one, answer in zip(request.batches, request.produced, strict=True):
            if answer.error is None:
                if one.topic not in audited:
                    try:  # what cannot be audited is not acknowledged
                        self._pipeline.audit(session, Action.PUBLISH, one.topic)
                        audited[one.topic] = None
                    except GatewayError as refusal:
                        audited[one.topic] = bare(refusal)
                answer.error = audited[one.topic]
        if request.duplicates:
            for one, answer in zip(request.batches, request.produced, strict=True):
                answer.log_start = self._log_start(one)
        records = size = 0
        for accepted in request.passed:
            if accepted.produced.error is None:
                records += accepted.header.count
                size += len(accepted.append.batch)
        if records:
            counted = self._counted.get(session.protocol) or self._count_for(session.protocol)
            counted[0].value += records
            counted[1].value += size
        return request.produced

    def _count_for(self, protocol: str) -> tuple[Any, Any]:
        metrics = self._pipeline.metrics
        found = self._counted[protocol] = (metrics.records_in_total.labels(protocol), metrics.bytes_in_total.labels(protocol))
        return found

    def _log_start(self, one: ProducedBatch) -> int:
        try:
            return self._pipeline.broker.partition_offsets(one.topic, one.partition).log_start
        except BrokerError:  # deleted while the append was waited for
            return -1


def _keys(request: _Request, one: ProducedBatch, rules: Rules, header: BatchHeader) -> Sequence[bytes | None] | None:
    found = request.opened.get((one.topic, one.partition))
    if found is None:
        if opens_slowly(header):
            raise _Slow(UnopenedBatch(rules, one))
        return checked_keys(rules, one.batch, wanted=True)
    if isinstance(found, Exception):
        raise found
    return with_keys(rules, found)  # the topic may have changed meanwhile


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


class _Request(msgspec.Struct, eq=False):
    """The batches of one request on their way. `open`: appends that its answer waits for, its own and those of batches that came
    before."""

    producing: Producing
    done: Done
    session: Session
    batches: Sequence[ProducedBatch]
    produced: Sequence[Produced]
    opened: Opened
    passed: list[_Append] = []
    duplicates: list[tuple[Produced, Duplicate]] = []
    open: int = 0

    def told(self, error: Exception | None) -> None:
        """How the append of those that passed ended."""
        if error is not None:
            for one in self.passed:
                one.produced.error = bare(error)
                one.produced.base_offset = one.produced.log_start = -1
        self.producing.under_way -= 1
        self.close()

    def await_duplicates(self) -> None:
        """A batch that came before is acknowledged when the first one is."""
        for answer, duplicate in self.duplicates:
            if duplicate.pending is None:
                answer.base_offset = duplicate.base_offset
            else:
                self.open += 1
                duplicate.pending.add_done_callback(partial(self._settle, answer, duplicate))

    def _settle(self, answer: Produced, duplicate: Duplicate, waiter: Waiter) -> None:
        error = Closed() if waiter.cancelled() else waiter.exception()
        if error is None:
            answer.base_offset = duplicate.base_offset
        else:
            answer.error = bare(cast("Exception", error))
        self.close()

    def close(self) -> None:
        """One that it waited for has ended."""
        self.open -= 1
        if self.open:
            return
        try:
            produced = self.producing.acknowledge(self)
        except Exception as error:  # a mistake of ours, which must not keep the client waiting
            self.done((), error)
        else:
            self.done(produced, None)
