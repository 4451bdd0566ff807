"""ElectLeaders, ListPartitionReassignments, DescribeLogDirs: a cluster of one."""

from __future__ import annotations

from typing import Any

import pytest

LOG_DIRS, ELECT, REASSIGNMENTS = 35, 43, 46


@pytest.fixture
async def client(kafka: Any) -> Any:
    await kafka.node.broker.create_topic("orders", 2)
    await kafka.node.broker.create_topic("other", 1)
    return await kafka.client()


@pytest.mark.parametrize("version", range(3))
async def test_no_election_is_needed(client: Any, version: int) -> None:
    asked = [{"topic": "orders", "partitions": [0, 1, 7]}, {"topic": "none", "partitions": [0]}]
    answer = await client.call(ELECT, version, topic_partitions=asked, timeout=1000)
    found = {
        (one.topic, part.partition_id): int(part.error_code)
        for one in answer.replica_election_results
        for part in one.partition_result
    }
    assert found == {("orders", 0): 84, ("orders", 1): 84, ("orders", 7): 3, ("none", 0): 3}


async def test_an_election_of_all_or_of_no_known_kind(client: Any) -> None:
    answer = await client.call(ELECT, 2, topic_partitions=None, timeout=1000)
    assert [(one.topic, one.partition_result) for one in answer.replica_election_results] == [("orders", ()), ("other", ())]
    assert int((await client.call(ELECT, 2, election_type=5, topic_partitions=(), timeout=1000)).error_code) == 42


async def test_nothing_is_on_its_way(client: Any) -> None:
    answer = await client.call(REASSIGNMENTS, 0, topics=None, timeout=1000)
    assert (int(answer.error_code), answer.topics) == (0, ())


@pytest.mark.parametrize("version", range(1, 5))
async def test_sizes_of_partitions(kafka: Any, client: Any, version: int) -> None:
    from broker.outgoing import Outgoing

    await kafka.node.broker.publish("orders", [Outgoing(None, b"v" * 5000, partition=1)], durable=True, auto_create=False)
    (log,) = (await client.call(LOG_DIRS, version, topics=None)).results
    sizes = {one.name: [part.partition_size for part in one.partitions] for one in log.topics}
    assert sizes.keys() == {"orders", "other"}
    assert sizes["orders"][0] == sizes["other"][0] == 0
    assert sizes["orders"][1] > 5000
    assert str(kafka.node.config.node.home) not in log.log_dir
    (log,) = (await client.call(LOG_DIRS, version, topics=[{"topic": "orders", "partitions": [1, 9]}])).results
    assert [(one.name, [part.partition_index for part in one.partitions]) for one in log.topics] == [("orders", [1])]


async def test_strangers_are_refused(kafka: Any, client: Any) -> None:
    stranger = await kafka.client(kafka.token("none"))
    assert int((await stranger.call(ELECT, 2, topic_partitions=None, timeout=1000)).error_code) == 31
    assert int((await stranger.call(REASSIGNMENTS, 0, topics=None, timeout=1000)).error_code) == 31
    assert int((await stranger.call(LOG_DIRS, 4, topics=None)).error_code) == 31
