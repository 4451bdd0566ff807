"""Fetch 4-18: batches from an offset on, passed as they lie in the log.

    4 isolation   5 log start   7 sessions (KIP-227)   9 leader epochs (KIP-320)   11 racks (KIP-392)   12 flexible
    13 topics by id (KIP-516)   15-18 fields of replicas, of which there are none

A request names all its partitions, or belongs to a session (`fetch_sessions.py`) and names what has changed. Fetching waits for
`min_bytes` over all partitions, for `max_wait` at most; it holds its connection's place meanwhile, and ends with it. What is in
memory is answered in the turn in which the request came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from broker.errors import OffsetOutOfRange, UnknownPartition, UnknownTopic
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.fetch_sessions import (
    FIRST_EPOCH,
    NO_SESSION,
    FetchSession,
    Followed,
    Followers,
    SessionRefused,
    incremental,
)
from gateway.endpoints.kafka.operation import Operation, Reply
from gateway.endpoints.kafka.refusal import Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.fetching import FetchLimits, PartitionRead, Pending
from gateway.wire.kafka.error_codes import ErrorCode
from gateway.wire.kafka.fetch import (
    HIGH,
    LOW,
    NO_REPLICA,
    TOPIC_IDS_FROM,
    FetchRequest,
    PartitionFetched,
    build_fetch,
    parse_fetch,
)
from gateway.wire.kafka.produce import TopicRef
from security.errors import AccessDenied, QuotaExceeded

WAIT_MS_MAX = 300_000
"""How long one request may wait: half of the time after which an idle connection is closed."""
LARGE_REQUEST_BYTES = 64 * 1024
"""A request of more than some 2,000 partitions is read on another thread: others have their turn meanwhile."""
MEMORY_SHARE = 4
"""One answer takes at most this part of the memory that is left for requests and answers."""

LEADER_EPOCH = 0  # there is one node, and it leads for ever
_DEBUGGING = -2  # a replica id that consumers of a debugging kind give
_UNKNOWN_ID = Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "no topic has this id")
_NO_REPLICAS = Refusal(ErrorCode.TOPIC_AUTHORIZATION_FAILED, "nothing is replicated from here")
_UNKNOWN_EPOCH = Refusal(ErrorCode.UNKNOWN_LEADER_EPOCH, f"the epoch is {LEADER_EPOCH}")

Said = list[tuple[Followed, PartitionFetched]]
Topics = list[tuple[TopicRef, list[PartitionFetched]]]


def fetch(call: Call, body: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
    return _in_parts(call, body) if len(body) > LARGE_REQUEST_BYTES else _small(call, body)


def _small(call: Call, body: memoryview) -> Reply | Coroutine[Any, Any, Reply]:
    request = parse_fetch(call.version, body)
    return _begun(call, request, dict(_following(call, request)))


async def _in_parts(call: Call, body: memoryview) -> Reply:
    request = await asyncio.to_thread(parse_fetch, call.version, body)
    named: Followers = {}
    async for place, one in in_turns(_following(call, request)):
        named[place] = one
    answer = _begun(call, request, named)
    return answer if isinstance(answer, Reply) else await answer


def _begun(call: Call, request: FetchRequest, named: Followers) -> Reply | Coroutine[Any, Any, Reply]:
    try:
        session, wanted = _context(call, request, named)
    except SessionRefused as refusal:
        return Reply(build_fetch(call.version, [], error=refusal.code))
    limits = FetchLimits(
        request.bytes_min, _bytes_max(call, request), min(max(request.wait_max_ms, 0), WAIT_MS_MAX), request.read_committed
    )
    try:
        found = call.node.pipeline.fetching.begin(call.session, wanted, limits)
    except QuotaExceeded as quota:
        return _held_back(call, request, session, wanted, limits, quota)
    if isinstance(found, list):
        return _answer(call, request, session, wanted, found)
    return _later(call, request, session, wanted, found)


async def _later(
    call: Call,
    request: FetchRequest,
    session: FetchSession | None,
    wanted: Sequence[Followed],
    found: Pending,
) -> Reply:
    if session is None:
        return _answer(call, request, None, wanted, await found)
    session.busy = True
    try:
        reads = await found
    finally:
        session.busy = False
    return _answer(call, request, session, wanted, reads)


async def _held_back(
    call: Call,
    request: FetchRequest,
    session: FetchSession | None,
    wanted: Sequence[Followed],
    limits: FetchLimits,
    quota: QuotaExceeded,
) -> Reply:
    """A quota on requests is used up: the answer comes later, and says how long it was held back."""
    waited_ms = 0
    while True:
        waited_ms += quota.retry_after_ms
        await asyncio.sleep(quota.retry_after_ms / 1_000)
        try:
            reads = await call.node.pipeline.fetching.fetch(call.session, wanted, limits)
        except QuotaExceeded as again:
            quota = again
        else:
            return _answer(call, request, session, wanted, reads, waited_ms)


def _bytes_max(call: Call, request: FetchRequest) -> int:
    """Of one answer, whatever the client asks for: it may take long to read it."""
    left = max(0, call.node.memory.bytes_max - call.node.memory.held_bytes)
    return min(max(request.bytes_max, 0), call.node.options.fetch_bytes_max, max(1, left // MEMORY_SHARE))


# Which partitions


def _context(call: Call, request: FetchRequest, named: Followers) -> tuple[FetchSession | None, Sequence[Followed]]:
    """The session that the request goes on with, and what is to be looked at. SessionRefused."""
    sessions, owner, principal = call.node.fetch_sessions, call.connection, call.session.principal.name
    by_id = call.version >= TOPIC_IDS_FROM
    if not incremental(request):
        if request.session_id != NO_SESSION:
            sessions.close(owner, request.session_id)
        return None, list(named.values())
    session = sessions.find(owner, principal, by_id, request.session_id, request.session_epoch)
    if not sessions.change(owner, session, named, request.forgotten):
        return None, list(named.values())
    return session, list(session.partitions.values())


def _following(call: Call, request: FetchRequest) -> Iterator[tuple[tuple[TopicRef, int], Followed]]:
    """What is named."""
    replica = None if request.replica_id in (NO_REPLICA, _DEBUGGING) else _NO_REPLICAS
    for ref, partitions in request.topics:
        name, topic_id, unknown = _topic(call, ref)
        for one in partitions:
            problem = unknown or replica or (_UNKNOWN_EPOCH if one.leader_epoch > LEADER_EPOCH else None)
            wanted = Followed(name, one.partition, one.offset, max(0, one.bytes_max), problem, topic_id, _UNKNOWN_ID, ref=ref)
            yield (ref, one.partition), wanted


def _topic(call: Call, ref: TopicRef) -> tuple[str, bytes | None, Refusal | None]:
    """Name, id where that is what was asked for, and why there is neither."""
    if isinstance(ref, str):
        return ref, None, None
    topic = call.node.pipeline.broker.topic_of(ref)
    return ("", ref, _UNKNOWN_ID) if topic is None else (topic.name, ref, None)


# What is said of them


def _answer(
    call: Call,
    request: FetchRequest,
    session: FetchSession | None,
    wanted: Sequence[Followed],
    reads: Sequence[PartitionRead],
    waited_ms: int = 0,
) -> Reply:
    if session is not None:
        return _incremental(call, request, session, wanted, reads, waited_ms)
    said = [(one, _fetched(one, read, request)) for one, read in zip(wanted, reads, strict=True)]
    made = _made(call, wanted, said) if request.session_epoch == FIRST_EPOCH else NO_SESSION
    return Reply(build_fetch(call.version, _by_topic(said), session_id=made, throttle_ms=waited_ms))


def _made(call: Call, wanted: Sequence[Followed], said: Said) -> int:
    """The id of a session that goes on where this answer ends, where there is room for one."""
    followers = {(one.ref, one.partition): one for one in wanted}
    principal = call.session.principal.name
    session = call.node.fetch_sessions.make(call.connection, principal, call.version >= TOPIC_IDS_FROM, followers)
    if session is None:
        return NO_SESSION
    session.served([one for one, fetched in said if _news(one, fetched) and fetched.batches])
    return session.id


def _incremental(
    call: Call,
    request: FetchRequest,
    session: FetchSession,
    wanted: Sequence[Followed],
    reads: Sequence[PartitionRead],
    waited_ms: int,
) -> Reply:
    """What there is to say. The session may have ended meanwhile, as another needed the room: the next request hears of it."""
    said: Said = []
    for one, read in zip(wanted, reads, strict=True):
        if read.error is None and not read.worth and read.high_watermark == one.told_end and read.log_start == one.told_start:
            continue  # most of them, most of the time
        fetched = _fetched(one, read, request)
        if _news(one, fetched):
            said.append((one, fetched))
    session.served([one for one, fetched in said if fetched.batches])
    return Reply(build_fetch(call.version, _by_topic(said), session_id=session.id, throttle_ms=waited_ms))


def _news(one: Followed, fetched: PartitionFetched) -> bool:
    return one.news(fetched.error, fetched.high_watermark, fetched.log_start, bool(fetched.batches))


def _by_topic(said: Said) -> Topics:
    """In their order: a topic is named again where others lie between."""
    topics: Topics = []
    for one, fetched in said:
        if not topics or topics[-1][0] != one.ref:
            topics.append((one.ref, []))
        topics[-1][1].append(fetched)
    return topics


def _fetched(one: Followed, read: PartitionRead, request: FetchRequest) -> PartitionFetched:
    if read.error is not None:
        return PartitionFetched(one.partition, _code(read.error), aborted=())
    aborted = read.aborted if request.read_committed else None
    pieces = read.pieces() if read.worth else ()
    return PartitionFetched(one.partition, 0, read.high_watermark, read.stable_offset, read.log_start, aborted, pieces)


def _code(error: Exception) -> int:
    """Of one of many partitions: the usual reasons without a look into the table of all."""
    return int(error.code) if isinstance(error, Refusal) else _USUAL.get(type(error)) or told(error)[0]


_USUAL: dict[type[Exception], int] = {
    UnknownTopic: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    UnknownPartition: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    OffsetOutOfRange: ErrorCode.OFFSET_OUT_OF_RANGE,
    AccessDenied: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
}

OPERATIONS = (Operation(api=1, name="Fetch", low=LOW, high=HIGH, handle=fetch, raw=True, waits=True),)
