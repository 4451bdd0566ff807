"""Fuzz target: Kafka record batches, from the header to the records of every codec.

Each input is tried as it is, and with its length and crc made right, so that the fuzzer gets past them.
"""

from __future__ import annotations

import struct

from crc32c import crc32c

from broker.batch import (
    Compression,
    RawRecord,
    build,
    cut,
    keys,
    max_timestamp,
    offset_of_timestamp,
    read_header,
    split,
    verify,
    walk_raw,
)
from broker.errors import BrokerError

DECOMPRESSED_BYTES_MAX = 32 * 1024
NOW_MS = 1_760_000_000_000
CRC_FROM = 21

_DRAFTS = [
    (
        NOW_MS + 3 * n,
        b"key %d" % (n % 5) if n % 4 else None,
        b"value " * n if n % 7 else None,
        ((b"source", b"till"), (b"none", None)),
    )
    for n in range(20)
]
CORPUS = [
    *(build(_DRAFTS, compression=codec, base_offset=1000) for codec in Compression),
    build(_DRAFTS[:1]),
    build([(NOW_MS, b"a" * 200, b"b" * 2000, ())], compression=Compression.ZSTD),
    build([(NOW_MS, None, bytes(100_000), ())], compression=Compression.GZIP),
    build(_DRAFTS[:3]) + build(_DRAFTS[3:5], base_offset=3),
]


def one_input(data: bytes) -> None:
    _try(data)
    if len(data) > CRC_FROM:
        _try(_consistent(data))


def _consistent(data: bytes) -> bytes:
    """With the length (bytes 8 to 11), the magic and the crc (17 to 20) of a batch that fills the buffer."""
    fixed = bytearray(data)
    struct.pack_into(">i", fixed, 8, len(fixed) - 12)
    fixed[16] = 2
    struct.pack_into(">I", fixed, 17, crc32c(fixed[CRC_FROM:]))
    return bytes(fixed)


def _try(data: bytes) -> None:
    try:
        for one in split(data):
            assert len(one) <= len(data)
            verify(one)
    except BrokerError:
        pass
    try:
        read_header(data)
        max_timestamp(data)
        verify(data)
    except BrokerError:
        pass
    records = _walked(data)
    try:
        found = keys(data, DECOMPRESSED_BYTES_MAX)
        if records is not None:
            assert found == [key for _, _, key, _, _ in records], "keys and records differ"
    except BrokerError:
        assert records is None, "records can be walked and keys cannot"
    _find(data, records)
    _cut(data, records)


def _walked(data: bytes) -> list[RawRecord] | None:
    """All records, within the bound; None where the batch is refused."""
    room = max(len(data), DECOMPRESSED_BYTES_MAX)
    records = []
    try:
        for record in walk_raw(data, DECOMPRESSED_BYTES_MAX):
            records.append(record)
            _, _, key, value, headers = record
            room -= len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") for name, content in headers)
            assert room >= 0, "more comes out than the bound allows"
    except BrokerError:
        return None
    header = read_header(data)
    offsets = [record[0] for record in records]
    assert offsets == sorted(set(offsets)), "offsets do not grow"
    assert len(records) == header.count, "not as many records as the header says"
    if offsets:  # compaction may leave a batch without records
        assert 0 <= header.base_offset <= offsets[0] <= offsets[-1] < header.next_offset < 2**63, "an offset outside the batch"
    return records


def _find(data: bytes, records: list[RawRecord] | None) -> None:
    try:
        found = offset_of_timestamp(data, NOW_MS + 10, DECOMPRESSED_BYTES_MAX)
    except BrokerError:
        return
    if found is not None and records is not None:
        assert found[0] in [record[0] for record in records]
        assert found[1] >= NOW_MS + 10


def _kept(key: bytes | None) -> bool:
    return key is not None and len(key) % 2 == 1


def _cut(data: bytes, records: list[RawRecord] | None) -> None:
    try:
        left = cut(data, _kept, DECOMPRESSED_BYTES_MAX)
    except BrokerError:
        return
    if records is None or left == data or read_header(data).is_control:
        return
    expected = [record for record in records if _kept(record[2])]
    assert (left is None) == (not expected)
    if left is not None:
        verify(left)
        assert list(walk_raw(left)) == expected, "cutting changed what is left"
