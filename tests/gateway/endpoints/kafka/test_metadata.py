"""Metadata, DescribeTopicPartitions, DescribeCluster: topics as clients find them, and what they may know of them."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID, uuid4

import pytest

METADATA, DESCRIBE_TOPIC_PARTITIONS, DESCRIBE_CLUSTER = 3, 75, 60
UNKNOWN_TOPIC, INVALID_TOPIC, FORBIDDEN, INVALID_REQUEST, UNKNOWN_ID, THROTTLED = 3, 17, 29, 42, 100, 89
NOT_ASKED = -(2**31)


async def make(kafka: Any, *names: str, partitions: int = 2) -> None:
    admin = await kafka.client()
    topics = [{"name": name, "num_partitions": partitions, "replication_factor": 1} for name in names]
    answer = await admin.call(19, 7, topics=topics, timeout=1_000)
    assert [topic.error_code for topic in answer.topics] == [0] * len(names)


@pytest.mark.parametrize("version", range(14))
async def test_every_version_answers(kafka: Any, version: int) -> None:
    await make(kafka, "orders")
    client = await kafka.client()
    answer = await client.call(METADATA, version, topics=[{"name": "orders"}])
    topic = answer.topics[0]
    assert (topic.error_code, topic.name, len(topic.partitions)) == (0, "orders", 2)
    assert (topic.partitions[1].leader_id, topic.partitions[1].replica_nodes, topic.partitions[1].isr_nodes) == (1, (1,), (1,))
    assert [(broker.node_id, broker.host, broker.port) for broker in answer.brokers] == [(1, kafka.host, kafka.port)]
    if version >= 2:
        assert len(base64.urlsafe_b64decode(answer.cluster_id + "==")) == 16


@pytest.mark.parametrize(("version", "topics"), [(0, ()), (1, None), (12, None)])
async def test_all_topics(kafka: Any, version: int, topics: Any) -> None:
    await make(kafka, "orders", "invoices")
    answer = await (await kafka.client()).call(METADATA, version, topics=topics)
    assert [topic.name for topic in answer.topics] == ["invoices", "orders"]


async def test_no_topics(kafka: Any) -> None:
    await make(kafka, "orders")
    assert (await (await kafka.client()).call(METADATA, 12, topics=[])).topics == ()


async def test_a_name_twice_is_answered_once(kafka: Any) -> None:
    await make(kafka, "orders")
    answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": "orders"}, {"name": "orders"}])
    assert [topic.name for topic in answer.topics] == ["orders"]


class TestCreation:
    async def test_a_name_that_is_not_there_is_made(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": "new"}], allow_auto_topic_creation=True)
        assert (answer.topics[0].error_code, len(answer.topics[0].partitions)) == (0, 4)

    async def test_not_where_the_request_forbids_it(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": "new"}], allow_auto_topic_creation=False)
        assert (answer.topics[0].error_code, answer.topics[0].partitions) == (UNKNOWN_TOPIC, ())

    async def test_not_where_the_node_forbids_it(self, open_kafka: Any) -> None:
        kafka = await open_kafka(broker__auto_create=False)
        answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": "new"}])
        assert answer.topics[0].error_code == UNKNOWN_TOPIC

    async def test_not_by_whoever_may_not(self, kafka: Any) -> None:
        client = await kafka.client(kafka.token("subscriber"))  # may describe everything, and create nothing
        answer = await client.call(METADATA, 12, topics=[{"name": "new"}])
        assert answer.topics[0].error_code == FORBIDDEN
        assert kafka.node.broker.topics() == {}

    @pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 250, "a b"])
    async def test_not_under_a_name_that_is_none(self, kafka: Any, name: str) -> None:
        answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": name}])
        assert answer.topics[0].error_code == INVALID_TOPIC


class TestRights:
    async def test_who_may_nothing_learns_nothing(self, kafka: Any) -> None:
        await make(kafka, "orders")
        client = await kafka.client(kafka.token("none"))
        assert (await client.call(METADATA, 12, topics=None)).topics == ()
        answer = await client.call(METADATA, 12, topics=[{"name": "orders"}, {"name": "nowhere"}])
        assert [(topic.error_code, topic.partitions) for topic in answer.topics] == [(FORBIDDEN, ()), (FORBIDDEN, ())]

    async def test_an_id_that_may_not_be_described_is_not_known(self, kafka: Any) -> None:
        await make(kafka, "orders")
        there = UUID(bytes=kafka.node.broker.topic("orders").topic_id)
        client = await kafka.client(kafka.token("none"))
        answer = await client.call(METADATA, 12, topics=[{"topic_id": there, "name": None}, {"topic_id": uuid4(), "name": None}])
        assert [(topic.error_code, topic.name) for topic in answer.topics] == [(UNKNOWN_ID, None)] * 2

    async def test_what_one_may_do(self, kafka: Any) -> None:
        await make(kafka, "orders")
        asked = {"topics": [{"name": "orders"}], "include_topic_authorized_operations": True}
        found = {}
        for role in ("admin", "publisher", "some-keys"):
            client = await kafka.client(kafka.token(role))
            found[role] = (await client.call(METADATA, 12, **asked)).topics[0].topic_authorized_operations
        assert found["admin"] == 0b1101_1111_1000  # read, write, create, delete, alter, describe, and the configs
        assert found["publisher"] == 0b0101_0001_0000
        assert found["some-keys"] == 0b0101_0001_1000
        assert (await client.call(METADATA, 12, topics=[{"name": "orders"}])).topics[0].topic_authorized_operations == NOT_ASKED


class TestIds:
    async def test_by_id(self, kafka: Any) -> None:
        await make(kafka, "orders")
        client = await kafka.client()
        named = (await client.call(METADATA, 12, topics=[{"name": "orders"}])).topics[0]
        answer = await client.call(METADATA, 12, topics=[{"topic_id": named.topic_id, "name": None}])
        assert answer.topics == (named,)

    async def test_not_before_version_12(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(METADATA, 11, topics=[{"topic_id": uuid4(), "name": "orders"}])
        assert answer.topics[0].error_code == INVALID_REQUEST

    async def test_neither_name_nor_id(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(METADATA, 12, topics=[{"name": None}])
        assert answer.topics[0].error_code == UNKNOWN_ID


class TestAddress:
    async def test_as_configured(self, open_kafka: Any) -> None:
        kafka = await open_kafka(kafka__advertised_host="kafka.example", kafka__advertised_port=9999, kafka__node_id=7)
        answer = await (await kafka.client()).call(METADATA, 12, topics=[])
        assert [(broker.node_id, broker.host, broker.port) for broker in answer.brokers] == [(7, "kafka.example", 9999)]
        assert answer.controller_id == 7

    @pytest.mark.parametrize("version", range(3))
    async def test_describe_cluster(self, kafka: Any, version: int) -> None:
        client = await kafka.client()
        answer = await client.call(DESCRIBE_CLUSTER, version, include_cluster_authorized_operations=True)
        assert [(broker.broker_id, broker.host, broker.port) for broker in answer.brokers] == [(1, kafka.host, kafka.port)]
        assert (answer.error_code, answer.controller_id) == (0, 1)
        assert answer.cluster_authorized_operations & 1 << 5  # create

    async def test_controllers_are_elsewhere(self, kafka: Any) -> None:
        answer = await (await kafka.client()).call(DESCRIBE_CLUSTER, 1, endpoint_type=2)
        assert (answer.error_code, answer.brokers) == (114, ())


class TestPages:
    async def test_one_after_the_other(self, kafka: Any) -> None:
        await make(kafka, "a", "b", "c", partitions=3)
        client, cursor, seen = await kafka.client(), None, []
        while True:
            answer = await client.call(
                DESCRIBE_TOPIC_PARTITIONS,
                0,
                topics=[{"name": name} for name in "cab"],
                response_partition_limit=2,
                cursor=cursor,
            )
            seen += [(topic.name, partition.partition_index) for topic in answer.topics for partition in topic.partitions]
            assert sum(len(topic.partitions) for topic in answer.topics) <= 2
            if answer.next_cursor is None:
                break
            cursor = {"topic_name": answer.next_cursor.topic_name, "partition_index": answer.next_cursor.partition_index}
        assert seen == [(name, number) for name in "abc" for number in range(3)]

    async def test_what_one_may_not_describe(self, kafka: Any) -> None:
        await make(kafka, "orders")
        client = await kafka.client(kafka.token("none"))
        answer = await client.call(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": "orders"}])
        assert [(topic.error_code, topic.partitions) for topic in answer.topics] == [(FORBIDDEN, ())]
        client = await kafka.client()
        answer = await client.call(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": "nowhere"}])
        assert answer.topics[0].error_code == UNKNOWN_TOPIC

    async def test_a_limit_below_one_is_one(self, kafka: Any) -> None:
        """As Apache Kafka takes it: max(limit, 1)."""
        await make(kafka, "a", partitions=2)
        client = await kafka.client()
        answer = await client.call(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": "a"}], response_partition_limit=0)
        assert [(topic.name, [one.partition_index for one in topic.partitions]) for topic in answer.topics] == [("a", [0])]
        assert (answer.next_cursor.topic_name, answer.next_cursor.partition_index) == ("a", 1)

    async def test_a_cursor_before_the_first_partition_is_refused(self, kafka: Any) -> None:
        await make(kafka, "a")
        client = await kafka.client()
        cursor = {"topic_name": "a", "partition_index": -1}
        answer = await client.call(DESCRIBE_TOPIC_PARTITIONS, 0, topics=[{"name": "a"}], cursor=cursor)
        assert [(topic.error_code, topic.partitions) for topic in answer.topics] == [(INVALID_REQUEST, ())]
        assert answer.next_cursor is None


class TestQuotas:
    async def test_a_request_beyond_it_is_held_back(self, open_kafka: Any) -> None:
        kafka = await open_kafka(quotas__requests_per_s=20, quotas__requests_burst=1)
        client = await kafka.client()
        throttled = [(await client.call(METADATA, 12, topics=None)).throttle_time.total_seconds() for _ in range(3)]
        assert throttled[0] == 0
        assert 0 < throttled[1] <= 0.1
        assert 0 < throttled[2] <= 0.1

    async def test_not_for_ever(self, open_kafka: Any) -> None:
        kafka = await open_kafka(quotas__requests_per_s=0.001, quotas__requests_burst=1, kafka__throttle_ms_max=10)
        client = await kafka.client()
        await client.call(METADATA, 12, topics=None)
        answer = await client.call(METADATA, 13, topics=None)
        assert answer.error_code == THROTTLED
