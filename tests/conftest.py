"""What many tests start from: a real embedded engine on a folder of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

from broker.engine.embedded import EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms
from tests.companions.kafka.apache import ApacheKafka
from tests.companions.kafka.java import VERSION as APACHE_VERSION

settings.register_profile("everyday", max_examples=60, deadline=None)
settings.register_profile("campaign", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))

COMPANIONS = Path(__file__).parent / "companions"
FOREIGN = ("confluent-kafka", "kafka-python", "aiokafka")


def pytest_report_header() -> list[str]:
    """The Kafka clients that are the referees; what each of them asks for differs from version to version."""
    installed = [f"{name} {version(name)}" for name in FOREIGN]
    modules = json.loads((COMPANIONS / "kafkajs" / "package.json").read_text())["dependencies"]
    go = re.findall(
        r"^\tgithub\.com/(?:IBM|twmb)/(sarama|franz-go) v(\S+)$", (COMPANIONS / "go" / "go.mod").read_text(), re.MULTILINE
    )
    found = [*installed, f"Apache Kafka (broker, Java clients and tools) {APACHE_VERSION}", f"kafkajs {modules['kafkajs']}"]
    return ["Kafka clients: " + ", ".join(found + [f"{name} {number}" for name, number in go])]


OpenEngine = Callable[..., EmbeddedEngine]


@pytest.fixture
def open_engine(tmp_path: Path) -> OpenEngine:
    """Makes an engine over `tmp_path/data` with keys in `tmp_path/keys`; call again for the next life of the same folder."""

    def make(**options: object) -> EmbeddedEngine:
        keys = tmp_path / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        kek = keys / "kek.json"
        kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
        keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), kms, os.urandom)
        return EmbeddedEngine(MachineSeams(tmp_path / "data"), keystore, LogOptions(**options))  # type: ignore[arg-type]

    return make


@pytest.fixture
async def engine(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """A started engine, closed after the test."""
    made = open_engine()
    await made.start()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A real Apache Kafka, started once for all tests that compare with it."""
    with ApacheKafka(tmp_path_factory.mktemp("apache") / "kafka") as kafka:
        yield kafka
