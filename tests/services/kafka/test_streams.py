"""Kafka Streams 4.3.1 (exactly_once_v2): a word count whose JVM is killed in the middle and started again."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.companions.kafka.java import java_command
from tests.services.kafka.bootstrap import Bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

WAIT_S = 60
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "the", "cat"]
LINES = 300


def line(number: int) -> str:
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 7))


def produce(bootstrap: Bootstrap, topic: str, numbers: range) -> None:
    producer = Producer(bootstrap.librdkafka(enable_idempotence=True))
    for number in numbers:
        producer.produce(topic, key=str(number).encode(), value=line(number).encode())
    assert producer.flush(WAIT_S) == 0


class Counts:
    """The newest count of each word under read_committed, and every count that was ever seen of it."""

    def __init__(self, bootstrap: Bootstrap, topic: str) -> None:
        self.newest: dict[str, int] = {}
        self._consumer = Consumer(
            bootstrap.librdkafka(group_id=uuid.uuid4().hex, auto_offset_reset="earliest", isolation_level="read_committed")
        )
        self._consumer.subscribe([topic])

    def read_until(self, wanted: Counter[str], *, some: bool = False) -> None:
        """Until all counts are as wanted, or (`some`) any are there. A count that does not grow was counted twice or lost."""
        deadline = time.monotonic() + WAIT_S
        while self.newest != wanted and not (some and self.newest):
            assert time.monotonic() < deadline, f"counts: {self.newest}, wanted: {wanted}"
            for message in self._consumer.consume(500, timeout=0.3):
                assert message.error() is None, message.error()
                word, count = message.key().decode(), int(message.value())
                assert self.newest.get(word, 0) < count <= wanted[word]
                self.newest[word] = count

    def close(self) -> None:
        self._consumer.close()


def test_words_are_counted_once_though_the_counter_is_killed(bootstrap: Bootstrap, tmp_path: Path) -> None:
    name = f"streams-{uuid.uuid4().hex[:8]}"
    lines, counts = f"{name}-lines", f"{name}-counts"
    admin = AdminClient(bootstrap.librdkafka())
    for topic in (lines, counts):
        admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(WAIT_S)
    settings = bootstrap.java_file(
        tmp_path / "streams.properties",
        application_id=name,
        processing_guarantee="exactly_once_v2",
        replication_factor=1,
        commit_interval_ms=100,
        state_dir=tmp_path / "state",
        consumer_auto_offset_reset="earliest",
        consumer_session_timeout_ms=6000,
        consumer_heartbeat_interval_ms=1000,
    )
    command = java_command("WordCount", str(settings), lines, counts)
    wanted = Counter(word for number in range(LINES) for word in line(number).split())
    reader = Counts(bootstrap, counts)
    try:
        for numbers, some in ((range(LINES // 2), True), (range(LINES // 2, LINES), False)):
            with (tmp_path / "streams.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as counter:
                try:
                    produce(bootstrap, lines, numbers)
                    reader.read_until(wanted, some=some)
                finally:
                    counter.kill()
    except AssertionError as error:
        error.add_note((tmp_path / "streams.log").read_text()[-3000:])
        raise
    finally:
        reader.close()
