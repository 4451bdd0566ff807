"""The header of a batch: what verify refuses, and what is patched without touching the rest."""

from __future__ import annotations

import struct

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.batch import build, read_header, split, verify, walk, with_base_offset, with_log_append_time
from broker.batch_errors import BatchTooLarge, CorruptBatch, UnsupportedCompression
from broker.batch_header import BATCH_BYTES_MAX, HEADER_BYTES, assemble, max_timestamp
from broker.compression import Compression

DRAFTS = [(1_700_000_000_000 + n, b"eu/%d" % n, b"value %d" % n, [(b"trace", b"1")]) for n in range(3)]
BATCH = build(DRAFTS, base_offset=40, producer_id=9, producer_epoch=2, base_sequence=5)

# Field name -> struct format and position on the wire.
FIELDS = {
    "base_offset": (">q", 0),
    "batch_length": (">i", 8),
    "partition_leader_epoch": (">i", 12),
    "magic": (">b", 16),
    "crc": (">I", 17),
    "attributes": (">h", 21),
    "last_offset_delta": (">i", 23),
    "base_timestamp_ms": (">q", 27),
    "max_timestamp_ms": (">q", 35),
    "producer_id": (">q", 43),
    "producer_epoch": (">h", 51),
    "base_sequence": (">i", 53),
    "count": (">i", 57),
}


def crc32c_bit_by_bit(data: bytes) -> int:
    """Castagnoli's polynomial, reflected (RFC 3720, B.4): the judge of the library."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def forged(batch: bytes = BATCH, **fields: int) -> bytes:
    """A batch with fields changed and its checksum made to fit, as a hostile producer would send it."""
    patched = bytearray(batch)
    for name, number in fields.items():
        layout, position = FIELDS[name]
        struct.pack_into(layout, patched, position, number)
    if "crc" not in fields:
        struct.pack_into(">I", patched, 17, crc32c.crc32c(patched[21:]))
    return bytes(patched)


class TestReadHeader:
    def test_fields(self):
        header = read_header(BATCH)
        assert header.base_offset == 40
        assert header.size == len(BATCH) == header.batch_length + 12
        assert header.partition_leader_epoch == 0
        assert header.magic == 2
        assert header.crc == crc32c_bit_by_bit(BATCH[21:])
        assert header.last_offset_delta == 2
        assert header.next_offset == 43
        assert header.base_timestamp_ms == 1_700_000_000_000
        assert header.max_timestamp_ms == max_timestamp(BATCH) == 1_700_000_000_002
        assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 5)
        assert header.count == 3

    @pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"magic"}))
    def test_each_field_is_read_from_its_place(self, name):
        layout, _ = FIELDS[name]
        number = 2 ** (8 * struct.calcsize(layout) - 2) + 3
        assert getattr(read_header(forged(**{name: number})), name) == number

    def test_at_a_position(self):
        assert read_header(b"before" + BATCH, 6) == read_header(BATCH)

    @pytest.mark.parametrize("position", [len(BATCH) - HEADER_BYTES + 1, len(BATCH), len(BATCH) + 100])
    def test_at_a_position_too_near_the_end(self, position):
        with pytest.raises(CorruptBatch, match="shorter than its header"):
            read_header(BATCH, position)

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    def test_from_any_buffer(self, wrap):
        assert read_header(wrap(BATCH)) == verify(wrap(BATCH))

    @pytest.mark.parametrize("codec", Compression)
    def test_compression(self, codec):
        assert read_header(build(DRAFTS, compression=codec)).compression is codec

    @pytest.mark.parametrize(
        ("attributes", "log_append", "transactional", "control"),
        [(0x00, 0, 0, 0), (0x08, 1, 0, 0), (0x10, 0, 1, 0), (0x20, 0, 0, 1), (0x38, 1, 1, 1)],
    )
    def test_flags(self, attributes, log_append, transactional, control):
        header = read_header(forged(attributes=attributes))
        assert header.is_log_append_time == bool(log_append)
        assert header.is_transactional == bool(transactional)
        assert header.is_control == bool(control)


class TestVerify:
    def test_a_batch_of_ours(self):
        assert verify(BATCH).count == 3

    def test_an_empty_batch_that_compaction_left(self):
        left = forged(BATCH[:HEADER_BYTES], batch_length=49, count=0)
        assert verify(left).last_offset_delta == 2
        assert list(walk(left)) == []

    def test_every_truncated_prefix_is_corrupt(self):
        for length in range(len(BATCH)):
            with pytest.raises(CorruptBatch):
                verify(BATCH[:length])

    def test_every_flipped_bit_that_the_checksum_covers_is_corrupt(self):
        # Base offset and leader epoch lie outside it: they are the broker's to write.
        outside = {*range(8), *range(12, 16)}
        for bit in (bit for bit in range(8 * len(BATCH)) if bit // 8 not in outside):
            flipped = bytearray(BATCH)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptBatch):
                verify(flipped)

    @pytest.mark.parametrize(
        ("fields", "reason", "position"),
        [
            ({"magic": 1}, "wrong magic 1", 16),
            ({"magic": -1}, "wrong magic -1", 16),
            ({"batch_length": 48}, "wrong length 48", 8),
            ({"batch_length": -1}, "wrong length -1", 8),
            ({"batch_length": len(BATCH) - 13}, "wrong length", 8),
            ({"batch_length": len(BATCH) - 11}, "wrong length", 8),
            ({"batch_length": 2**31 - 1}, "wrong length", 8),
            ({"crc": 0}, "wrong checksum", 17),
            ({"base_offset": -1}, "negative base offset -1", 0),
            ({"base_offset": 2**63 - 3}, "offsets beyond 64 bits", 0),
            ({"count": -1}, "negative count -1", 57),
            ({"last_offset_delta": -1}, "negative last offset delta -1", 23),
            ({"last_offset_delta": 1}, "last offset delta 1 below 3 records", 23),
            ({"count": 4}, "last offset delta 2 below 4 records", 23),
            ({"count": 2**31 - 1, "last_offset_delta": 2**31 - 1}, "count 2147483647 beyond", HEADER_BYTES),
            ({"base_timestamp_ms": 2**63 - 1}, "base timestamp out of range", 27),
            ({"base_timestamp_ms": -(2**63)}, "base timestamp out of range", 27),
        ],
    )
    def test_every_contradiction_has_its_reason(self, fields, reason, position):
        with pytest.raises(CorruptBatch) as refusal:
            verify(forged(**fields))
        assert refusal.value.reason.startswith(reason)
        assert refusal.value.position == position
        assert refusal.value.reason in str(refusal.value)

    def test_trailing_bytes_are_corrupt(self):
        with pytest.raises(CorruptBatch, match="wrong length"):
            verify(BATCH + b"\x00")

    def test_a_count_needs_seven_bytes_a_record(self):
        room = len(BATCH) - HEADER_BYTES
        assert verify(forged(count=room // 7, last_offset_delta=room)).count == room // 7
        with pytest.raises(CorruptBatch, match=f"beyond {room} bytes"):
            verify(forged(count=room // 7 + 1, last_offset_delta=room))

    @pytest.mark.parametrize("codec", [5, 6, 7])
    def test_an_unknown_codec_is_unsupported(self, codec):
        with pytest.raises(UnsupportedCompression):
            verify(forged(attributes=codec))


class TestPatches:
    @given(base_offset=st.integers(0, 2**63 - 4), leader_epoch=st.integers(0, 2**31 - 1))
    def test_base_offset_touches_nothing_else(self, base_offset, leader_epoch):
        placed = with_base_offset(BATCH, base_offset, leader_epoch)
        assert placed[16:] == BATCH[16:]
        assert (verify(placed).base_offset, verify(placed).partition_leader_epoch) == (base_offset, leader_epoch)
        assert [record.offset for record in walk(placed)] == [base_offset, base_offset + 1, base_offset + 2]

    def test_log_append_time_is_every_records_timestamp(self):
        stamped = with_log_append_time(BATCH, 1_800_000_000_000)
        assert verify(stamped).is_log_append_time
        assert max_timestamp(stamped) == 1_800_000_000_000
        assert {record.timestamp_ms for record in walk(stamped)} == {1_800_000_000_000}
        assert stamped[HEADER_BYTES:] == BATCH[HEADER_BYTES:]

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    def test_any_buffer_is_patched_into_new_bytes(self, wrap):
        assert with_base_offset(wrap(BATCH), 40) == BATCH
        assert type(with_log_append_time(wrap(BATCH), 5)) is bytes

    def test_a_batch_that_its_length_field_cannot_say_is_too_large(self):
        class Huge(bytes):
            def __len__(self) -> int:
                return BATCH_BYTES_MAX - HEADER_BYTES + 1

        assert struct.pack(">i", BATCH_BYTES_MAX - 12) == b"\x7f\xff\xff\xff"
        with pytest.raises(BatchTooLarge, match="BATCH_BYTES_MAX"):
            assemble(read_header(BATCH), Huge())


class TestSplit:
    OTHER = build([(1, None, b"x", [])], base_offset=43)

    def test_batches_in_a_row(self):
        assert [bytes(batch) for batch in split(BATCH + self.OTHER + BATCH)] == [BATCH, self.OTHER, BATCH]

    def test_an_empty_batch_among_others(self):
        empty = forged(BATCH[:HEADER_BYTES], batch_length=49, count=0)
        assert [bytes(batch) for batch in split(empty + BATCH)] == [empty, BATCH]

    def test_nothing(self):
        assert split(b"") == []

    def test_every_truncated_tail_is_dropped(self):
        whole = BATCH + self.OTHER
        for length in range(len(BATCH), len(whole)):
            assert [bytes(batch) for batch in split(whole[:length])] == [BATCH]

    @pytest.mark.parametrize("length", [-1, 0, 48, -(2**31)])
    def test_a_length_below_a_header_is_corrupt_and_does_not_loop(self, length):
        with pytest.raises(CorruptBatch, match="wrong length") as refusal:
            split(BATCH + forged(batch_length=length))
        assert refusal.value.position == len(BATCH) + 8

    def test_batches_are_views_not_copies(self):
        assert split(BATCH)[0].obj is BATCH
