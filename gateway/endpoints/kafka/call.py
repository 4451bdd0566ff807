"""One request, as its handler sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.kafka.connection import KafkaProtocol
    from gateway.endpoints.kafka.node import KafkaNode


class Call:
    """`connection` is for closing it and for its authentication; `request_id` names the request in the node's log; `began_s` is
    when its turn came, by the loop's clock."""

    __slots__ = ("_session", "api", "began_s", "client_id", "connection", "correlation_id", "node", "version")

    def __init__(
        self,
        node: KafkaNode,
        connection: KafkaProtocol,
        session: Session | None,
        api: int,
        version: int,
        correlation_id: int,
        client_id: str | None,
        began_s: float,
    ) -> None:
        self.node, self.connection, self._session = node, connection, session
        self.api, self.version = api, version
        self.correlation_id, self.client_id = correlation_id, client_id
        self.began_s = began_s

    @property
    def session(self) -> Session:
        """Who asks; open operations must not ask."""
        assert self._session is not None
        return self._session

    def identified(self, session: Session) -> None:
        """Before the handler runs."""
        self._session = session

    @property
    def authenticated(self) -> bool:
        return self._session is not None

    @property
    def peer(self) -> str:
        return self.connection.peer

    @property
    def request_id(self) -> str:
        return f"{self.connection.id}-{self.correlation_id & 0xFFFFFFFF}"

    def advertised(self) -> tuple[str, int]:
        """Host and port by which this client reaches the node again."""
        return self.node.advertised(self.connection.local)
