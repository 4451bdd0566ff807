"""DescribeClientQuotas 0-1 (KIP-546): the quotas of `[quotas]`, which every principal has alike, as those of the default user.

They are the node's configuration, so AlterClientQuotas is not served. Quotas of requests are told in requests a second under our
own name: Kafka's `request_percentage` is a share of threads, which nothing here is.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action
from security.policy.quotas import Quota

EXACT, DEFAULT, ANY = 0, 1, 2
ENTITY_TYPES = ("user", "client-id", "ip")
KEYS = {Quota.BYTES_IN: "producer_byte_rate", Quota.BYTES_OUT: "consumer_byte_rate", Quota.REQUESTS: "sprawl_request_rate"}


async def describe_client_quotas(call: Call, request: Any) -> Answer:
    try:
        call.node.pipeline.require(call.session, Action.METRICS, "quotas")
        wanted = _wanted(request)
    except REFUSED as error:
        code, message = told(error)
        return {"error_code": code, "error_message": message, "entries": None}
    limits = call.node.pipeline.quotas.limits
    values = [{"key": KEYS[quota], "value": limits[quota].rate_per_s} for quota in Quota if quota in limits]
    found = [{"entity": [{"entity_type": "user", "entity_name": None}], "values": values}] if wanted and values else []
    return {"error_code": ErrorCode.NONE, "error_message": None, "entries": found}


def _wanted(request: Any) -> bool:
    """Whether the filter lets the default user through, alone. Refusal as Kafka's for one that contradicts itself."""
    types = [component.entity_type for component in request.components]
    if len(set(types)) < len(types):
        raise Refusal(ErrorCode.INVALID_REQUEST, "the filter names an entity type twice")
    for component in request.components:
        _check(component)
    if "ip" in types and len(types) > 1:
        raise Refusal(ErrorCode.INVALID_REQUEST, "the filter joins ip with user or client-id, which have no quota together")
    others = [component for component in request.components if component.entity_type != "user"]
    users = [component for component in request.components if component.entity_type == "user"]
    if others:
        return False
    return all(component.match_type != EXACT for component in users) if users else not request.strict


def _check(component: Any) -> None:
    if component.entity_type not in ENTITY_TYPES:
        known = ", ".join(ENTITY_TYPES)
        raise Refusal(ErrorCode.UNSUPPORTED_VERSION, f"{component.entity_type[:40]!r} is not one of {known}")
    if component.match_type not in (EXACT, DEFAULT, ANY):
        raise Refusal(ErrorCode.INVALID_REQUEST, f"{component.match_type} is no way to match: 0 exact, 1 default, 2 any")
    if (component.match is not None) != (component.match_type == EXACT):
        raise Refusal(ErrorCode.INVALID_REQUEST, "a name is given exactly where the match is exact")


OPERATIONS = (Operation(api=48, name="DescribeClientQuotas", low=0, high=1, handle=describe_client_quotas),)
