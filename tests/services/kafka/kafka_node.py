"""A node process for Kafka clients, to be killed and started again."""

from __future__ import annotations

from pathlib import Path

from tests.services.kafka.bootstrap import Bootstrap
from tests.services.node_process import NodeProcess, free_port


class KafkaNode(NodeProcess):
    """Its Kafka listener has one port for all its lives; groups do not wait for further members, as tests are short."""

    def __init__(self, home: Path, **settings: object) -> None:
        self._port = free_port()
        super().__init__(home, **{"listeners.kafka.port": self._port, "groups.initial_rebalance_delay_ms": 0, **settings})

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(f"127.0.0.1:{self._port}", self.token, self.profile.ca)
