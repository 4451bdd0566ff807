"""The node as Kafka's handlers see it: the pipeline, the services behind the APIs, and who it says it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from broker.broker import Broker
from broker.seams import Clock
from gateway.endpoints.kafka.fetch_sessions import FetchSessions
from gateway.endpoints.kafka.options import KafkaOptions
from gateway.endpoints.kafka.request_memory import RequestMemory
from gateway.observe.metrics import Metrics, Spread, Tally
from gateway.pipeline import Pipeline
from security.identity.users import UserStore

if TYPE_CHECKING:
    from gateway.endpoints.kafka.operation import Operation


PROTOCOL = "kafka"


class KafkaNode:
    """`cluster_id` is 22 characters of base64url, as Kafka's are. What a service is None for is not advertised."""

    def __init__(
        self,
        pipeline: Pipeline,
        clock: Clock,
        metrics: Metrics,
        cluster_id: str,
        options: KafkaOptions | None = None,
        *,
        users: UserStore | None = None,
        groups: Any = None,
        transactions: Any = None,
        auto_create: bool = True,
    ) -> None:
        self.pipeline, self.clock, self.metrics = pipeline, clock, metrics
        self.broker: Broker = pipeline.broker
        self.options = options or KafkaOptions()
        self.cluster_id, self.auto_create = cluster_id, auto_create
        self.users, self.groups, self.transactions = users, groups, transactions
        self.operations: Mapping[int, Operation] = {}
        self._counted: dict[tuple[str, str], tuple[Tally, Spread]] = {}
        self.memory = RequestMemory(self.options.received_bytes_max)
        sessions_max, partitions_max = self.options.fetch_sessions_max, self.options.fetch_session_partitions_max
        self.fetch_sessions = FetchSessions(sessions_max, partitions_max, clock.monotonic_ms)

    def counted(self, operation: str, outcome: str) -> tuple[Tally, Spread]:
        """The counter and the histogram of an operation."""
        found = self._counted.get((operation, outcome))
        if found is None:
            total = self.metrics.requests_total.labels(PROTOCOL, operation, outcome)
            found = self._counted[operation, outcome] = (total, self.metrics.request_seconds.labels(PROTOCOL, operation))
        return found

    @property
    def node_id(self) -> int:
        return self.options.node_id

    def advertised(self, local: tuple[str, int]) -> tuple[str, int]:
        """Where clients are told to connect: as configured, else the address that this one has connected to."""
        return self.options.advertised_host or local[0], self.options.advertised_port or local[1]
