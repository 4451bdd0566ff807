"""kafka-python: what its users do."""

from __future__ import annotations

import gc
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import TopicAlreadyExistsError

from tests.services.kafka.bootstrap import Bootstrap

pytestmark = pytest.mark.services

WAIT_S = 20


@pytest.fixture(autouse=True)
def sockets_left_open() -> Iterator[None]:
    """Closed clients of kafka-python 3.0 leave the sockets by which their threads woke each other to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def admin(bootstrap: Bootstrap) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(**bootstrap.kafka_python())
    yield client
    client.close()


@pytest.fixture
def topic(admin: KafkaAdminClient) -> str:
    name = f"kafka-python-{uuid.uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, 2, 1)])
    return name


def produce(bootstrap: Bootstrap, topic: str, count: int, **settings: Any) -> list[Any]:
    producer = KafkaProducer(**bootstrap.kafka_python(linger_ms=5, **settings))
    sent = [
        producer.send(topic, value=str(number).encode(), key=f"key-{number % 7}".encode(), headers=[("trace", b"\x00\xff")])
        for number in range(count)
    ]
    producer.flush(WAIT_S)
    placed = [future.get(WAIT_S) for future in sent]
    producer.close()
    return placed


def consume(consumer: KafkaConsumer, count: int) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + WAIT_S
    while len(found) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            found.extend(records)
    assert len(found) == count
    return found


@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd"])
def test_a_producer_and_a_group_keep_every_record_whatever_the_codec(bootstrap: Bootstrap, topic: str, codec: str | None) -> None:
    placed = produce(bootstrap, topic, 200, compression_type=codec)
    group = uuid.uuid4().hex
    settings = bootstrap.kafka_python(group_id=group, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer = KafkaConsumer(topic, **settings)
    found = consume(consumer, 200)
    assert {(record.partition, record.offset) for record in found} == {(each.partition, each.offset) for each in placed}
    assert {int(record.value) for record in found} == set(range(200))
    assert all(record.headers == [("trace", b"\x00\xff")] for record in found)
    consumer.commit()
    assert sum(consumer.committed(TopicPartition(topic, number)) or 0 for number in range(2)) == 200
    consumer.close()


def test_reading_begins_at_a_time_or_an_offset(bootstrap: Bootstrap, topic: str) -> None:
    produce(bootstrap, topic, 50)
    consumer = KafkaConsumer(**bootstrap.kafka_python())
    partitions = [TopicPartition(topic, number) for number in range(2)]
    assert sum(consumer.end_offsets(partitions).values()) == 50
    assert set(consumer.beginning_offsets(partitions).values()) == {0}
    found = consumer.offsets_for_times(dict.fromkeys(partitions, 0))
    assert {place.offset for place in found.values()} == {0}
    consumer.assign(partitions[:1])
    consumer.seek(partitions[0], 3)
    assert consume(consumer, consumer.end_offsets(partitions[:1])[partitions[0]] - 3)[0].offset == 3
    consumer.close()


def test_topics_and_groups_are_administered(bootstrap: Bootstrap, admin: KafkaAdminClient, topic: str) -> None:
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics([NewTopic(topic, 2, 1)])
    assert topic in admin.list_topics()
    [described] = admin.describe_topics([topic])
    assert len(described["partitions"]) == 2
    produce(bootstrap, topic, 10)
    group = f"g-{uuid.uuid4().hex[:8]}"
    consumer = KafkaConsumer(topic, **bootstrap.kafka_python(group_id=group, auto_offset_reset="earliest"))
    consume(consumer, 10)
    consumer.commit()
    consumer.close()
    offsets = admin.list_group_offsets(group)[group]
    assert sum(place.offset for place in offsets.values()) == 10
    assert group in str(admin.list_groups())
    admin.delete_groups([group])
    assert group not in str(admin.list_groups())
    admin.delete_topics([topic])
