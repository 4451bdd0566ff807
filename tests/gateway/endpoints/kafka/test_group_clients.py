"""Groups of unmodified clients: several members that come and go, every record read, every partition with one reader.

librdkafka (confluent-kafka) and kafka-python run in threads, aiokafka on the node's own loop. Whoever dies is a process that is
killed, so that only its session timeout tells the group.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer

PARTITIONS, RECORDS = 6, 300
DEADLINE_S = 60
SESSION_MS, SHORT_SESSION_MS = 20_000, 2_000


class Member(threading.Thread):
    """One consumer in a thread; `values` is what it has read, `assigned` the partitions it has now."""

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._make = make
        self.values: list[bytes] = []
        self.assigned: set[int] = set()
        self.errors: list[Any] = []
        self.leaving = threading.Event()

    def run(self) -> None:
        try:
            self.consume(self._make())
        except Exception as error:  # told by the test
            self.errors.append(error)

    def consume(self, consumer: Any) -> None:
        while not self.leaving.is_set():
            self.poll(consumer)
            self.assigned = {one.partition for one in consumer.assignment()}
        consumer.close()
        self.assigned = set()

    def poll(self, consumer: Any) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        self.leaving.set()
        self.join(20)
        assert not self.is_alive()


class ConfluentMember(Member):
    def poll(self, consumer: Any) -> None:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            self.values.append(message.value())
        elif message is not None and message.error().code() != KafkaError._PARTITION_EOF:
            self.errors.append(message.error())


class KafkaPythonMember(Member):
    def poll(self, consumer: Any) -> None:
        for records in consumer.poll(timeout_ms=100).values():
            self.values += [record.value for record in records]


def sasl(kafka: Any) -> dict[str, Any]:
    return {
        "bootstrap.servers": kafka.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "token",
        "sasl.password": kafka.admin,
    }


def confluent(kafka: Any, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        config = sasl(kafka) | {"group.id": "g", "auto.offset.reset": "earliest"} | settings
        if config.get("group.protocol") != "consumer":
            config = {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": 300} | config
        consumer = Consumer(config)
        consumer.subscribe(["orders"])
        return consumer

    return make


def kafka_python(kafka: Any, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from kafka import KafkaConsumer

        return KafkaConsumer("orders", **in_python(kafka), **settings)

    return make


def in_python(kafka: Any) -> dict[str, Any]:
    """As kafka-python and aiokafka spell them."""
    return {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "token",
        "sasl_plain_password": kafka.admin,
        "group_id": "g",
        "auto_offset_reset": "earliest",
        "session_timeout_ms": SESSION_MS,
        "heartbeat_interval_ms": 300,
    }


async def until(what: Callable[[], bool], members: list[Any], why: str) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not what():
        errors = [error for member in members for error in member.errors]
        assert not errors, errors
        assert time.monotonic() < end_s, f"{why}: {[(member.name, sorted(member.assigned)) for member in members]}"
        await asyncio.sleep(0.05)


async def until_shared(members: list[Any]) -> None:
    await until(lambda: shared([member.assigned for member in members]), members, "the partitions are not shared")


def shared(parts: list[set[int]]) -> bool:
    """Every partition with one of them, each with its part."""
    return sorted(partition for part in parts for partition in part) == list(range(PARTITIONS)) and all(parts)


def produce(kafka: Any, first: int, count: int) -> None:
    producer = Producer(sasl(kafka) | {"linger.ms": 5})
    for number in range(first, first + count):
        producer.produce("orders", b"%d" % number, partition=number % PARTITIONS)
    assert producer.flush(20) == 0


@pytest.fixture
async def kafka(open_kafka: Any, request: pytest.FixtureRequest) -> Any:
    """Its parameter is the session timeout that members of the consumer protocol have."""
    kafka = await open_kafka(
        groups__initial_rebalance_delay_ms=100,
        groups__consumer_heartbeat_interval_ms=300,
        groups__consumer_session_timeout_ms=getattr(request, "param", SESSION_MS),
        groups__session_timeout_ms_min=SHORT_SESSION_MS,
    )
    client = await kafka.client()
    await client.call(19, 7, topics=[{"name": "orders", "num_partitions": PARTITIONS, "replication_factor": 1}], timeout=1_000)
    return kafka


@pytest.fixture
async def crowd(kafka: Any) -> AsyncIterator[list[Any]]:
    members: list[Any] = []
    yield members
    for member in members:
        member.leaving.set()
    for member in members:
        await asyncio.to_thread(member.join, 20)


def enter(crowd: list[Any], kind: type[Member], make: Callable[[], Any]) -> Member:
    member = kind(make, f"{kind.__name__}-{len(crowd)}")
    crowd.append(member)
    member.start()
    return member


CLIENTS = [
    pytest.param(ConfluentMember, confluent, {"partition.assignment.strategy": "range"}, id="librdkafka-eager"),
    pytest.param(
        ConfluentMember, confluent, {"partition.assignment.strategy": "cooperative-sticky"}, id="librdkafka-cooperative"
    ),
    pytest.param(ConfluentMember, confluent, {"group.protocol": "consumer"}, id="librdkafka-KIP-848"),
    pytest.param(KafkaPythonMember, kafka_python, {}, id="kafka-python"),
]


@pytest.mark.parametrize(("kind", "make", "settings"), CLIENTS)
async def test_members_come_and_go(kafka: Any, crowd: list[Any], kind: Any, make: Any, settings: dict[str, Any]) -> None:
    await asyncio.to_thread(produce, kafka, 0, RECORDS)
    first, second = (enter(crowd, kind, make(kafka, **settings)) for _ in range(2))
    await until_shared([first, second])
    third = enter(crowd, kind, make(kafka, **settings))
    await until_shared([first, second, third])
    await asyncio.to_thread(produce, kafka, RECORDS, RECORDS)
    await asyncio.to_thread(second.leave)
    await until_shared([first, third])
    await asyncio.to_thread(produce, kafka, 2 * RECORDS, RECORDS)
    wanted = {b"%d" % number for number in range(3 * RECORDS)}
    await until(lambda: {value for member in crowd for value in member.values} >= wanted, crowd, "records are missing")
    for member in (first, third):
        await asyncio.to_thread(member.leave)
    client = await kafka.client()
    assert [(one.group_id, one.group_state) for one in (await client.call(16, 4)).groups] == [("g", "Empty")]
    asked = [{"group_id": "g", "topics": [{"name": "orders", "partition_indexes": list(range(PARTITIONS))}]}]
    (found,) = (await client.call(9, 8, groups=asked)).groups
    assert sum(one.committed_offset for one in found.topics[0].partitions) == 3 * RECORDS


DYING = """
import json, sys
from confluent_kafka import Consumer
consumer = Consumer(json.loads(sys.argv[1]))
consumer.subscribe(["orders"])
while True:
    consumer.poll(0.1)
    if consumer.assignment():
        print("assigned", flush=True)
"""


@pytest.mark.parametrize("kafka", [SHORT_SESSION_MS], indirect=True)
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_member_that_is_killed(kafka: Any, crowd: list[Any], protocol: str) -> None:
    """Also in the middle of a rebalance: the second one joins while the killed one's place is still kept."""
    settings = {"group.protocol": protocol}
    config = sasl(kafka) | {"group.id": "g"} | settings
    if protocol == "classic":
        config |= {"session.timeout.ms": SHORT_SESSION_MS, "heartbeat.interval.ms": 300}
    dying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING, json.dumps(config), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert dying.stdout is not None
    try:
        assert await asyncio.wait_for(dying.stdout.readline(), DEADLINE_S)
    finally:
        dying.kill()
        await dying.communicate()
    first = enter(crowd, ConfluentMember, confluent(kafka, **settings))
    second = enter(crowd, ConfluentMember, confluent(kafka, **settings))
    await until_shared([first, second])


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_static_member_that_restarts(kafka: Any, crowd: list[Any], protocol: str) -> None:
    """It has the partitions that it had, and nobody else is troubled."""
    names = {"first": {"group.instance.id": "first"}, "second": {"group.instance.id": "second"}}
    make = {name: confluent(kafka, **{"group.protocol": protocol}, **settings) for name, settings in names.items()}
    first, second = (enter(crowd, ConfluentMember, make[name]) for name in names)
    await until_shared([first, second])
    group = kafka.node.groups.find("g")
    had, generation = first.assigned, group.generation
    await asyncio.to_thread(first.leave)
    again = enter(crowd, ConfluentMember, make["first"])
    await until_shared([again, second])
    assert (again.assigned, group.generation) == (had, generation)


async def test_aiokafka_members(kafka: Any) -> None:
    from aiokafka import AIOKafkaConsumer

    await asyncio.to_thread(produce, kafka, 0, RECORDS)
    values: set[bytes] = set()
    members = [AIOKafkaConsumer("orders", **in_python(kafka)) for _ in range(3)]
    await asyncio.gather(*[one.start() for one in members])
    try:

        async def read(one: Any) -> None:
            for records in (await one.getmany(timeout_ms=200)).values():
                values.update(record.value for record in records)

        async def settle(those: list[Any]) -> None:
            for _ in range(DEADLINE_S * 5):
                await asyncio.gather(*[read(one) for one in those])
                parts = [{place.partition for place in one.assignment()} for one in those]
                if shared(parts):
                    return
            raise AssertionError(parts)

        await settle(members)
        await members.pop().stop()
        await settle(members)
        await asyncio.to_thread(produce, kafka, RECORDS, RECORDS)
        for _ in range(DEADLINE_S):
            await asyncio.gather(*[read(one) for one in members])
            if len(values) == 2 * RECORDS:
                break
        assert len(values) == 2 * RECORDS
    finally:
        for one in members:
            await one.stop()
