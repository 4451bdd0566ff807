"""Record keys as the key index knows them: keyed hashes of 64 bits (decision 0001, section 2), and two that stand for none.

Batches that this node builds carry the hashes of their keys. Those of Kafka producers are stored unopened, and walked later, if
at all (`key_walk.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from broker.batch import keys
from broker.batch_errors import BatchTooLarge, CorruptBatch, UnsupportedCompression
from broker.batch_header import read_header
from security.crypto.envelope import KeyHasher

UNREADABLE = (CorruptBatch, BatchTooLarge, UnsupportedCompression)
# Stand for no key in the key index, and for whatever keys a batch has that cannot be read; a real key of these bytes only makes
# a candidate.
NULL_KEY = b"\xff\x00sprawl null key"
UNREADABLE_KEY = b"\xff\x00sprawl unreadable batch"


def key_hashes(hasher: KeyHasher, found: Sequence[bytes | None]) -> list[int]:
    """Distinct, ascending."""
    if None in found:
        found = [NULL_KEY if key is None else key for key in found]
    return sorted(hasher.hash_all(cast("Sequence[bytes]", found)))


def unreadable(hasher: KeyHasher) -> list[int]:
    return [hasher.hash(UNREADABLE_KEY)]


def walked(hasher: KeyHasher, batch: bytes) -> list[int]:
    """Of the records of a batch that nobody has opened yet; on any thread.

    One that is not what its header says stays a candidate for readers by key, who are told of it, and for nobody who looks for
    the newest record: it has none that could be read. The keys of markers are Kafka's own.
    """
    if read_header(batch).is_control:
        return []
    try:
        return key_hashes(hasher, keys(batch))
    except UNREADABLE:
        return unreadable(hasher)
