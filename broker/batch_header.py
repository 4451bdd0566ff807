"""The 61 bytes before the records of a Kafka record batch v2 (magic 2).

Kafka's documentation, "Record Batch" in section Message Format; KIP-98, zstd by KIP-110, delete horizon by KIP-534:

    at  bytes  field                      at  bytes  field
     0      8  base offset                23      4  last offset delta
     8      4  length of what follows     27      8  base timestamp
    12      4  partition leader epoch     35      8  max timestamp
    16      1  magic = 2                  43      8  producer id
    17      4  CRC-32C of bytes 21 ...    51      2  producer epoch
    21      2  attributes                 53      4  base sequence
                                          57      4  count of records

The first 16 bytes lie outside the checksum, so a broker assigns offsets without computing it again.
"""

from __future__ import annotations

import struct

import crc32c
import msgspec

from broker.batch_errors import BatchTooLarge, CorruptBatch
from broker.compression import Buffer, Compression, codec_of

HEADER_BYTES = 61
MAGIC = 2
BATCH_BYTES_MAX = 2**31 - 1 + 12  # what the length field can say

# Attributes. Bits 0 to 2 are the codec.
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
DELETE_HORIZON = 0x40  # the base timestamp is the delete horizon (KIP-534)

# A base timestamp and a delta up to this: their sum still is a 64-bit number. It is the year 146 million.
TIMESTAMP_MS_MAX = 2**62

RECORD_BYTES_MIN = 7  # seven numbers of a byte each

_LENGTH_END = 12
CHECKED_FROM = 21

_HEADER = struct.Struct(">qiibIhiqqqhii")
CODEC, _CODEC_MAX = 0x07, Compression.ZSTD.value
_OUTSIDE_CHECKSUM = struct.Struct(">qiibI")
_CHECKED = struct.Struct(">hiqqqhii")
_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_UINT32 = struct.Struct(">I")
_INT64 = struct.Struct(">q")


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The 61 bytes before the records, in their order on the wire."""

    base_offset: int
    batch_length: int
    partition_leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.batch_length + _LENGTH_END

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def compression(self) -> Compression:
        """UnsupportedCompression for a codec that Kafka does not define."""
        return codec_of(self.attributes)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_log_append_time(self) -> bool:
        return bool(self.attributes & LOG_APPEND_TIME)


def read_header(buffer: Buffer, position: int = 0) -> BatchHeader:
    """The header at `position`; its magic and length are checked, and nothing that would need the rest of the batch."""
    if len(buffer) - position < HEADER_BYTES:
        raise CorruptBatch("batch shorter than its header", len(buffer))
    header = BatchHeader(*_HEADER.unpack_from(buffer, position))
    if header.magic != MAGIC:
        raise CorruptBatch(f"wrong magic {header.magic}, only 2 is supported", position + 16)
    if header.batch_length < HEADER_BYTES - _LENGTH_END:
        raise CorruptBatch(f"wrong length {header.batch_length}, less than a header", position + 8)
    return header


def sound_header(buffer: Buffer) -> BatchHeader | None:
    """The header, where a producer's batch is right in all but its checksum: what `verify` asks, at one look. None says nothing:
    `verify` finds out."""
    size = len(buffer)
    if size < HEADER_BYTES:
        return None
    header = BatchHeader(*_HEADER.unpack_from(buffer))
    codec, count = header.attributes & CODEC, header.count
    sound = (
        header.magic == MAGIC
        and header.batch_length == size - _LENGTH_END
        and header.base_offset == 0
        and 0 <= header.last_offset_delta == count - 1
        and -TIMESTAMP_MS_MAX <= header.base_timestamp_ms <= TIMESTAMP_MS_MAX
        and codec <= _CODEC_MAX
        and (codec or count * RECORD_BYTES_MIN <= size - HEADER_BYTES)
    )
    return header if sound else None


def verify(buffer: Buffer) -> BatchHeader:
    """The header of one foreign batch, after its length, checksum and counts agree.

    Records are not opened: readers check them where they read them. Whether the batch may be control or transactional is the
    caller's question; a control batch is never cut (see `cut`), so producers' own must be refused before they are stored.
    """
    header = read_header(buffer)
    check_length(header, buffer)
    if crc32c.crc32c(memoryview(buffer)[CHECKED_FROM:]) != header.crc:
        raise CorruptBatch("wrong checksum", 17)
    check_counts(header)
    if header.compression is Compression.NONE:
        check_room(header.count, header.size - HEADER_BYTES, HEADER_BYTES)
    return header


def check_length(header: BatchHeader, buffer: Buffer) -> None:
    if header.size != len(buffer):
        raise CorruptBatch(f"wrong length: the batch says {header.size} bytes and has {len(buffer)}", 8)


def check_counts(header: BatchHeader) -> None:
    if header.base_offset < 0:
        raise CorruptBatch(f"negative base offset {header.base_offset}", 0)
    if header.count < 0:
        raise CorruptBatch(f"negative count {header.count}", 57)
    if header.last_offset_delta < 0:
        raise CorruptBatch(f"negative last offset delta {header.last_offset_delta}", 23)
    if header.last_offset_delta < header.count - 1:
        raise CorruptBatch(f"last offset delta {header.last_offset_delta} below {header.count} records", 23)
    if header.next_offset >= 2**63:
        raise CorruptBatch("offsets beyond 64 bits", 0)
    if abs(header.base_timestamp_ms) > TIMESTAMP_MS_MAX:
        raise CorruptBatch("base timestamp out of range", 27)


def check_room(records: int, section_bytes: int, position: int) -> None:
    if records * RECORD_BYTES_MIN > section_bytes:
        raise CorruptBatch(f"count {records} beyond {section_bytes} bytes of records", position)


def assemble(header: BatchHeader, stored: bytes) -> bytes:
    """The whole batch around a records section already compressed: length and checksum are made good, all else is kept."""
    size = HEADER_BYTES + len(stored)
    if size > BATCH_BYTES_MAX:
        raise BatchTooLarge("record batch", size, "BATCH_BYTES_MAX", BATCH_BYTES_MAX)
    checked = _CHECKED.pack(*msgspec.structs.astuple(header)[5:])
    crc = crc32c.crc32c(stored, crc32c.crc32c(checked))
    outside = _OUTSIDE_CHECKSUM.pack(header.base_offset, size - _LENGTH_END, header.partition_leader_epoch, MAGIC, crc)
    return b"".join((outside, checked, stored))


def assemble_new(stored: bytes, attributes: int, count: int, base_ms: int, newest_ms: int) -> bytes:
    """A batch without a producer around its records section, with no header object between."""
    size = HEADER_BYTES + len(stored)
    if size > BATCH_BYTES_MAX:
        raise BatchTooLarge("record batch", size, "BATCH_BYTES_MAX", BATCH_BYTES_MAX)
    checked = _CHECKED.pack(attributes, count - 1, base_ms, newest_ms, -1, -1, -1, count)
    crc = crc32c.crc32c(stored, crc32c.crc32c(checked))
    return b"".join((_OUTSIDE_CHECKSUM.pack(0, size - _LENGTH_END, 0, MAGIC, crc), checked, stored))


def with_base_offset(batch: Buffer, base_offset: int, leader_epoch: int = 0) -> bytes:
    """The batch at its place in the log. Both fields lie outside the checksum, so the rest is copied as it is."""
    view = memoryview(batch)
    return b"".join((_INT64.pack(base_offset), view[8:12], _INT32.pack(leader_epoch), view[16:]))


def with_log_append_time(batch: Buffer, timestamp_ms: int) -> bytes:
    """The batch as a topic with message.timestamp.type=LogAppendTime keeps it: every record reads as of `timestamp_ms`."""
    attributes = read_header(batch).attributes | LOG_APPEND_TIME
    patched = bytearray(batch)
    _INT16.pack_into(patched, CHECKED_FROM, attributes)
    _INT64.pack_into(patched, 35, timestamp_ms)
    _UINT32.pack_into(patched, 17, crc32c.crc32c(memoryview(patched)[CHECKED_FROM:]))
    return bytes(patched)


def max_timestamp(batch: Buffer) -> int:
    """Milliseconds; what the header says, without opening the records."""
    return read_header(batch).max_timestamp_ms


def split(buffer: Buffer) -> list[memoryview]:
    """The batches that lie one after the other in `buffer`; a last one that is cut off is left out, as Kafka fetches end."""
    view = memoryview(buffer)
    batches, position = [], 0
    while len(view) - position >= _LENGTH_END:
        length = int(_INT32.unpack_from(view, position + 8)[0])
        if length < HEADER_BYTES - _LENGTH_END:
            raise CorruptBatch(f"wrong length {length}, less than a header", position + 8)
        end = position + _LENGTH_END + length
        if end > len(view):
            break
        batches.append(view[position:end])
        position = end
    return batches
