"""Footers: what a sealed file says of itself (decision 0001, section 7)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from broker.errors import FormatUnsupported
from broker.log.index import BatchIndex
from broker.log.layout import (
    FLAG_KEYS_COMPLETE,
    FORMAT_VERSION,
    TAG_BYTES,
    TRAILER_BYTES,
    pack_trailer,
    parse_trailer,
)
from broker.log.manifest import decode_content
from broker.log.sealing import FOOTER_PURPOSE, LogKeys
from broker.seams import Buffer, File
from security.errors import TamperedData

_NUMBER = struct.Struct("<Q")
_PARTITION = struct.Struct("<I")


class DamagedRange(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Offsets (or, unattributed, commit sequences) [start, end) that the media lost."""

    start: int
    end: int
    reason: str


class PartitionSummary(msgspec.Struct, array_like=True):
    """One partition's part of a file. Field order is the format; it changes while its file grows."""

    topic_id: bytes
    partition: int
    generation: int
    first_offset: int
    next_offset: int
    batches: int
    size: int
    max_timestamp_ms: int
    min_sequence: int
    max_sequence: int
    chain_in: bytes
    chain_out: bytes
    detail_position: int = 0
    detail_size: int = 0
    damage: list[DamagedRange] = []


class WrappedKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    topic_id: bytes
    key_id: int
    wrapped: bytes


class Summary(msgspec.Struct, frozen=True, gc=False, array_like=True):
    version: int
    number: int
    partitions: list[PartitionSummary]
    keys: list[WrappedKey]
    replaced: list[int]
    unattributed: list[DamagedRange]
    first_group: int
    last_group: int


def _detail_data(cluster_id: bytes, number: int, topic_id: bytes, partition: int) -> bytes:
    return b"SPFD" + cluster_id + _NUMBER.pack(number) + topic_id + _PARTITION.pack(partition)


def _summary_data(cluster_id: bytes, number: int, data_end: int) -> bytes:
    return b"SPFS" + cluster_id + _NUMBER.pack(number) + _NUMBER.pack(data_end)


def build_footer(
    keys: LogKeys, number: int, data_end: int, parts: Sequence[tuple[PartitionSummary, BatchIndex]], summary: Summary
) -> tuple[list[bytes], bytes, list[PartitionSummary]]:
    """The footer's buffers to be written at `data_end`, the summary's tag, and the partitions with their detail positions."""
    buffers: list[bytes] = []
    placed: list[PartitionSummary] = []
    at = data_end
    for part, index in parts:
        associated = _detail_data(keys.cluster_id, number, part.topic_id, part.partition)
        block = keys.seal_for(FOOTER_PURPOSE, index.to_columns(), associated)
        placed.append(msgspec.structs.replace(part, detail_position=at, detail_size=len(block)))
        buffers.append(block)
        at += len(block)
    clear = msgspec.msgpack.encode(msgspec.structs.replace(summary, partitions=placed))
    sealed = keys.seal_for(FOOTER_PURPOSE, clear, _summary_data(keys.cluster_id, number, data_end))
    buffers += [sealed, pack_trailer(number, data_end, at, len(sealed))]
    return buffers, sealed[-TAG_BYTES:], placed


def read_summary(keys: LogKeys, file: File, path: str, number: int, expected_tag: bytes | None) -> tuple[Summary, int]:
    """The authenticated summary and the end of the data. Raises TamperedData when the footer is damaged or another one."""
    size = file.size()
    trailer = parse_trailer(file.read_at(max(0, size - TRAILER_BYTES), TRAILER_BYTES))
    if trailer is None or trailer.number != number:
        raise TamperedData(f"the footer of {path}")
    if trailer.version > FORMAT_VERSION:
        raise FormatUnsupported(path, trailer.version, FORMAT_VERSION)
    if trailer.summary_position + trailer.summary_bytes + TRAILER_BYTES != size:
        raise TamperedData(f"the footer of {path} (its trailer points outside)")
    block = file.read_at(trailer.summary_position, trailer.summary_bytes)
    if expected_tag is not None and block[-TAG_BYTES:] != expected_tag:
        raise TamperedData(f"the footer of {path} (not the one the manifest lists)")
    clear = keys.open_for(FOOTER_PURPOSE, block, _summary_data(keys.cluster_id, number, trailer.data_end))
    return decode_content(path, clear, Summary), trailer.data_end


def read_detail(keys: LogKeys, file: File, number: int, part: PartitionSummary) -> BatchIndex:
    """Raises TamperedData when the block is damaged."""
    return open_detail(keys, file.read_at(part.detail_position, part.detail_size), number, part)


def open_detail(keys: LogKeys, block: Buffer, number: int, part: PartitionSummary) -> BatchIndex:
    """Raises TamperedData when the block is damaged."""
    clear = keys.open_for(FOOTER_PURPOSE, block, _detail_data(keys.cluster_id, number, part.topic_id, part.partition))
    return BatchIndex.from_columns(clear, FLAG_KEYS_COMPLETE)
