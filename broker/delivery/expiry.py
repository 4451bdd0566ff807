"""Per-record time to live: a record with the header `sprawl-expires-at` is delivered to nobody from that moment on.

The header is the node's own. A publisher gives a time to live, which the node counts by its own clock from when it takes the
record, as MQTT 5.0 counts a message's expiry (3.3.2.3.3), whatever the record's timestamp says; or, to publish a record again
that was read, the moment itself.

Every reader that hands out records comes through here (`living`, `expired`). Batches without the has-expiry mark cost nothing:
they are not looked into. Expired records stay in the log until retention takes them, with their offsets.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from broker.batch import cut, walk
from broker.engine.base import Stored
from broker.record import EXPIRES_AT_HEADER, Record
from broker.seams import Clock

TTL_MS_MAX = 10 * 366 * 24 * 60 * 60 * 1_000
"""Ten years; what is to live longer needs no time to live."""

_NAME = EXPIRES_AT_HEADER.encode()


def expiry_header(at_ms: int) -> tuple[bytes, bytes]:
    """The header of a record that expires then, Unix time in milliseconds."""
    return _NAME, b"%d" % at_ms


def expires_at_ms(record: Record) -> int | None:
    """Unix time in milliseconds; None for a record that lives until retention, and where the header is no number of ours."""
    for name, value in record.headers:
        if name == EXPIRES_AT_HEADER:
            usable = value is not None and value.isdigit() and len(value) <= 19
            return int(value) if usable and value is not None else None
    return None


def expired(record: Record, now_ms: int) -> bool:
    at_ms = expires_at_ms(record)
    return at_ms is not None and at_ms <= now_ms


def living(stored: Stored, clock: Clock) -> Iterator[Record]:
    """The batch's records, each asked for its age at the moment it is taken. Raises what `batch.walk` raises."""
    records = _living(stored, clock) if stored.has_expiry else walk(stored.batch)
    return records if stored.first_offset <= stored.base_offset else _kept(records, stored.first_offset)


def living_batch(stored: Stored, clock: Clock) -> Stored | None:
    """The batch as a reader of whole batches gets it where the topic says strict.ttl: its offsets stay, as after compaction.

    None where nothing is left. Raises what `batch.walk` raises.
    """
    if not stored.has_expiry:
        return stored
    now_ms = clock.now_ms()
    lives = [not expired(record, now_ms) for record in walk(stored.batch)]
    if all(lives):
        return stored
    kept = iter(lives)
    left = cut(stored.batch, lambda key: next(kept))  # asked once for each record, in their order
    return None if left is None else msgspec.structs.replace(stored, batch=left)


def _kept(records: Iterator[Record], first_offset: int) -> Iterator[Record]:
    """Without those that were deleted from the front of their batch."""
    return (record for record in records if record.offset >= first_offset)


def _living(stored: Stored, clock: Clock) -> Iterator[Record]:
    for record in walk(stored.batch):
        if not expired(record, clock.now_ms()):
            yield record
