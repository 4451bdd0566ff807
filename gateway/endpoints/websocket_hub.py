"""What the WebSocket connections of a node share: broadcasts, the flush, the bound on reads, the look at credentials."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.endpoints.websocket_broadcast import Address, Broadcast
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.endpoints.websocket_output import Flusher
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.websocket import WebSocketProtocol
    from gateway.endpoints.websocket_subscriber import Subscriber

PROTOCOL = "websocket"


class Hub:
    """Made with the first connection, on the loop that serves it."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, options: WebSocketOptions) -> None:
        self.pipeline, self.metrics, self.options = pipeline, metrics, options
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self.flusher = Flusher(self.loop)
        self.reads = asyncio.Semaphore(options.reads_in_flight_max)
        self._broadcasts: dict[Address, Broadcast] = {}
        self._connections: dict[WebSocketProtocol, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, connection: WebSocketProtocol) -> None:
        self._connections[connection] = None
        self.metrics.connections.labels(PROTOCOL).inc()
        if self._timer is None:
            self._look_later()

    def closed(self, connection: WebSocketProtocol) -> None:
        del self._connections[connection]
        self.metrics.connections.labels(PROTOCOL).dec()
        if not self._connections and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def refused(self, reason: str) -> None:
        """`reason` is a word of ours: a problem's slug."""
        self.metrics.refused_total.labels(PROTOCOL, reason).inc()

    def count(self, operation: str, outcome: str) -> None:
        """`outcome` is "ok" or a problem's slug."""
        self.metrics.requests_total.labels(PROTOCOL, operation, outcome).inc()

    # Delivery

    def shares(self, session: Session, topic: str, key: bytes | None) -> bool:
        """Whether the session may have every record of the address, so that it may share a frame with others that may.

        Raises what `Pipeline.authorise` raises: AccessDenied, IdentityProblem.
        """
        decision = self.pipeline.authorise(session, Action.READ, topic)
        return decision.form is Decision.ALL or (key is not None and decision.allows(key))

    def reached(self, member: Subscriber, *, caught_up: bool) -> bool:
        """Whether the subscriber stands where its address is broadcast; `caught_up` says that it has just seen the live end."""
        broadcast = self._broadcasts.get((member.topic, member.key))
        return caught_up if broadcast is None else member.cursor >= broadcast.cursor

    def join(self, member: Subscriber) -> None:
        """For a subscriber that has reached and may share; the first one begins the broadcast, at its own cursor."""
        address = (member.topic, member.key)
        broadcast = self._broadcasts.get(address)
        if broadcast is None:
            broadcast = self._broadcasts[address] = Broadcast(self, address, member.cursor)
        broadcast.join(member)

    def forget(self, address: Address) -> None:
        """The broadcast has lost its last member."""
        del self._broadcasts[address]

    def pays(self, session: Session, size_bytes: int) -> bool:
        """Charge the session's principal for a delivery; False, and nothing charged, while it is over its quota."""
        return self.pipeline.owed_ms(session, Quota.BYTES_OUT, size_bytes) == 0

    # Credentials

    def _look_later(self) -> None:
        self._timer = self.loop.call_later(self.options.recheck_ms / 1000, self._look)

    def _look(self) -> None:
        """Idle connections too must notice that a token was revoked, or that the peer is gone."""
        self._look_later()
        for connection in list(self._connections):
            connection.look()
