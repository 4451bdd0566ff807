"""Who foreign clients say they are: wrong tokens, passwords by SCRAM, client certificates; all of it within TLS."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as AiokafkaError
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient
from kafka.errors import KafkaError as PythonError

from security.certificates import ensure_development_ca, issue_client
from tests.companions.kafka.java import JavaTools
from tests.services.kafka.bootstrap import Bootstrap, write_properties
from tests.services.kafka.kafka_node import KafkaNode

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]

WAIT_S = 20
PASSWORD = "correct horse battery staple"
SCRAM = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
TOPICS = "org.apache.kafka.tools.TopicCommand"


@pytest.fixture(scope="module")
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    """A node that believes certificates too, with a user called `etl`."""
    binding = json.dumps([{"role": "admin", "principals": ["cert:device-*"]}])
    settings = {"listeners.kafka.tls": "mutual-optional", "policy.bindings": binding}
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "password").write_text(PASSWORD)
    with KafkaNode(folder / "home", **settings) as node:
        command = [sys.executable, "-m", "gateway.cli.main", "users", "add", "etl", "--role", "admin", "--home", str(node.home)]
        subprocess.run([*command, "--password-file", str(folder / "password")], check=True, capture_output=True)
        yield node


@pytest.fixture(scope="module")
def java() -> Iterator[JavaTools]:
    tools = JavaTools()
    yield tools
    tools.close()


def java_login(bootstrap: Bootstrap, mechanism: str, name: str, password: str) -> dict[str, str]:
    login = f'org.apache.kafka.common.security.scram.ScramLoginModule required username="{name}" password="{password}";'
    return bootstrap.java() | {"sasl.mechanism": mechanism, "sasl.jaas.config": login}


def list_topics(java: JavaTools, bootstrap: Bootstrap, properties: dict[str, str], folder: Path) -> str:
    path = write_properties(folder / f"{uuid.uuid4().hex}.properties", properties)
    return java.run(TOPICS, "--bootstrap-server", bootstrap.address, "--command-config", str(path), "--list")


@pytest.mark.parametrize("mechanism", SCRAM)
def test_a_password_opens_the_door_to_java(own_node: KafkaNode, java: JavaTools, tmp_path: Path, mechanism: str) -> None:
    bootstrap = own_node.bootstrap
    list_topics(java, bootstrap, java_login(bootstrap, mechanism, "etl", PASSWORD), tmp_path)
    for name, password in (("etl", "wrong"), ("nobody", PASSWORD)):
        with pytest.raises(AssertionError, match="credentials are not valid"):
            list_topics(java, bootstrap, java_login(bootstrap, mechanism, name, password), tmp_path)


def test_java_s_tools_make_a_user_who_may_nothing_yet(own_node: KafkaNode, java: JavaTools, tmp_path: Path) -> None:
    bootstrap = own_node.bootstrap
    admin = str(bootstrap.java_file(tmp_path / "admin.properties"))
    common = [
        "--bootstrap-server",
        bootstrap.address,
        "--command-config",
        admin,
        "--entity-type",
        "users",
        "--entity-name",
        "new",
    ]
    change = ["--alter", "--add-config", "SCRAM-SHA-512=[iterations=8192,password=a-long-enough-one]"]
    java.run("kafka.admin.ConfigCommand", *common, *change)
    assert "iterations=8192" in java.run("kafka.admin.ConfigCommand", *common, "--describe")
    login = java_login(bootstrap, "SCRAM-SHA-512", "new", "a-long-enough-one")
    assert list_topics(java, bootstrap, login, tmp_path).strip() == ""


@pytest.mark.parametrize("mechanism", SCRAM)
async def test_a_password_opens_the_door_to_python(own_node: KafkaNode, mechanism: str) -> None:
    words = {"sasl_mechanism": mechanism, "sasl_plain_username": "etl", "sasl_plain_password": PASSWORD}
    topic = f"scram-{uuid.uuid4().hex[:8]}"
    async with AIOKafkaProducer(**own_node.bootstrap.aiokafka(**words)) as producer:
        assert (await producer.send_and_wait(topic, b"x")).offset == 0
    client = await asyncio.to_thread(lambda: KafkaAdminClient(**own_node.bootstrap.kafka_python(**words)))
    assert topic in await asyncio.to_thread(client.list_topics)
    await asyncio.to_thread(client.close)


def test_a_certificate_opens_the_door_to_java_and_librdkafka(own_node: KafkaNode, java: JavaTools, tmp_path: Path) -> None:
    bootstrap = own_node.bootstrap
    assert bootstrap.ca is not None
    certificate, key = issue_client(
        ensure_development_ca(bootstrap.ca.parent, [], datetime.now(UTC)), "device-7", 1, datetime.now(UTC)
    )
    pem = tmp_path / "device.pem"
    pem.write_bytes(key + certificate)
    store = {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(pem)}
    trusted = {name: value for name, value in bootstrap.java().items() if not name.startswith("sasl.")}
    list_topics(java, bootstrap, trusted | store | {"security.protocol": "SSL"}, tmp_path)
    settings = {"bootstrap.servers": bootstrap.address, "security.protocol": "ssl", "ssl.ca.location": str(bootstrap.ca)}
    settings |= {"ssl.certificate.location": str(pem), "ssl.key.location": str(pem)}
    assert AdminClient(settings).list_topics(timeout=WAIT_S).brokers


async def test_a_wrong_token_is_told_so_by_every_client(own_node: KafkaNode, java: JavaTools, tmp_path: Path) -> None:
    wrong = Bootstrap(own_node.bootstrap.address, "not-a-token", own_node.bootstrap.ca)
    with pytest.raises(AssertionError, match="credentials are not valid"):
        await asyncio.to_thread(list_topics, java, wrong, wrong.java(), tmp_path)
    told: list[Any] = []
    client = AdminClient(wrong.librdkafka() | {"error_cb": lambda error: told.append(error.code())})
    while KafkaError._AUTHENTICATION not in told:
        await asyncio.to_thread(client.poll, 0.1)
    producer = AIOKafkaProducer(**wrong.aiokafka())
    with pytest.raises(AiokafkaError):
        await producer.start()
    await producer.stop()
    with pytest.raises(PythonError):
        await asyncio.to_thread(lambda: KafkaAdminClient(**wrong.kafka_python(bootstrap_timeout_ms=5_000)))
