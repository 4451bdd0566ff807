"""What compaction leaves of a record batch, on whole buffers: base offset, producer fields and codec stay, records go.

The batch that is left covers the offsets of those that followed it and are gone: its last offset delta reaches up to the next
batch, so that a log without all its records has no hole. The first time that records without a value (tombstones) are kept, the
base timestamp becomes the time from which on they may go (delete horizon, KIP-534); timestamps of records read as before.

A record that stays is copied as it lies there, with its neighbours: 0.7 us a record, most of it for finding its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress as selected

import msgspec

from broker import varint
from broker.batch import _MESSAGE_ID_ALONE, _MESSAGE_ID_ALONE_BYTES, _encode_length, _open, _read_headers
from broker.batch_errors import CorruptBatch
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


class Outline:
    """A batch as compaction looks at it: columns with an entry for each record, or for those that are asked for.

    `stamps`: timestamp deltas in zigzag form; `starts`, `ends`: where in `data` a record lies; `tombstones`: which of the entries
    have no value, and so delete their keys.
    """

    __slots__ = ("batch", "data", "ends", "header", "keys", "offsets", "stamps", "starts", "tombstones")

    def __init__(self, batch: bytes, header: BatchHeader, data: bytes) -> None:
        self.batch = batch
        self.header = header
        self.data = data
        self.offsets: list[int] = []
        self.keys: list[bytes | None] = []
        self.stamps: list[int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.tombstones: list[int] = []

    def __len__(self) -> int:
        return len(self.keys)

    def retain(self, kept: Sequence[bool], next_offset: int, horizon_ms: int | None = None) -> bytes:
        """The batch with those of these records for which `kept` says so, in order, at least one; it ends before `next_offset`.

        `horizon_ms` sets the delete horizon of a batch that has none. What cannot be said in the format is not: then it has none.
        """
        header = self.header
        wider = msgspec.structs.replace(header, last_offset_delta=next_offset - header.base_offset - 1)
        if len(self) == header.count and all(kept) and horizon_ms is None:
            same = wider.last_offset_delta == header.last_offset_delta
            return self.batch if same else assemble(wider, self.batch[HEADER_BYTES:])
        if horizon_ms is not None:
            horizon_ms = min(horizon_ms, TIMESTAMP_MS_MAX)
        deltas = [(stamp >> 1) ^ -(stamp & 1) for stamp in selected(self.stamps, kept)]
        left = _with_newest(wider, deltas)
        if horizon_ms is None or (dated := _dated(left, deltas, horizon_ms)) is left:
            return assemble(left, compress(header.compression, b"".join([self.data[a:b] for a, b in self._runs(kept)])))
        return assemble(dated, compress(header.compression, b"".join(self._dated_records(kept, deltas, horizon_ms))))

    def _runs(self, kept: Sequence[bool]) -> Iterator[tuple[int, int]]:
        """Where neighbours that are kept begin and end."""
        begin = reached = -1
        for start, end in zip(selected(self.starts, kept), selected(self.ends, kept), strict=True):
            if start != reached:
                if begin >= 0:
                    yield begin, reached
                begin = start
            reached = end
        yield begin, reached

    def _dated_records(self, kept: Sequence[bool], deltas: Sequence[int], base_ms: int) -> Iterator[bytes]:
        """Counted from another base timestamp: every record says anew when it was."""
        data, shift = self.data, self.header.base_timestamp_ms - base_ms
        for start, end, delta in zip(selected(self.starts, kept), selected(self.ends, kept), deltas, strict=True):
            _, position = varint.read_zigzag(data, start, 32)
            _, after_stamp = varint.read_zigzag(data, position + 1, 64)
            body = b"\x00" + varint.encode(delta + shift) + data[after_stamp:end]
            yield _encode_length(len(body))
            yield body


def outline(batch: bytes) -> Outline:
    """CorruptBatch, BatchTooLarge and UnsupportedCompression as `broker.batch.walk` raises them."""
    header, data, position = _open(batch, DECOMPRESSED_BYTES_MAX)
    found = Outline(batch, header, data)
    offsets, keys, stamps, tombstones = found.offsets, found.keys, found.stamps, found.tombstones
    message_id, message_id_bytes = _MESSAGE_ID_ALONE, _MESSAGE_ID_ALONE_BYTES
    id_at = len(message_id)
    read_zigzag = varint.read_zigzag
    base_offset, delta_max = header.base_offset, header.last_offset_delta << 1
    size = len(data)
    begin = start = position
    next_delta = 0  # deltas stay in zigzag form, twice their value
    try:
        for at in range(header.count):
            start = position
            if (number := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                number += (high << 7) - 0x80
                position += 2
            else:
                number, position = read_zigzag(data, position, 32)
            end = position + (number >> 1)
            if number & 1 or end > size:
                raise CorruptBatch("record length outside the batch", start)

            if (stamp := data[position + 1]) < 0x80:
                position += 2
            else:
                stamp, position = read_zigzag(data, position + 1, 64)
                if stamp >> 1 > TIMESTAMP_MS_MAX:
                    raise CorruptBatch("timestamp out of range", start)

            if (number := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                number += (high << 7) - 0x80
                position += 2
            else:
                number, position = read_zigzag(data, position, 32)
            if number != next_delta and (number & 1 or not next_delta < number <= delta_max):
                raise CorruptBatch("offset delta out of order", start)
            next_delta = number + 2

            if (length := data[position]) < 0x80:
                position += 1
            else:
                length, position = read_zigzag(data, position, 32)
            if not length & 1:
                keys.append(data[position : (position := position + (length >> 1))])
            elif length == 1:
                keys.append(None)
            else:
                raise CorruptBatch("negative key length", start)

            if (length := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                length += (high << 7) - 0x80
                position += 2
            else:
                length, position = read_zigzag(data, position, 32)
            if not length & 1:
                position += length >> 1
            elif length == 1:
                tombstones.append(at)
            else:
                raise CorruptBatch("negative value length", start)

            if end - position == 1 and not data[position]:
                pass  # no headers
            elif end - position != message_id_bytes or data[position : position + id_at] != message_id:
                _read_headers(data, position, end)
            position = end
            offsets.append(base_offset + (number >> 1))
            stamps.append(stamp)
            found.ends.append(end)
    except IndexError:
        raise CorruptBatch("records end inside a record", start) from None
    if position != size:
        raise CorruptBatch("bytes after the last record", position)
    found.starts = [begin, *found.ends[:-1]] if found.ends else []
    return found


def outline_some(batch: bytes, places: Sequence[int]) -> Outline:
    """Of the records at these places, ascending; the batch has an outline, and is at hand once more. `tombstones` stays empty."""
    header, data, position = _open(batch, DECOMPRESSED_BYTES_MAX)
    found = Outline(batch, header, data)
    starts = [position]
    for _ in range(places[-1] + 1):
        if (number := data[position]) < 0x80:
            position += 1 + (number >> 1)
        elif (high := data[position + 1]) < 0x80:
            position += 2 + (number + (high << 7) - 0x80 >> 1)
        else:
            number, position = varint.read_zigzag(data, position, 32)
            position += number >> 1
        starts.append(position)
    for place in places:
        start, end = starts[place], starts[place + 1]
        _, at = varint.read_zigzag(data, start, 32)
        stamp, at = varint.read_zigzag(data, at + 1, 64)
        delta, at = varint.read_zigzag(data, at, 32)
        length, at = varint.read_zigzag(data, at, 32)
        found.offsets.append(header.base_offset + (delta >> 1))
        found.keys.append(None if length & 1 else data[at : at + (length >> 1)])
        found.stamps.append(stamp)
        found.starts.append(start)
        found.ends.append(end)
    return found


def retain(batch: bytes, kept: Sequence[bool], next_offset: int, horizon_ms: int | None = None) -> bytes:
    """See `Outline.retain`."""
    return outline(batch).retain(kept, next_offset, horizon_ms)


def holds_records(batch: bytes) -> bool:
    return any(batch[_COUNT_AT:HEADER_BYTES])


def delete_horizon(batch: bytes) -> int | None:
    """The time, in milliseconds, from which on the batch's tombstones may go; None while nobody has set it."""
    header = read_header(batch)
    return header.base_timestamp_ms if header.attributes & DELETE_HORIZON else None


def _with_newest(header: BatchHeader, deltas: Sequence[int]) -> BatchHeader:
    """The header with count and newest timestamp of the records left."""
    newest_ms = min(header.base_timestamp_ms + max(deltas), 2**63 - 1)
    return msgspec.structs.replace(
        header, max_timestamp_ms=header.max_timestamp_ms if header.is_log_append_time else newest_ms, count=len(deltas)
    )


def _dated(header: BatchHeader, deltas: Sequence[int], horizon_ms: int) -> BatchHeader:
    """With the delete horizon where the base timestamp was; the same header where it has one, or cannot have it."""
    if header.attributes & DELETE_HORIZON or any(
        abs(header.base_timestamp_ms + delta - horizon_ms) > TIMESTAMP_MS_MAX for delta in deltas
    ):
        return header
    return msgspec.structs.replace(header, attributes=header.attributes | DELETE_HORIZON, base_timestamp_ms=horizon_ms)


def empty(base_offset: int, next_offset: int) -> bytes:
    """A batch without records that covers these offsets, as Kafka's own compaction leaves them."""
    delta = next_offset - base_offset - 1
    return assemble(BatchHeader(base_offset, 0, 0, MAGIC, 0, 0, delta, NO_TIMESTAMP, NO_TIMESTAMP, -1, -1, -1, 0), b"")
