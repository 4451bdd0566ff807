"""One item of a request refused, where the others go on: most of Kafka's admin APIs answer item by item."""

from __future__ import annotations

from broker.errors import BrokerError
from gateway.errors import GatewayError, kafka_error
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import SecurityError


class Refusal(Exception):
    """What only Kafka's protocol can ask for wrongly, in its own words; `code` is on the wire."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)


REFUSED = (Refusal, BrokerError, SecurityError, GatewayError)
"""What ends one item; anything else is a bug, and ends the request."""


def told(error: Exception) -> tuple[int, str]:
    """Code and message of one of them."""
    code, message = (error.code, error.message) if isinstance(error, Refusal) else kafka_error(error)
    return int(code), message
