"""ListOffsets 1-11: the offsets where readers may begin.

    1 one offset, with its timestamp (KIP-79)   2 isolation (KIP-98)   4 leader epochs (KIP-320)   6 flexible   7 newest timestamp
    (KIP-734)   8 earliest local (KIP-405)   9 latest tiered (KIP-1005)   10 timeout (KIP-1075)   11 earliest pending (KIP-1023)

Nothing lies elsewhere than here: the earliest local offset is the earliest, and there is none that is tiered.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.fetch import LEADER_EPOCH
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.fetching import Place, PlaceAt
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.quotas import Quota

LATEST, EARLIEST, NEWEST, EARLIEST_LOCAL, LATEST_TIERED, EARLIEST_PENDING = -1, -2, -3, -4, -5, -6
READ_COMMITTED = 1

_SINCE = {NEWEST: 7, EARLIEST_LOCAL: 8, LATEST_TIERED: 9, EARLIEST_PENDING: 11}
_PLACES: dict[int, PlaceAt] = {LATEST: "latest", EARLIEST: "earliest", NEWEST: "newest", EARLIEST_LOCAL: "earliest"}
_NONE = Place(-1)


async def list_offsets(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    read_committed = getattr(request, "isolation_level", 0) == READ_COMMITTED
    seen: set[tuple[str, int]] = set()
    twice: set[tuple[str, int]] = set()
    for topic in request.topics:
        for one in topic.partitions:
            place = (topic.name, one.partition_index)
            (twice if place in seen else seen).add(place)
    topics = []
    async for topic in in_turns(request.topics):
        answers = [
            await _answer(call, topic.name, one, read_committed, twice=(topic.name, one.partition_index) in twice)
            async for one in in_turns(topic.partitions)
        ]
        topics.append({"name": topic.name, "partitions": answers})
    return {"topics": topics}


async def _answer(call: Call, topic: str, one: Any, read_committed: bool, *, twice: bool) -> dict[str, Any]:
    code, place = 0, _NONE
    try:
        if twice:
            raise Refusal(ErrorCode.INVALID_REQUEST, "a partition that the request names twice")
        if call.version < _SINCE.get(one.timestamp, 1):
            raise Refusal(ErrorCode.UNSUPPORTED_VERSION, f"timestamp {one.timestamp} needs a newer version")
        place = await _place(call, topic, one, read_committed)
    except REFUSED as error:
        code, _ = told(error)
    answer = {"partition_index": one.partition_index, "error_code": code, "timestamp": place.timestamp_ms, "offset": place.offset}
    if place.offset >= 0:
        answer["leader_epoch"] = LEADER_EPOCH
    return answer


async def _place(call: Call, topic: str, one: Any, read_committed: bool) -> Place:
    at: PlaceAt = _PLACES.get(one.timestamp, one.timestamp)
    tiered = one.timestamp in (LATEST_TIERED, EARLIEST_PENDING)
    fetching = call.node.pipeline.fetching
    found = await fetching.place(
        call.session, topic, one.partition_index, "latest" if tiered else at, read_committed=read_committed
    )
    if getattr(one, "current_leader_epoch", -1) > LEADER_EPOCH:
        raise Refusal(ErrorCode.UNKNOWN_LEADER_EPOCH, f"the epoch is {LEADER_EPOCH}")
    return _NONE if tiered else found


OPERATIONS = (Operation(api=2, name="ListOffsets", low=1, high=11, handle=list_offsets),)
