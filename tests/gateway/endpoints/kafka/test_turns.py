"""One request of very many things: others have their turn meanwhile, and the answer is no larger than what there is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.endpoints.kafka import turns
from gateway.endpoints.kafka.turns import ITEMS_PER_TURN, in_turns

MANY = 10 * ITEMS_PER_TURN
NAMES = [f"t{number}" for number in range(MANY)]
UNKNOWN_TOPIC, INVALID_REQUEST = 3, 42


async def test_in_turns_keeps_the_order(counted: list[int]) -> None:
    assert [one async for one in in_turns(range(2 * ITEMS_PER_TURN + 1))] == list(range(2 * ITEMS_PER_TURN + 1))
    assert len(counted) == 2


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each turn of the others."""
    turn, taken = turns.others, []

    async def others() -> None:
        taken.append(1)
        await turn()

    monkeypatch.setattr(turns, "others", others)
    return taken


def resources(**more: Any) -> list[dict[str, Any]]:
    return [{"resource_type": 2, "resource_name": name, **more} for name in NAMES]


def partitions(**more: Any) -> list[dict[str, Any]]:
    return [{"partition_index": number, **more} for number in range(MANY)]


OFFSET = {"partition_index": 0, "committed_offset": 1, "committed_metadata": ""}
OF_A_TRANSACTION = {
    "v3_and_below_transactional_id": "t",
    "v3_and_below_producer_id": 0,
    "v3_and_below_producer_epoch": 0,
    "v3_and_below_topics": [{"name": name, "partitions": [0]} for name in NAMES],
}

ASKED: Mapping[str, tuple[int, int, dict[str, Any]]] = {
    "Metadata": (3, 9, {"topics": [{"name": name} for name in NAMES], "allow_auto_topic_creation": False}),
    "DescribeTopicPartitions": (75, 0, {"topics": [{"name": name} for name in NAMES], "response_partition_limit": 10}),
    "ListOffsets, topics": (2, 7, {"topics": [{"name": name} for name in NAMES]}),
    "ListOffsets": (2, 7, {"topics": [{"name": "t", "partitions": partitions(timestamp=-1)}]}),
    "OffsetForLeaderEpoch": (23, 4, {"topics": [{"topic": "t", "partitions": [{"partition": one} for one in range(MANY)]}]}),
    "CreateTopics": (19, 7, {"topics": [{"name": name, "num_partitions": 0} for name in NAMES], "validate_only": True}),
    "DeleteTopics": (20, 6, {"topics": [{"name": name, "topic_id": None} for name in NAMES]}),
    "CreatePartitions": (37, 3, {"topics": [{"name": name, "count": 1} for name in NAMES]}),
    "DeleteRecords": (21, 2, {"topics": [{"name": "t", "partitions": partitions(offset=-1)}]}),
    "DescribeConfigs": (32, 4, {"resources": resources(configuration_keys=None)}),
    "AlterConfigs": (33, 2, {"resources": resources()}),
    "IncrementalAlterConfigs": (44, 1, {"resources": resources()}),
    "OffsetCommit": (8, 8, {"group_id": "g", "topics": [{"name": name, "partitions": [OFFSET]} for name in NAMES]}),
    "OffsetFetch": (9, 7, {"group_id": "g", "topics": [{"name": name, "partition_indexes": [0]} for name in NAMES]}),
    "OffsetFetch, partitions": (9, 7, {"group_id": "g", "topics": [{"name": "t", "partition_indexes": list(range(MANY))}]}),
    "FindCoordinator": (10, 4, {"key_type": 0, "coordinator_keys": NAMES}),
    "DescribeGroups": (15, 5, {"groups": NAMES}),
    "DeleteGroups": (42, 2, {"groups_names": NAMES}),
    "ConsumerGroupDescribe": (69, 1, {"group_ids": NAMES}),
    "DescribeTransactions": (65, 0, {"transactional_ids": NAMES}),
    "AddPartitionsToTxn": (24, 3, OF_A_TRANSACTION),
    "ElectLeaders": (43, 2, {"topic_partitions": [{"topic": name, "partitions": [0]} for name in NAMES]}),
}


@pytest.mark.parametrize("name", ASKED)
async def test_others_have_their_turn(kafka: Any, counted: list[int], name: str) -> None:
    client = await kafka.client()
    api, version, fields = ASKED[name]
    await client.call(api, version, **fields)
    assert len(counted) >= MANY // ITEMS_PER_TURN


@pytest.mark.parametrize(
    ("api", "version", "field"), [(15, 5, "groups"), (42, 2, "groups_names"), (69, 1, "group_ids"), (65, 0, "transactional_ids")]
)
async def test_a_group_or_an_id_is_answered_once(kafka: Any, api: int, version: int, field: str) -> None:
    """Else one large group named 50,000 times is more than the node has memory."""
    client = await kafka.client()
    answer = await client.call(api, version, **{field: ["one", "other", "one"] * 100})
    found = next(getattr(answer, name) for name in ("groups", "results", "transaction_states") if hasattr(answer, name))
    assert [getattr(one, "group_id", None) or one.transactional_id for one in found] == ["one", "other"]


async def test_the_offsets_of_a_group_are_told_once(kafka: Any) -> None:
    client = await kafka.client()
    asked = [{"group_id": "g", "member_id": None, "member_epoch": epoch, "topics": None} for epoch in (-1, -2, -1)]
    assert [one.group_id for one in (await client.call(9, 9, groups=asked)).groups] == ["g"]


async def test_a_name_is_answered_once_whatever_ids_come_with_it(kafka: Any) -> None:
    """Else 100,000 ids beside the name of one wide topic are an answer of gigabytes."""
    client = await kafka.client()
    await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 1, "replication_factor": 1}], timeout=1_000)
    asked = [{"name": "orders", "topic_id": uuid.UUID(int=number)} for number in range(1, 100)]
    answer = await client.call(3, 12, topics=asked)
    assert [topic.name for topic in answer.topics] == ["orders"]


class TestPagesOfTopics:
    """DescribeTopicPartitions, where a page is asked for that cannot be."""

    async def test_a_limit_below_one_is_one(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 3, "replication_factor": 1}], timeout=1_000)
        answer = await client.call(75, 0, topics=[{"name": "orders"}], response_partition_limit=-5)
        assert [one.partition_index for one in answer.topics[0].partitions] == [0]
        assert (answer.next_cursor.topic_name, answer.next_cursor.partition_index) == ("orders", 1)

    async def test_a_cursor_below_zero_is_refused_and_the_connection_goes_on(self, kafka: Any) -> None:
        client = await kafka.client()
        await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 3, "replication_factor": 1}], timeout=1_000)
        cursor = {"topic_name": "orders", "partition_index": -1}
        answer = await client.call(75, 0, topics=[{"name": "orders"}], response_partition_limit=5, cursor=cursor)
        assert [(one.name, one.error_code) for one in answer.topics] == [("orders", INVALID_REQUEST)]

    async def test_operations_are_told_of_what_is_not_there(self, kafka: Any) -> None:
        client = await kafka.client()
        (one,) = (await client.call(75, 0, topics=[{"name": "orders"}], response_partition_limit=5)).topics
        assert one.error_code == UNKNOWN_TOPIC
        assert one.topic_authorized_operations == sum([1 << bit for bit in (3, 4, 5, 6, 7, 8, 10, 11)])
