"""What a client may do on its connection, one method for each operation, and what becomes of errors.

An error of an operation is an `error` message and the connection lives on, unless `gateway/errors.py` gives its class a close
code. A credential that no longer holds always ends the connection, with 4403: it was good when the connection was made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from broker.delivery.position import Position
from broker.topics.addresses import Address
from gateway.endpoints.websocket_frames import ack_frame, error_frame, going_away_frame, pong_frame, unsubscribed_frame
from gateway.endpoints.websocket_hub import PROTOCOL, Hub
from gateway.endpoints.websocket_messages import (
    AnyOperation,
    Auth,
    Credit,
    Ping,
    Publish,
    Refused,
    Subscribe,
    Unsubscribe,
    address_of,
    incoming_of,
    position_of,
)
from gateway.endpoints.websocket_output import Output
from gateway.endpoints.websocket_publisher import Publisher, UnderWay
from gateway.endpoints.websocket_subscriber import Subscriber
from gateway.errors import GatewayError, ParameterInvalid, problem, translate
from gateway.wire.websocket import CloseCode
from security.errors import IdentityProblem, SecurityError
from security.principal import Session

CREDIT_MAX = 2**31 - 1

Close: TypeAlias = Callable[[int, str], None]


class Operations:
    """Of one authenticated connection. `close` ends it; `on_room` is called when `blocked` has ended."""

    def __init__(self, hub: Hub, session: Session, output: Output, *, close: Close, on_room: Callable[[], None]) -> None:
        options = hub.options
        self.session = session
        self._hub, self._output, self._close = hub, output, close
        self._subscribers: dict[bytes, Subscriber] = {}
        self._turn = asyncio.Lock()
        self._stopped = False
        self._publisher = Publisher(
            hub.pipeline,
            operations_max=options.publishes_in_flight_max,
            bytes_max=options.publish_bytes_in_flight_max,
            answer=self._answer,
            on_room=on_room,
        )

    @property
    def blocked(self) -> bool:
        """As many publishes are under way as may be: nothing more is taken until one is acknowledged."""
        return self._publisher.full

    def run(self, operation: AnyOperation | Refused) -> None:
        match operation:
            case Publish():
                self.publish(operation)
            case Subscribe():
                self.subscribe(operation)
            case Unsubscribe():
                self.unsubscribe(operation)
            case Credit():
                self.credit(operation)
            case Ping():
                self._output.write(pong_frame(bytes(operation.ref)))
            case Refused():
                self._publisher.refuse(operation.ref, operation.error)
            case Auth():
                raise AssertionError("the connection itself authenticates")

    # The operations

    def publish(self, operation: Publish) -> None:
        ref = bytes(operation.ref)
        try:
            topic, records = incoming_of(operation)
        except GatewayError as error:
            self._publisher.refuse(ref, error)
            return
        size = sum([len(record.value or b"") + len(record.key or b"") for record in records])
        self._publisher.publish(self.session, topic, records, durable=operation.acks == "durable", ref=ref, size=size)

    def subscribe(self, operation: Subscribe) -> None:
        try:
            name, address, position = self._wanted(operation)
        except GatewayError as error:
            self._refuse(operation, error)
            return
        sub = _json(name)
        subscriber = Subscriber(
            self._hub,
            self.session,
            self._output,
            self._turn,
            self._on_failure,
            ref=bytes(operation.ref),
            sub=sub,
            topic=address.topic,
            key=address.key,
            credit=operation.credit,
        )
        self._subscribers[sub] = subscriber
        subscriber.start(position)

    def unsubscribe(self, operation: Unsubscribe) -> None:
        subscriber = self._subscribers.pop(_json(operation.sub), None)
        if subscriber is None:
            self._refuse(operation, _no_subscription(operation.sub))
            return
        subscriber.stop()
        self._output.write(unsubscribed_frame(subscriber.sub, subscriber.position(), ref=bytes(operation.ref)))

    def credit(self, operation: Credit) -> None:
        subscriber = self._subscribers.get(_json(operation.sub))
        if subscriber is None:
            self._refuse(operation, _no_subscription(operation.sub))
        elif subscriber.credit is None or operation.records < 1 or subscriber.credit + operation.records > CREDIT_MAX:
            reason = f"1 to {CREDIT_MAX} in all, for a subscription that was made with credit"
            self._refuse(operation, ParameterInvalid("records", reason))
        else:
            subscriber.add_credit(operation.records)

    # The connection

    def renew(self, session: Session) -> None:
        """The client has proved again who it is, maybe as somebody else: every subscription is asked for again."""
        self.session = session
        for subscriber in self._subscribers.values():
            subscriber.renew(session)

    def check(self) -> None:
        """End the connection if its credential no longer holds."""
        try:
            self._hub.pipeline.chain.still_valid(self.session.principal)
        except SecurityError as error:
            self._end(error)

    async def settled(self) -> None:
        """Wait until every publish under way has been answered."""
        await self._publisher.settled()

    def go_away(self) -> None:
        """Say where each subscription has to begin again."""
        subscribers = list(self._subscribers.values())
        for subscriber in subscribers:
            subscriber.stop()
        places = [(subscriber.sub, subscriber.position()) for subscriber in subscribers]
        self._output.write(going_away_frame((sub, cursor) for sub, cursor in places if cursor is not None))

    def stop(self) -> None:
        """The connection has ended: nothing more is read for it. Publishes under way go on, and are answered to nobody."""
        self._stopped = True
        for subscriber in self._subscribers.values():
            subscriber.stop()
        self._subscribers.clear()

    # Answers and errors

    def _answer(self, done: UnderWay) -> None:
        seconds = self._hub.metrics.request_seconds.labels(PROTOCOL, "publish")
        seconds.observe(time.perf_counter() - done.began_s)
        if isinstance(done.outcome, list):
            self._hub.count("publish", "ok")
            self._output.write(ack_frame(done.ref, done.outcome))
        elif isinstance(done.outcome, Exception):
            self._hub.count("publish", translate(done.outcome).slug)
            self._report(done.outcome, ref=done.ref)

    def _refuse(self, operation: Subscribe | Unsubscribe | Credit, error: Exception) -> None:
        sub = b"" if operation.sub is None else _json(operation.sub)
        self._hub.count(type(operation).__name__.lower(), translate(error).slug)
        self._report(error, ref=bytes(operation.ref), sub=sub)

    def _on_failure(self, subscriber: Subscriber, error: Exception) -> None:
        self._subscribers.pop(subscriber.sub, None)
        self._hub.count("subscribe", translate(error).slug)
        self._report(error, ref=subscriber.take_ref(), sub=subscriber.sub)

    def _report(self, error: Exception, *, ref: bytes = b"", sub: bytes = b"") -> None:
        if self._stopped:
            return
        self._hub.refused(translate(error).slug)
        self._output.write(error_frame(problem(error, self.session.id), ref=ref, sub=sub))
        if isinstance(error, IdentityProblem) or translate(error).websocket_close is not None:
            self._end(error)

    def _end(self, error: Exception) -> None:
        row = translate(error)
        code = CloseCode.FORBIDDEN if isinstance(error, IdentityProblem) else row.websocket_close or CloseCode.INTERNAL_ERROR
        self._close(code, row.title if row.detail else str(error))

    def _wanted(self, operation: Subscribe) -> tuple[str, Address, Position]:
        """Name, address and beginning of a subscription. ParameterInvalid."""
        options = self._hub.options
        address = address_of(operation)
        name = address.text() if operation.sub is None else operation.sub
        if len(name) > options.sub_chars_max:
            raise ParameterInvalid("sub", f"{len(name)} characters; websocket.sub_chars_max allows {options.sub_chars_max}")
        if _json(name) in self._subscribers:
            raise ParameterInvalid("sub", f"{name!r} is in use on this connection; unsubscribe it, or take another name")
        if len(self._subscribers) >= options.subscriptions_max:
            limit = options.subscriptions_max
            raise ParameterInvalid("sub", f"websocket.subscriptions_max ({limit}) is reached; unsubscribe, or connect again")
        if operation.credit is not None and not 0 <= operation.credit <= CREDIT_MAX:
            raise ParameterInvalid("credit", f"0 to {CREDIT_MAX} records")
        return name, address, position_of(operation.start)


def _no_subscription(name: str) -> ParameterInvalid:
    return ParameterInvalid("sub", f"there is no subscription {name[:80]!r} on this connection")


def _json(text: str) -> bytes:
    return msgspec.json.encode(text)
