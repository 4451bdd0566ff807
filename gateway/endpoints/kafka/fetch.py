"""Fetch 4-18: batches from an offset on, passed as they lie in the log.

    4 isolation   5 log start   7 sessions (KIP-227)   9 leader epochs (KIP-320)   11 racks (KIP-392)   12 flexible
    13 topics by id (KIP-516)   15-18 fields of replicas, of which there are none

No session is made: its id in the answer is 0, and the client names all its partitions in each request, as KIP-227 has it for a
broker without room for one. Fetching waits for `min_bytes` over all partitions of the request, for `max_wait` at most; it holds
its connection's place meanwhile, and ends with it.
"""

from __future__ import annotations

import asyncio

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation, Reply
from gateway.endpoints.kafka.refusal import Refusal, told
from gateway.fetching import FetchLimits, FetchWanted, PartitionRead
from gateway.wire.kafka.error_codes import ErrorCode
from gateway.wire.kafka.fetch import (
    HIGH,
    LOW,
    NO_REPLICA,
    FetchRequest,
    PartitionFetched,
    PartitionWanted,
    build_fetch,
    parse_fetch,
)
from gateway.wire.kafka.produce import TopicRef
from security.errors import QuotaExceeded

BYTES_MAX = 55 * 1024 * 1024
"""Of one answer, whatever the client asks for: Kafka's fetch.max.bytes."""
WAIT_MS_MAX = 300_000
"""How long one request may wait: half of the time after which an idle connection is closed."""

LEADER_EPOCH = 0  # there is one node, and it leads for ever
_DEBUGGING = -2  # a replica id that consumers of a debugging kind give

Topics = list[tuple[TopicRef, list[PartitionFetched]]]


async def fetch(call: Call, body: memoryview) -> Reply:
    request = parse_fetch(call.version, body)
    if request.session_epoch > 0:
        return Reply(build_fetch(call.version, [], error=ErrorCode.FETCH_SESSION_ID_NOT_FOUND))
    wanted = [_wanted(call, request, ref, one) for ref, partitions in request.topics for one in partitions]
    limits = FetchLimits(
        request.bytes_min,
        min(max(request.bytes_max, 0), BYTES_MAX),
        min(max(request.wait_max_ms, 0), WAIT_MS_MAX),
        request.read_committed,
    )
    reads, waited_ms = await _read(call, wanted, limits)
    answers = iter(reads)
    topics: Topics = [
        (ref, [_fetched(one.partition, next(answers), request) for one in partitions]) for ref, partitions in request.topics
    ]
    return Reply(build_fetch(call.version, topics, throttle_ms=waited_ms))


async def _read(call: Call, wanted: list[FetchWanted], limits: FetchLimits) -> tuple[list[PartitionRead], int]:
    """What was read, and how long a quota on requests held it back."""
    waited_ms = 0
    while True:
        try:
            return await call.node.pipeline.fetching.fetch(call.session, wanted, limits), waited_ms
        except QuotaExceeded as quota:
            waited_ms += quota.retry_after_ms
            await asyncio.sleep(quota.retry_after_ms / 1_000)


def _wanted(call: Call, request: FetchRequest, ref: TopicRef, one: PartitionWanted) -> FetchWanted:
    problem: Refusal | None = None
    name = ref if isinstance(ref, str) else ""
    if isinstance(ref, bytes):
        topic = call.node.pipeline.broker.topic_of(ref)
        if topic is not None:
            name = topic.name
        else:
            problem = Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "no topic has this id")
    if one.leader_epoch > LEADER_EPOCH:
        problem = problem or Refusal(ErrorCode.UNKNOWN_LEADER_EPOCH, f"the epoch is {LEADER_EPOCH}, not {one.leader_epoch}")
    if request.replica_id not in (NO_REPLICA, _DEBUGGING):
        problem = problem or Refusal(ErrorCode.TOPIC_AUTHORIZATION_FAILED, "nothing is replicated from here")
    return FetchWanted(name, one.partition, one.offset, max(0, one.bytes_max), problem)


def _fetched(partition: int, read: PartitionRead, request: FetchRequest) -> PartitionFetched:
    if read.error is not None:
        return PartitionFetched(partition, told(read.error)[0], aborted=())
    aborted = read.aborted if request.read_committed else None
    marks = (read.high_watermark, read.stable_offset, read.log_start)
    return PartitionFetched(partition, 0, *marks, aborted, read.pieces())


OPERATIONS = (Operation(api=1, name="Fetch", low=LOW, high=HIGH, handle=fetch, raw=True, waits=True),)
