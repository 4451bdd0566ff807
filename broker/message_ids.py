"""Message ids for the records of one request: a UUIDv7 for each would be a fifth of what publishing a record may cost.

So one is made for up to 4,096 records, and its last 12 bits count them. In the Rust crate below `uuid_utils` those bits are
random, behind a counter of 42 bits: ids stay unique, and ordered by the calls of one process (RFC 9562, 6.2, method 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.record import new_message_id

BLOCK_RECORDS = 4_096

_LAST = tuple([f"{number:03x}" for number in range(BLOCK_RECORDS)])


def message_ids() -> Iterator[str]:
    """New ids without end. To be used up at once: ids of another iterator made meanwhile lie behind the whole block."""
    while True:
        head, _ = id_block()
        for last in _LAST:
            yield head + last


def id_block() -> tuple[str, Sequence[str]]:
    """BLOCK_RECORDS new ids in two parts: what all begin with, and how each ends."""
    return new_message_id()[: -len(_LAST[0])], _LAST
