"""Finding groups, frames and batches in the bytes of a file, whole or damaged (decision 0001, section 10).

Pure: bytes in, places out. Steps over damage by looking for the next header that checks, never by a length that might be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from broker.log.layout import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    DIRECTORY_ENTRY_BYTES,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    BatchHeader,
    DirectoryEntry,
    GroupHeader,
    parse_batch_header,
    parse_frame_header,
    parse_group_header,
)


class FoundGroup(NamedTuple):
    position: int
    header: GroupHeader


class FoundBatch(NamedTuple):
    """A batch's place. `header` is None when its header does not check; then only the directory speaks for it."""

    position: int
    header: BatchHeader | None
    entry: DirectoryEntry | None


class FoundFrame(NamedTuple):
    position: int
    end: int
    associated: bytes
    batches: list[FoundBatch]
    state_position: int
    state_bytes: int
    first_sequence: int


class Gap(NamedTuple):
    """Bytes [position, end) in which no frame header checks; `batches` are those whose own headers do."""

    position: int
    end: int
    batches: list[FoundBatch]


def groups(data: bytes, start: int, end: int, salt: int) -> Iterator[FoundGroup]:
    """Groups whose headers check, in order, with growing numbers; walks by length, searches after damage."""
    position, last = start, -1
    while position + GROUP_HEADER_BYTES <= end:
        header = parse_group_header(data, position, salt)
        if header is None or header.number <= last:
            position = data.find(GROUP_MAGIC, position + 1, end)
            if position < 0:
                return
            continue
        yield FoundGroup(position, header)
        last = header.number
        following = position + GROUP_HEADER_BYTES + header.body_bytes
        # A length that leads nowhere is not believed: the body is then searched as well.
        believable = following == end or parse_group_header(data, following, salt) is not None
        position = following if believable else position + GROUP_HEADER_BYTES


def frames(data: bytes, start: int, end: int) -> Iterator[FoundFrame | Gap]:
    """Frames in [start, end), and the gaps between those that check."""
    position = start
    while position < end:
        frame = frame_at(data, position, end)
        if frame is None:
            following = _next_frame(data, position + 1, end)
            yield Gap(position, following, list(batches(data, position, following)))
            position = following
            continue
        yield frame
        position = frame.end


def frame_at(data: bytes, position: int, end: int) -> FoundFrame | None:
    """The frame whose header checks here and which fits before `end`."""
    parsed = parse_frame_header(data, position)
    if parsed is None:
        return None
    header, entries = parsed
    frame_end = position + header.frame_bytes
    at = position + FRAME_HEADER_BYTES + DIRECTORY_ENTRY_BYTES * header.batches
    if frame_end > end or at + sum(e.sealed_bytes for e in entries) + header.state_bytes != frame_end:
        return None
    associated = bytes(data[position:at])
    found: list[FoundBatch] = []
    for entry in entries:
        found.append(FoundBatch(at, _header_like(data, at, entry), entry))
        at += entry.sealed_bytes
    return FoundFrame(position, frame_end, associated, found, at, header.state_bytes, header.first_sequence)


def _header_like(data: bytes, position: int, entry: DirectoryEntry) -> BatchHeader | None:
    """The batch's header, when it checks and agrees with the directory."""
    header = parse_batch_header(data, position)
    if header is None:
        return None
    named = (header.topic_id, header.partition, header.last_offset_delta, header.base_offset, header.sealed_bytes)
    return header if named == tuple(entry) else None


def _next_frame(data: bytes, position: int, end: int) -> int:
    while True:
        position = data.find(FRAME_MAGIC, position, end)
        if position < 0:
            return end
        if frame_at(data, position, end) is not None:
            return position
        position += 1


def batches(data: bytes, start: int, end: int) -> Iterator[FoundBatch]:
    """Batches whose headers check and which fit, wherever they begin."""
    position = start
    while position + BATCH_HEADER_BYTES <= end:
        header = parse_batch_header(data, position)
        if header is not None and position + header.sealed_bytes <= end:
            yield FoundBatch(position, header, None)
            position += header.sealed_bytes
            continue
        position = data.find(BATCH_MAGIC, position + 1, end)
        if position < 0:
            return
