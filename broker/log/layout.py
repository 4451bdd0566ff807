"""The clear bytes of the log: file, group, frame, batch headers and the footer's trailer (docs/decisions/0001, sections 3 to 7).

Packing and parsing only: no disk, no keys, no state. A parser returns None for bytes that are not what they should be, because
damage is expected here and its caller decides what it means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from crc32c import crc32c

from broker.seams import Buffer

FORMAT_VERSION = 1
TAG_BYTES = 16
NONCE_BYTES = 12
WRAPPED_KEY_BYTES = 60
NO_TAG = bytes(TAG_BYTES)

JOURNAL_MAGIC, SEGMENT_MAGIC = b"SPJ1", b"SPS1"
GROUP_MAGIC, FRAME_MAGIC, BATCH_MAGIC, TRAILER_MAGIC = b"SPGR", b"SPFR", b"SPB1", b"SPFT"

FILE_HEADER_BYTES = 128
GROUP_HEADER_BYTES = 64
FRAME_HEADER_BYTES = 32
DIRECTORY_ENTRY_BYTES = 40
BATCH_HEADER_BYTES = 128
TRAILER_BYTES = 48

FLAG_CONTROL, FLAG_TRANSACTIONAL, FLAG_REWRITTEN, FLAG_HAS_EXPIRY, FLAG_KEYS_COMPLETE = 1, 2, 4, 8, 16


def chain_begins_anew(previous_flags: int, flags: int) -> bool:
    """Whether a batch follows what compaction has rewritten: it names the predecessor that was replaced. Rewritten batches are
    the first of their partition, and chained among themselves."""
    return bool(previous_flags & FLAG_REWRITTEN and not flags & FLAG_REWRITTEN)


_FILE = struct.Struct("<4sHHQ16sQI60sQ12x")
_GROUP = struct.Struct("<4sIQQQIIQQ4x")
_FRAME = struct.Struct("<4sIQII4x")
_ENTRY = struct.Struct("<16sIIQI4x")
_BATCH = struct.Struct("<4sBBHII16sII12sIQQqQI4x16s12x")
_TRAILER = struct.Struct("<4sIQQQI8x")
_CRC = struct.Struct("<I")


class FileHeader(NamedTuple):
    magic: bytes
    version: int
    header_bytes: int
    number: int
    cluster_id: bytes
    created_at_ms: int
    system_key_id: int
    wrapped_system_key: bytes
    salt: int


class GroupHeader(NamedTuple):
    magic: bytes
    body_bytes: int
    number: int
    durable_through: int
    first_sequence: int
    frames: int
    batches: int
    written_at_ms: int
    salt: int


class FrameHeader(NamedTuple):
    magic: bytes
    frame_bytes: int
    first_sequence: int
    batches: int
    state_bytes: int


class DirectoryEntry(NamedTuple):
    topic_id: bytes
    partition: int
    last_offset_delta: int
    base_offset: int
    sealed_bytes: int


class BatchHeader(NamedTuple):
    magic: bytes
    version: int
    cipher: int
    flags: int
    sealed_bytes: int
    key_hashes: int
    topic_id: bytes
    partition: int
    key_id: int
    nonce: bytes
    last_offset_delta: int
    base_offset: int
    sequence: int
    max_timestamp_ms: int
    append_time_ms: int
    records: int
    previous_tag: bytes

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1


class Trailer(NamedTuple):
    magic: bytes
    version: int
    number: int
    data_end: int
    summary_position: int
    summary_bytes: int


def _checked(head: bytes) -> bytes:
    return head + _CRC.pack(crc32c(head))


def _check(buffer: Buffer, position: int, size: int) -> bool:
    if len(buffer) < position + size:
        return False
    stored: int = _CRC.unpack_from(buffer, position + size - 4)[0]
    return crc32c(memoryview(buffer)[position : position + size - 4]) == stored


def pack_file_header(header: FileHeader) -> bytes:
    return _checked(_FILE.pack(*header))


def parse_file_header(buffer: Buffer) -> FileHeader | None:
    if not _check(buffer, 0, FILE_HEADER_BYTES):
        return None
    header = FileHeader._make(_FILE.unpack_from(buffer))
    return header if header.magic in (JOURNAL_MAGIC, SEGMENT_MAGIC) else None


def pack_group_header(header: GroupHeader | tuple[bytes, int, int, int, int, int, int, int, int]) -> bytes:
    """Of a header, or of its fields."""
    head = _GROUP.pack(*header)
    return head + _CRC.pack(crc32c(head))


def parse_group_header(buffer: Buffer, position: int, salt: int) -> GroupHeader | None:
    if buffer[position : position + 4] != GROUP_MAGIC or not _check(buffer, position, GROUP_HEADER_BYTES):
        return None
    header = GroupHeader._make(_GROUP.unpack_from(buffer, position))
    return header if header.salt == salt else None


def salt_of_groups(data: bytes) -> int:
    """The salt of a file whose own header is damaged: that of the first group header that checks under it; 0 if none does."""
    position = data.find(GROUP_MAGIC)
    while position >= 0 and position + GROUP_HEADER_BYTES <= len(data):
        salt: int = _GROUP.unpack_from(data, position)[-1]
        if parse_group_header(data, position, salt) is not None:
            return salt
        position = data.find(GROUP_MAGIC, position + 1)
    return 0


def pack_frame_header(first_sequence: int, entries: Sequence[tuple[bytes, int, int, int, int]], state_bytes: int) -> bytes:
    """Header and directory (fields of `DirectoryEntry`); the frame's size follows from them."""
    if len(entries) == 1:  # most frames of small publishes
        (entry,) = entries
        size, directory = entry[4], _ENTRY.pack(*entry)
    else:
        size, directory = sum([entry[4] for entry in entries]), b"".join([_ENTRY.pack(*entry) for entry in entries])
    size += FRAME_HEADER_BYTES + len(directory) + state_bytes
    head = _FRAME.pack(FRAME_MAGIC, size, first_sequence, len(entries), state_bytes)
    return head + _CRC.pack(crc32c(directory, crc32c(head))) + directory


def parse_frame_header(buffer: Buffer, position: int) -> tuple[FrameHeader, list[DirectoryEntry]] | None:
    if buffer[position : position + 4] != FRAME_MAGIC or len(buffer) < position + FRAME_HEADER_BYTES:
        return None
    header = FrameHeader._make(_FRAME.unpack_from(buffer, position))
    directory_at = position + FRAME_HEADER_BYTES
    directory_end = directory_at + DIRECTORY_ENTRY_BYTES * header.batches
    if directory_end > len(buffer):
        return None
    view = memoryview(buffer)
    stored: int = _CRC.unpack_from(buffer, directory_at - 4)[0]
    if crc32c(view[directory_at:directory_end], crc32c(view[position : directory_at - 4])) != stored:
        return None
    entries = [DirectoryEntry._make(fields) for fields in _ENTRY.iter_unpack(view[directory_at:directory_end])]
    return header, entries


def pack_batch_header(
    flags: int,
    sealed_bytes: int,
    key_hashes: int,
    topic_id: bytes,
    partition: int,
    key_id: int,
    nonce: bytes,
    last_offset_delta: int,
    base_offset: int,
    sequence: int,
    max_timestamp_ms: int,
    append_time_ms: int,
    records: int,
    previous_tag: bytes,
) -> bytes:
    head = _BATCH.pack(
        BATCH_MAGIC,
        FORMAT_VERSION,
        1,
        flags,
        sealed_bytes,
        key_hashes,
        topic_id,
        partition,
        key_id,
        nonce,
        last_offset_delta,
        base_offset,
        sequence,
        max_timestamp_ms,
        append_time_ms,
        records,
        previous_tag,
    )
    return head + _CRC.pack(crc32c(head))


def parse_batch_header(buffer: Buffer, position: int = 0) -> BatchHeader | None:
    if buffer[position : position + 4] != BATCH_MAGIC or not _check(buffer, position, BATCH_HEADER_BYTES):
        return None
    header = BatchHeader._make(_BATCH.unpack_from(buffer, position))
    return header if header.sealed_bytes >= BATCH_HEADER_BYTES + 8 * header.key_hashes + TAG_BYTES else None


def unpack_batch_header(buffer: Buffer, position: int) -> BatchHeader | None:
    """The fields without the crc: for who authenticates the header with the batch. None when it is no header of this version."""
    if len(buffer) < position + BATCH_HEADER_BYTES:
        return None
    header = BatchHeader._make(_BATCH.unpack_from(buffer, position))
    return header if (header.magic, header.version, header.cipher) == (BATCH_MAGIC, FORMAT_VERSION, 1) else None


def pack_trailer(number: int, data_end: int, summary_position: int, summary_bytes: int) -> bytes:
    return _checked(_TRAILER.pack(TRAILER_MAGIC, FORMAT_VERSION, number, data_end, summary_position, summary_bytes))


def parse_trailer(buffer: Buffer) -> Trailer | None:
    if buffer[:4] != TRAILER_MAGIC or not _check(buffer, 0, TRAILER_BYTES):
        return None
    return Trailer._make(_TRAILER.unpack_from(buffer))
