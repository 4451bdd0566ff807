"""CreateTopics, DeleteTopics, CreatePartitions, DeleteRecords: what is made, and what is refused with which of Kafka's errors."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

CREATE, DELETE, DELETE_RECORDS, CREATE_PARTITIONS = 19, 20, 21, 37


def topic(name: str, partitions: int = 1, replicas: int = 1, assignments: Any = (), **configs: str | None) -> dict[str, Any]:
    given = [{"name": key.replace("_", "."), "value": value} for key, value in configs.items()]
    return {
        "name": name,
        "num_partitions": partitions,
        "replication_factor": replicas,
        "assignments": [{"partition_index": index, "broker_ids": ids} for index, ids in assignments],
        "configs": given,
    }


async def create(client: Any, *topics: dict[str, Any], version: int = 7, **more: Any) -> list[Any]:
    answer = await client.call(CREATE, version, topics=topics, timeout=1000, **more)
    return list(answer.topics)


async def codes(client: Any, *topics: dict[str, Any], **more: Any) -> list[int]:
    return [int(answer.error_code) for answer in await create(client, *topics, **more)]


@pytest.mark.parametrize("version", range(2, 8))
async def test_every_version_creates(kafka: Any, version: int) -> None:
    client = await kafka.client()
    assert await codes(client, topic("orders", 3, retention_ms="1000"), version=version) == [0]
    made = kafka.node.broker.topic("orders")
    assert (made.partitions, made.configs) == (3, {"retention.ms": "1000"})


async def test_the_answer_tells_id_and_configs(kafka: Any) -> None:
    client = await kafka.client()
    (answer,) = await create(client, topic("orders", 2, cleanup_policy="compact, delete"))
    assert answer.topic_id.bytes == kafka.node.broker.topic("orders").topic_id
    assert (answer.num_partitions, answer.replication_factor) == (2, 1)
    configs = {config.name: (config.value, config.config_source, config.read_only) for config in answer.configs}
    assert configs["cleanup.policy"] == ("compact,delete", 1, False)
    assert configs["retention.ms"] == ("604800000", 5, False)
    assert configs["min.insync.replicas"] == ("1", 5, True)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (topic("bad name"), 17),
        (topic(""), 17),
        (topic("x" * 250), 17),
        (topic("t", 0), 37),
        (topic("t", -2), 37),
        (topic("t", 100_000), 37),  # log.partitions_max
        (topic("t", 1, 0), 38),
        (topic("t", 1, 3), 38),
        (topic("t", 0, 0), 38),  # what is no number of replicas, then of partitions, then the replicas that there are
        (topic("t", 0, 3), 37),
        (topic("t", 2, -1, [(0, [1])]), 42),
        (topic("t", -1, 1, [(0, [1])]), 42),
        (topic("t", -1, -1, [(1, [1])]), 39),
        (topic("t", -1, -1, [(0, [2])]), 39),
        (topic("t", -1, -1, [(0, [])]), 39),
        (topic("t", -1, -1, [(0, [1]), (0, [1])]), 39),
        (topic("t", no_such="1"), 40),
        (topic("t", retention_ms="soon"), 40),
        (topic("t", retention_ms=None), 40),
        (topic("t", 0, 3, retention_ms="soon"), 40),  # the configs before the numbers
        (topic("t", min_insync_replicas="2"), 40),  # cannot act
        (topic("t", flush_messages="1"), 40),
        (topic("t", max_message_bytes="99999999"), 40),
    ],
)
async def test_what_is_refused(kafka: Any, asked: dict[str, Any], code: int) -> None:
    client = await kafka.client()
    assert await codes(client, asked) == [code]
    assert not kafka.node.broker.topics()


async def test_defaults_and_assignments(kafka: Any) -> None:
    client = await kafka.client()
    asked = [topic("a", -1, -1), topic("b", -1, -1, [(0, [1]), (1, [1])]), topic("c", unclean_leader_election_enable="FALSE ")]
    assert await codes(client, *asked) == [0, 0, 0]
    made = kafka.node.broker.topics()
    assert [made[name].partitions for name in "abc"] == [4, 2, 1]
    assert made["c"].configs == {}  # a fixed config at its default is nothing to keep


async def test_one_topic_twice_is_none(kafka: Any) -> None:
    client = await kafka.client()
    assert await codes(client, topic("a"), topic("a", 2), topic("b")) == [42, 0]
    assert await codes(client, topic("b")) == [36]
    assert list(kafka.node.broker.topics()) == ["b"]


async def test_validate_only_changes_nothing(kafka: Any) -> None:
    client = await kafka.client()
    await create(client, topic("there"))
    asked = [topic("a", 3), topic("there"), topic("b", 0)]
    assert await codes(client, *asked, validate_only=True) == [0, 36, 37]
    grown = await client.call(
        CREATE_PARTITIONS, 3, topics=[{"name": "there", "count": 3, "assignments": None}], timeout=1, validate_only=True
    )
    assert grown.results[0].error_code == 0
    assert {name: found.partitions for name, found in kafka.node.broker.topics().items()} == {"there": 1}


async def test_rights_come_before_existence(kafka: Any) -> None:
    await create(await kafka.client(), topic("orders"))
    client = await kafka.client(kafka.token("some-keys"))
    assert await codes(client, topic("orders"), topic("new")) == [29, 29]
    deleted = await client.call(DELETE, 5, topic_names=["orders", "none"], timeout=1000)
    assert {answer.name: int(answer.error_code) for answer in deleted.responses} == {"orders": 29, "none": 29}
    grown = await client.call(
        CREATE_PARTITIONS,
        0,
        topics=[{"name": name, "count": 9, "assignments": None} for name in ("orders", "none")],
        timeout=1000,
        validate_only=False,
    )
    assert [int(answer.error_code) for answer in grown.results] == [29, 29]
    cut = await client.call(
        DELETE_RECORDS,
        2,
        topics=[{"name": name, "partitions": [{"partition_index": 0, "offset": 0}]} for name in ("orders", "none")],
        timeout=1000,
    )
    assert [int(answer.partitions[0].error_code) for answer in cut.topics] == [29, 29]


async def test_deletion_by_name_and_by_id(kafka: Any) -> None:
    client = await kafka.client()
    first, second = await create(client, topic("a"), topic("b"))
    asked = [
        {"name": "a", "topic_id": None},
        {"name": None, "topic_id": second.topic_id},
        {"name": None, "topic_id": uuid.uuid4()},
        {"name": "none", "topic_id": None},
        {"name": "bad name", "topic_id": None},
        {"name": "c", "topic_id": uuid.uuid4()},
        {"name": None, "topic_id": None},
    ]
    answers = (await client.call(DELETE, 6, topics=asked, timeout=1000)).responses
    assert [int(answer.error_code) for answer in answers] == [0, 0, 100, 3, 3, 42, 42]
    assert [answers[0].topic_id, answers[1].name] == [first.topic_id, "b"]
    assert not kafka.node.broker.topics()


async def test_one_topic_named_by_name_and_by_id_stays(kafka: Any) -> None:
    client = await kafka.client()
    (made,) = await create(client, topic("a"))
    asked = [{"name": "a", "topic_id": None}, {"name": None, "topic_id": made.topic_id}]
    answers = (await client.call(DELETE, 6, topics=asked, timeout=1000)).responses
    assert {int(answer.error_code) for answer in answers} == {42}
    assert "a" in kafka.node.broker.topics()


async def test_the_name_behind_an_id_is_not_told_to_strangers(kafka: Any) -> None:
    (made,) = await create(await kafka.client(), topic("secret"))
    client = await kafka.client(kafka.token("none"))
    (answer,) = (await client.call(DELETE, 6, topics=[{"name": None, "topic_id": made.topic_id}], timeout=1000)).responses
    assert (int(answer.error_code), answer.name) == (29, None)
    assert "secret" not in answer.error_message


@pytest.mark.parametrize("version", range(1, 6))
async def test_every_version_deletes(kafka: Any, version: int) -> None:
    client = await kafka.client()
    await create(client, topic("a"))
    (answer,) = (await client.call(DELETE, version, topic_names=["a"], timeout=1000)).responses
    assert (answer.name, int(answer.error_code)) == ("a", 0)


@pytest.mark.parametrize(
    ("count", "assignments", "code"),
    [
        (3, None, 0),
        (3, [{"broker_ids": [1]}], 0),
        (2, None, 37),
        (1, None, 37),
        (-1, None, 37),
        (100_000, None, 37),
        (4, [{"broker_ids": [1]}], 39),
        (3, [{"broker_ids": [2]}], 39),
    ],
)
async def test_partitions_only_grow(kafka: Any, count: int, assignments: Any, code: int) -> None:
    client = await kafka.client()
    await create(client, topic("a", 2))
    asked = [{"name": "a", "count": count, "assignments": assignments}]
    (answer,) = (await client.call(CREATE_PARTITIONS, 3, topics=asked, timeout=1000, validate_only=False)).results
    assert int(answer.error_code) == code
    assert kafka.node.broker.topic("a").partitions == (count if code == 0 else 2)


async def test_records_are_deleted_up_to_an_offset_or_all(kafka: Any) -> None:
    client = await kafka.client()
    await create(client, topic("a", 2), topic("kept", cleanup_policy="compact"))
    for _ in range(3):
        await kafka.node.broker.publish("a", [outgoing(0)], durable=True, auto_create=False)
    asked = [
        {"name": "a", "partitions": [{"partition_index": index, "offset": offset} for index, offset in ((0, 2), (1, 9), (7, 0))]},
        {"name": "kept", "partitions": [{"partition_index": 0, "offset": -1}]},
        {"name": "none", "partitions": [{"partition_index": 0, "offset": -1}]},
    ]
    answer = await client.call(DELETE_RECORDS, 2, topics=asked, timeout=1000)
    found = {
        (one.name, part.partition_index): (part.low_watermark, int(part.error_code))
        for one in answer.topics
        for part in one.partitions
    }
    assert found == {("a", 0): (2, 0), ("a", 1): (-1, 1), ("a", 7): (-1, 3), ("kept", 0): (-1, 44), ("none", 0): (-1, 3)}
    everything = [{"name": "a", "partitions": [{"partition_index": 0, "offset": -1}]}]
    answer = await client.call(DELETE_RECORDS, 0, topics=everything, timeout=1000)
    assert answer.topics[0].partitions[0].low_watermark == 3
    assert kafka.node.broker.partition_offsets("a", 0).log_start == 3


def outgoing(partition: int) -> Any:
    from broker.outgoing import Outgoing

    return Outgoing(key=None, value=b"v", partition=partition)
