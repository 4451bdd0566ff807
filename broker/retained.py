"""What compaction leaves of a record batch, on whole buffers: base offset, producer fields and codec stay, records go.

The batch that is left covers the offsets of those that followed it and are gone: its last offset delta reaches up to the next
batch, so that a log without all its records has no hole. The first time that records without a value (tombstones) are kept, the
base timestamp becomes the time from which on they may go (delete horizon, KIP-534); timestamps of records read as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from broker import varint
from broker.batch import _encode_length, _open, _walk_keys, walk_raw
from broker.batch_header import (
    DELETE_HORIZON,
    HEADER_BYTES,
    MAGIC,
    TIMESTAMP_MS_MAX,
    BatchHeader,
    assemble,
    read_header,
)
from broker.compression import DECOMPRESSED_BYTES_MAX, compress

DELTA_MAX = 2**31 - 1  # what the last offset delta of a batch can say
NO_TIMESTAMP = -1
_COUNT_AT = 57  # in a batch's header


class Outlined(NamedTuple):
    """A record as compaction looks at it. `tombstone`: it has no value, so the key is deleted."""

    offset: int
    key: bytes | None
    tombstone: bool


def outline(batch: bytes) -> list[Outlined]:
    """Every record, in order. CorruptBatch, BatchTooLarge and UnsupportedCompression as `broker.batch.walk` raises them."""
    return [Outlined(offset, key, value is None) for offset, _, key, value, _ in walk_raw(batch)]


def holds_records(batch: bytes) -> bool:
    return any(batch[_COUNT_AT:HEADER_BYTES])


def delete_horizon(batch: bytes) -> int | None:
    """The time, in milliseconds, from which on the batch's tombstones may go; None while nobody has set it."""
    header = read_header(batch)
    return header.base_timestamp_ms if header.attributes & DELETE_HORIZON else None


def retain(batch: bytes, kept: Sequence[bool], next_offset: int, horizon_ms: int | None = None) -> bytes:
    """The batch with those of its records for which `kept` says so, in order, at least one; it ends before `next_offset`.

    `horizon_ms` sets the delete horizon of a batch that has none. What cannot be said in the format is not: then it has none.
    """
    header = read_header(batch)
    wider = msgspec.structs.replace(header, last_offset_delta=next_offset - header.base_offset - 1)
    if all(kept) and horizon_ms is None:
        same = wider.last_offset_delta == header.last_offset_delta
        return batch if same else assemble(wider, batch[HEADER_BYTES:])
    _, data, position = _open(batch, DECOMPRESSED_BYTES_MAX)
    records = [
        ((stamp >> 1) ^ -(stamp & 1), data[after_stamp:end])
        for (stamp, after_stamp, _, end), keep in zip(_walk_keys(data, position, header.count), kept, strict=True)
        if keep
    ]
    return _assembled(_dated(wider, records, horizon_ms), wider.base_timestamp_ms, records)


def _dated(header: BatchHeader, records: Sequence[tuple[int, bytes]], horizon_ms: int | None) -> BatchHeader:
    """The header with the base timestamp that the records left are counted from, and the newest of theirs."""
    deltas = [delta for delta, _ in records]
    newest_ms = min(header.base_timestamp_ms + max(deltas), 2**63 - 1)
    attributes, base_ms = header.attributes, header.base_timestamp_ms
    if horizon_ms is not None and not attributes & DELETE_HORIZON:
        horizon_ms = min(horizon_ms, TIMESTAMP_MS_MAX)
        if all(abs(base_ms + delta - horizon_ms) <= TIMESTAMP_MS_MAX for delta in deltas):
            attributes, base_ms = attributes | DELETE_HORIZON, horizon_ms
    return msgspec.structs.replace(
        header,
        attributes=attributes,
        base_timestamp_ms=base_ms,
        max_timestamp_ms=header.max_timestamp_ms if header.is_log_append_time else newest_ms,
        count=len(records),
    )


def _assembled(header: BatchHeader, counted_from_ms: int, records: Sequence[tuple[int, bytes]]) -> bytes:
    """`records`: timestamp delta to `counted_from_ms`, and all that follows it in the record."""
    shift = counted_from_ms - header.base_timestamp_ms
    parts: list[bytes] = []
    for delta, rest in records:
        body = b"\x00" + varint.encode(delta + shift) + rest
        parts += (_encode_length(len(body)), body)
    return assemble(header, compress(header.compression, b"".join(parts)))


def empty(base_offset: int, next_offset: int) -> bytes:
    """A batch without records that covers these offsets, as Kafka's own compaction leaves them."""
    delta = next_offset - base_offset - 1
    return assemble(BatchHeader(base_offset, 0, 0, MAGIC, 0, 0, delta, NO_TIMESTAMP, NO_TIMESTAMP, -1, -1, -1, 0), b"")
