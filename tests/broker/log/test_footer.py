"""Footers: authenticated, pinned by the manifest, and refused when any byte differs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from crc32c import crc32c

from broker.errors import FormatUnsupported
from broker.log.footer import (
    DamagedRange,
    PartitionSummary,
    Summary,
    WrappedKey,
    build_footer,
    read_detail,
    read_summary,
)
from broker.log.index import BatchIndex
from broker.log.layout import FLAG_KEYS_COMPLETE, NO_TAG, TRAILER_BYTES, pack_trailer
from broker.log.sealing import FOOTER_PURPOSE, LogKeys
from broker.machine import MachineDisk
from security.errors import TamperedData
from tests.broker.log.journals import ORDERS, READINGS

NUMBER, DATA_END = 9, 1000
PATH = "journal/9"
DAMAGE = DamagedRange(3, 5, "scratched")


def part(topic_id: bytes, partition: int, batches: int) -> tuple[PartitionSummary, BatchIndex]:
    index = BatchIndex()
    for number in range(batches):
        index.add(number, 0, 128 + 200 * number, 200, 10 + number, 5, FLAG_KEYS_COMPLETE, bytes([number]) * 16, [number])
    summary = PartitionSummary(topic_id, partition, 0, 0, batches, batches, 200 * batches, 5, 10, 9 + batches, NO_TAG, b"t" * 16)
    summary.damage = [DAMAGE]
    return summary, index


class Footer:
    """A file of `DATA_END` bytes of data and a footer of two partitions."""

    def __init__(self, keys: LogKeys, disk: MachineDisk) -> None:
        self.keys = keys
        self.parts = [part(ORDERS, 0, 3), part(READINGS, 2, 2)]
        summary = Summary(1, NUMBER, [], [WrappedKey(ORDERS, 4, b"w" * 60)], [1, 2], [DAMAGE], 7, 8)
        buffers, self.tag, self.placed = build_footer(keys, NUMBER, DATA_END, self.parts, summary)
        self.data = bytes(DATA_END) + b"".join(buffers)
        self.path = disk.root / "file"
        self.path.write_bytes(self.data)
        self.file = disk.open("file")

    def write(self, data: bytes) -> None:
        self.path.write_bytes(data)

    def summary(self) -> tuple[Summary, int]:
        return read_summary(self.keys, self.file, PATH, NUMBER, self.tag)


@pytest.fixture
def footer(keys: LogKeys, disk: MachineDisk) -> Footer:
    return Footer(keys, disk)


def test_a_footer_is_read_as_built(footer: Footer) -> None:
    summary, data_end = footer.summary()
    assert data_end == DATA_END
    assert summary.partitions == footer.placed
    assert [p.damage for p in summary.partitions] == [[DAMAGE], [DAMAGE]]
    assert (summary.number, summary.first_group, summary.last_group, summary.replaced) == (NUMBER, 7, 8, [1, 2])
    assert summary.keys == [WrappedKey(ORDERS, 4, b"w" * 60)]
    assert summary.unattributed == [DAMAGE]


def test_details_are_read_one_by_one(footer: Footer) -> None:
    for placed, (_, index) in zip(footer.placed, footer.parts, strict=True):
        found = read_detail(footer.keys, footer.file, NUMBER, placed)
        assert found.to_columns() == index.to_columns()


def test_record_keys_and_hashes_do_not_show(footer: Footer) -> None:
    columns = footer.parts[0][1].to_columns()
    assert columns[-12:-4] not in footer.data
    assert columns[8:32] not in footer.data


def test_any_changed_byte_of_summary_or_trailer_is_refused(footer: Footer, flipped: Callable[..., bytes]) -> None:
    last = footer.placed[-1]
    start = last.detail_position + last.detail_size
    for at in range(start, len(footer.data)):
        footer.write(flipped(footer.data, at))
        with pytest.raises(TamperedData):
            footer.summary()


def test_any_changed_byte_of_a_detail_is_refused_and_leaves_the_others(footer: Footer, flipped: Callable[..., bytes]) -> None:
    first, second = footer.placed
    for at in range(first.detail_position, first.detail_position + first.detail_size):
        footer.write(flipped(footer.data, at))
        with pytest.raises(TamperedData):
            read_detail(footer.keys, footer.file, NUMBER, first)
        assert len(read_detail(footer.keys, footer.file, NUMBER, second)) == 2


def test_every_prefix_is_refused(footer: Footer) -> None:
    for size in range(DATA_END, len(footer.data)):
        footer.write(footer.data[:size])
        with pytest.raises(TamperedData):
            footer.summary()
    footer.write(b"")
    with pytest.raises(TamperedData):
        footer.summary()


def test_an_authentic_footer_that_the_manifest_does_not_list_is_refused(keys: LogKeys, disk: MachineDisk) -> None:
    old = Footer(keys, disk)
    new = Footer(keys, disk)
    new.write(old.data)
    with pytest.raises(TamperedData, match="not the one the manifest lists"):
        new.summary()


def test_a_footer_of_another_file_or_place_is_refused(footer: Footer) -> None:
    with pytest.raises(TamperedData):
        read_summary(footer.keys, footer.file, PATH, NUMBER + 1, footer.tag)
    with pytest.raises(TamperedData):
        read_detail(footer.keys, footer.file, NUMBER + 1, footer.placed[0])
    moved = msgspec.structs.replace(footer.placed[0], partition=1)
    with pytest.raises(TamperedData):
        read_detail(footer.keys, footer.file, NUMBER, moved)


@pytest.mark.parametrize("position", [0, 2**63, 2**64 - 1])
def test_a_trailer_that_points_elsewhere_is_refused(footer: Footer, position: int) -> None:
    trailer = pack_trailer(NUMBER, DATA_END, position, 100)
    footer.write(footer.data[:-TRAILER_BYTES] + trailer)
    with pytest.raises(TamperedData, match="points outside"):
        footer.summary()


def test_newer_versions_are_refused_by_name(footer: Footer, keys: LogKeys) -> None:
    trailer = bytearray(footer.data[-TRAILER_BYTES:])
    trailer[4:8] = (2).to_bytes(4, "little")
    trailer[-4:] = crc32c(bytes(trailer[:-4])).to_bytes(4, "little")
    footer.write(footer.data[:-TRAILER_BYTES] + trailer)
    with pytest.raises(FormatUnsupported, match="journal/9 has format version 2"):
        footer.summary()
    newer = msgspec.msgpack.encode([2, "of another shape"])
    associated = b"SPFS" + keys.cluster_id + NUMBER.to_bytes(8, "little") + DATA_END.to_bytes(8, "little")
    sealed = keys.seal_for(FOOTER_PURPOSE, newer, associated)
    footer.write(bytes(DATA_END) + sealed + pack_trailer(NUMBER, DATA_END, DATA_END, len(sealed)))
    with pytest.raises(FormatUnsupported, match="journal/9 has format version 2"):
        read_summary(keys, footer.file, PATH, NUMBER, sealed[-16:])
