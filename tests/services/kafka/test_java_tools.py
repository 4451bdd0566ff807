"""The Java client 4.3.1 by Apache Kafka's own command-line tools."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from tests.companions.kafka.java import JavaTools
from tests.services.kafka.bootstrap import Bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

TOOLS = "org.apache.kafka.tools"
GROUPS = f"{TOOLS}.consumer.group.ConsumerGroupCommand"
CONSOLE_CONSUMER = f"{TOOLS}.consumer.ConsoleConsumer"


class Tools:
    """The tools with the options that all of them share."""

    def __init__(self, java: JavaTools, bootstrap: Bootstrap, folder: Path) -> None:
        self.java = java
        self._server = ["--bootstrap-server", bootstrap.address]
        self._file = str(bootstrap.java_file(folder / "client.properties"))

    def run(self, tool: str, *arguments: str, stdin: str = "") -> str:
        name = tool if "." in tool else f"{TOOLS}.{tool}"
        return self.java.run(name, *self._server, "--command-config", self._file, *arguments, stdin=stdin)

    def create(self, topic: str, *arguments: str) -> None:
        self.run("TopicCommand", "--create", "--topic", topic, *arguments)

    def console_consumer(self, topic: str, *arguments: str) -> list[str]:
        wanted = ["--topic", topic, "--from-beginning", "--timeout-ms", "20000"]
        return self.run(CONSOLE_CONSUMER, *wanted, *arguments).splitlines()


@pytest.fixture(scope="module")
def java() -> Iterator[JavaTools]:
    tools = JavaTools()
    yield tools
    tools.close()


@pytest.fixture
def tools(java: JavaTools, bootstrap: Bootstrap, tmp_path: Path) -> Tools:
    return Tools(java, bootstrap, tmp_path)


@pytest.fixture
def topic() -> str:
    return f"java-{uuid.uuid4().hex[:8]}"


def test_topics_are_created_changed_described_and_deleted(tools: Tools, topic: str) -> None:
    tools.create(topic, "--partitions", "2", "--config", "retention.ms=7200000")
    described = tools.run("TopicCommand", "--describe", "--topic", topic)
    assert "PartitionCount: 2" in described
    assert "retention.ms=7200000" in described
    tools.run("TopicCommand", "--alter", "--topic", topic, "--partitions", "4")
    entity = ["--entity-type", "topics", "--entity-name", topic]
    tools.run("kafka.admin.ConfigCommand", "--alter", *entity, "--add-config", "retention.ms=3600000")
    assert "retention.ms=3600000" in tools.run("kafka.admin.ConfigCommand", "--describe", *entity)
    every = tools.run("kafka.admin.ConfigCommand", "--describe", "--all", *entity)
    for name in (
        "cleanup.policy",
        "compression.type",
        "max.message.bytes",
        "min.insync.replicas",
        "unclean.leader.election.enable",
    ):
        assert f"  {name}=" in every
    assert topic in tools.run("TopicCommand", "--list").split()
    tools.run("TopicCommand", "--delete", "--topic", topic)
    assert topic not in tools.run("TopicCommand", "--list").split()


def test_what_the_console_says_a_group_reads_and_its_offsets_are_moved(tools: Tools, topic: str) -> None:
    tools.create(topic, "--partitions", "2")
    lines = "".join(f"key-{number}:value {number}\n" for number in range(100))
    properties = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=:"]
    tools.run("ConsoleProducer", "--topic", topic, *properties, stdin=lines)
    group = f"g-{uuid.uuid4().hex[:8]}"
    shown = ["--formatter-property", "print.key=true", "--formatter-property", "key.separator=:"]
    found = tools.console_consumer(topic, "--group", group, "--max-messages", "100", *shown)
    assert sorted(line for line in found if ":" in line) == sorted(lines.splitlines())
    described = tools.run(GROUPS, "--describe", "--group", group)
    assert sum(int(row.split()[3]) for row in described.splitlines() if topic in row) == 100
    reset = ["--reset-offsets", "--to-earliest", "--topic", topic, "--execute"]
    tools.run(GROUPS, *reset, "--group", group)
    assert len(tools.console_consumer(topic, "--group", group, "--max-messages", "100")) >= 100
    assert group in tools.run(GROUPS, "--list").split()
    tools.run(GROUPS, "--delete", "--group", group)
    assert group not in tools.run(GROUPS, "--list").split()


def test_a_group_of_the_consumer_protocol_as_its_tools_show_it(tools: Tools, topic: str) -> None:
    """KIP-848: the client's own heartbeats, then ConsumerGroupDescribe behind --describe."""
    tools.create(topic, "--partitions", "2")
    said = "".join(f"{number}\n" for number in range(100))
    tools.run("ConsoleProducer", "--topic", topic, stdin=said)
    group = f"g-{uuid.uuid4().hex[:8]}"
    modern = ["--command-property", "group.protocol=consumer"]
    found = tools.console_consumer(topic, "--group", group, "--max-messages", "100", *modern)
    assert sorted(map(int, filter(str.isdigit, found))) == list(range(100))
    assert re.search(rf"{group}\s+Consumer", tools.run(GROUPS, "--list", "--type"))
    assert re.search(r"uniform\s+Empty\s+0", tools.run(GROUPS, "--describe", "--group", group, "--state"))
    lags = re.findall(rf"{topic}\s+\d\s+\d+\s+\d+\s+(\d+)", tools.run(GROUPS, "--describe", "--group", group))
    assert lags == ["0", "0"]
    tools.run(GROUPS, "--delete-offsets", "--group", group, "--topic", topic)
    assert topic not in tools.run(GROUPS, "--describe", "--group", group)
    tools.run(GROUPS, "--delete", "--group", group)
    assert group not in tools.run(GROUPS, "--list").split()


def test_records_are_deleted_and_offsets_are_shown(tools: Tools, topic: str, tmp_path: Path) -> None:
    tools.create(topic, "--partitions", "1")
    tools.run("ConsoleProducer", "--topic", topic, stdin="".join(f"{number}\n" for number in range(10)))
    wanted = tmp_path / "delete.json"
    wanted.write_text(f'{{"partitions": [{{"topic": "{topic}", "partition": 0, "offset": 4}}], "version": 1}}')
    assert "low_watermark: 4" in tools.run("DeleteRecordsCommand", "--offset-json-file", str(wanted))
    for place, offset in (("earliest", 4), ("latest", 10)):
        assert f"{topic}:0:{offset}" in tools.run("GetOffsetShell", "--topic", topic, "--time", place)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_the_performance_tools_pass_ten_thousand_records(
    bootstrap: Bootstrap, tools: Tools, topic: str, tmp_path: Path, codec: str
) -> None:
    tools.create(topic)
    producer = bootstrap.java_file(tmp_path / "producer.properties", compression_type=codec, linger_ms=5)
    numbers = ["--num-records", "10000", "--record-size", "1024", "--throughput", "-1"]
    said = tools.java.run(f"{TOOLS}.ProducerPerformance", "--topic", topic, *numbers, "--command-config", str(producer))
    assert said.splitlines()[-1].startswith("10000 records sent")
    # Ten seconds of patience for the first record, and numbers alone on the last line.
    arguments = ["--topic", topic, "--num-records", "10000", "--hide-header", "--timeout", "10000"]
    [row] = [line for line in tools.run("ConsumerPerformance", *arguments).splitlines() if line.startswith("20")]
    assert int(re.split(r", ", row)[4]) >= 10_000


def test_a_node_says_which_versions_it_serves_and_who_it_is(tools: Tools, topic: str) -> None:
    tools.create(topic)
    served = tools.run("BrokerApiVersionsCommand")
    for name in ("Produce(0)", "Fetch(1)", "FindCoordinator(10)", "InitProducerId(22)", "EndTxn(26)"):
        assert name in served
        assert f"{name}: UNSUPPORTED" not in served
    log_dirs = tools.run("LogDirsCommand", "--describe", "--topic-list", topic)
    assert f'"partition":"{topic}-0"' in log_dirs


def test_a_transaction_left_open_is_listed_described_and_ended(bootstrap: Bootstrap, tools: Tools, topic: str) -> None:
    tools.create(topic, "--partitions", "1")
    left = Producer(bootstrap.librdkafka(transactional_id=f"{topic}-t"))
    left.init_transactions(20)
    left.begin_transaction()
    left.produce(topic, b"open", partition=0)
    left.flush(20)
    listed = [row.split() for row in tools.run("TransactionsCommand", "list").splitlines()]
    [(_, _, producer_id, state)] = [row for row in listed if row and row[0] == f"{topic}-t"]
    assert state == "Ongoing"
    described = tools.run("TransactionsCommand", "describe", "--transactional-id", f"{topic}-t")
    assert f"{topic}-0" in described
    producers = tools.run("TransactionsCommand", "describe-producers", "--topic", topic, "--partition", "0")
    assert producer_id in producers
    tools.run("TransactionsCommand", "forceTerminateTransaction", "--transactionalId", f"{topic}-t")
    assert "Ongoing" not in tools.run("TransactionsCommand", "describe", "--transactional-id", f"{topic}-t")


def test_the_node_and_the_members_of_a_group_are_described(bootstrap: Bootstrap, tools: Tools, topic: str) -> None:
    broker = tools.run("kafka.admin.ConfigCommand", "--describe", "--all", "--entity-type", "brokers", "--entity-name", "1")
    assert "  log.retention.ms=" in broker
    tools.create(topic, "--partitions", "1")
    tools.run("ConsoleProducer", "--topic", topic, stdin="a\n")
    group = f"g-{uuid.uuid4().hex[:8]}"
    member = Consumer(bootstrap.librdkafka(group_id=group, auto_offset_reset="earliest"))
    member.subscribe([topic])
    while not member.consume(1, timeout=0.5):
        pass
    assert " referee" in tools.run(GROUPS, "--describe", "--members", "--group", group)
    assert "Stable" in tools.run(GROUPS, "--describe", "--state", "--group", group)
    assert group in tools.run(GROUPS, "--list", "--state", "Stable")
    member.close()
    assert "Empty" in tools.run(GROUPS, "--describe", "--state", "--group", group)
