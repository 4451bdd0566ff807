"""Records copied from topic to topic in transactions, by a loop that is killed again and again: each arrives once."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.services.kafka.bootstrap import Bootstrap
from tests.services.kafka.copier import STAGES
from tests.services.kafka.kafka_node import KafkaNode

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

WAIT_S = 60
PARTITIONS = 3
SESSION_MS = 6_000  # the shortest that a group allows: a member that is not coming back is missed for so long


class Copier:
    """The loop in a process of its own. A new life takes the place of the last one: same member, same transactional id."""

    def __init__(self, bootstrap: Bootstrap, source: str, target: str) -> None:
        name = f"{source}-copier"
        consumer = bootstrap.librdkafka(
            group_id=name,
            group_instance_id="copier",
            session_timeout_ms=SESSION_MS,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
        )
        producer = bootstrap.librdkafka(transactional_id=name, linger_ms=1)
        self._asked = json.dumps({"consumer": consumer, "producer": producer, "source": source, "target": target})

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.services.kafka.copier", self._asked]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def kill_at(self, stage: str, times: int, pause_s: float) -> None:
        """Run until it has reached `stage` so many times, and a moment longer, then SIGKILL; it may have ended by itself."""
        with self._start() as process:
            watch = threading.Timer(WAIT_S, process.kill)
            watch.start()
            assert process.stdout is not None
            for line in process.stdout:
                times -= line.strip() == stage
                if times == 0:
                    break
            time.sleep(pause_s)
            watch.cancel()
            process.kill()

    def finish(self, left: Callable[[], int]) -> None:
        """Run, again after each end of its own, until nothing is left; who gets nothing done for a while has failed."""
        before, deadline = left(), time.monotonic() + WAIT_S
        while before:
            with self._start() as process:
                while process.poll() is None and (now := left()):
                    if now < before:
                        before, deadline = now, time.monotonic() + WAIT_S
                    assert time.monotonic() < deadline, f"{now} records are not copied"
                    time.sleep(0.2)
                process.kill()
            before = min(before, left())


def committed(bootstrap: Bootstrap, group: str, topic: str) -> int:
    """How far the group is. Readers of what is committed would wait for the transaction of a copier that was just killed."""
    consumer = Consumer(bootstrap.librdkafka(group_id=group, isolation_level="read_uncommitted"))
    places = consumer.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=WAIT_S)
    consumer.close()
    return sum(max(0, place.offset) for place in places)


def fill(bootstrap: Bootstrap, topic: str, count: int) -> None:
    admin = AdminClient(bootstrap.librdkafka())
    for name in (topic, f"{topic}-copy"):
        admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result(WAIT_S)
    producer = Producer(bootstrap.librdkafka(enable_idempotence=True))
    for number in range(count):
        producer.produce(topic, key=str(number).encode(), value=str(number).encode(), partition=number % PARTITIONS)
    assert producer.flush(WAIT_S) == 0


def read_committed(bootstrap: Bootstrap, topic: str) -> list[Any]:
    """Everything up to the end that was the end when this began."""
    consumer = Consumer(
        bootstrap.librdkafka(group_id=uuid.uuid4().hex, isolation_level="read_committed", enable_partition_eof=True)
    )
    places = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    consumer.assign(places)
    found: list[Any] = []
    ended: set[int] = set()
    deadline = time.monotonic() + WAIT_S
    while len(ended) < PARTITIONS and time.monotonic() < deadline:
        for message in consumer.consume(500, timeout=0.5):
            if message.error():
                ended.add(message.partition())
            else:
                found.append(message)
    consumer.close()
    assert len(ended) == PARTITIONS
    return found


def copy_and_kill(node: KafkaNode, *, count: int, kills: int, node_kills: int) -> None:
    chance = random.Random(20_260_723)
    topic = f"eos-{uuid.uuid4().hex[:8]}"
    fill(node.bootstrap, topic, count)
    copier = Copier(node.bootstrap, topic, f"{topic}-copy")
    for number in range(kills):
        copier.kill_at(chance.choice(STAGES), chance.randint(1, 3), chance.random() * 0.02)
        if number < node_kills:
            node.kill()
            node.start()
    copier.finish(lambda: count - committed(node.bootstrap, f"{topic}-copier", topic))
    found = read_committed(node.bootstrap, f"{topic}-copy")
    assert Counter(int(message.value()) for message in found) == Counter(range(count))
    for partition in range(PARTITIONS):
        values = [int(message.value()) for message in found if message.partition() == partition]
        assert values == sorted(values)


def test_a_copy_that_is_killed_again_and_again_holds_each_record_once(tmp_path: Path) -> None:
    with KafkaNode(tmp_path / "home") as node:
        copy_and_kill(node, count=1_500, kills=8, node_kills=2)


@pytest.mark.slow
def test_a_copy_survives_sixty_kills_and_fifteen_of_its_node(tmp_path: Path) -> None:
    with KafkaNode(tmp_path / "home") as node:
        copy_and_kill(node, count=10_000, kills=60, node_kills=15)
