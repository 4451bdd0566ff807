"""Foreign clients as readers of some keys: they get past batches of which nothing is left, also at the end of the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from confluent_kafka import Consumer, TopicPartition
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonPartition

from tests.gateway.endpoints.kafka.test_produce_fetch import batch, create, produce

WAIT_S = 30


class Librdkafka:
    def __init__(self, bootstrap: str, token: str) -> None:
        config = {"bootstrap.servers": bootstrap, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
        config |= {"sasl.username": "token", "sasl.password": token, "group.id": "g", "enable.auto.commit": "false"}
        self._consumer = Consumer(config)
        self._consumer.assign([TopicPartition("orders", 0, 0)])

    def poll(self) -> Iterator[bytes]:
        for message in self._consumer.consume(100, 0.2):
            assert message.error() is None
            yield message.key()

    def close(self) -> None:
        self._consumer.close()


class KafkaPython:
    def __init__(self, bootstrap: str, token: str) -> None:
        config = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_plain_username": "token"}
        self._consumer = KafkaConsumer(bootstrap_servers=bootstrap, sasl_plain_password=token, **config)
        self._place = PythonPartition("orders", 0)
        self._consumer.assign([self._place])
        self._consumer.seek(self._place, 0)

    def poll(self) -> Iterator[bytes]:
        for record in self._consumer.poll(200).get(self._place, []):
            yield record.key

    def close(self) -> None:
        self._consumer.close()


def read_until(client: Any, keys: list[bytes], wanted: int) -> list[bytes]:
    deadline = time.monotonic() + WAIT_S
    while len(keys) < wanted and time.monotonic() < deadline:
        keys += client.poll()
    return keys


async def fill(kafka: Any) -> Any:
    """Nothing is left of the last two batches, for the reader of some keys."""
    admin = await create(kafka, partitions=1)
    for keys in (("us/1",), ("eu/1", "us/2"), ("us/3", "us/4"), ("us/5",)):
        await produce(admin, batch(*keys))
    return admin


@pytest.mark.parametrize("kind", [Librdkafka, KafkaPython])
async def test_what_is_cut_is_passed_by(kafka: Any, kind: Any) -> None:
    admin = await fill(kafka)
    client = await asyncio.to_thread(kind, kafka.bootstrap, kafka.token("some-keys"))
    keys = await asyncio.to_thread(read_until, client, [], 1)
    keys += await asyncio.to_thread(lambda: list(client.poll()))
    await produce(admin, batch("eu/2"))
    assert await asyncio.to_thread(read_until, client, keys, 2) == [b"eu/1", b"eu/2"]
    await asyncio.to_thread(client.close)


async def test_aiokafka_gets_past_it_too(kafka: Any) -> None:
    admin = await fill(kafka)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="token",
        sasl_plain_password=kafka.token("some-keys"),
    )
    await consumer.start()
    place = AioPartition("orders", 0)
    consumer.assign([place])
    consumer.seek(place, 0)
    try:
        assert (await asyncio.wait_for(consumer.getone(), WAIT_S)).key == b"eu/1"
        await produce(admin, batch("eu/2"))
        assert (await asyncio.wait_for(consumer.getone(), WAIT_S)).key == b"eu/2"
    finally:
        await consumer.stop()
