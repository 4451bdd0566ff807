"""What a consumer may ask for, and what the node allows and does where it asks for nothing."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from broker.delivery.consumer_errors import ConsumerInvalid
from broker.topics.addresses import legal_topic_name

# A consumer's state is one value of at most 64 KiB: so many records in flight fit beside its options.
IN_FLIGHT_MAX = 1_000
DELIVERIES_MAX = 1_000
ACK_TIMEOUT_MS_MIN = 100
WAIT_MS_MAX = 86_400_000  # a day: longer waits are mistyped units
REASON_CHARS_MAX = 256

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


Count = Annotated[int, msgspec.Meta(ge=1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]


class DeliveryOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consumers that acknowledge: the node's bounds, and what holds where a consumer does not say."""

    consumers_max: Count = 10_000
    """Durable consumers of the node; one more is refused until one is deleted."""
    consumers_per_owner_max: Count = 100
    """Durable consumers of one principal."""
    ack_pending_max: Annotated[int, msgspec.Meta(ge=1, le=IN_FLIGHT_MAX)] = IN_FLIGHT_MAX
    """Records of one consumer that are delivered or wait for another try, and are not acknowledged; then it gets no new ones.
    At most 1000: all of them are kept in one entry of the log's state."""
    ack_timeout_ms: Annotated[int, msgspec.Meta(ge=ACK_TIMEOUT_MS_MIN, le=WAIT_MS_MAX)] = 30_000
    """How long an acknowledgement may take before the record is delivered again, where the consumer does not say."""
    deliveries_max: Annotated[int, msgspec.Meta(ge=1, le=DELIVERIES_MAX)] = 5
    """Deliveries of one record before it goes to the dead-letter topic, where the consumer does not say."""
    retry_backoff_ms: Milliseconds = 1_000
    """Upper end of the first pause before a record is delivered again. It doubles with each try; the pause is drawn below it."""
    retry_backoff_max_ms: Milliseconds = 60_000
    """The pause is never longer."""


class ConsumerOptions(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a consumer asks for; None: what it asked for before, else what the node does. Kept with the consumer.

    `dead_letter_topic` None: the topic's config `dead.letter.topic`, else `<topic>.dlq`.
    """

    ack_timeout_ms: int | None = None
    deliveries_max: int | None = None
    retry_backoff_ms: int | None = None
    retry_backoff_max_ms: int | None = None
    in_flight_max: int | None = None
    dead_letter_topic: str | None = None

    def check(self, node: DeliveryOptions) -> None:
        """Raises ConsumerInvalid."""
        _check_range("ack_timeout_ms", self.ack_timeout_ms, ACK_TIMEOUT_MS_MIN, WAIT_MS_MAX)
        _check_range("deliveries_max", self.deliveries_max, 1, DELIVERIES_MAX)
        _check_range("retry_backoff_ms", self.retry_backoff_ms, 0, WAIT_MS_MAX)
        _check_range("retry_backoff_max_ms", self.retry_backoff_max_ms, 0, WAIT_MS_MAX)
        _check_range("in_flight_max", self.in_flight_max, 1, node.ack_pending_max)
        if self.dead_letter_topic is not None and not legal_topic_name(self.dead_letter_topic):
            raise ConsumerInvalid("dead_letter_topic", f"{self.dead_letter_topic[:80]!r} is no legal topic name")

    def over(self, earlier: ConsumerOptions) -> ConsumerOptions:
        """These, and where they say nothing the earlier ones."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(earlier, **said)


class Terms(msgspec.Struct, frozen=True, gc=False):
    """What holds for one consumer: its own options, else the node's."""

    ack_timeout_ms: int
    deliveries_max: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    in_flight_max: int

    @classmethod
    def of(cls, options: ConsumerOptions, node: DeliveryOptions) -> Terms:
        def either(name: str) -> int:
            asked = getattr(options, name)
            found: int = getattr(node, name) if asked is None else asked
            return found

        in_flight_max = node.ack_pending_max if options.in_flight_max is None else options.in_flight_max
        return cls(
            either("ack_timeout_ms"),
            either("deliveries_max"),
            either("retry_backoff_ms"),
            either("retry_backoff_max_ms"),
            min(in_flight_max, node.ack_pending_max, IN_FLIGHT_MAX),
        )


def check_consumer_name(name: str) -> None:
    """Raises ConsumerInvalid."""
    if _NAME.fullmatch(name) is None:
        raise ConsumerInvalid("consumer", f"{name[:80]!r} is no name: use 1 to 128 of the characters a-z A-Z 0-9 . _ -")


def check_reason(reason: str) -> None:
    if len(reason) > REASON_CHARS_MAX or not (reason.isprintable() or not reason):
        raise ConsumerInvalid("reason", f"it has at most {REASON_CHARS_MAX} printable characters")


def check_wait(member: str, wait_ms: int | None, wait_ms_min: int = 0) -> None:
    _check_range(member, wait_ms, wait_ms_min, WAIT_MS_MAX)


def _check_range(member: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ConsumerInvalid(member, f"{value} is not from {low} to {high}")
