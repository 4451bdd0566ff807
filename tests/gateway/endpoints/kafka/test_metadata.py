"""Metadata, DescribeTopicPartitions, DescribeCluster."""

from __future__ import annotations

from typing import Any

import pytest

ANY = list(range(14))


@pytest.mark.parametrize("version", ANY)
async def test_every_version_answers(kafka: Any, version: int) -> None:
    client = await kafka.client()
    await client.call(19, 7, topics=[{"name": "orders", "num_partitions": 2, "replication_factor": 1}], timeout=1000)
    answer = await client.call(3, version, topics=[{"name": "orders"}])
    topic = answer.topics[0]
    assert (topic.error_code, topic.name, len(topic.partitions)) == (0, "orders", 2)
    assert (answer.brokers[0].host, answer.brokers[0].port) == (kafka.host, kafka.port)
