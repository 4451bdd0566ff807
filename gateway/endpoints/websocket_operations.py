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

from broker.columns import Columns
from broker.delivery.consumer import Settled
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.position import Position
from broker.errors import BrokerError
from gateway.endpoints.websocket_broadcast import Interest, plainest
from gateway.endpoints.websocket_consumer import ConsumerReader
from gateway.endpoints.websocket_frames import Frames
from gateway.endpoints.websocket_hub import PROTOCOL, Hub
from gateway.endpoints.websocket_messages import (
    Ack,
    AnyConsume,
    AnyOperation,
    AnyPublish,
    AnySubscribe,
    Auth,
    Consume,
    Credit,
    Extend,
    Nack,
    PackedConsume,
    PackedPublish,
    PackedSubscribe,
    Pause,
    Ping,
    Publish,
    Refused,
    Reject,
    Resume,
    Settle,
    Subscribe,
    Unsubscribe,
    address_of,
    filter_of,
    incoming_of,
    position_of,
)
from gateway.endpoints.websocket_output import Output
from gateway.endpoints.websocket_publisher import Publisher, UnderWay
from gateway.endpoints.websocket_subscriber import Subscriber
from gateway.endpoints.websocket_subscription import Opening, Subscription
from gateway.errors import GatewayError, ParameterInvalid, problem, translate
from gateway.wire.websocket import CloseCode
from security.errors import IdentityProblem, SecurityError
from security.principal import Session

CREDIT_MAX = 2**31 - 1

Close: TypeAlias = Callable[[int, str], None]


class Operations:
    """Of one authenticated connection. `close` ends it; `on_room` is called when `blocked` has ended."""

    def __init__(
        self, hub: Hub, session: Session, output: Output, frames: Frames, *, close: Close, on_room: Callable[[], None]
    ) -> None:
        options = hub.options
        self.session = session
        self._hub, self._output, self._frames, self._close = hub, output, frames, close
        self._subscribers: dict[bytes, Subscription] = {}
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
            case Publish() | PackedPublish():
                self.publish(operation)
            case Consume() | PackedConsume():  # which are subscriptions too
                self.consume(operation)
            case Subscribe() | PackedSubscribe():
                self.subscribe(operation)
            case Unsubscribe():
                self.unsubscribe(operation)
            case Ack() | Nack() | Reject() | Extend():
                self.settle(operation)
            case Pause() | Resume():
                self.pause(operation)
            case Credit():
                self.credit(operation)
            case Ping():
                self._output.write(self._frames.pong(bytes(operation.ref)))
            case Refused():
                self._publisher.refuse(operation.ref, operation.error)
            case Auth():
                raise AssertionError("the connection itself authenticates")

    # The operations

    def publish(self, operation: AnyPublish) -> None:
        ref = bytes(operation.ref)
        try:
            topic, records = incoming_of(operation)
        except GatewayError as error:
            self._publisher.refuse(ref, error)
            return
        if isinstance(records, Columns):
            size = records.size
        else:
            size = sum([len(record.value or b"") + len(record.key or b"") for record in records])
        self._publisher.publish(self.session, topic, records, durable=operation.acks == "durable", ref=ref, size=size)

    def subscribe(self, operation: AnySubscribe) -> None:
        self._open(operation, lambda opening: Subscriber(opening, _interest_of(operation)))

    def consume(self, operation: AnyConsume) -> None:
        """As `subscribe`, for a named consumer whose place in the log is kept by the node."""
        options = ConsumerOptions(**msgspec.structs.asdict(operation.options))
        self._open(operation, lambda opening: ConsumerReader(opening, filter_of(operation), operation.consumer, options))

    def settle(self, operation: Settle) -> None:
        """Answered in the order of publishes and other settlements, when it is durable."""
        reader = self._subscribers.get(self._frames.encoded(operation.sub))
        ref = bytes(operation.ref)
        if len(operation.tags) > self._hub.options.tags_max:
            reason = f"{len(operation.tags)} tags; websocket.tags_max allows {self._hub.options.tags_max}"
            self._publisher.refuse(ref, ParameterInvalid("tags", reason), _name(operation), self._frames.encoded(operation.sub))
        elif not isinstance(reader, ConsumerReader):
            self._publisher.refuse(ref, _no_consumer(operation.sub), _name(operation), self._frames.encoded(operation.sub))
        else:
            size = sum(map(len, operation.tags))
            self._publisher.settle(_name(operation), reader.sub, reader.settle(operation), ref=ref, size=size)

    def pause(self, operation: Pause | Resume) -> None:
        subscriber = self._subscribers.get(self._frames.encoded(operation.sub))
        if subscriber is None:
            self._refuse(operation, _no_subscription(operation.sub))
        elif isinstance(operation, Pause):
            subscriber.pause()
            self._output.write(self._frames.paused(subscriber.sub, ref=bytes(operation.ref)))
        else:
            subscriber.resume()
            self._output.write(self._frames.resumed(subscriber.sub, ref=bytes(operation.ref)))

    def unsubscribe(self, operation: Unsubscribe) -> None:
        subscriber = self._subscribers.pop(self._frames.encoded(operation.sub), None)
        if subscriber is None:
            self._refuse(operation, _no_subscription(operation.sub))
            return
        subscriber.stop()
        self._output.write(self._frames.unsubscribed(subscriber.sub, subscriber.position(), ref=bytes(operation.ref)))

    def credit(self, operation: Credit) -> None:
        subscriber = self._subscribers.get(self._frames.encoded(operation.sub))
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
        self._output.write(self._frames.going_away((sub, cursor) for sub, cursor in places if cursor is not None))

    def stop(self) -> None:
        """The connection has ended: nothing more is read for it. Publishes under way go on, and are answered to nobody."""
        self._stopped = True
        for subscriber in self._subscribers.values():
            subscriber.stop()
        self._subscribers.clear()

    # Answers and errors

    def _answer(self, done: UnderWay) -> None:
        seconds = self._hub.metrics.request_seconds.labels(PROTOCOL, done.operation)
        seconds.observe(time.perf_counter() - done.began_s)
        outcome = done.outcome
        if isinstance(outcome, Exception):
            self._hub.count(done.operation, translate(outcome).slug)
            self._report(outcome, ref=done.ref, sub=done.sub)
        elif isinstance(outcome, Settled):
            self._hub.count(done.operation, "ok")
            self._output.write(self._frames.settled(done.sub, outcome.settled, outcome.unknown, ref=done.ref))
        elif not isinstance(outcome, BaseException | None):
            self._hub.count(done.operation, "ok")
            self._output.write(self._frames.ack(done.ref, outcome))

    def _refuse(self, operation: AnySubscribe | Unsubscribe | Credit | Pause | Resume, error: Exception) -> None:
        sub = b"" if operation.sub is None else self._frames.encoded(operation.sub)
        self._hub.count(_name(operation), translate(error).slug)
        self._report(error, ref=bytes(operation.ref), sub=sub)

    def _on_failure(self, subscriber: Subscription, error: Exception) -> None:
        self._subscribers.pop(subscriber.sub, None)
        self._hub.count(subscriber.operation, translate(error).slug)
        self._report(error, ref=subscriber.take_ref(), sub=subscriber.sub)

    def _report(self, error: Exception, *, ref: bytes = b"", sub: bytes = b"") -> None:
        if self._stopped:
            return
        self._hub.refused(translate(error).slug)
        self._output.write(self._frames.error(problem(error, self.session.id), ref=ref, sub=sub))
        if isinstance(error, IdentityProblem) or translate(error).websocket_close is not None:
            self._end(error)

    def _end(self, error: Exception) -> None:
        row = translate(error)
        code = CloseCode.FORBIDDEN if isinstance(error, IdentityProblem) else row.websocket_close or CloseCode.INTERNAL_ERROR
        self._close(code, row.title if row.detail else str(error))

    def _open(self, operation: AnySubscribe, kind: Callable[[Opening], Subscription]) -> None:
        try:
            sub, position = self._named(operation)
            opening = Opening(
                hub=self._hub,
                session=self.session,
                output=self._output,
                frames=self._frames,
                turn=self._turn,
                on_failure=self._on_failure,
                ref=bytes(operation.ref),
                sub=sub,
                credit=operation.credit,
            )
            subscription = kind(opening)
        except (GatewayError, BrokerError) as error:
            self._refuse(operation, error)
            return
        self._subscribers[sub] = subscription
        subscription.start(position)

    def _named(self, operation: AnySubscribe) -> tuple[bytes, Position]:
        """Name and beginning of a subscription. ParameterInvalid, FilterInvalid."""
        options = self._hub.options
        name = operation.sub
        if name is None:
            name = address_of(operation).text() if operation.filter is None else filter_of(operation).address
        sub = self._frames.encoded(name)
        if len(name) > options.sub_chars_max:
            raise ParameterInvalid("sub", f"{len(name)} characters; websocket.sub_chars_max allows {options.sub_chars_max}")
        if sub in self._subscribers:
            raise ParameterInvalid("sub", f"{name!r} is in use on this connection; unsubscribe it, or take another name")
        if len(self._subscribers) >= options.subscriptions_max:
            limit = options.subscriptions_max
            raise ParameterInvalid("sub", f"websocket.subscriptions_max ({limit}) is reached; unsubscribe, or connect again")
        if operation.credit is not None and not 0 <= operation.credit <= CREDIT_MAX:
            raise ParameterInvalid("credit", f"0 to {CREDIT_MAX} records")
        return sub, position_of(operation.start)


def _interest_of(operation: AnySubscribe) -> Interest:
    if operation.filter is None:
        return address_of(operation)
    return plainest(filter_of(operation))


def _no_consumer(name: str) -> ParameterInvalid:
    return ParameterInvalid("sub", f"{name[:80]!r} is no consumer of this connection")


def _no_subscription(name: str) -> ParameterInvalid:
    return ParameterInvalid("sub", f"there is no subscription {name[:80]!r} on this connection")


def _name(operation: AnyOperation) -> str:
    """As its `op`."""
    return type(operation).__name__.removeprefix("Packed").lower()
