"""Compacted topics as foreign clients write and read them: the newest value of each key is there, at its offset, and nobody waits
at the offsets that are gone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.companions.kafka.java import run_java
from tests.services.kafka.bootstrap import Bootstrap
from tests.services.kafka.kafka_node import KafkaNode

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]

WAIT_S = 30
KEYS, ROUNDS = 40, 30
CONSOLE_CONSUMER = "org.apache.kafka.tools.consumer.ConsoleConsumer"
CONFIGS = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bootstrap]:
    """A node whose files are full soon: full ones are what compaction takes."""
    with KafkaNode(tmp_path_factory.mktemp("compacted") / "home", **{"log.journal_file_bytes": 64 * 1024}) as node:
        yield node.bootstrap
        assert node.stop() == 0


@pytest.fixture
def topic(small: Bootstrap) -> str:
    name = f"compacted-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(small.librdkafka())
    admin.create_topics([NewTopic(name, 1, 1, config=CONFIGS)])[name].result(WAIT_S)
    return name


def write(bootstrap: Bootstrap, topic: str, codec: str) -> dict[bytes, tuple[int, bytes | None]]:
    """Every key again and again, some of them deleted at the end; offset and value of the newest of each."""
    newest: dict[bytes, tuple[int, bytes | None]] = {}
    failed: list[KafkaError] = []

    def settled(error: KafkaError | None, message: Message) -> None:
        key, offset = message.key(), message.offset()
        if error is not None or key is None or offset is None:
            failed.append(error or KafkaError(KafkaError._FAIL))
        elif newest.get(key, (-1, None))[0] < offset:
            newest[key] = offset, message.value()

    producer = Producer(bootstrap.librdkafka(compression_type=codec, linger_ms=5, enable_idempotence=True))
    for number in range(ROUNDS):
        for key in range(KEYS):
            value = b"%d of %d " % (number, key) + uuid.uuid4().bytes * 20
            producer.produce(topic, key=b"key %d" % key, value=value, on_delivery=settled)
        assert producer.flush(WAIT_S) == 0
    for key in range(0, KEYS, 8):
        producer.produce(topic, key=b"key %d" % key, value=None, on_delivery=settled)
    assert producer.flush(WAIT_S) == 0
    for _ in range(100):  # so that files with all of these are full
        producer.produce(topic, key=b"filler", value=uuid.uuid4().bytes * 200, on_delivery=settled)
        assert producer.flush(WAIT_S) == 0
    assert failed == []
    return newest


def read(bootstrap: Bootstrap, topic: str, offset: int = 0, **settings: object) -> list[Message]:
    """From an offset to the end of the partition."""
    wanted = {"group_id": uuid.uuid4().hex, "enable_partition_eof": True, "enable_auto_commit": False, **settings}
    consumer = Consumer(bootstrap.librdkafka(**wanted))
    consumer.assign([TopicPartition(topic, 0, offset)])
    found: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if (error := message.error()) is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            consumer.close()
            return found
        else:
            raise KafkaException(error)
    raise AssertionError(f"no end of {topic} after {len(found)} records")


def compacted(bootstrap: Bootstrap, topic: str, written: int) -> list[Message]:
    """What is left when compaction has come to rest."""
    before = written
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = read(bootstrap, topic)
        if len(found) == before < written / 4:
            return found
        before = len(found)
    raise AssertionError(f"{before} of {written} records are left, and they are still becoming fewer")


def places(found: list[Message]) -> list[int]:
    return [offset for message in found if (offset := message.offset()) is not None]


class Seen:
    """What clients read of a compacted topic, one after the other."""

    def __init__(self, bootstrap: Bootstrap, topic: str, written: int, java_file: str) -> None:
        self.found = compacted(bootstrap, topic, written)
        offsets = places(self.found)
        self.committed = places(read(bootstrap, topic, isolation_level="read_committed"))
        gaps = sorted(set(range(offsets[-1])) - set(offsets))[:: written // 4]
        self.from_gaps = {gone: places(read(bootstrap, topic, gone)) for gone in gaps}
        shown = ["print.key=true", "print.offset=true", "print.value=false"]
        lines = run_java(
            CONSOLE_CONSUMER,
            *["--bootstrap-server", bootstrap.address, "--command-config", java_file, "--topic", topic, "--from-beginning"],
            *["--max-messages", str(len(offsets)), "--timeout-ms", "20000"],
            *[word for one in shown for word in ("--formatter-property", one)],
        ).splitlines()
        rows = [line.removeprefix("Offset:").split("\t") for line in lines if line.startswith("Offset:")]
        self.printed = [(int(offset), key.encode()) for offset, key in rows]
        self.was_compacted_meanwhile = places(read(bootstrap, topic)) != offsets


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_the_newest_of_each_key_is_read_from_the_beginning_on(small: Bootstrap, topic: str, codec: str, tmp_path: Path) -> None:
    newest = write(small, topic, codec)
    written = ROUNDS * KEYS + KEYS // 8 + 100
    deadline = time.monotonic() + 2 * WAIT_S
    while (seen := Seen(small, topic, written, str(small.java_file(tmp_path / "client.properties")))).was_compacted_meanwhile:
        assert time.monotonic() < deadline, "compaction does not come to rest"
    found, offsets = seen.found, places(seen.found)
    assert offsets == sorted(set(offsets))
    assert (offsets[0], offsets[-1]) > (0, written - 2), "gaps at the beginning, all of the end"
    last = {message.key(): (message.offset(), message.value()) for message in found}
    assert last == newest
    deleted = [message.key() for message in found if message.value() is None]
    assert sorted(deleted) == sorted(b"key %d" % key for key in range(0, KEYS, 8))
    assert seen.committed == offsets
    assert seen.from_gaps
    for gone, met in seen.from_gaps.items():
        assert met == [offset for offset in offsets if offset > gone]
    assert seen.printed == [(message.offset(), message.key()) for message in found]
