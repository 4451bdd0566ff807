"""Produce, Fetch, ListOffsets and OffsetForLeaderEpoch on the wire of a whole node: versions, refusals, waits, some keys."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker.batch import Compression, Draft, build, read_header, split, walk
from gateway.wire.kafka.error_codes import ErrorCode

PRODUCE, FETCH, LIST_OFFSETS, METADATA, CREATE_TOPICS, LEADER_EPOCH = 0, 1, 2, 3, 19, 23
NAMED = 12  # the newest version of both that names topics


def batch(*keys: str | None, at_ms: int | None = None, **options: Any) -> bytes:
    now_ms = int(time.time() * 1_000) if at_ms is None else at_ms
    drafts: list[Draft] = [(now_ms, None if key is None else key.encode(), b"value", ((b"h", b"1"),)) for key in keys]
    return build(drafts, **options)


async def topic_id(client: Any, name: str = "orders") -> Any:
    return (await client.call(METADATA, 12, topics=[{"name": name}])).topics[0].topic_id


async def create(kafka: Any, name: str = "orders", partitions: int = 2, **configs: str) -> Any:
    client = await kafka.client()
    named = [{"name": key.replace("_", "."), "value": value} for key, value in configs.items()]
    topics = [{"name": name, "num_partitions": partitions, "replication_factor": 1, "configs": named}]
    answer = await client.call(CREATE_TOPICS, 5, topics=topics, timeout=1_000)
    assert answer.topics[0].error_code == 0
    return client


async def produce(client: Any, records: bytes | None, partition: int = 0, version: int = NAMED, **more: Any) -> Any:
    topic = {"topic_id": await topic_id(client)} if version > NAMED else {"name": more.pop("topic", "orders")}
    data = [{**topic, "partition_data": [{"index": partition, "records": records}]}]
    answer = await client.call(PRODUCE, version, **({"acks": -1, "timeout": 1_000} | more), topic_data=data)
    return answer.responses[0].partition_responses[0]


async def fetch(client: Any, offset: int = 0, partition: int = 0, version: int = NAMED, wait_ms: int = 0, **more: Any) -> Any:
    topic = {"topic_id": await topic_id(client)} if version > NAMED else {"topic": more.pop("topic", "orders")}
    wanted = {"partition": partition, "fetch_offset": offset, "partition_max_bytes": 1 << 20} | more.pop("wanted", {})
    fields = {"max_wait": wait_ms, "min_bytes": 1, "max_bytes": 1 << 20} | more
    answer = await client.call(FETCH, version, **fields, topics=[{**topic, "partitions": [wanted]}])
    return answer.responses[0].partitions[0]


def seen(fetched: Any) -> list[tuple[int, bytes | None]]:
    return [(record.offset, record.key) for one in split(fetched.records) for record in walk(one)]


@pytest.mark.parametrize("version", range(3, 14))
async def test_every_version_of_produce(kafka: Any, version: int) -> None:
    client = await create(kafka)
    answers = [await produce(client, batch("a", "b", compression=Compression.LZ4), version=version) for _ in range(2)]
    assert [(one.error_code, one.base_offset) for one in answers] == [(0, 0), (0, 2)]
    if version >= 5:
        assert answers[1].log_start_offset == 0


@pytest.mark.parametrize("version", range(4, 19))
async def test_every_version_of_fetch(kafka: Any, version: int) -> None:
    client = await create(kafka)
    await produce(client, batch("a", "b", "c"))
    found = await fetch(client, 1, version=version, isolation_level=version % 2)
    assert (found.error_code, found.high_watermark, found.last_stable_offset) == (0, 3, 3)
    assert seen(found) == [(0, b"a"), (1, b"b"), (2, b"c")]  # whole batches: the client leaves out what it has


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (None, ErrorCode.INVALID_RECORD),
        (b"", ErrorCode.INVALID_RECORD),
        (batch("a") * 2, ErrorCode.INVALID_RECORD),
        (batch("a")[:-1] + b"\x7f", ErrorCode.CORRUPT_MESSAGE),
        (batch("a", base_offset=3), ErrorCode.INVALID_RECORD),
        (batch("a", at_ms=2**50), ErrorCode.INVALID_TIMESTAMP),
        (batch("a" * 1_100_000), ErrorCode.MESSAGE_TOO_LARGE),
        (batch("a", producer_id=1), ErrorCode.INVALID_RECORD),
    ],
)
async def test_a_batch_that_is_refused(kafka: Any, records: bytes | None, code: ErrorCode) -> None:
    client = await create(kafka)
    answer = await produce(client, records)
    assert (answer.error_code, answer.base_offset) == (code, -1)
    assert answer.error_message
    assert (await produce(client, batch("a"))).base_offset == 0  # the connection goes on, and nothing was stored


async def test_keyless_records_of_a_compacted_topic_are_named(kafka: Any) -> None:
    client = await create(kafka, cleanup_policy="compact")
    answer = await produce(client, batch("a", None, "b", None))
    assert answer.error_code == ErrorCode.INVALID_RECORD
    assert [one.batch_index for one in answer.record_errors] == [1, 3]


async def test_unknown_topics_and_partitions(kafka: Any) -> None:
    client = await create(kafka)
    assert (await produce(client, batch("a"), topic="nowhere")).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await produce(client, batch("a"), partition=2)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await fetch(client, topic="nowhere", wait_ms=5_000)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await fetch(client, 1, wait_ms=5_000)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
    other = [{"topic_id": b"\7" * 16, "partition_data": [{"index": 0, "records": batch("a")}]}]
    answer = await client.call(PRODUCE, 13, acks=-1, timeout=1_000, topic_data=[other[0] | {"topic_id": await nobody()}])
    assert answer.responses[0].partition_responses[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID


async def nobody() -> Any:
    from uuid import UUID

    return UUID(int=7)


async def test_acks(kafka: Any) -> None:
    client = await create(kafka)
    assert (await produce(client, batch("a"), acks=2)).error_code == ErrorCode.INVALID_REQUIRED_ACKS
    data = [{"name": "orders", "partition_data": [{"index": 0, "records": batch("a")}]}]
    client.send(PRODUCE, NAMED, acks=0, timeout=1_000, topic_data=data)
    assert (await fetch(client, wait_ms=5_000)).high_watermark == 1  # the answer after none is that of the next request
    client.send(PRODUCE, NAMED, acks=0, timeout=1_000, topic_data=[data[0] | {"name": "nowhere"}])
    assert await client.closed()


async def test_rights(kafka: Any) -> None:
    await create(kafka)
    stranger = await kafka.client(kafka.token("none"))
    for topic in ("orders", "nowhere"):
        assert (await produce(stranger, batch("a"), topic=topic)).error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
        assert (await fetch(stranger, topic=topic, wait_ms=5_000)).error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
        place = await offsets(stranger, -1, topic=topic)
        assert place.error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
    transactional = batch("a", producer_id=1, producer_epoch=0, base_sequence=0)
    marked = bytearray(transactional)
    marked[22] |= 0x10
    refused = await produce(stranger, bytes(marked), transactional_id="t")
    assert refused.error_code == ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


async def test_some_keys(kafka: Any) -> None:
    admin = await create(kafka)
    client = await kafka.client(kafka.token("some-keys"))
    assert (await produce(client, batch("eu/1", "us/1"))).error_code == ErrorCode.TOPIC_AUTHORIZATION_FAILED
    assert (await produce(client, batch("eu/1", "eu/2"))).base_offset == 0
    await produce(admin, batch("us/2", "eu/3", None))
    await produce(admin, batch("us/3"))
    found = await fetch(client)
    assert seen(found) == [(0, b"eu/1"), (1, b"eu/2"), (3, b"eu/3")]
    assert read_header(split(found.records)[-1]).next_offset == 6  # he goes on behind what he may not have
    assert found.high_watermark == 6


async def test_a_fetch_waits_and_the_connection_goes_on_in_order(kafka: Any) -> None:
    producer = await create(kafka)
    client = await kafka.client()
    topics = [{"topic": "orders", "partitions": [{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1_000}]}]
    first = client.send(FETCH, NAMED, max_wait=20_000, min_bytes=1, topics=topics)
    second = client.send(METADATA, 12, topics=[])
    await asyncio.sleep(0.05)
    await produce(producer, batch("a"))
    assert seen((await client.receive(FETCH, NAMED, first)).responses[0].partitions[0]) == [(0, b"a")]
    assert (await client.receive(METADATA, 12, second)).brokers


async def test_an_epoch_that_does_not_exist_yet(kafka: Any) -> None:
    client = await create(kafka)
    found = await fetch(client, wait_ms=5_000, wanted={"current_leader_epoch": 1})
    assert found.error_code == ErrorCode.UNKNOWN_LEADER_EPOCH


async def offsets(client: Any, at: int, version: int = 11, partition: int = 0, topic: str = "orders", **more: Any) -> Any:
    wanted = [{"name": topic, "partitions": [{"partition_index": partition, "timestamp": at} | more]}]
    answer = await client.call(LIST_OFFSETS, version, replica_id=-1, topics=wanted)
    return answer.topics[0].partitions[0]


@pytest.mark.parametrize("version", range(1, 12))
async def test_every_version_of_list_offsets(kafka: Any, version: int) -> None:
    client = await create(kafka)
    now_ms = int(time.time() * 1_000)
    for at_ms in (now_ms, now_ms + 2_000, now_ms + 1_000):
        await produce(client, batch("a", at_ms=at_ms))
    asked = {-1: (3, -1), -2: (0, -1), now_ms + 1: (1, now_ms + 2_000), now_ms + 2_001: (-1, -1), 0: (0, now_ms)}
    asked |= {-3: (1, now_ms + 2_000)} if version >= 7 else {}
    asked |= {-4: (0, -1)} if version >= 8 else {}
    asked |= {-5: (-1, -1)} if version >= 9 else {}
    for at, place in asked.items():
        found = await offsets(client, at, version)
        assert (found.error_code, found.offset, found.timestamp) == (0, *place), at
        if version >= 4:
            assert found.leader_epoch == (0 if found.offset >= 0 else -1)
    if version < 7:
        assert (await offsets(client, -3, version)).error_code == ErrorCode.UNSUPPORTED_VERSION


async def test_what_list_offsets_refuses(kafka: Any) -> None:
    client = await create(kafka)
    assert (await offsets(client, -1, partition=9)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await offsets(client, -1, current_leader_epoch=1)).error_code == ErrorCode.UNKNOWN_LEADER_EPOCH
    twice = [{"name": "orders", "partitions": [{"partition_index": 0, "timestamp": -1}] * 2}]
    answer = await client.call(LIST_OFFSETS, 11, replica_id=-1, topics=twice)
    assert [one.error_code for one in answer.topics[0].partitions] == [ErrorCode.INVALID_REQUEST] * 2


@pytest.mark.parametrize("version", range(2, 5))
async def test_where_an_epoch_ends(kafka: Any, version: int) -> None:
    client = await create(kafka)
    await produce(client, batch("a", "b"))

    async def end(epoch: int, partition: int = 0, current: int = -1) -> Any:
        one = {"partition": partition, "leader_epoch": epoch, "current_leader_epoch": current}
        answer = await client.call(LEADER_EPOCH, version, topics=[{"topic": "orders", "partitions": [one]}])
        return answer.topics[0].partitions[0]

    found = await end(0)
    assert (found.error_code, found.leader_epoch, found.end_offset) == (0, 0, 2)
    later = await end(5)
    assert (later.error_code, later.leader_epoch, later.end_offset) == (0, -1, -1)
    assert (await end(0, partition=9)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    assert (await end(0, current=3)).error_code == ErrorCode.UNKNOWN_LEADER_EPOCH


async def test_a_quota_holds_producers_back_and_nothing_overtakes(open_kafka: Any) -> None:
    kafka = await open_kafka(quotas__bytes_in_per_s=500, quotas__bytes_in_burst=100)
    client = await create(kafka)
    sent = []
    for number in range(6):
        data = [{"name": "orders", "partition_data": [{"index": 0, "records": batch(f"{number}" * 40)}]}]
        sent.append(client.send(PRODUCE, NAMED, acks=-1, timeout=30_000, topic_data=data))
    answers = [await client.receive(PRODUCE, NAMED, one) for one in sent]
    landed = [one.responses[0].partition_responses[0] for one in answers]
    assert [(one.error_code, one.base_offset) for one in landed] == [(0, number) for number in range(6)]
    assert answers[-1].throttle_time.total_seconds() > 0
    late = await produce(client, batch("x" * 2_000), timeout=1)
    assert late.error_code == ErrorCode.THROTTLING_QUOTA_EXCEEDED
