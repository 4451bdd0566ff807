"""aiokafka: what its users do; its encodings are the oldest that are spoken here."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.services.kafka.bootstrap import Bootstrap

pytestmark = pytest.mark.services

WAIT_MS = 20_000


@pytest.fixture
async def topic(bootstrap: Bootstrap) -> str:
    name = f"aiokafka-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**bootstrap.aiokafka())
    await admin.start()
    await admin.create_topics([NewTopic(name, 2, 1)])
    await admin.close()
    return name


async def produce(bootstrap: Bootstrap, topic: str, count: int, **settings: Any) -> list[Any]:
    async with AIOKafkaProducer(**bootstrap.aiokafka(linger_ms=5, **settings)) as producer:
        sent = [
            await producer.send(topic, value=str(number).encode(), key=f"key-{number % 7}".encode(), headers=[("trace", b"\xff")])
            for number in range(count)
        ]
        return [await future for future in sent]


async def consume(consumer: AIOKafkaConsumer, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        batches = await consumer.getmany(timeout_ms=WAIT_MS)
        assert batches, f"{len(found)} of {count} records came"
        for records in batches.values():
            found.extend(records)
    assert len(found) == count
    return found


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_an_idempotent_producer_and_a_group_keep_every_record(bootstrap: Bootstrap, topic: str, codec: str | None) -> None:
    placed = await produce(bootstrap, topic, 200, compression_type=codec, enable_idempotence=True)
    group = uuid.uuid4().hex
    settings = bootstrap.aiokafka(group_id=group, auto_offset_reset="earliest", enable_auto_commit=False)
    async with AIOKafkaConsumer(topic, **settings) as consumer:
        found = await consume(consumer, 200)
        assert {(record.partition, record.offset) for record in found} == {(each.partition, each.offset) for each in placed}
        assert {int(record.value) for record in found} == set(range(200))
        assert all(record.headers == (("trace", b"\xff"),) for record in found)
        await consumer.commit()
        assert sum([await consumer.committed(TopicPartition(topic, number)) or 0 for number in range(2)]) == 200


async def test_a_transaction_carries_the_offsets_of_what_it_read(bootstrap: Bootstrap, topic: str) -> None:
    await produce(bootstrap, topic, 20)
    group = uuid.uuid4().hex
    settings = bootstrap.aiokafka(transactional_id=uuid.uuid4().hex)
    async with AIOKafkaProducer(**settings) as producer:
        place = TopicPartition(topic, 0)
        async with producer.transaction():
            await producer.send_and_wait(topic, b"committed", partition=0)
            await producer.send_offsets_to_transaction({place: 5}, group)
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", partition=0)
        await producer.send_offsets_to_transaction({place: 7}, group)
        await producer.abort_transaction()
    settings = bootstrap.aiokafka(group_id=group, auto_offset_reset="earliest", isolation_level="read_committed")
    async with AIOKafkaConsumer(**settings, enable_auto_commit=False) as consumer:
        consumer.assign([place])
        assert await consumer.committed(place) == 5
        end = (await consumer.end_offsets([place]))[place]
        found = await consume(consumer, end - 5 - 3)  # less the two markers and what was aborted
        assert found[-1].value == b"committed"


async def test_reading_begins_at_a_time(bootstrap: Bootstrap, topic: str) -> None:
    await produce(bootstrap, topic, 50)
    async with AIOKafkaConsumer(**bootstrap.aiokafka()) as consumer:
        places = [TopicPartition(topic, number) for number in range(2)]
        assert sum((await consumer.end_offsets(places)).values()) == 50
        found = await consumer.offsets_for_times(dict.fromkeys(places, 0))
        assert {place.offset for place in found.values()} == {0}
