"""One namespace: what a Kafka client produces is read over REST, Server-Sent Events and WebSocket, and the other way round."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
import websockets
from confluent_kafka import Consumer, Producer, TopicPartition

HEADERS = [("trace", b"abc"), ("empty", b""), ("none", None)]


@pytest.fixture
def confluent(kafka: Any) -> dict[str, Any]:
    return {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "token",
        "sasl.password": kafka.admin,
    }


@pytest.fixture
async def http(kafka: Any) -> Any:
    host, port = kafka.node.addresses["http"]
    headers = {"authorization": f"Bearer {kafka.admin}"}
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, trust_env=False, timeout=30) as client:
        yield client


def produce(config: dict[str, Any], key: str, value: bytes, at_ms: int) -> tuple[int, int]:
    landed: list[tuple[int, int]] = []
    producer = Producer(config | {"compression.type": "zstd", "partitioner": "murmur2_random"})  # as the Java client
    producer.produce(
        "orders",
        key=key,
        value=value,
        headers=HEADERS,
        timestamp=at_ms,
        on_delivery=lambda error, message: landed.append((message.partition(), message.offset())) if error is None else None,
    )
    producer.flush(30)
    return landed[0]


def consume(config: dict[str, Any], partitions: int, count: int) -> list[Any]:
    consumer = Consumer(config | {"group.id": "one", "enable.auto.commit": False})
    consumer.assign([TopicPartition("orders", partition, 0) for partition in range(partitions)])
    found: list[Any] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.consume(count, 1.0)
    consumer.close()
    return found


async def test_from_kafka_to_the_others(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 3})).status_code == 201
    at_ms = int(time.time() * 1_000) - 5_000
    uri = f"ws://{http.base_url.host}:{http.base_url.port}/v1/ws"
    async with websockets.connect(uri, subprotocols=["sprawl.v1.json", f"bearer.{kafka.admin}"], proxy=None) as socket:
        await socket.send(json.dumps({"op": "subscribe", "sub": "all", "topic": "orders"}))
        while json.loads(await socket.recv())["op"] != "subscribed":
            pass
        partition, offset = await asyncio.to_thread(produce, confluent, "eu/7", b"hello", at_ms)
        while (heard := json.loads(await socket.recv()))["op"] != "records":
            pass
    [pushed] = heard["records"]
    read = (await http.get(f"/v1/topics/orders/partitions/{partition}/records", params={"offset": offset})).json()
    [record] = read["records"]
    latest = (await http.get("/v1/records/orders/eu/7")).text
    assert latest == "hello"
    for one in (pushed, record):
        assert (one["key"], one["text"], one["partition"], one["offset"]) == ("eu/7", "hello", partition, offset)
        assert one["headers"]["trace"] == "abc"
    assert (record["timestamp"], dict(record["headers"])["empty"]) == (at_ms, "")


async def test_from_rest_to_kafka(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 3})).status_code == 201
    keys = [f"key-{number}" for number in range(40)]
    documents = [{"key": key, "text": f"text {key}", "headers": {"trace": "abc"}} for key in keys]
    answer = await http.post("/v1/topics/orders/records", json=documents)
    receipts = {receipt["id"]: receipt for receipt in answer.json()["records"]}
    messages = await asyncio.to_thread(consume, confluent, 3, len(keys))
    assert {message.key().decode(): message.value().decode() for message in messages} == {key: f"text {key}" for key in keys}
    for message in messages:
        headers = dict(message.headers())
        receipt = receipts[headers["sprawl-message-id"].decode()]
        assert (receipt["partition"], receipt["offset"]) == (message.partition(), message.offset())
        assert headers["trace"] == b"abc"


async def test_keys_go_to_the_same_partition_by_either_way(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 7})).status_code == 201
    config = confluent
    for number in range(10):
        key = f"device-{number}" * (1 + number % 3)
        by_kafka, _ = await asyncio.to_thread(produce, config, key, b"v", int(time.time() * 1_000))
        answer = await http.post("/v1/topics/orders/records", json=[{"key": key, "text": "v"}])
        assert answer.json()["records"][0]["partition"] == by_kafka
