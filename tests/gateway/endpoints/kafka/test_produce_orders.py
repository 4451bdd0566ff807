"""Produce requests that overlap: with others of their connection, with its end, with what changes between two of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from broker.batch import split, walk
from broker.log.commit import Committer
from broker.log.files import LogFile
from tests.gateway.endpoints.kafka.test_produce_fetch import FETCH, PRODUCE, batch, create, fetch, produce

API_VERSIONS = 18


def one(records: bytes, topic: str = "orders", acks: int = -1, timeout_ms: int = 30_000, partition: int = 0) -> dict[str, Any]:
    """Fields of Produce 9."""
    data = [{"name": topic, "partition_data": [{"index": partition, "records": records}]}]
    return {"acks": acks, "timeout": timeout_ms, "topic_data": data}


def landed(answer: Any) -> tuple[int, int]:
    told = answer.responses[0].partition_responses[0]
    return told.error_code, told.base_offset


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Syncs of journals wait for it; it is set at the beginning."""
    going, sync = threading.Event(), Committer._sync_journal

    def slow(file: LogFile) -> None:
        going.wait(20)
        sync(file)

    going.set()
    monkeypatch.setattr(Committer, "_sync_journal", staticmethod(slow))
    yield going
    going.set()


async def until(condition: Any) -> None:
    """Let the loop turn until it holds; the test's own timeout ends it otherwise."""
    while not condition():  # noqa: ASYNC110  any state of the node under test
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_answers_leave_in_the_order_of_the_requests(open_kafka: Any, durability: str) -> None:
    """Some are there at once, some wait for the log, one for other records."""
    kafka = await open_kafka(log__durability=durability)
    client = await create(kafka)
    place = {"partition": 1, "fetch_offset": 0, "partition_max_bytes": 1_000}
    waiting = {"max_wait": 100, "min_bytes": 1, "max_bytes": 1_000, "session_epoch": -1}
    sent = []
    for number in range(5):
        sent.append((PRODUCE, 9, client.send(PRODUCE, 9, **one(batch(f"{number}")))))
        sent.append((PRODUCE, 9, client.send(PRODUCE, 9, **one(b"no batch"))))
        client.send(PRODUCE, 9, **one(batch(f"{number}+"), acks=0))
        if number == 2:
            topics = [{"topic": "orders", "partitions": [place]}]
            sent.append((FETCH, 11, client.send(FETCH, 11, **waiting, topics=topics)))
    answers = [(api, await client.receive(api, version, id)) for api, version, id in sent]
    assert [landed(answer) for api, answer in answers if api == PRODUCE] == [
        pair for number in range(5) for pair in ((0, 2 * number), (87, -1))
    ]
    assert (await produce(client, batch("last"))).base_offset == 10


async def test_what_is_under_way_is_stored_and_audited_when_its_client_goes(open_kafka: Any, held: threading.Event) -> None:
    kafka = await open_kafka()
    client = await create(kafka)
    held.clear()
    client.send(PRODUCE, 9, **one(batch("a")))
    client.send(PRODUCE, 9, **one(batch("b")))
    await client.writer.drain()
    await until(lambda: sum(len(connection._slots) for connection in kafka.node._kafka.connections) == 2)
    await client.close()
    await until(lambda: kafka.count("connections", protocol="kafka") == 0)
    held.set()
    other = await kafka.client()
    found = await fetch(other, 0, wait_ms=5_000, min_bytes=2 * len(batch("a")))
    assert [record.key for data in split(found.records) for record in walk(data)] == [b"a", b"b"]
    assert kafka.count("records_in_total", protocol="kafka") == 2
    assert kafka.node._kafka.connections
    assert next(iter(kafka.node._kafka.connections)).node.memory.held_bytes == 0


async def test_a_token_revoked_between_two_requests(kafka: Any) -> None:
    await create(kafka)
    token = kafka.token("all")
    client = await kafka.client(token)
    assert (await produce(client, batch("a"))).error_code == 0
    kafka.node.tokens.revoke(token.split("_")[1])
    client.send(PRODUCE, 9, **one(batch("b")))
    assert await client.closed()
    assert (await fetch(await kafka.client())).high_watermark == 1


async def test_requests_wait_in_their_order_while_the_log_may_hold_no_more(open_kafka: Any, held: threading.Event) -> None:
    kafka = await open_kafka(log__append_queue_bytes_max=65_536)
    client = await create(kafka)
    large = [batch(f"{number}" * 9_000) for number in range(1, 9)]
    held.clear()
    sent = [client.send(PRODUCE, 9, **one(records)) for records in (*large, *[batch("small")] * 3)]
    await client.writer.drain()
    await until(lambda: any(connection.held_back for connection in kafka.node._kafka.connections))
    held.set()
    answers = [landed(await client.receive(PRODUCE, 9, id)) for id in sent]
    assert answers == [(0, number) for number in range(11)]
    assert not any(connection.held_back for connection in kafka.node._kafka.connections)
    assert (await produce(client, batch("after"))).base_offset == 11


async def test_whoever_waits_no_longer_is_told_to_come_again(open_kafka: Any, held: threading.Event) -> None:
    kafka = await open_kafka(log__append_queue_bytes_max=65_536)
    client = await create(kafka)
    held.clear()
    sent = [client.send(PRODUCE, 9, **one(batch("x" * 40_000), timeout_ms=100)) for _ in range(3)]
    await until(lambda: kafka.node.engine.stats().append_queue_bytes > 40_000)
    await until(lambda: any(connection.held_back for connection in kafka.node._kafka.connections))
    await until(lambda: not any(connection.held_back for connection in kafka.node._kafka.connections))
    held.set()
    codes = [landed(await client.receive(PRODUCE, 9, id))[0] for id in sent]
    assert codes[0] == 0
    assert codes[-1] == 19  # NOT_ENOUGH_REPLICAS: producers try again


async def test_whoever_asks_and_asks_and_does_not_say_who_they_are(kafka: Any) -> None:
    client = await kafka.connect()
    for _ in range(101):
        client.send(API_VERSIONS, 0)
    assert len(await client.reader.read()) > 0  # what was answered, then the end
    assert kafka.count("refused_total", protocol="kafka", reason="unauthenticated") == 1


@pytest.mark.parametrize("announced", [5_000_000, 1_000_000])
async def test_what_is_announced_and_does_not_come_makes_room(open_kafka: Any, announced: int) -> None:
    kafka = await open_kafka(kafka__received_bytes_max=1_000_000)
    greedy, client = await kafka.client(), await create(kafka)
    greedy.writer.write(announced.to_bytes(4, "big") + bytes(20_000))
    memory = next(iter(kafka.node._kafka.connections)).node.memory
    await until(lambda: memory.held_bytes == announced)
    assert (await produce(client, batch("x" * 100_000))).error_code == 0
    assert kafka.count("refused_total", protocol="kafka", reason="request-timeout") == 1
