"""The five codecs of a record batch, each with a bound on what it may decompress to.

Kafka compresses the records section as one stream: a gzip member (RFC 1952), an LZ4 frame, a Zstandard frame (RFC 8878), or
snappy blocks in the framing of the xerial snappy-java library; librdkafka and others send one bare snappy block instead.
One stream and nothing after it: several members or frames in a row are refused, because no producer writes them and
thousands of empty ones would make a short batch slow to read.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from enum import IntEnum
from typing import TypeAlias

import cramjam
import lz4.frame
import zstandard

from broker.batch_errors import BatchTooLarge, CorruptBatch, UnsupportedCompression

Buffer: TypeAlias = bytes | bytearray | memoryview

DECOMPRESSED_BYTES_MAX = 64 * 1024 * 1024

GZIP_LEVEL = 6  # Kafka's default (KIP-390)
ZSTD_LEVEL = 1  # level 3 takes twice the time for a few per cent on batches of tens of kilobytes

_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS  # zlib's way to say: gzip member, not zlib stream

# snappy-java's SnappyOutputStream: magic, version, oldest compatible version, then blocks with a 4-byte length each.
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = _XERIAL_MAGIC + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK_BYTES = 32 * 1024
_BLOCK_LENGTH = struct.Struct(">i")

# Room for the output of most batches in one call; asking for the limit at once maps and unmaps 64 MiB per batch, 3x the time.
_LZ4_CHUNK_BYTES = 256 * 1024

# A 4-byte run-length block makes 128 KiB (RFC 8878, 3.1.1.2), so one piece of input overshoots the limit by 16 MiB at most.
_ZSTD_PIECE_BYTES = 512


class Compression(IntEnum):
    """Bits 0 to 2 of a batch's attributes (KIP-98; zstd by KIP-110)."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


def codec_of(attributes: int) -> Compression:
    """The codec that a batch's attributes name; UnsupportedCompression for the numbers 5 to 7."""
    codec = attributes & 7
    if codec > Compression.ZSTD:
        raise UnsupportedCompression(codec)
    return Compression(codec)


def compress(codec: Compression, data: bytes) -> bytes:
    """One stream of this codec, as Kafka brokers and Java clients read it."""
    return _COMPRESS[codec](data)


def decompress(codec: Compression, data: Buffer, decompressed_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """The records section in clear. CorruptBatch for bytes that are no whole stream, BatchTooLarge above the limit."""
    return _DECOMPRESS[codec](data, decompressed_bytes_max)


def _too_large(limit: int, size_bytes: int) -> BatchTooLarge:
    return BatchTooLarge("decompressed batch", size_bytes, "decompressed_bytes_max", limit)


def _corrupt(codec: str, reason: str) -> CorruptBatch:
    return CorruptBatch(f"{codec} stream {reason}", 0)


def _compress_none(data: bytes) -> bytes:
    return data


def _decompress_none(data: Buffer, limit: int) -> bytes:
    if len(data) > limit:
        raise _too_large(limit, len(data))
    return bytes(data)


def _compress_gzip(data: bytes) -> bytes:
    stream = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    return stream.compress(data) + stream.flush()


def _decompress_gzip(data: Buffer, limit: int) -> bytes:
    stream = zlib.decompressobj(_GZIP_WINDOW_BITS)
    try:
        records = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise _corrupt("gzip", "does not decompress") from error
    return _whole("gzip", records, limit, stream.eof, stream.unused_data)


def _compress_snappy(data: bytes) -> bytes:
    parts = [_XERIAL_HEADER]
    for start in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (_BLOCK_LENGTH.pack(len(block)), block)
    return b"".join(parts)


def _decompress_snappy(data: Buffer, limit: int) -> bytes:
    view = memoryview(data)
    if view[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
        return _snappy_block(view, limit, 0)
    if len(view) < len(_XERIAL_HEADER):
        raise _corrupt("snappy", "ends inside its framing header")
    records: list[bytes] = []
    size, position = 0, len(_XERIAL_HEADER)
    while position < len(view):
        start = position + _BLOCK_LENGTH.size
        if start > len(view):
            raise _corrupt("snappy", "ends inside a block length")
        position = start + int(_BLOCK_LENGTH.unpack_from(view, start - _BLOCK_LENGTH.size)[0])
        if not start < position <= len(view):
            raise _corrupt("snappy", "has a block length beyond its data")
        records.append(_snappy_block(view[start:position], limit, size))
        size += len(records[-1])
    return b"".join(records)


def _snappy_block(block: memoryview, limit: int, before: int) -> bytes:
    """One block, after `before` bytes of the same stream; its own preamble says how long it becomes."""
    try:
        size = before + int(cramjam.snappy.decompress_raw_len(block))
        if size > limit:
            raise _too_large(limit, size)
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise _corrupt("snappy", "does not decompress") from error


def _compress_lz4(data: bytes) -> bytes:
    # Kafka's reader refuses linked blocks, which are this library's default.
    return bytes(lz4.frame.compress(data, block_linked=False, store_size=False))


def _decompress_lz4(data: Buffer, limit: int) -> bytes:
    stream = lz4.frame.LZ4FrameDecompressor()
    records = b""
    try:
        # Each round asks for as much again as is there: few rounds, and never more than one byte beyond the limit.
        while not stream.eof and len(records) <= limit:
            more = stream.decompress(data, min(limit + 1 - len(records), max(_LZ4_CHUNK_BYTES, len(records))))
            if not more and not stream.eof:
                break
            records, data = (records + more if records else more), b""
    except RuntimeError as error:
        raise _corrupt("lz4", "does not decompress") from error
    return _whole("lz4", records, limit, stream.eof, stream.unused_data)


class _Zstd(threading.local):
    """Contexts kept per thread: they release the GIL while they work, and making one costs more than a small batch."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def _compress_zstd(data: bytes) -> bytes:
    return _zstd.compressor.compress(data)


def _decompress_zstd(data: Buffer, limit: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if size > limit:
            raise _too_large(limit, size)
        if size >= 0:
            return _zstd.decompressor.decompress(data, max_output_size=limit, allow_extra_data=False)
        return _decompress_unsized_zstd(data, limit)
    except zstandard.ZstdError as error:
        raise _corrupt("zstd", "does not decompress") from error


def _decompress_unsized_zstd(data: Buffer, limit: int) -> bytes:
    """Java clients stream, so their frames do not say how long they become; this API has no bound but the input's size."""
    stream = _zstd.decompressor.decompressobj()
    view, parts, size, position = memoryview(data), [], 0, 0
    while position < len(view) and not stream.eof and size <= limit:
        parts.append(stream.decompress(view[position : position + _ZSTD_PIECE_BYTES]))
        size += len(parts[-1])
        position += _ZSTD_PIECE_BYTES
    if size > limit:
        raise _too_large(limit, size)
    return _whole("zstd", b"".join(parts), limit, stream.eof, stream.unused_data + bytes(view[position:]))


def _whole(codec: str, records: bytes, limit: int, ended: bool, rest: bytes | None) -> bytes:
    if len(records) > limit:
        raise _too_large(limit, len(records))
    if not ended:
        raise _corrupt(codec, "is cut short")
    if rest:
        raise _corrupt(codec, "is followed by other bytes")
    return records


_COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: _compress_none,
    Compression.GZIP: _compress_gzip,
    Compression.SNAPPY: _compress_snappy,
    Compression.LZ4: _compress_lz4,
    Compression.ZSTD: _compress_zstd,
}

_DECOMPRESS: dict[Compression, Callable[[Buffer, int], bytes]] = {
    Compression.NONE: _decompress_none,
    Compression.GZIP: _decompress_gzip,
    Compression.SNAPPY: _decompress_snappy,
    Compression.LZ4: _decompress_lz4,
    Compression.ZSTD: _decompress_zstd,
}
