"""Produce 3-13: batches as producers build them, stored as they are.

    3 transactional id   5 log start   7 zstd (KIP-110)   8 record errors (KIP-467)   9 flexible   12 partitions join a
    transaction with their first batch (KIP-890)   13 topics by id (KIP-516)

Versions 0 to 2 are advertised and not served, as Kafka does: librdkafka takes a broker without them for one that knows no
compression (KAFKA-18659).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, cast

from broker.batch_errors import IllegalBatch
from broker.batch_header import MAGIC
from broker.compression import Compression
from broker.errors import Overloaded
from broker.producers.errors import InvalidTransactionState
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.held_back import HeldBack
from gateway.endpoints.kafka.operation import Later, Operation, Reply
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.errors import Busy
from gateway.producing import NOTHING_OPENED, Opened, Produced, ProducedBatch, Unopened, open_all
from gateway.wire.kafka.error_codes import ErrorCode
from gateway.wire.kafka.produce import (
    HIGH,
    LOW,
    PartitionAnswer,
    ProduceRequest,
    TopicRef,
    build_produce,
    parse_produce,
)
from security.errors import AccessDenied, QuotaExceeded

ZSTD_FROM = 7
ABORTABLE_FROM = 11  # KIP-890: the producer may abort its transaction and go on
JOINS_FROM = 12  # transaction protocol 2

_NO_RECORDS = memoryview(b"")

_ATTRIBUTES_AT, _CODECS, _TRANSACTIONAL = 22, 0x07, 0x10  # the lower byte of a batch's attributes
_LENGTH_AT, _LENGTH_END, _MAGIC_AT = 8, 12, 16

_TO_COME = PartitionAnswer(-1, 0)  # holds a place

Answers = list[tuple[TopicRef, list[PartitionAnswer]]]


def produce(call: Call, body: memoryview) -> Reply | Later | Coroutine[Any, Any, Reply | None] | None:
    """No answer where the producer wants none (acks 0); then what is refused ends the connection, so that it looks again."""
    request = parse_produce(call.version, body)
    if call.connection.held_back is None and call.node.pipeline.quotas.unlimited:
        try:
            return _produce(call, request, 0, charged=True, judged=True)
        except (Overloaded, Busy, Unopened):
            pass
    if call.connection.held_back is None:
        call.connection.held_back = HeldBack()
    call.connection.held_back.requests += 1
    return _in_turn(call, request, call.connection.held_back)


async def _in_turn(call: Call, request: ProduceRequest, held_back: HeldBack) -> Reply | None:
    """By a quota, or while the log has more to write than it may hold; for as long as the producer waits at most."""
    try:
        async with held_back.turn:
            answer = await _when_admitted(call, request)
    finally:
        held_back.requests -= 1
        if not held_back.requests:
            call.connection.held_back = None
    return cast("Reply | None", await answer) if isinstance(answer, Later) else answer


async def _when_admitted(call: Call, request: ProduceRequest) -> Reply | Later | None:
    waited_ms = throttled_ms = 0
    charged = False
    opened: dict[tuple[str, int], Sequence[bytes | None] | Exception] = {}
    while True:
        try:
            return _produce(call, request, throttled_ms, charged, opened)
        except Unopened as unopened:
            charged = True
            opened |= await open_all(unopened.batches)
        except (QuotaExceeded, Overloaded, Busy) as refusal:
            if waited_ms >= request.timeout_ms:
                return _answer(call, request, _refused_alike(call.version, request, refusal), throttled_ms)
            wait_ms = min(refusal.retry_after_ms, request.timeout_ms - waited_ms)
            waited_ms += wait_ms
            if isinstance(refusal, QuotaExceeded):
                throttled_ms += wait_ms
            charged = charged or isinstance(refusal, Overloaded)
            await asyncio.sleep(wait_ms / 1_000)


def _produce(
    call: Call,
    request: ProduceRequest,
    waited_ms: int,
    charged: bool = False,
    opened: Opened = NOTHING_OPENED,
    *,
    judged: bool = False,
) -> Reply | Later | None:
    version, acks = call.version, request.acks
    ordinary = version >= ZSTD_FROM and -1 <= acks <= 1
    transactional = False
    batches: list[ProducedBatch] = []
    answers: Answers = []
    places: list[tuple[list[PartitionAnswer], int]] = []
    for ref, partitions in request.topics:
        own: list[PartitionAnswer] = []
        answers.append((ref, own))
        name = ref if type(ref) is str else _name(call, ref)
        for partition, records in partitions:
            if records is not None and len(records) > _ATTRIBUTES_AT and records[_ATTRIBUTES_AT] & _TRANSACTIONAL:
                transactional = True
            if name is None:
                own.append(_refused(version, partition, Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "no topic has this id")))
                continue
            if ordinary and records is not None:
                batches.append(ProducedBatch(name, partition, records))
            else:
                batches.append(_batch(version, acks, name, partition, records))
            places.append((own, len(own)))
            own.append(_TO_COME)
    if transactional:
        try:
            _check_transactional(call, request)
        except REFUSED as refusal:
            return _answer(call, request, _refused_alike(version, request, refusal), waited_ms)
    later = Later()

    def done(produced: Sequence[Produced], error: Exception | None) -> None:
        if error is None:
            later.settle(_filled(call, request, answers, places, batches, produced, waited_ms))
        else:
            later.fail(error)

    try:
        found = call.node.pipeline.producing.begin(
            call.session,
            batches,
            done,
            durable=acks != 0,
            transactional_id=request.transactional_id,
            joins=version >= JOINS_FROM,
            charged=charged,
            judged=judged,
            opened=opened,
        )
    except (QuotaExceeded, Overloaded, Busy):
        raise
    except REFUSED as refusal:
        return _answer(call, request, _refused_alike(call.version, request, refusal), waited_ms)
    return later if found is None else _filled(call, request, answers, places, batches, found, waited_ms)


def _filled(
    call: Call,
    request: ProduceRequest,
    answers: Answers,
    places: Sequence[tuple[list[PartitionAnswer], int]],
    batches: Sequence[ProducedBatch],
    produced: Sequence[Produced],
    waited_ms: int,
) -> Reply | None:
    for (own, at), batch, one in zip(places, batches, produced, strict=True):
        if one.error is None:
            own[at] = PartitionAnswer(batch.partition, 0, one.base_offset, one.append_time_ms, one.log_start)
        else:
            own[at] = _refused(call.version, batch.partition, one.error)
    return _answer(call, request, answers, waited_ms)


def _check_transactional(call: Call, request: ProduceRequest) -> None:
    if request.transactional_id is None:
        raise Refusal(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "a transactional batch without a transactional id")
    try:
        call.node.pipeline.authorise_transaction(call.session, request.transactional_id)
    except AccessDenied as denied:
        raise Refusal(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, str(denied)) from None


def _name(call: Call, ref: TopicRef) -> str | None:
    """None for an id that no topic has."""
    if isinstance(ref, str):
        return ref
    topic = call.node.pipeline.broker.topic_of(ref)
    return None if topic is None else topic.name


def _batch(version: int, acks: int, name: str, partition: int, records: memoryview | None) -> ProducedBatch:
    if records is None:
        return ProducedBatch(name, partition, _NO_RECORDS)
    problem: Refusal | None = None
    if acks not in (-1, 0, 1):
        problem = Refusal(ErrorCode.INVALID_REQUIRED_ACKS, f"acks {acks}, where -1, 0 and 1 are")
    if version < ZSTD_FROM and _is_whole(records) and records[_ATTRIBUTES_AT] & _CODECS == Compression.ZSTD:
        problem = Refusal(ErrorCode.UNSUPPORTED_COMPRESSION_TYPE, f"zstd needs Produce {ZSTD_FROM} or newer")
    return ProducedBatch(name, partition, records, problem)


def _is_whole(records: memoryview) -> bool:
    """Whether there is a batch to speak of: Kafka asks that first."""
    if len(records) <= _ATTRIBUTES_AT or records[_MAGIC_AT] != MAGIC:
        return False
    return int.from_bytes(records[_LENGTH_AT:_LENGTH_END], "big", signed=True) + _LENGTH_END <= len(records)


def _refused(version: int, partition: int, error: Exception) -> PartitionAnswer:
    code, message = told(error)
    if version >= ABORTABLE_FROM and isinstance(error, InvalidTransactionState):
        code = ErrorCode.TRANSACTION_ABORTABLE
    records: Sequence[tuple[int, str | None]] = error.records if isinstance(error, IllegalBatch) else ()
    return PartitionAnswer(partition, code, record_errors=records, message=message)


def _refused_alike(version: int, request: ProduceRequest, error: Exception) -> Answers:
    return [(ref, [_refused(version, partition, error) for partition, _ in partitions]) for ref, partitions in request.topics]


def _answer(call: Call, request: ProduceRequest, answers: Answers, waited_ms: int) -> Reply | None:
    if request.acks != 0:
        return Reply([build_produce(call.version, answers, waited_ms)])
    if any(answer.error for _, partitions in answers for answer in partitions):
        call.connection.close()
    return None


OPERATIONS = (Operation(api=0, name="Produce", low=0, served_from=LOW, high=HIGH, handle=produce, raw=True),)
