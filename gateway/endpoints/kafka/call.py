"""One request, as its handler sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.kafka.connection import KafkaProtocol
    from gateway.endpoints.kafka.node import KafkaNode


class Call(msgspec.Struct, eq=False):
    """`connection` is for closing it and for its authentication; `request_id` names the request in the node's log; `began_s` is
    when its turn came, by the loop's clock."""

    node: KafkaNode
    connection: KafkaProtocol
    api: int
    version: int
    correlation_id: int
    client_id: str | None
    began_s: float
    session: Session = msgspec.UNSET  # type: ignore[assignment]  # who asks, set before the handler runs, but for open operations

    @property
    def peer(self) -> str:
        return self.connection.peer

    @property
    def request_id(self) -> str:
        return f"{self.connection.id}-{self.correlation_id & 0xFFFFFFFF}"

    def advertised(self) -> tuple[str, int]:
        """Host and port by which this client reaches the node again."""
        return self.node.advertised(self.connection.local)
