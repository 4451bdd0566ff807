"""Fuzz target: journals as a damaged disk gives them back, from the layout's parsers to the whole recovery.

Each input is tried as it is, and with the crc of every header made right, so that lengths and counts get believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

from crc32c import crc32c

from broker.log.journal_bytes import JournalBytes
from broker.log.layout import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    DIRECTORY_ENTRY_BYTES,
    FILE_HEADER_BYTES,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    parse_batch_header,
    parse_file_header,
    parse_frame_header,
    parse_group_header,
    parse_trailer,
    salt_of_groups,
)
from broker.log.manifest import FileEntry, FileKind, FileState
from broker.log.recovery import EVERYTHING, Recovery, first_group, newest_durable_through, read_states
from broker.log.scan import FoundBatch, Gap, batches, frames, groups
from tests.vectors.make_sealed_log_v1 import FILE_NUMBER, FIRST_GROUP, FIRST_SEQUENCE, SALT, bytes_of, make, open_keys

Found = TypeVar("Found")

_MADE = make()
_KEYS = open_keys(bytes_of(_MADE, "key_store"))
_SYSTEM = _MADE["inputs"]["system"]["data_key"]
ENTRY = FileEntry(
    FILE_NUMBER, FileKind.JOURNAL, FileState.OPEN, 0, FIRST_GROUP, _SYSTEM["key_id"], bytes.fromhex(_SYSTEM["wrapped"]), b""
)

CORPUS = [
    bytes_of(_MADE, *_MADE["journal"]),
    bytes_of(_MADE, *_MADE["journal"][:-1]),
    bytes_of(_MADE, *_MADE["journal"][:2]),
    *(bytes_of(_MADE, name) for name in ("group", "frame", "batch", "footer", "segment_header")),
]


def one_input(data: bytes) -> None:
    _try(data)
    _try(_believable(data))


def _believable(data: bytes) -> bytes:
    fixed = bytearray(data)
    if len(fixed) >= FILE_HEADER_BYTES:
        _put_crc(fixed, 0, FILE_HEADER_BYTES)
    for magic, size in ((BATCH_MAGIC, BATCH_HEADER_BYTES), (GROUP_MAGIC, GROUP_HEADER_BYTES)):
        for at in _places(fixed, magic, size):
            _put_crc(fixed, at, size)
    for at in _places(fixed, FRAME_MAGIC, FRAME_HEADER_BYTES):
        directory = at + FRAME_HEADER_BYTES
        end = directory + DIRECTORY_ENTRY_BYTES * struct.unpack_from("<I", fixed, at + 16)[0]
        if end <= len(fixed):
            struct.pack_into("<I", fixed, at + 28, crc32c(fixed[at : at + 28] + fixed[directory:end]))
    return bytes(fixed)


def _put_crc(data: bytearray, at: int, size: int) -> None:
    struct.pack_into("<I", data, at + size - 4, crc32c(data[at : at + size - 4]))


def _places(data: bytearray, magic: bytes, size: int) -> list[int]:
    found = []
    at = data.find(magic)
    while 0 <= at <= len(data) - size:
        found.append(at)
        at = data.find(magic, at + 1)
    return found


def _try(data: bytes) -> None:
    end = len(data)
    for at in (0, 1, end // 2, max(0, end - 4), end):
        for parse in (parse_batch_header, parse_frame_header):
            parse(data, at)
        parse_group_header(data, at, SALT)
    parse_file_header(data)
    parse_trailer(data[-48:])
    _check_batches(_ended(batches(data, 0, end), end), 0, end)  # before what lists them without a bound
    _check_groups(data, end)
    by_regions = JournalBytes(data, end)
    assert by_regions.groups() == list(islice(groups(data, FILE_HEADER_BYTES, end, by_regions.salt()), end + 1))
    _check_frames(data, end)
    first_group(data, end)
    newest_durable_through([(ENTRY, data, end)])
    if end >= FILE_HEADER_BYTES:
        _recover(data)


def _ended(found: Iterator[Found], end: int) -> list[Found]:
    """At most one for each byte, else it would not end."""
    taken = list(islice(found, end + 1))
    assert len(taken) <= end, "scanning does not end"
    return taken


def _check_groups(data: bytes, end: int) -> None:
    last, position = -1, -1
    for salt in (SALT, salt_of_groups(data)):
        last = position = -1
        for group in _ended(groups(data, 0, end, salt), end):
            assert position < group.position <= end - GROUP_HEADER_BYTES
            assert group.header.number > last
            position, last = group.position, group.header.number


def _check_frames(data: bytes, end: int) -> None:
    """Frames and gaps cover the buffer, each beginning where the one before ended."""
    at = 0
    for piece in _ended(frames(data, 0, end), end):
        assert at == piece.position < piece.end <= end
        at = piece.end
        _check_batches(piece.batches, piece.position, piece.end)
        if not isinstance(piece, Gap):
            assert piece.position < piece.state_position <= piece.state_position + piece.state_bytes == piece.end
    assert at == end


def _check_batches(found: list[FoundBatch], start: int, end: int) -> None:
    at = start
    for batch in found:
        named = batch.header or batch.entry
        assert named is not None
        assert at <= batch.position <= batch.position + named.sealed_bytes <= end
        at = batch.position + named.sealed_bytes


def _recover(data: bytes) -> None:
    """Nothing raises, whatever is taken for durable; what is kept lies in the file and authenticates."""
    end = len(data)
    for durable_through in (0, FIRST_GROUP, EVERYTHING):
        recovery = Recovery(_KEYS, {}, FIRST_SEQUENCE, 0, FIRST_GROUP - 1, None)
        found = recovery.read_journal(ENTRY, data, durable_through, end)
        assert FILE_HEADER_BYTES <= found.data_end <= end
        for part in found.partitions.values():
            assert part.summary.batches == len(part.index)
            for ordinal in range(len(part.index)):
                place = part.index.place(ordinal)
                header = parse_batch_header(data, place.position)
                assert header is not None
                _KEYS.open_batch(data, place.position, header)
    Recovery(_KEYS, {}, 0, 0, 0, None, whole=False).read_segment(ENTRY, data, end)
    read_states(_KEYS, ENTRY, data, FIRST_GROUP, [])
