"""What waits, and who asked may not have it any more: a revoked token, or a policy that changed meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker.batch import build
from security.policy.mapping import roles_and_bindings
from security.policy.rbac import Policy
from tests.gateway.endpoints.kafka.conftest import Closed
from tests.gateway.endpoints.kafka.test_connection import until
from tests.gateway.endpoints.kafka.test_groups import enter, subscription

PLANTED = b"planted-metadata"
SECRET = b"planted-value"


@pytest.fixture
async def kafka(open_kafka: Any) -> Any:
    kafka = await open_kafka(groups__initial_rebalance_delay_ms=500)
    client = await kafka.client()
    await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 1, "replication_factor": 1}], timeout=1_000)
    return kafka


def joining(member_id: str) -> dict[str, Any]:
    protocols = [{"name": "range", "metadata": subscription("orders") + PLANTED}]
    said = {"session_timeout": 60_000, "rebalance_timeout": 60_000, "protocol_type": "consumer", "protocols": protocols}
    return {"group_id": "g", "member_id": member_id, **said}


def waiting(kafka: Any) -> bool:
    return any(connection._slots for connection in kafka.node._kafka.connections)


def revoke(kafka: Any, token: str) -> None:
    kafka.node.tokens.revoke(token.split("_")[1])


async def answered(client: Any) -> bytes:
    """The answer, or nothing where the node closes instead."""
    try:
        return bytes(await client.frame())
    except Closed:
        return b""


async def test_a_join_is_not_answered(kafka: Any) -> None:
    token = kafka.token("all")
    client = await kafka.client(token)
    member_id = (await client.call(11, 9, **joining(""))).member_id
    client.send(11, 9, **joining(member_id))
    await until(lambda: waiting(kafka))
    revoke(kafka, token)
    assert PLANTED not in await answered(client)


async def test_a_sync_is_not_answered(kafka: Any) -> None:
    token = kafka.token("all")
    leader, follower = await kafka.client(), await kafka.client(token)
    led, followed = await asyncio.gather(enter(leader), enter(follower))
    if led.leader != led.member_id:
        leader, follower, led, followed = follower, leader, followed, led
        token = kafka.admin
    fields = {"group_id": "g", "generation_id": led.generation_id}
    follower.send(14, 3, member_id=followed.member_id, assignments=[], **fields)
    await until(lambda: waiting(kafka))
    revoke(kafka, token)
    assignments = [{"member_id": followed.member_id, "assignment": PLANTED}]
    await leader.call(14, 3, member_id=led.member_id, assignments=assignments, **fields)
    assert PLANTED not in await answered(follower)


async def test_a_fetch_is_not_answered(kafka: Any) -> None:
    token = kafka.token("all")
    client, writer = await kafka.client(token), await kafka.client()
    place = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
    asked = {"max_wait": 60_000, "min_bytes": 1, "max_bytes": 1 << 20, "session_epoch": 0}
    client.send(1, 11, **asked, topics=[{"topic": "orders", "partitions": [place]}])
    await until(lambda: waiting(kafka))
    revoke(kafka, token)
    await write(writer)
    assert SECRET not in await answered(client)


async def test_a_session_has_no_rights_of_its_own(kafka: Any) -> None:
    """The partitions of a fetch session (KIP-227) are followed with the rights of now, not with those of when it was made."""
    client, writer = await kafka.client(kafka.token("all")), await kafka.client()
    place = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
    asked = {"max_wait": 0, "min_bytes": 1, "max_bytes": 1 << 20}
    first = await client.call(1, 11, **asked, session_epoch=0, topics=[{"topic": "orders", "partitions": [place]}])
    assert first.session_id != 0
    roles, bindings = roles_and_bindings({"roles": {"all": [{"actions": ["describe"], "topic": "*"}]}})
    engine = kafka.node.pipeline.policy
    others = [role for role in engine.policy.roles.values() if role.name != "all"]
    engine.replace(Policy((*roles, *others), bindings, 2))
    await write(writer)
    second = await client.call(1, 11, **asked, session_id=first.session_id, session_epoch=1, topics=[])
    (partition,) = second.responses[0].partitions
    assert (partition.error_code, bool(partition.records)) == (29, False)


async def write(client: Any) -> None:
    batch = build([(int(time.time() * 1_000), b"k", SECRET, ())])
    data = [{"name": "orders", "partition_data": [{"index": 0, "records": batch}]}]
    answer = await client.call(0, 9, acks=-1, timeout=1_000, topic_data=data)
    assert answer.responses[0].partition_responses[0].error_code == 0


@pytest.mark.parametrize("api", [8, 9])
async def test_an_id_of_zeros_is_that_of_no_topic(kafka: Any, api: int) -> None:
    client = await kafka.client()
    if api == 8:
        partitions = [{"partition_index": 0, "committed_offset": 1, "committed_metadata": ""}]
        who = {"group_id": "g", "member_id": "", "generation_id_or_member_epoch": -1}
        answer = (await client.call(8, 10, topics=[{"topic_id": None, "partitions": partitions}], **who)).topics
    else:
        topics = [{"topic_id": None, "partition_indexes": [0]}]
        answer = (await client.call(9, 10, groups=[{"group_id": "g", "topics": topics}])).groups[0].topics
    assert answer[0].partitions[0].error_code == 100
