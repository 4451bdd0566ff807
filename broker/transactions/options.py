"""The bounds of transactions, named as in the configuration (`transactions.*`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class TransactionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of transactional producers, and for how long a transaction may be open."""

    timeout_max_ms: Annotated[int, msgspec.Meta(ge=1_000, le=86_400_000)] = 900_000
    """The longest timeout that a producer may ask for (Kafka's transaction.max.timeout.ms). An open transaction holds back
    readers of what follows it."""
    expiration_ms: Annotated[int, msgspec.Meta(ge=1_000, le=365 * 86_400_000)] = 7 * 86_400_000
    """A transactional id not used for so long is forgotten (Kafka's transactional.id.expiration.ms)."""
    check_ms: Annotated[int, msgspec.Meta(ge=10, le=60_000)] = 1_000
    """How often open transactions are looked at for their timeout."""
    ids_max: Count = 50_000
    """Transactional ids known: some 500 bytes of memory each."""
    id_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=400)] = 400
    """UTF-8 bytes of a transactional id."""
    partitions_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10_000
    """Partitions of one transaction: its end writes a marker to each, all in one append."""
    aborted_max: Count = 500_000
    """Aborted transactions that the log still has records of, counted once for each partition: some 300 bytes of memory each.
    Beyond it no new transaction begins."""
