"""One namespace: what a Kafka client produces is read over REST, Server-Sent Events and WebSocket, and the other way round."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import httpx
import pytest
import uuid_utils
import websockets
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, Producer, TopicPartition

HEADERS: list[tuple[str, bytes | None]] = [("trace", b"abc"), ("empty", b""), ("none", None)]


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


def produce(
    config: dict[str, Any], key: str, value: bytes, at_ms: int, headers: list[tuple[str, bytes | None]] = HEADERS
) -> tuple[int, int]:
    landed: list[tuple[int, int]] = []
    producer = Producer(config | {"compression.type": "zstd", "partitioner": "murmur2_random"})  # as the Java client
    producer.produce(
        "orders",
        key=key,
        value=value,
        headers=headers,
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


class Live:
    """The topic as subscribers see it, from its beginning or from now on: by WebSocket, and as Server-Sent Events."""

    def __init__(self, kafka: Any, http: Any, begin: str) -> None:
        self._kafka, self._http, self._begin = kafka, http, begin
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Live:
        self._socket = await self._exits.enter_async_context(websocket(self._kafka, self._http))
        await self._socket.send(json.dumps({"op": "subscribe", "sub": "all", "topic": "orders", "from": self._begin}))
        while json.loads(await self._socket.recv())["op"] != "subscribed":
            pass
        stream = self._http.stream("GET", "/v1/topics/orders/events", params={"from": self._begin})
        self._lines = (await self._exits.enter_async_context(stream)).aiter_lines()
        while not (await anext(self._lines)).startswith("id: "):  # from here on it sees everything
            pass
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def by_websocket(self, count: int) -> dict[tuple[int, int], Any]:
        found: list[Any] = []
        while len(found) < count:
            message = json.loads(await self._socket.recv())
            found += message["records"] if message["op"] == "records" else []
        return placed(found)

    async def by_events(self, count: int) -> dict[tuple[int, int], Any]:
        found: list[Any] = []
        while len(found) < count:
            line = await anext(self._lines)
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
        return placed(found)


def websocket(kafka: Any, http: Any) -> Any:
    uri = f"ws://{http.base_url.host}:{http.base_url.port}/v1/ws"
    return websockets.connect(uri, subprotocols=["sprawl.v1.json", f"bearer.{kafka.admin}"], proxy=None)


def placed(records: list[Any]) -> dict[tuple[int, int], Any]:
    return {(record["partition"], record["offset"]): record for record in records}


async def by_rest(http: Any, partitions: int) -> dict[tuple[int, int], Any]:
    found: list[Any] = []
    for partition in range(partitions):
        answer = await http.get(f"/v1/topics/orders/partitions/{partition}/records", params={"offset": 0})
        found += answer.json()["records"]
    return placed(found)


async def test_from_kafka_to_the_others(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    """Live and from the beginning, every protocol says the same of each record, and what the producer said."""
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 3})).status_code == 201
    at_ms = int(time.time() * 1_000) - 5_000
    message_id = str(uuid_utils.uuid7())
    async with Live(kafka, http, "latest") as live:
        first = await asyncio.to_thread(produce, confluent, "eu/7", b"hello", at_ms)
        second = await asyncio.to_thread(
            produce, confluent, "us/1", b"\xff", at_ms + 1, [("sprawl-message-id", message_id.encode())]
        )
        seen = [await live.by_websocket(2), await live.by_events(2)]
    async with Live(kafka, http, "earliest") as again:
        seen += [await again.by_websocket(2), await again.by_events(2)]
    read = await by_rest(http, 3)
    assert [one == read for one in seen] == [True] * 4
    hello, other = read[first], read[second]
    assert (hello["key"], hello["text"], hello["timestamp"], hello["topic"]) == ("eu/7", "hello", at_ms, "orders")
    assert hello["headers"] == {"trace": "abc", "empty": "", "none": None}
    assert (other["key"], other["value64"], other["timestamp"], other["id"]) == ("us/1", "/w==", at_ms + 1, message_id)
    assert (await http.get("/v1/records/orders/eu/7")).text == "hello"


async def test_from_the_others_to_kafka(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    """REST and WebSocket publish the same kinds of record; a Kafka client reads key, value, headers, time and id of each."""
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 3})).status_code == 201
    at_ms = int(time.time() * 1_000) - 5_000
    documents = [
        {
            "key": f"{way}-{number}",
            "text": f"text {way} {number}",
            "headers": {"trace": f"{number}", "none": None},
            "timestamp": at_ms + number,
            "id": str(uuid_utils.uuid7()),
        }
        for way in ("rest", "ws")
        for number in range(20)
    ]
    tombstone = {"key": "gone", "value": None}
    answer = await http.post("/v1/topics/orders/records", json=[*documents[:20], tombstone])
    receipts = {receipt["id"]: receipt for receipt in answer.json()["records"]}
    async with websocket(kafka, http) as socket:
        await socket.send(json.dumps({"op": "publish", "topic": "orders", "records": documents[20:]}))
        while (told := json.loads(await socket.recv()))["op"] != "ack":
            assert told["op"] == "ready", told
        receipts |= {receipt["id"]: receipt for receipt in told["records"]}
    messages = {message.key().decode(): message for message in await asyncio.to_thread(consume, confluent, 3, 41)}
    assert len(messages) == 41
    for document in documents:
        message, receipt = messages[document["key"]], receipts[document["id"]]
        assert (message.partition(), message.offset()) == (receipt["partition"], receipt["offset"])
        assert message.value().decode() == document["text"]
        assert message.timestamp() == (TIMESTAMP_CREATE_TIME, document["timestamp"])
        headers = dict(message.headers())
        assert headers["sprawl-message-id"].decode() == document["id"]
        assert (headers["trace"].decode(), headers["none"]) == (document["headers"]["trace"], None)
        assert headers["content-type"] == b"text/plain; charset=utf-8"
    assert messages["gone"].value() is None


async def test_keys_go_to_the_same_partition_by_either_way(kafka: Any, http: Any, confluent: dict[str, Any]) -> None:
    assert (await http.post("/v1/topics", json={"name": "orders", "partitions": 7})).status_code == 201
    config = confluent
    for number in range(10):
        key = f"device-{number}" * (1 + number % 3)
        by_kafka, _ = await asyncio.to_thread(produce, config, key, b"v", int(time.time() * 1_000))
        answer = await http.post("/v1/topics/orders/records", json=[{"key": key, "text": "v"}])
        assert answer.json()["records"][0]["partition"] == by_kafka
