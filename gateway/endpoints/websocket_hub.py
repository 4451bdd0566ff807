"""What the WebSocket connections of a node share: broadcasts, the flush, the bound on reads, the look at credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from broker.delivery.filter import Filter
from broker.delivery.position import Cursor, Position
from broker.delivery.subscription import Subscription
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.websocket_broadcast import Broadcast, Interest
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.endpoints.websocket_output import Flusher
from gateway.feed import Feed
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.sse_live import LiveStream
    from gateway.endpoints.websocket import WebSocketProtocol
    from gateway.endpoints.websocket_subscriber import Subscriber

PROTOCOL = "websocket"


class Hub:
    """Made with the first connection, on the loop that serves it."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, options: WebSocketOptions, buffers: SendBuffers) -> None:
        self.pipeline, self.metrics, self.options = pipeline, metrics, options
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self.buffers = buffers
        self.flusher = Flusher(self.loop, buffers)
        self.reads = asyncio.Semaphore(options.reads_in_flight_max)
        self._broadcasts: dict[Interest, Broadcast] = {}
        self._connections: dict[WebSocketProtocol, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, connection: WebSocketProtocol) -> None:
        self._connections[connection] = None
        self.buffers.connections += 1
        self.metrics.connections.labels(PROTOCOL).inc()
        if self._timer is None:
            self._look_later()

    def closed(self, connection: WebSocketProtocol) -> None:
        del self._connections[connection]
        self.buffers.connections -= 1
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

    async def subscribe(self, session: Session, interest: Interest, position: Position) -> Feed:
        """A feed for one session, authorised and paced."""
        if isinstance(interest, Filter):
            return await self.pipeline.subscribe_filter(session, interest, position)
        return await self.pipeline.subscribe(session, interest.topic, interest.key, position)

    async def follow(self, interest: Interest, cursor: Cursor) -> Subscription:
        """What is read for a broadcast, or only to be woken up: nobody is asked here, `shares` is."""
        if isinstance(interest, Filter):
            return await self.pipeline.broker.subscribe_filter(interest, cursor)
        return await self.pipeline.broker.subscribe(interest.topic, interest.key, cursor)

    @property
    def piece(self) -> tuple[int, int]:
        """Bytes and records of one read: less than the options say where there are very many connections."""
        options = self.options
        return self.buffers.piece_bytes(options.read_bytes_max), self.buffers.piece_records(options.read_records_max)

    def shares(self, session: Session, interest: Interest, topics: Iterable[str] | None = None) -> bool:
        """Whether the session may have every record of it, so that it may share a frame with others that may.

        `topics` are those at hand; None: all that the interest reaches now. Raises AccessDenied, IdentityProblem; for a filter
        over several topics nothing is refused, what may not be read is not there.
        """
        if not isinstance(interest, Filter):
            decision = self.pipeline.authorise(session, Action.READ, interest.topic)
            return decision.form is Decision.ALL or (interest.key is not None and decision.allows(interest.key))
        if interest.topic is not None:
            return self.pipeline.authorise(session, Action.READ, interest.topic).form is Decision.ALL
        self.pipeline.chain.still_valid(session.principal)
        reached = filter(interest.topics, self.pipeline.broker.topics()) if topics is None else topics
        return all(self._may_read_all(session, topic) for topic in reached)

    def _may_read_all(self, session: Session, topic: str) -> bool:
        pipeline = self.pipeline
        decision = pipeline.policy.decide(session.principal, Action.READ, topic, pipeline.clock.now_ms())
        return decision.form is Decision.ALL

    def reached(self, member: Subscriber | LiveStream, *, caught_up: bool) -> bool:
        """Whether the subscriber stands where its address is broadcast; `caught_up` says that it has just seen the live end."""
        broadcast = self._broadcasts.get(member.interest)
        return caught_up if broadcast is None else member.cursor >= broadcast.cursor

    def join(self, member: Subscriber | LiveStream) -> None:
        """For a subscriber that has reached and may share; the first one begins the broadcast, at its own cursor."""
        interest = member.interest
        broadcast = self._broadcasts.get(interest)
        if broadcast is None:
            broadcast = self._broadcasts[interest] = Broadcast(self, interest, member.cursor)
        broadcast.join(member)

    def forget(self, interest: Interest) -> None:
        """The broadcast has lost its last member."""
        del self._broadcasts[interest]

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
