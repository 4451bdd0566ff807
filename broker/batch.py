"""Kafka's record batch v2 (magic 2), the one currency, on whole buffers: build, walk, cut.

`broker/batch_header.py` has the header and what needs nothing but it; after the header come the records, compressed together
(KIP-98, headers by KIP-82; every number as in `broker/varint.py`):

    length of what follows, attributes (1 byte, unused), timestamp delta, offset delta,
    key length, key, value length, value, count of headers, each: name length, name, value length, value

Nothing read from a batch is believed: a batch that contradicts itself raises CorruptBatch, one that decompresses to more than
its bound BatchTooLarge, an unknown codec UnsupportedCompression; no byte sequence raises anything else or takes time beyond
its size.

The loops that are per record by nature, `_encode`, `walk_raw` and `_walk_keys`, spell out one- and two-byte numbers: a call
per number would double their time. They are the ones an optional native twin may replace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from typing import TypeAlias

import msgspec

from broker import varint
from broker.batch_errors import CorruptBatch
from broker.batch_header import (
    DELETE_HORIZON,
    HEADER_BYTES,
    MAGIC,
    TIMESTAMP_MS_MAX,
    BatchHeader,
    assemble,
    check_counts,
    check_length,
    check_room,
    max_timestamp,
    read_header,
    split,
    verify,
    with_base_offset,
    with_log_append_time,
)
from broker.compression import DECOMPRESSED_BYTES_MAX, Buffer, Compression, compress, decompress
from broker.record import CONTENT_TYPE_HEADER, EXPIRES_AT_HEADER, MESSAGE_ID_BYTES, MESSAGE_ID_HEADER, Record

__all__ = [
    "DECOMPRESSED_BYTES_MAX",
    "HEADER_BYTES",
    "BatchHeader",
    "Buffer",
    "Compression",
    "Draft",
    "RawRecord",
    "build",
    "cut",
    "encode_headers_after_id",
    "keys",
    "max_timestamp",
    "offset_of_timestamp",
    "read_header",
    "split",
    "verify",
    "walk",
    "walk_raw",
    "with_base_offset",
    "with_log_append_time",
]

Headers: TypeAlias = Sequence[tuple[bytes, bytes | None]]

# What `build` takes: timestamp in milliseconds, key, value, headers.
Draft: TypeAlias = tuple[int, bytes | None, bytes | None, Headers]

# What `walk_raw` yields: offset, timestamp in milliseconds, key, value, headers.
RawRecord: TypeAlias = tuple[int, int, bytes | None, bytes | None, tuple[tuple[bytes, bytes | None], ...]]

_STAMPS = tuple(b"\x00" + delta for delta in varint.SHORT)  # a record's attributes, then its timestamp delta

# Most records that our edges build carry one header, the message id: all before its 36 characters is this constant.
_MESSAGE_ID = MESSAGE_ID_HEADER.encode()
_MESSAGE_ID_FOLLOWS = b"".join((varint.SHORT[len(_MESSAGE_ID)], _MESSAGE_ID, varint.SHORT[MESSAGE_ID_BYTES]))
_MESSAGE_ID_ALONE = varint.SHORT[1] + _MESSAGE_ID_FOLLOWS
_MESSAGE_ID_ALONE_BYTES = len(_MESSAGE_ID_ALONE) + MESSAGE_ID_BYTES

# A look-up takes a third of a decode's time.
_NAMES = {name.encode(): name for name in (MESSAGE_ID_HEADER, CONTENT_TYPE_HEADER, EXPIRES_AT_HEADER)}


def _open(batch: Buffer, decompressed_bytes_max: int) -> tuple[BatchHeader, bytes, int]:
    """The header, a buffer with the records in clear, and where they begin in it."""
    header = read_header(batch)
    check_length(header, batch)
    check_counts(header)
    codec = header.compression
    if codec is Compression.NONE:
        section, position = bytes(batch), HEADER_BYTES
    else:
        section, position = decompress(codec, memoryview(batch)[HEADER_BYTES:], decompressed_bytes_max), 0
    check_room(header.count, len(section) - position, position)
    return header, section, position


def walk(batch: Buffer, decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> Iterator[Record]:
    """The batch's records, one by one as they are asked for, with their offsets in the log.

    Errors come at the record they concern, after the ones before it. Header names that are no UTF-8 read as U+FFFD, as in
    the Java client.
    """
    names = _NAMES
    for offset, timestamp_ms, key, value, headers in walk_raw(batch, decompressed_bytes_max):
        if len(headers) == 1:
            name, content = headers[0]
            named = ((names.get(name) or name.decode("utf-8", "replace"), content),)
            yield Record(offset, timestamp_ms, key, value, named)
            continue
        several = tuple([(names.get(name) or name.decode("utf-8", "replace"), content) for name, content in headers])
        yield Record(offset, timestamp_ms, key, value, several)


def walk_raw(batch: Buffer, decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> Iterator[RawRecord]:
    """As `walk`, in plain tuples with header names as bytes: half of its time."""
    header, data, position = _open(batch, decompressed_bytes_max)
    base_offset, base_timestamp_ms = header.base_offset, header.base_timestamp_ms
    append_time_ms = header.max_timestamp_ms if header.is_log_append_time else None
    message_id, before_message_id, message_id_bytes = _MESSAGE_ID, _MESSAGE_ID_ALONE, _MESSAGE_ID_ALONE_BYTES
    id_at = len(before_message_id)
    read_zigzag = varint.read_zigzag
    size = len(data)
    start, next_delta = position, 0  # deltas stay in zigzag form, twice their value, until they are needed
    headers: tuple[tuple[bytes, bytes | None], ...]
    try:
        for _ in range(header.count):
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

            # One byte of attributes, unused, then the timestamp delta.
            if (number := data[position + 1]) < 0x80:
                position += 2
            elif (high := data[position + 2]) < 0x80:
                number += (high << 7) - 0x80
                position += 3
            else:
                number, position = read_zigzag(data, position + 1, 64)
                if number >> 1 > TIMESTAMP_MS_MAX:
                    raise CorruptBatch("timestamp out of range", start)
            timestamp_ms = base_timestamp_ms + ((number >> 1) ^ -(number & 1))

            if (number := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                number += (high << 7) - 0x80
                position += 2
            else:
                number, position = read_zigzag(data, position, 32)
            if number != next_delta and (number & 1 or not next_delta < number <= header.last_offset_delta << 1):
                raise CorruptBatch("offset delta out of order", start)
            next_delta = number + 2
            offset = base_offset + (number >> 1)

            if (number := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                number += (high << 7) - 0x80
                position += 2
            else:
                number, position = read_zigzag(data, position, 32)
            if not number & 1:
                key = data[position : (position := position + (number >> 1))]
            elif number == 1:
                key = None
            else:
                raise CorruptBatch("negative key length", start)

            if (number := data[position]) < 0x80:
                position += 1
            elif (high := data[position + 1]) < 0x80:
                number += (high << 7) - 0x80
                position += 2
            else:
                number, position = read_zigzag(data, position, 32)
            if not number & 1:
                value = data[position : (position := position + (number >> 1))]
            elif number == 1:
                value = None
            else:
                raise CorruptBatch("negative value length", start)

            if end - position == message_id_bytes and data[position : position + id_at] == before_message_id:
                headers = ((message_id, data[position + id_at : end]),)
            else:
                headers = _read_headers(data, position, end)
            position = end
            yield offset, timestamp_ms if append_time_ms is None else append_time_ms, key, value, headers
    except IndexError:
        raise CorruptBatch("records end inside a record", start) from None
    if position != size:
        raise CorruptBatch("bytes after the last record", position)


def _read_headers(data: bytes, position: int, end: int) -> tuple[tuple[bytes, bytes | None], ...]:
    """The headers that fill a record from `position` to its end."""
    read_zigzag = varint.read_zigzag
    number, position = read_zigzag(data, position, 32)
    if number & 1 or number > end - position:  # zigzag doubles the count, and a header has two lengths at least
        raise CorruptBatch("header count beyond the record", position)
    headers: list[tuple[bytes, bytes | None]] = []
    for _ in range(number >> 1):
        if (number := data[position]) < 0x80:
            position += 1
        else:
            number, position = read_zigzag(data, position, 32)
        if number & 1:
            raise CorruptBatch("negative header name length", position)
        name = data[position : (position := position + (number >> 1))]
        if (number := data[position]) < 0x80:
            position += 1
        else:
            number, position = read_zigzag(data, position, 32)
        if not number & 1:
            headers.append((name, data[position : (position := position + (number >> 1))]))
        elif number == 1:
            headers.append((name, None))
        else:
            raise CorruptBatch("negative header value length", position)
    if position != end:
        raise CorruptBatch("record longer or shorter than its length", end)
    return tuple(headers)


def _walk_keys(data: bytes, position: int, records: int) -> Iterator[tuple[int, int, bytes | None, int]]:
    """Per record: zigzag timestamp delta, position after it, key, end. Values and headers are stepped over unread."""
    start, size = position, len(data)
    read_zigzag = varint.read_zigzag
    try:
        for _ in range(records):
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
                after_stamp = position = position + 2
            else:
                stamp, position = read_zigzag(data, position + 1, 64)
                after_stamp = position

            if data[position] < 0x80:
                position += 1
            else:
                _, position = read_zigzag(data, position, 32)

            if (number := data[position]) < 0x80:
                position += 1
            else:
                number, position = read_zigzag(data, position, 32)
            if not number & 1:
                key = data[position : (position := position + (number >> 1))]
            elif number == 1:
                key = None
            else:
                raise CorruptBatch("negative key length", start)
            if position >= end:
                raise CorruptBatch("key length outside the record", start)
            yield stamp, after_stamp, key, end
            position = end
    except IndexError:
        raise CorruptBatch("records end inside a record", start) from None
    if position != size:
        raise CorruptBatch("bytes after the last record", position)


def keys(batch: Buffer, decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> list[bytes | None]:
    """The key of every record, in order."""
    header, data, position = _open(batch, decompressed_bytes_max)
    return [key for _, _, key, _ in _walk_keys(data, position, header.count)]


def offset_of_timestamp(
    batch: Buffer, timestamp_ms: int, first_offset: int = 0, *, decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX
) -> tuple[int, int] | None:
    """Offset and timestamp of the first record from `first_offset` on at or after `timestamp_ms`; None if there is none."""
    if max_timestamp(batch) < timestamp_ms:
        return None
    for offset, found_ms, *_ in walk_raw(batch, decompressed_bytes_max):
        if found_ms >= timestamp_ms and offset >= first_offset:
            return offset, found_ms
    return None


def build(
    records: Sequence[Draft],
    *,
    compression: Compression = Compression.NONE,
    base_offset: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    """One batch of one record or more, in the order given; the base timestamp is the first record's.

    BatchTooLarge beyond 2 GiB, which is all the format can say; limits below that are the caller's.
    """
    if not records:
        raise ValueError("a batch has at least one record")
    section, newest_ms = _encode(records)
    last, base_ms = len(records) - 1, records[0][0]
    producer = (producer_id, producer_epoch, base_sequence)
    header = BatchHeader(base_offset, 0, 0, MAGIC, 0, compression, last, base_ms, newest_ms, *producer, len(records))
    return assemble(header, compress(compression, section))


def _encode(records: Sequence[Draft]) -> tuple[bytes, int]:
    """The records section in clear, and the newest timestamp."""
    base_ms = newest_ms = records[0][0]
    previous_ms: int | None = None
    stamp = b""
    lengths, short_max, encode, null, join = varint.SHORT, varint.SHORT_MAX, varint.encode, varint.NULL, b"".join
    message_id = _MESSAGE_ID
    tail_of: Headers | None = None
    before = tail = b""
    parts: list[bytes] = []
    for (timestamp_ms, key, value, headers), offset_delta in zip(records, _offset_deltas(), strict=False):
        if timestamp_ms != previous_ms:
            previous_ms = timestamp_ms
            newest_ms = max(newest_ms, timestamp_ms)
            delta = timestamp_ms - base_ms
            stamp = _STAMPS[delta] if 0 <= delta < short_max else b"\x00" + encode(delta)
        if key is None:
            key_length, key = null, b""
        else:
            size = len(key)
            key_length = lengths[size] if size < short_max else encode(size)
        if value is None:
            value_length, value = null, b""
        else:
            size = len(value)
            value_length = lengths[size] if size < short_max else encode(size)
        if headers and headers[0][0] == message_id and (content := headers[0][1]) and len(content) == MESSAGE_ID_BYTES:
            # An id of its own, then what is mostly the same for all records of an edge: encoded once while it stays the same.
            others = headers[1:]
            if others != tail_of:
                tail_of, tail = others, _encode_pairs(others)
                before = _encode_length(len(headers)) + _MESSAGE_ID_FOLLOWS
            body = join((stamp, offset_delta, key_length, key, value_length, value, before, content, tail))
        else:
            body = join((stamp, offset_delta, key_length, key, value_length, value, _encode_headers(headers)))
        size = len(body)
        parts += (lengths[size] if size < short_max else encode(size), body)
    return join(parts), newest_ms


def _offset_deltas() -> Iterator[bytes]:
    return chain(varint.SHORT, map(varint.encode, count(varint.SHORT_MAX)))


def _encode_headers(headers: Headers) -> bytes:
    return _encode_length(len(headers)) + _encode_pairs(headers)


def encode_headers_after_id(headers: Headers) -> tuple[bytes, bytes]:
    """What stands before and after the 36 characters of a message id, in the headers of a record that has these besides."""
    return _encode_length(len(headers) + 1) + _MESSAGE_ID_FOLLOWS, _encode_pairs(headers)


def _encode_pairs(headers: Headers) -> bytes:
    lengths, short_max = varint.SHORT, varint.SHORT_MAX
    parts: list[bytes] = []
    for name, value in headers:
        if value is None:
            parts += (_encode_length(len(name)), name, varint.NULL)
        elif (name_size := len(name)) < short_max and (value_size := len(value)) < short_max:
            parts += (lengths[name_size], name, lengths[value_size], value)
        else:
            parts += (_encode_length(name_size), name, _encode_length(len(value)), value)
    return b"".join(parts)


def _encode_length(length: int) -> bytes:
    return varint.SHORT[length] if length < varint.SHORT_MAX else varint.encode(length)


def cut(
    batch: Buffer, keep: Callable[[bytes | None], bool], decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX
) -> bytes | None:
    """The batch without the records whose key `keep` refuses, as compaction would leave it; None if nothing is left.

    Offsets, base offset, last offset delta and producer fields stay, so a reader's position and a Kafka client's checks
    hold. The timestamps in the header become those of the records that are left, so a record that was cut does not show in
    them. A control batch holds no user's record and is passed whole: readers need it to end transactions.
    """
    header, data, position = _open(batch, decompressed_bytes_max)
    if header.is_control:
        return bytes(batch)
    kept = [
        ((stamp >> 1) ^ -(stamp & 1), data[after_stamp:end])
        for stamp, after_stamp, key, end in _walk_keys(data, position, header.count)
        if keep(key)
    ]
    if len(kept) == header.count:
        return bytes(batch)
    if not kept:
        return None
    return _assemble_kept(header, kept)


def _assemble_kept(header: BatchHeader, kept: list[tuple[int, bytes]]) -> bytes:
    """A batch of the records left: timestamp delta, and all that follows it in the record."""
    # A delete horizon sits in the base timestamp's place and must stay there.
    shift = 0 if header.attributes & DELETE_HORIZON else kept[0][0]
    if abs(header.base_timestamp_ms + shift) > TIMESTAMP_MS_MAX:  # a producer's delta may lead anywhere; the base may not
        shift = 0
    parts: list[bytes] = []
    for delta, rest in kept:
        body = b"\x00" + varint.encode(delta - shift) + rest
        parts += (_encode_length(len(body)), body)
    newest_ms = min(header.base_timestamp_ms + max(delta for delta, _ in kept), 2**63 - 1)
    left = msgspec.structs.replace(
        header,
        base_timestamp_ms=header.base_timestamp_ms + shift,
        max_timestamp_ms=header.max_timestamp_ms if header.is_log_append_time else newest_ms,
        count=len(kept),
    )
    return assemble(left, compress(header.compression, b"".join(parts)))
