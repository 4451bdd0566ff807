"""One node for all foreign clients, with TLS and SASL PLAIN as it comes; their tests name topics and groups of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services.kafka.bootstrap import Bootstrap
from tests.services.kafka.kafka_node import KafkaNode


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    with KafkaNode(tmp_path_factory.mktemp("kafka") / "home") as started:
        yield started
        assert started.stop() == 0


@pytest.fixture(scope="session")
def bootstrap(node: KafkaNode) -> Bootstrap:
    return node.bootstrap
