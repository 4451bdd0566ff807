"""Fuzz target: the footer of a sealed file, read through a file that holds the bytes.

Each input is tried as it is, and with the crc of its trailer made right, so that the trailer's positions get believed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from crc32c import crc32c

from broker.errors import FormatUnsupported
from broker.log.footer import PartitionSummary, Summary, read_detail, read_summary
from broker.log.layout import TRAILER_BYTES, pack_trailer
from broker.seams import Buffer
from security.errors import TamperedData
from tests.vectors.make_sealed_log_v1 import FILE_NUMBER, bytes_of, make, open_keys

_MADE = make()
_KEYS = open_keys(bytes_of(_MADE, "key_store"))
_TAG = bytes.fromhex(_MADE["vectors"]["footer"]["fields"]["summary_tag"])
_POSITION_MAX = 2**63 - 1

CORPUS = [
    bytes_of(_MADE, *_MADE["journal"]),
    bytes_of(_MADE, "footer"),
    bytes_of(_MADE, "footer")[-TRAILER_BYTES:],
    pack_trailer(FILE_NUMBER, 128, 2**64 - 1, 2**32 - 1),
    pack_trailer(FILE_NUMBER, 0, 0, 0),
    pack_trailer(FILE_NUMBER, 2**64 - 1, 2**63, 48),
]


class HeldFile:
    """Refuses what the operating system's pread refuses."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, position: int, size: int) -> bytes:
        if position < 0 or size < 0:
            raise OSError(22, "Invalid argument")
        if position > _POSITION_MAX or size > _POSITION_MAX:
            raise OverflowError("Python int too large to convert to C long")
        return self._data[position : position + size]

    def read_now(self, position: int, into: memoryview) -> int:
        raise AssertionError("a footer is read on a lane")

    def size(self) -> int:
        return len(self._data)

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        raise AssertionError("a reader writes")

    def truncate(self, size: int) -> None:
        raise AssertionError("a reader truncates")

    def sync(self) -> None:
        raise AssertionError("a reader syncs")

    def close(self) -> None:
        pass


def _summary() -> Summary:
    """Of the unharmed file: where its detail blocks are looked for in harmed ones."""
    return read_summary(_KEYS, HeldFile(CORPUS[0]), "sample", FILE_NUMBER, _TAG)[0]


_PARTITIONS = _summary().partitions


def one_input(data: bytes) -> None:
    _try(data)
    if len(data) >= TRAILER_BYTES:
        head = data[-TRAILER_BYTES:-4]
        _try(data[:-4] + crc32c(head).to_bytes(4, "little"))


def _try(data: bytes) -> None:
    file = HeldFile(data)
    for tag in (None, _TAG):
        try:
            summary, data_end = read_summary(_KEYS, file, "input", FILE_NUMBER, tag)
        except (TamperedData, FormatUnsupported):
            continue
        assert summary == _summary(), "another summary authenticates"
        assert data_end == len(CORPUS[0]) - len(CORPUS[1])
    whole = int.from_bytes(data[:8].ljust(8, b"\x00"), "little")
    for part in _PARTITIONS:
        for position in (part.detail_position, whole & _POSITION_MAX, whole & 0xFFFF):
            _try_detail(file, msgspec.structs.replace(part, detail_position=position))


def _try_detail(file: HeldFile, part: PartitionSummary) -> None:
    try:
        index = read_detail(_KEYS, file, FILE_NUMBER, part)
    except TamperedData:
        return
    unharmed = next(one for one in _PARTITIONS if one.topic_id == part.topic_id)
    expected = read_detail(_KEYS, HeldFile(CORPUS[0]), FILE_NUMBER, unharmed)
    assert index.to_columns() == expected.to_columns(), "another detail block authenticates"
