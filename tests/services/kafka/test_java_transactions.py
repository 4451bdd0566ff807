"""Transactions of the Java client 4.3.1: the second protocol of them (KIP-890), and the tool that looks at them (KIP-664)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.companions.kafka.java import JavaTools
from tests.services.kafka.bootstrap import Bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

TOOLS = "org.apache.kafka.tools"
RECORDS = 5_000


@pytest.fixture(scope="module")
def java() -> Iterator[JavaTools]:
    tools = JavaTools()
    yield tools
    tools.close()


def test_records_written_in_transactions_are_all_read(java: JavaTools, bootstrap: Bootstrap, tmp_path: Path) -> None:
    server, file = ["--bootstrap-server", bootstrap.address], str(bootstrap.java_file(tmp_path / "client.properties"))
    topic = id = f"java-{uuid.uuid4().hex[:8]}"
    java.run(f"{TOOLS}.TopicCommand", *server, "--command-config", file, "--create", "--topic", topic, "--partitions", "3")
    performance = ["--topic", topic, "--num-records", str(RECORDS), "--record-size", "100", "--throughput", "-1"]
    transactions = ["--transactional-id", id, "--transaction-duration-ms", "20"]
    told = java.run(f"{TOOLS}.ProducerPerformance", *server, "--command-config", file, *performance, *transactions)
    assert f"{RECORDS} records sent" in told
    wanted = ["--topic", topic, "--from-beginning", "--max-messages", str(RECORDS), "--timeout-ms", "20000"]
    isolation = ["--isolation-level", "read_committed"]
    read = java.run(f"{TOOLS}.consumer.ConsoleConsumer", *server, "--command-config", file, *wanted, *isolation)
    assert len(read.splitlines()) == RECORDS
    about = f"{TOOLS}.TransactionsCommand"
    described = java.run(about, *server, "--command-config", file, "describe", "--transactional-id", id)
    assert "CompleteCommit" in described
    epoch = int(described.splitlines()[1].split()[3])
    assert epoch > 3, "an epoch for each transaction: the second protocol was spoken"
    assert id in java.run(about, *server, "--command-config", file, "list")
    producers = java.run(about, *server, "--command-config", file, "describe-producers", "--topic", topic, "--partition", "0")
    assert str(epoch) in producers
