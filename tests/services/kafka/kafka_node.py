"""A node process for Kafka clients, to be killed and started again."""

from __future__ import annotations

from pathlib import Path

from tests.services.kafka.bootstrap import Bootstrap
from tests.services.node_process import NodeProcess, free_port

# Tests are short: no wait for further members, and members of the consumer protocol are missed as soon as classic ones can be.
QUICK_GROUPS = {
    "groups.initial_rebalance_delay_ms": 0,
    "groups.consumer_session_timeout_ms": 6_000,
    "groups.consumer_heartbeat_interval_ms": 500,
}


class KafkaNode(NodeProcess):
    """Its Kafka listener has one port for all its lives."""

    def __init__(self, home: Path, **settings: object) -> None:
        self._port = free_port()
        super().__init__(home, **{"listeners.kafka.port": self._port, **QUICK_GROUPS, **settings})

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(f"127.0.0.1:{self._port}", self.token, self.profile.ca)
