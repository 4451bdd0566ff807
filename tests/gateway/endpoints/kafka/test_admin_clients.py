"""The admin clients of librdkafka and of kafka-python, unmodified, against a node."""

from __future__ import annotations

import asyncio
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import kafka.admin
import kafka.errors


async def test_librdkafka(kafka: Any) -> None:
    await asyncio.to_thread(_librdkafka, kafka.bootstrap, kafka.admin)
    assert dict(kafka.node.broker.topics()) == {}


def _librdkafka(bootstrap: str, token: str) -> None:
    told: list[str] = []
    admin = confluent_kafka.admin.AdminClient(
        {
            "bootstrap.servers": bootstrap,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "token",
            "sasl.password": token,
            "error_cb": lambda error: told.append(str(error)),
        }
    )
    new = [
        confluent_kafka.admin.NewTopic("orders", 3, 1, config={"retention.ms": "1000"}),
        confluent_kafka.admin.NewTopic("wide", 1, 3),
    ]
    made = admin.create_topics(new, request_timeout=10)
    assert made["orders"].result() is None
    assert _code(made["wide"]) == confluent_kafka.KafkaError.INVALID_REPLICATION_FACTOR
    assert len(admin.list_topics("orders", timeout=10).topics["orders"].partitions) == 3

    admin.create_partitions([confluent_kafka.admin.NewPartitions("orders", 5)], request_timeout=10)["orders"].result()
    assert len(admin.list_topics("orders", timeout=10).topics["orders"].partitions) == 5

    resource = confluent_kafka.admin.ConfigResource(confluent_kafka.admin.ResourceType.TOPIC, "orders")
    found = admin.describe_configs([resource], request_timeout=10)[resource].result()
    assert (found["retention.ms"].value, found["retention.ms"].is_default) == ("1000", False)
    assert found["min.insync.replicas"].is_read_only
    change = confluent_kafka.admin.ConfigEntry(
        "cleanup.policy", "compact", incremental_operation=confluent_kafka.admin.AlterConfigOpType.APPEND
    )
    changed = confluent_kafka.admin.ConfigResource(
        confluent_kafka.admin.ResourceType.TOPIC, "orders", incremental_configs=[change]
    )
    admin.incremental_alter_configs([changed], request_timeout=10)[changed].result()
    found = admin.describe_configs([resource], request_timeout=10)[resource].result()
    assert found["cleanup.policy"].value == "delete,compact"

    broker = confluent_kafka.admin.ConfigResource(confluent_kafka.admin.ResourceType.BROKER, "1")
    assert admin.describe_configs([broker], request_timeout=10)[broker].result()["node.id"].value == "1"

    place = confluent_kafka.TopicPartition("orders", 0, 0)
    cut = admin.delete_records([place], request_timeout=10)[place].result()
    assert cut.low_watermark == 0

    deleted = admin.delete_topics(["orders", "none"], request_timeout=10)
    assert deleted["orders"].result() is None
    assert _code(deleted["none"]) == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART
    assert told == []


def _code(future: Any) -> int:
    error = future.exception()
    assert isinstance(error, confluent_kafka.KafkaException), error
    code: int = error.args[0].code()
    return code


async def test_kafka_python(kafka: Any) -> None:
    await asyncio.to_thread(_kafka_python, kafka.bootstrap, kafka.admin)
    assert dict(kafka.node.broker.topics()) == {}


def _kafka_python(bootstrap: str, token: str) -> None:
    admin = kafka.admin.KafkaAdminClient(
        bootstrap_servers=bootstrap,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="token",
        sasl_plain_password=token,
    )
    try:
        admin.create_topics([kafka.admin.NewTopic("orders", 2, 1, topic_configs={"retention.ms": "1000"})])
        assert "orders" in admin.list_topics()
        admin.create_partitions({"orders": kafka.admin.NewPartitions(4)})
        (described,) = admin.describe_topics(["orders"])
        assert len(described["partitions"]) == 4
        resource = kafka.admin.ConfigResource(kafka.admin.ConfigResourceType.TOPIC, "orders")
        assert admin.describe_configs([resource])["topic"]["orders"]["retention.ms"]["value"] == "1000"
        (broker,) = admin.describe_log_dirs()
        assert len(broker["log_dirs"][0]["topics"][0]["partitions"]) == 4
        admin.delete_topics(["orders"])
    finally:
        admin.close()
