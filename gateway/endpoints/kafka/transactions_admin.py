"""DescribeTransactions 0 and ListTransactions 0-2 (KIP-664): for whoever may use the transactional ids.

ListTransactions  1 those that began longer ago than a duration, ended or not, as in Kafka (KIP-994); 2 those whose id matches a
                  pattern (KIP-1152)

A transaction here is Empty, Ongoing, CompleteCommit or CompleteAbort; Kafka's states between are known as filters and
match nothing.
"""

from __future__ import annotations

from typing import Any

from broker.groups.group_errors import SubscriptionInvalid
from broker.groups.patterns import compiled
from broker.transactions.transaction import Transaction, TransactionState
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED
from gateway.endpoints.kafka.turns import in_turns
from security.policy.quotas import Quota

STATES = {state.label for state in TransactionState}
STATES_OF_OTHERS = {"PrepareCommit", "PrepareAbort", "PrepareEpochFence", "Dead"}


async def describe_transactions(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    ids = dict.fromkeys(request.transactional_ids)
    return {"transaction_states": [_describe(call, transactional_id) async for transactional_id in in_turns(ids)]}


def _describe(call: Call, transactional_id: str) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_transaction(call.session, transactional_id)
        found = call.node.broker.transactions.describe(transactional_id)
    except REFUSED as error:
        return {"error_code": code_of(error), "transactional_id": transactional_id, "transaction_start_time": 0}
    return {
        "error_code": 0,
        "transactional_id": transactional_id,
        "transaction_state": found.state.label,
        "transaction_timeout": found.timeout_ms,
        "transaction_start_time": found.started_ms,
        "producer_id": found.producer_id,
        "producer_epoch": found.epoch,
        "topics": [
            {"topic": name, "partitions": partitions}
            for name, partitions in found.topics.values()
            if call.node.pipeline.may_describe(call.session, name)
        ],
    }


async def list_transactions(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    pattern = getattr(request, "transactional_id_pattern", None)
    try:
        wanted = compiled(pattern) if pattern else None
    except SubscriptionInvalid as error:
        return {"error_code": code_of(error)}
    unknown = [state for state in request.state_filters if state not in STATES | STATES_OF_OTHERS]
    found = [
        {"transactional_id": id, "producer_id": transaction.producer_id, "transaction_state": transaction.state.label}
        async for id, transaction in in_turns(call.node.broker.transactions.all())
        if _asked_for(call, request, transaction)
        and (wanted is None or wanted.fullmatch(id))
        and call.node.pipeline.may_use_transaction(call.session, id)
    ]
    return {"error_code": 0, "unknown_state_filters": unknown, "transaction_states": found}


def _asked_for(call: Call, request: Any, transaction: Transaction) -> bool:
    if request.producer_id_filters and transaction.producer_id not in request.producer_id_filters:
        return False
    if request.state_filters and transaction.state.label not in request.state_filters:
        return False
    longer_than_ms = getattr(request, "duration_filter", -1)
    return longer_than_ms < 0 or call.node.clock.now_ms() - transaction.started_ms > longer_than_ms


OPERATIONS = (
    Operation(api=65, name="DescribeTransactions", low=0, high=0, handle=describe_transactions),
    Operation(api=66, name="ListTransactions", low=0, high=2, handle=list_transactions),
)
