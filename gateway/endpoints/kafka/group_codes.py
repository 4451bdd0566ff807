"""The code of a refusal by a group's coordinator, which this node always is."""

from __future__ import annotations

from broker.errors import Unavailable
from gateway.endpoints.kafka.refusal import told
from gateway.wire.kafka.error_codes import ErrorCode


def code_of(error: Exception) -> int:
    """As `told`, but what cannot be kept now is the coordinator's failure: clients find it again, and try again."""
    return int(ErrorCode.COORDINATOR_NOT_AVAILABLE) if isinstance(error, Unavailable) else told(error)[0]
