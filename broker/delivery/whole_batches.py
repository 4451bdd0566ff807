"""Whole batches on the way out, for readers that open them themselves (Kafka clients): passed unopened wherever all of it may be
had.

Records that may not be had are cut, the others keep their offsets, as after compaction. Where the end of what was read is cut
away altogether, a batch without records stands for it, as compaction leaves one too: else a reader, who goes on behind the last
batch that he got, would ask for the same offsets for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from broker.batch import cut, walk_raw
from broker.batch_header import MAGIC, BatchHeader, assemble
from broker.delivery.expiry import living_batch
from broker.engine.base import Fetched, Stored
from broker.errors import BatchRefused, RecordTooLarge
from broker.seams import Clock

AllowsKey = Callable[[bytes | None], bool]

NO_TIMESTAMP = -1


def without_deleted(fetched: Fetched) -> Fetched:
    """Without records below the log start, where that lies inside of a batch."""
    if not fetched.batches or fetched.batches[0].first_offset <= fetched.batches[0].base_offset:
        return fetched
    first = _kept(fetched.batches[0])
    return msgspec.structs.replace(fetched, batches=fetched.batches[1:] if first is None else [first, *fetched.batches[1:]])


def _kept(stored: Stored) -> Stored | None:
    """None also where it cannot be opened: what of it was deleted is not known."""
    try:
        kept = iter([offset >= stored.first_offset for offset, *_ in walk_raw(stored.batch)])
        left = cut(stored.batch, lambda key: next(kept))  # asked once for each record, in their order
    except (BatchRefused, RecordTooLarge):
        return None
    return None if left is None else msgspec.structs.replace(stored, batch=left)


def without_expired(fetched: Fetched, clock: Clock) -> Fetched:
    """For topics with strict.ttl."""
    if not any(stored.has_expiry for stored in fetched.batches):
        return fetched
    left = [batch for stored in fetched.batches if (batch := _living(stored, clock)) is not None]
    return msgspec.structs.replace(fetched, batches=left)


def _living(stored: Stored, clock: Clock) -> Stored | None:
    try:
        return living_batch(stored, clock)
    except (BatchRefused, RecordTooLarge):
        return stored  # no record of it can be read here or anywhere: its reader finds that out as every other


def without_forbidden(batches: Sequence[Stored], allows: AllowsKey) -> list[Stored]:
    """A batch that cannot be opened is withheld: whose keys are in it is not known."""
    left = []
    for stored in batches:
        try:
            batch = cut(stored.batch, allows)
        except (BatchRefused, RecordTooLarge):
            continue
        if batch is not None:
            left.append(stored if batch is stored.batch else msgspec.structs.replace(stored, batch=batch))
    return left


def stepping_over(next_offset: int) -> bytes:
    """A batch of no record whose reader goes on at `next_offset`."""
    header = BatchHeader(next_offset - 1, 0, 0, MAGIC, 0, 0, 0, NO_TIMESTAMP, NO_TIMESTAMP, -1, -1, -1, 0)
    return assemble(header, b"")
