"""The bounds of idempotent producers, named as in the configuration (`producers.*`)."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ProducerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is remembered of producers that number their batches."""

    expiration_ms: Annotated[int, msgspec.Meta(ge=1_000, le=30 * 86_400_000)] = 86_400_000
    """How long a producer that writes nothing to a partition is known there (Kafka's producer.id.expiration.ms)."""
    entries_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 200_000
    """Producers known, counted once for each partition they write to: some 800 bytes of memory each. Beyond it a batch of a new
    one is refused until an old one expires: none is forgotten early, or its batches could be stored twice."""
