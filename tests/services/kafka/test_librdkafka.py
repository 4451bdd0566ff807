"""librdkafka, by confluent-kafka: what its users do."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from broker.topics.partitioner import partition_of
from tests.services.kafka.bootstrap import Bootstrap

pytestmark = pytest.mark.services

WAIT_S = 20
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


@pytest.fixture
def admin(bootstrap: Bootstrap) -> AdminClient:
    return AdminClient(bootstrap.librdkafka())


@pytest.fixture
def topic(admin: AdminClient) -> str:
    name = f"librdkafka-{uuid.uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, 3, 1)], operation_timeout=WAIT_S)[name].result(WAIT_S)
    return name


def produce(producer: Producer, topic: str, count: int, **fields: Any) -> list[Message]:
    """Produce `count` records and wait for all acknowledgements."""
    done: list[Message] = []
    failed: list[KafkaError] = []

    def settled(error: KafkaError | None, message: Message) -> None:
        failed.append(error) if error else done.append(message)

    for number in range(count):
        producer.produce(topic, value=str(number).encode(), key=f"key-{number % 17}".encode(), on_delivery=settled, **fields)
    assert producer.flush(WAIT_S) == 0
    assert failed == []
    return done


def consume(consumer: Consumer, count: int) -> list[Message]:
    found: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(found) < count and time.monotonic() < deadline:
        for message in consumer.consume(count - len(found), timeout=0.5):
            assert message.error() is None, message.error()
            found.append(message)
    assert len(found) == count
    return found


def reader(bootstrap: Bootstrap, topic: str, **settings: object) -> Consumer:
    group = settings.pop("group_id", uuid.uuid4().hex)
    consumer = Consumer(bootstrap.librdkafka(group_id=group, auto_offset_reset="earliest", **settings))
    consumer.subscribe([topic])
    return consumer


@pytest.mark.parametrize("codec", CODECS)
def test_an_idempotent_producer_and_a_group_keep_every_record_whatever_the_codec(
    bootstrap: Bootstrap, topic: str, codec: str
) -> None:
    producer = Producer(bootstrap.librdkafka(enable_idempotence=True, compression_type=codec, linger_ms=5))
    at = int(time.time() * 1000) - 5_000
    sent = produce(producer, topic, 500, headers=[("trace", b"\x00\xff"), ("empty", b""), ("null", None)], timestamp=at)
    consumer = reader(bootstrap, topic, enable_auto_commit=False)
    found = consume(consumer, 500)
    assert {(m.partition(), m.offset(), m.value()) for m in found} == {(m.partition(), m.offset(), m.value()) for m in sent}
    assert all(m.headers() == [("trace", b"\x00\xff"), ("empty", b""), ("null", None)] for m in found)
    assert {m.timestamp() for m in found} == {(TIMESTAMP_CREATE_TIME, at)}
    consumer.commit(asynchronous=False)
    committed = consumer.committed([TopicPartition(topic, number) for number in range(3)], timeout=WAIT_S)
    assert sum(max(0, entry.offset) for entry in committed) == 500
    consumer.close()


def test_keys_go_to_the_partitions_that_java_clients_and_the_other_edges_give_them(bootstrap: Bootstrap, topic: str) -> None:
    producer = Producer(bootstrap.librdkafka(partitioner="murmur2_random"))
    for message in produce(producer, topic, 100):
        assert message.partition() == partition_of(message.key(), 3)


def test_an_acknowledgement_can_be_left_out_or_asked_of_the_leader(bootstrap: Bootstrap, topic: str) -> None:
    for acks in (0, 1):
        produce(Producer(bootstrap.librdkafka(acks=acks)), topic, 50)
    consumer = reader(bootstrap, topic)
    consume(consumer, 100)
    consumer.close()


def test_reading_begins_inside_a_batch_at_a_time_and_at_both_ends(bootstrap: Bootstrap, topic: str) -> None:
    producer = Producer(bootstrap.librdkafka(linger_ms=200, batch_size=1_000_000))
    start = int(time.time() * 1000) - 100_000
    for number in range(100):
        producer.produce(topic, value=str(number).encode(), partition=0, timestamp=start + number * 1000)
    assert producer.flush(WAIT_S) == 0
    consumer = Consumer(bootstrap.librdkafka(group_id=uuid.uuid4().hex))
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=WAIT_S, cached=False) == (0, 100)
    [by_time] = consumer.offsets_for_times([TopicPartition(topic, 0, start + 40_500)], timeout=WAIT_S)
    assert by_time.offset == 41
    consumer.assign([TopicPartition(topic, 0, by_time.offset)])
    assert [m.value() for m in consume(consumer, 59)] == [str(number).encode() for number in range(41, 100)]
    [none] = consumer.offsets_for_times([TopicPartition(topic, 0, start + 999_000)], timeout=WAIT_S)
    assert none.offset == -1
    consumer.close()


def test_an_aborted_transaction_is_seen_by_nobody_who_reads_committed(bootstrap: Bootstrap, topic: str) -> None:
    producer = Producer(bootstrap.librdkafka(transactional_id=f"t-{uuid.uuid4().hex}"))
    producer.init_transactions(WAIT_S)
    for round_, end in enumerate([producer.commit_transaction, producer.abort_transaction, producer.commit_transaction]):
        producer.begin_transaction()
        for number in range(20):
            producer.produce(topic, value=f"{round_}-{number}".encode(), partition=number % 3)
        producer.flush(WAIT_S)
        end(WAIT_S)
    committed = reader(bootstrap, topic, isolation_level="read_committed")
    assert {m.value().split(b"-")[0] for m in consume(committed, 40)} == {b"0", b"2"}
    assert committed.consume(1, timeout=0.5) == []
    committed.close()
    everything = reader(bootstrap, topic, isolation_level="read_uncommitted")
    consume(everything, 60)
    everything.close()


def test_an_open_transaction_holds_back_the_stable_offset_and_a_newer_producer_fences_it(
    bootstrap: Bootstrap, admin: AdminClient, topic: str
) -> None:
    name = f"t-{uuid.uuid4().hex}"
    old = Producer(bootstrap.librdkafka(transactional_id=name))
    old.init_transactions(WAIT_S)
    old.begin_transaction()
    old.produce(topic, value=b"open", partition=0)
    old.flush(WAIT_S)
    asked = {TopicPartition(topic, 0): OffsetSpec.latest()}

    def latest(level: IsolationLevel) -> int:
        [found] = admin.list_offsets(asked, isolation_level=level, request_timeout=WAIT_S).values()
        return int(found.result(WAIT_S).offset)

    assert latest(IsolationLevel.READ_UNCOMMITTED) == 1
    assert latest(IsolationLevel.READ_COMMITTED) == 0
    new = Producer(bootstrap.librdkafka(transactional_id=name))
    new.init_transactions(WAIT_S)
    assert latest(IsolationLevel.READ_COMMITTED) == 2  # the record and the marker that ended it
    with pytest.raises(KafkaException) as refused:
        old.commit_transaction(WAIT_S)
    assert refused.value.args[0].code() in {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


def test_topics_are_created_described_changed_and_deleted(bootstrap: Bootstrap, admin: AdminClient) -> None:
    name = f"admin-{uuid.uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, 2, 1, config={"retention.ms": "7200000"})])[name].result(WAIT_S)
    with pytest.raises(KafkaException) as again:
        admin.create_topics([NewTopic(name, 2, 1)])[name].result(WAIT_S)
    assert again.value.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    configs = admin.describe_configs([resource])[resource].result(WAIT_S)
    assert configs["retention.ms"].value == "7200000"
    assert not configs["retention.ms"].is_default
    assert configs["cleanup.policy"].value == "delete"
    assert configs["cleanup.policy"].is_default
    change = ConfigEntry("retention.ms", "3600000", incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[change])
    admin.incremental_alter_configs([changed])[changed].result(WAIT_S)
    assert admin.describe_configs([resource])[resource].result(WAIT_S)["retention.ms"].value == "3600000"
    admin.create_partitions([NewPartitions(name, 5)])[name].result(WAIT_S)
    assert len(admin.list_topics(name, timeout=WAIT_S).topics[name].partitions) == 5
    admin.delete_topics([name])[name].result(WAIT_S)
    with pytest.raises(KafkaException) as gone:
        admin.delete_topics([name])[name].result(WAIT_S)
    assert gone.value.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART


def test_records_are_deleted_up_to_an_offset(bootstrap: Bootstrap, admin: AdminClient, topic: str) -> None:
    producer = Producer(bootstrap.librdkafka())
    for number in range(10):
        producer.produce(topic, value=b"%d" % number, partition=1)
    producer.flush(WAIT_S)
    [answer] = admin.delete_records([TopicPartition(topic, 1, 4)]).values()
    assert answer.result(WAIT_S).low_watermark == 4
    consumer = Consumer(bootstrap.librdkafka(group_id=uuid.uuid4().hex))
    assert consumer.get_watermark_offsets(TopicPartition(topic, 1), timeout=WAIT_S, cached=False) == (4, 10)
    consumer.close()


def test_groups_are_listed_described_moved_and_deleted(bootstrap: Bootstrap, admin: AdminClient, topic: str) -> None:
    produce(Producer(bootstrap.librdkafka()), topic, 30)
    group = f"g-{uuid.uuid4().hex[:8]}"
    consumer = reader(bootstrap, topic, group_id=group, enable_auto_commit=False)
    consume(consumer, 30)
    consumer.commit(asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(WAIT_S)
    assert (described.state.name, len(described.members)) == ("STABLE", 1)
    consumer.close()
    listed = admin.list_consumer_groups().result(WAIT_S)
    assert group in {entry.group_id for entry in listed.valid}
    partitions = [TopicPartition(topic, 0, 3)]
    moved = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, partitions)])
    moved[group].result(WAIT_S)
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0)])
    [offset] = admin.list_consumer_group_offsets([asked])[group].result(WAIT_S).topic_partitions
    assert offset.offset == 3
    admin.delete_consumer_groups([group])[group].result(WAIT_S)
    assert group not in {entry.group_id for entry in admin.list_consumer_groups().result(WAIT_S).valid}


def test_a_description_of_the_cluster_names_one_node(bootstrap: Bootstrap, admin: AdminClient) -> None:
    cluster = admin.describe_cluster().result(WAIT_S)
    assert [f"{node.host}:{node.port}" for node in cluster.nodes] == [bootstrap.address]
    assert cluster.controller.id == cluster.nodes[0].id
    assert cluster.cluster_id


def test_statistics_of_the_client_see_no_retries(bootstrap: Bootstrap, topic: str) -> None:
    seen: list[dict[str, Any]] = []
    keep: Callable[[str], None] = lambda text: seen.append(json.loads(text))  # noqa: E731
    producer = Producer(bootstrap.librdkafka(enable_idempotence=True, statistics_interval_ms=100) | {"stats_cb": keep})
    produce(producer, topic, 2_000)
    deadline = time.monotonic() + WAIT_S
    while not seen and time.monotonic() < deadline:
        producer.poll(0.1)
    assert sum(broker["txretries"] + broker["txerrs"] for broker in seen[-1]["brokers"].values()) == 0
