"""Record batches: golden bytes, round trips, cuts, and hostile batches."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import batch as codec
from broker import varint
from broker.batch import build, cut, keys, offset_of_timestamp, read_header, verify, walk, walk_raw, with_log_append_time
from broker.batch_errors import BatchTooLarge, CorruptBatch, UnsupportedCompression
from broker.compression import Compression, compress
from broker.record import MESSAGE_ID_HEADER, Record, new_message_id

# Base offset and leader epoch, which are the broker's to write.
OUTSIDE_CHECKSUM = {*range(8), *range(12, 16)}

REFUSALS = (CorruptBatch, BatchTooLarge, UnsupportedCompression)

MESSAGE_ID = MESSAGE_ID_HEADER.encode()

CONTENT = st.none() | st.binary(max_size=80)
HEADERS = st.lists(st.tuples(st.text(max_size=8).map(str.encode), CONTENT), max_size=4) | st.just(
    [(MESSAGE_ID, b"01a2087a-4b49-779a-b9d0-b706fe2554a5")]
)
TIMESTAMPS = st.integers(-1, 2**41) | st.integers(1_700_000_000_000, 1_700_000_020_000)
DRAFTS = st.lists(st.tuples(TIMESTAMPS, CONTENT, CONTENT, HEADERS), min_size=1, max_size=12)
CODECS = st.sampled_from(Compression)

THREE = [
    (1_700_000_000_000, b"eu/7", b'{"n":1}', [(MESSAGE_ID, b"01a2087a-4b49-779a-b9d0-b706fe2554a5")]),
    (1_700_000_000_900, None, b"", [(b"trace", None), (b"", b"\xff")]),
    (1_700_000_000_100, b"", None, []),
]


def number(value: int) -> bytes:
    return varint.encode(value)


def record_bytes(
    *, stamp: int = 0, offset: int = 0, key: bytes = b"\x01", value: bytes = b"\x01", headers: bytes = b"\x00"
) -> bytes:
    """One record whose fields are given as they stand on the wire."""
    body = b"\x00" + number(stamp) + number(offset) + key + value + headers
    return number(len(body)) + body


def batch_of(
    section: bytes, *, count: int = 1, last: int | None = None, attributes: int = 0, base_ms: int = 0, max_ms: int = 0
) -> bytes:
    """A batch around any records section, its length and checksum right: what a hostile producer can make."""
    last = count - 1 if last is None else last
    checked = struct.pack(">hiqqqhii", attributes, last, base_ms, max_ms, -1, -1, -1, count) + section
    return struct.pack(">qiibI", 0, 9 + len(checked), 0, 2, crc32c.crc32c(checked)) + checked


def section_of(batch: bytes) -> bytes:
    return batch[codec.HEADER_BYTES :]


class Golden(NamedTuple):
    fields: str
    records: list[Record]


# The first two are what a Kafka 0.11 broker wrote, published with the tests of kafka-python; the third was put together by hand
# from the field list of Kafka's documentation, its checksum computed bit by bit.
GOLDEN = {
    "one value": Golden(
        "0000000000000000 0000003b 00000001 02 0318a270 0000 00000000 0000015dff7b063c 0000015dff7b063c"
        "ffffffffffffffff ffff ffffffff 00000001 12 00 00 00 01 06 313233 00",
        [Record(0, 1_503_229_838_908, None, b"123")],
    ),
    "two empty values": Golden(
        "0000000000000001 00000040 00000002 02 c85cbd23 0000 00000001 0000015dff7cdd6c 0000015dff7cde14"
        "ffffffffffffffff ffff ffffffff 00000002 0c 00 00 00 01 00 00 0e 00 d002 02 01 00 00",
        [Record(1, 1_503_229_959_532, None, b""), Record(2, 1_503_229_959_700, None, b"")],
    ),
    "headers and producer": Golden(
        "0000000000000064 00000045 00000000 02 14ebd86f 0000 00000000 0000018bcfe56800 0000018bcfe56800"
        "0000000000000009 0002 00000005 00000001 26 00 00 00 04 6b31 04 7631 04 04 6831 02 78 04 6832 01",
        [Record(100, 1_700_000_000_000, b"k1", b"v1", (("h1", b"x"), ("h2", None)))],
    ),
}


def reference_walk(batch: bytes) -> Iterator[tuple]:
    """The records of an uncompressed batch, read as slowly and plainly as the documentation describes them."""
    base_offset, base_ms, count = (int.from_bytes(batch[at:to], "big", signed=True) for at, to in ((0, 8), (27, 35), (57, 61)))
    rest = iter(batch[61:])

    def varint_() -> int:
        zigzag = 0
        for shift in range(0, 70, 7):
            byte = next(rest)
            zigzag += (byte % 128) << shift
            if byte < 128:
                break
        return zigzag // 2 if zigzag % 2 == 0 else -(zigzag // 2) - 1

    def content() -> bytes | None:
        length = varint_()
        return None if length == -1 else bytes(next(rest) for _ in range(length))

    for _ in range(count):
        varint_(), next(rest)
        timestamp_ms, offset = base_ms + varint_(), base_offset + varint_()
        yield offset, timestamp_ms, content(), content(), tuple((content(), content()) for _ in range(varint_()))
    assert next(rest, None) is None


def as_written(drafts: list, base_offset: int = 0) -> list[tuple]:
    return [
        (base_offset + n, timestamp_ms, key, value, tuple(headers))
        for n, (timestamp_ms, key, value, headers) in enumerate(drafts)
    ]


class TestGolden:
    @pytest.mark.parametrize("name", GOLDEN)
    def test_is_read(self, name):
        batch = bytes.fromhex(GOLDEN[name].fields)
        assert verify(batch).size == len(batch)
        assert list(walk(batch)) == GOLDEN[name].records

    @pytest.mark.parametrize("name", GOLDEN)
    def test_is_built_to_the_byte(self, name):
        golden = bytes.fromhex(GOLDEN[name].fields)
        header = read_header(golden)
        drafts = [
            (record.timestamp_ms, record.key, record.value, [(name.encode(), content) for name, content in record.headers])
            for record in GOLDEN[name].records
        ]
        built = build(
            drafts,
            base_offset=header.base_offset,
            producer_id=header.producer_id,
            producer_epoch=header.producer_epoch,
            base_sequence=header.base_sequence,
        )
        assert codec.with_base_offset(built, header.base_offset, header.partition_leader_epoch) == golden


class TestRoundTrip:
    @given(drafts=DRAFTS, base_offset=st.integers(0, 2**62))
    @settings(deadline=None)
    def test_a_plain_reader_agrees(self, drafts, base_offset):
        batch = build(drafts, base_offset=base_offset)
        assert list(reference_walk(batch)) == as_written(drafts, base_offset)
        assert list(walk_raw(batch)) == as_written(drafts, base_offset)

    @given(drafts=DRAFTS, compression=CODECS, base_offset=st.integers(0, 2**62))
    @settings(deadline=None)
    def test_every_compression(self, drafts, compression, base_offset):
        batch = build(drafts, compression=compression, base_offset=base_offset)
        assert verify(batch).compression is compression
        assert list(walk_raw(batch)) == as_written(drafts, base_offset)
        assert keys(batch) == [key for _, key, _, _ in drafts]
        assert read_header(batch).max_timestamp_ms == max(draft[0] for draft in drafts)

    @given(drafts=DRAFTS, compression=CODECS)
    @settings(deadline=None)
    def test_walk_gives_records_with_header_names_as_text(self, drafts, compression):
        batch = build(drafts, compression=compression)
        for record, (offset, timestamp_ms, key, value, headers) in zip(walk(batch), as_written(drafts), strict=True):
            assert (record.offset, record.timestamp_ms, record.key, record.value) == (offset, timestamp_ms, key, value)
            assert record.headers == tuple((name.decode(), content) for name, content in headers)

    @pytest.mark.parametrize("size", [0, 1, 63, 64, 8_191, 8_192, 2**20, 2**20 + 1])
    def test_every_width_of_a_length(self, size):
        drafts = [(5, bytes(size), b"v" * size, [(b"n" * size, b"c" * size)]), (5, None, None, [])]
        batch = build(drafts)
        assert list(walk_raw(batch)) == as_written(drafts)
        assert keys(batch) == [bytes(size), None]

    @pytest.mark.parametrize("sizes", [(8_191, 8_192), (8_192, 8_191), (8_192, None), (None, 8_192)])
    def test_every_mix_of_widths_in_a_header(self, sizes):
        name_size, content_size = sizes
        header = (b"n" * (name_size or 1), None if content_size is None else b"c" * content_size)
        drafts = [(5, b"", b"", [header, (b"second", b"")])]
        assert list(walk_raw(build(drafts))) == as_written(drafts)

    @pytest.mark.parametrize("delta", [0, 63, 64, 8_191, 8_192, 2**20, 2**33, -1, -64, -65, -8_193, -(2**40)])
    def test_every_width_of_a_timestamp_delta(self, delta):
        drafts = [(2**41, None, b"", []), (2**41 + delta, None, b"", [])]
        assert list(walk_raw(build(drafts))) == as_written(drafts)

    def test_more_records_than_the_table_has_offset_deltas(self):
        drafts = [(n, b"%d" % n, None, []) for n in range(varint.SHORT_MAX + 10)]
        batch = build(drafts)
        assert list(walk_raw(batch)) == as_written(drafts)
        assert keys(batch) == [key for _, key, _, _ in drafts]

    @pytest.mark.parametrize("headers", [64, 300])
    def test_many_headers(self, headers):
        drafts = [(0, None, None, [(b"h%d" % n, None if n % 3 else b"x" * n) for n in range(headers)])]
        assert list(walk_raw(build(drafts))) == as_written(drafts)

    def test_a_message_id_is_found_again(self):
        message_id = new_message_id()
        (record,) = walk(build([(0, None, b"", [(MESSAGE_ID, message_id.encode())])]))
        assert record.message_id == message_id

    @pytest.mark.parametrize(
        "header",
        [
            (MESSAGE_ID, b"1" * 35),
            (MESSAGE_ID, b"1" * 37),
            (MESSAGE_ID, None),
            (b"another-name-here", b"1" * 36),
            (b"short", b"1" * 48),
            (b"a-name-that-is-longer-than-that", b"1" * 22),
        ],
    )
    def test_headers_that_look_like_a_message_id_are_not_taken_for_one(self, header):
        drafts = [(0, b"k", b"v", [header]), (0, b"k", b"v", [])]
        assert list(reference_walk(build(drafts))) == list(walk_raw(build(drafts))) == as_written(drafts)

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    @pytest.mark.parametrize("compression", Compression)
    def test_any_buffer_is_read_and_content_is_bytes(self, wrap, compression):
        batch = build(THREE, compression=compression)
        assert list(walk_raw(wrap(batch))) == as_written(THREE)
        assert type(keys(wrap(batch))[0]) is bytes
        assert cut(wrap(batch), lambda key: True) == batch

    def test_producer_fields(self):
        header = verify(build(THREE, producer_id=9, producer_epoch=2, base_sequence=5))
        assert (header.producer_id, header.producer_epoch, header.base_sequence) == (9, 2, 5)
        assert (verify(build(THREE)).producer_id, verify(build(THREE)).base_sequence) == (-1, -1)

    def test_a_batch_without_records_cannot_be_built(self):
        with pytest.raises(ValueError, match="at least one record"):
            build([])

    def test_header_names_that_are_no_utf8_read_as_replacement_characters(self):
        (record,) = walk(build([(0, None, None, [(b"\xff", b"1")])]))
        assert record.headers == (("\ufffd", b"1"),)

    def test_numbers_longer_than_needed_are_read_as_kafka_does(self):
        section = b"\x8e\x00" + b"\x00" + b"\x80\x00" + b"\x00" + b"\x01" + b"\x01" + b"\x00"
        assert list(walk_raw(batch_of(section))) == [(0, 0, None, None, ())]

    def test_walking_is_lazy(self):
        good = record_bytes()
        records = walk_raw(batch_of(good + b"\x02" + bytes(10), count=2))
        assert next(records) == (0, 0, None, None, ())
        with pytest.raises(CorruptBatch):
            next(records)


class TestTimestamps:
    @given(drafts=DRAFTS, timestamp_ms=TIMESTAMPS, compression=CODECS)
    @settings(deadline=None)
    def test_the_first_record_at_or_after_is_found(self, drafts, timestamp_ms, compression):
        batch = build(drafts, base_offset=7, compression=compression)
        later = [(offset, found_ms) for offset, found_ms, *_ in as_written(drafts, 7) if found_ms >= timestamp_ms]
        assert offset_of_timestamp(batch, timestamp_ms) == (later[0] if later else None)

    def test_log_append_time_counts_where_the_topic_says_so(self):
        batch = with_log_append_time(build(THREE, base_offset=7), 1_800_000_000_000)
        assert offset_of_timestamp(batch, 1_700_000_000_500) == (7, 1_800_000_000_000)
        assert offset_of_timestamp(batch, 1_800_000_000_001) is None

    def test_a_batch_that_is_too_old_is_not_opened(self):
        unreadable = batch_of(b"not a gzip stream", attributes=Compression.GZIP, max_ms=50)
        assert offset_of_timestamp(unreadable, 51) is None


class TestCut:
    @given(drafts=DRAFTS, compression=CODECS, secret=st.integers(0, 2**32))
    @settings(deadline=None)
    def test_what_is_kept_is_unchanged_and_in_place(self, drafts, compression, secret):
        def keep(key: bytes | None) -> bool:
            return zlib.crc32(b"none" if key is None else key, secret) % 2 == 0

        batch = build(drafts, compression=compression, base_offset=40, producer_id=9, producer_epoch=2, base_sequence=5)
        left = [record for record in as_written(drafts, 40) if keep(record[2])]
        result = cut(batch, keep)
        if not left:
            assert result is None
            return
        assert list(walk_raw(result)) == left
        before, after = verify(batch), verify(result)
        for field in ("base_offset", "last_offset_delta", "producer_id", "producer_epoch", "base_sequence", "attributes"):
            assert getattr(after, field) == getattr(before, field)
        assert after.count == len(left)

    @given(drafts=DRAFTS, compression=CODECS)
    @settings(deadline=None)
    def test_nothing_to_cut_gives_the_same_bytes(self, drafts, compression):
        batch = build(drafts, compression=compression)
        assert cut(batch, lambda key: True) == batch

    def test_the_header_shows_no_timestamp_of_a_record_that_was_cut(self):
        batch = build([(111, b"hidden", b"", []), (222, b"seen", b"", []), (999, b"hidden", b"", [])])
        header = verify(cut(batch, lambda key: key == b"seen"))
        assert (header.base_timestamp_ms, header.max_timestamp_ms) == (222, 222)

    def test_no_byte_of_a_cut_record_is_left(self):
        batch = build([(1, b"hidden-key", b"hidden-value", [(b"hidden-name", b"hidden-content")]), (2, b"seen", b"", [])])
        assert b"hidden" not in cut(batch, lambda key: key == b"seen")

    def test_log_append_time_is_kept(self):
        batch = with_log_append_time(build(THREE), 1_800_000_000_000)
        left = cut(batch, lambda key: key == b"")
        assert verify(left).is_log_append_time
        assert [record.timestamp_ms for record in walk(left)] == [1_800_000_000_000]

    def test_a_delete_horizon_stays_in_the_base_timestamp(self):
        section = record_bytes(stamp=-10, key=b"\x02a") + record_bytes(stamp=-5, offset=1, key=b"\x02b")
        batch = batch_of(section, count=2, attributes=0x40, base_ms=1_000, max_ms=995)
        left = cut(batch, lambda key: key == b"b")
        assert verify(left).base_timestamp_ms == 1_000
        assert list(walk_raw(left)) == [(1, 995, b"b", None, ())]

    def test_a_cut_batch_may_be_cut_again(self):
        drafts = [(n, b"%d" % n, b"", []) for n in range(6)]
        once = cut(build(drafts), lambda key: key not in (b"0", b"5"))
        twice = cut(once, lambda key: key not in (b"1", b"3"))
        assert [record[0] for record in walk_raw(twice)] == [2, 4]
        assert verify(twice).last_offset_delta == 5

    def test_a_control_batch_passes_whole(self):
        marker = batch_of(record_bytes(key=b"\x08\x00\x00\x00\x01"), attributes=0x30)
        assert cut(marker, lambda key: False) == marker


ID_HEADERS = b"\x02" + number(17) + MESSAGE_ID + number(36) + b"1" * 36

HOSTILE_SECTIONS = {
    "nothing": (b"", "count 1 beyond 0 bytes"),
    "negative record length": (b"\x01" + bytes(9), "record length outside"),
    "negative record length that would fit": (number(-7) + record_bytes()[1:], "record length outside"),
    "record length beyond the data": (number(100) + bytes(9), "record length outside"),
    "record length of 2 GiB": (number(2**31 - 1) + bytes(9), "record length outside"),
    "record length without end": (b"\xff" * 20, "longer than 32 bits"),
    "record length of 33 bits": (b"\xff\xff\xff\xff\x1f" + bytes(9), "longer than 32 bits"),
    "timestamp delta without end": (number(15) + b"\x00" + b"\xff" * 14, "longer than 64 bits"),
    "timestamp delta of 63 bits": (
        number(15) + b"\x00" + number(2**63 - 1) + b"\x00\x01\x01\x00",
        "timestamp out of range",
    ),
    "negative offset delta": (record_bytes(offset=-1), "offset delta out of order"),
    "offset delta beyond the last": (record_bytes(offset=1), "offset delta out of order"),
    "offset delta without end": (number(15) + b"\x00\x00" + b"\xff" * 13, "longer than 32 bits"),
    "negative key length": (record_bytes(key=b"\x03"), "negative key length"),
    "key length beyond the record": (record_bytes(key=b"\x7e"), None),
    "key length of 2 GiB": (record_bytes(key=number(2**31 - 1)), None),
    "key length up to the end of the record": (number(8) + bytes(3) + number(4) + b"abcd", None),
    "negative value length": (record_bytes(value=b"\x05"), "negative value length"),
    "value length beyond the record": (record_bytes(value=b"\x7e"), None),
    "value length of 2 GiB": (record_bytes(value=number(2**31 - 1)), None),
    "negative header count": (record_bytes(headers=b"\x01"), "header count beyond"),
    "header count of 2 GiB": (record_bytes(headers=number(2**31 - 1)), "header count beyond"),
    "more headers than bytes": (record_bytes(headers=b"\x0c\x00\x00"), "header count beyond"),
    "null header name": (record_bytes(headers=b"\x02\x01\x01"), "negative header name"),
    "negative header value length": (record_bytes(headers=b"\x02\x00\x03"), "negative header value"),
    "header name beyond the record": (record_bytes(headers=b"\x02\x7e\x01"), None),
    "header value beyond the record": (record_bytes(headers=b"\x02\x00\x7e"), None),
    "spare bytes in the record": (record_bytes(headers=b"\x00\x00"), "longer or shorter"),
    "spare bytes after a message id": (record_bytes(headers=ID_HEADERS + b"\x00"), "longer or shorter"),
    "a message id cut short": (record_bytes(headers=ID_HEADERS[:-1]), None),
    "a second message id that is not counted": (record_bytes(headers=ID_HEADERS + ID_HEADERS[1:]), "longer or shorter"),
    "spare bytes after the records": (record_bytes() + b"\x00", "bytes after the last record"),
    "one record more than counted": (record_bytes() + record_bytes(offset=1), "bytes after the last record"),
}


class TestHostile:
    @pytest.mark.parametrize("compression", Compression)
    @pytest.mark.parametrize("name", HOSTILE_SECTIONS)
    def test_a_section_that_lies_is_corrupt(self, name, compression):
        section, reason = HOSTILE_SECTIONS[name]
        batch = batch_of(compress(compression, section), attributes=compression)
        with pytest.raises(CorruptBatch, match=reason):
            list(walk_raw(batch))

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name in HOSTILE_SECTIONS
            if name.startswith(("nothing", "record length", "negative record", "negative key", "key length", "one record"))
            or name.endswith(("without end", "after the records"))
        ],
    )
    def test_keys_and_cut_refuse_what_lies_before_the_value(self, name):
        batch = batch_of(HOSTILE_SECTIONS[name][0])
        with pytest.raises(CorruptBatch):
            keys(batch)
        with pytest.raises(CorruptBatch):
            cut(batch, bool)

    @pytest.mark.parametrize("name", HOSTILE_SECTIONS)
    def test_no_reader_raises_anything_else(self, name):
        assert_refused_or_read(batch_of(HOSTILE_SECTIONS[name][0]))

    @pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (0, 3), (2, 1)])
    def test_offsets_that_do_not_grow_are_corrupt(self, offsets):
        section = b"".join(record_bytes(offset=offset) for offset in offsets)
        with pytest.raises(CorruptBatch, match="offset delta out of order"):
            list(walk_raw(batch_of(section, count=2, last=2)))

    def test_gaps_between_offsets_are_what_compaction_leaves(self):
        section = record_bytes(offset=3) + record_bytes(offset=70) + record_bytes(offset=71)
        batch = batch_of(section, count=3, last=90)
        assert [record.offset for record in walk(batch)] == [3, 70, 71]

    def test_a_count_of_2_gib_is_refused_before_the_first_record(self):
        with pytest.raises(CorruptBatch, match="count 2147483647 beyond"):
            next(walk_raw(batch_of(record_bytes() * 10, count=2**31 - 1)))

    def test_a_count_that_only_compression_could_hide_is_refused(self):
        section = compress(Compression.ZSTD, record_bytes())
        with pytest.raises(CorruptBatch, match="count 5 beyond"):
            next(walk_raw(batch_of(section, count=5, attributes=Compression.ZSTD)))

    @pytest.mark.parametrize("compression", [codec for codec in Compression if codec])
    @pytest.mark.parametrize("read", [lambda b: list(walk(b, 1_000)), lambda b: keys(b, 1_000), lambda b: cut(b, bool, 1_000)])
    def test_a_bomb_is_refused(self, compression, read):
        bomb = build([(0, b"k", bytes(100_000), [])], compression=compression)
        with pytest.raises(BatchTooLarge):
            read(bomb)

    @pytest.mark.parametrize("read", [lambda b: list(walk(b)), keys, lambda b: cut(b, bool)])
    def test_an_unknown_codec_is_unsupported(self, read):
        with pytest.raises(UnsupportedCompression):
            read(batch_of(record_bytes(), attributes=7))

    @pytest.mark.parametrize("compression", Compression)
    def test_every_truncated_prefix_of_a_batch_is_corrupt(self, compression):
        batch = build(THREE, compression=compression)
        for length in range(len(batch)):
            for read in (verify, keys, lambda b: list(walk(b)), lambda b: cut(b, bool)):
                with pytest.raises(CorruptBatch):
                    read(batch[:length])

    @pytest.mark.parametrize("compression", Compression)
    def test_every_truncated_prefix_of_the_records_is_corrupt(self, compression):
        section = section_of(build(THREE))
        for length in range(len(section)):
            stored = compress(compression, section[:length])
            batch = batch_of(stored, count=3, attributes=compression)
            with pytest.raises(CorruptBatch):
                list(walk_raw(batch))
            with pytest.raises(CorruptBatch):
                keys(batch)

    @pytest.mark.parametrize("compression", Compression)
    def test_every_flipped_bit_is_refused_by_verify_and_harmless_to_readers(self, compression):
        batch = build(THREE, compression=compression)
        for bit in range(8 * len(batch)):
            flipped = bytearray(batch)
            flipped[bit // 8] ^= 1 << bit % 8
            if bit // 8 not in OUTSIDE_CHECKSUM:
                with pytest.raises(CorruptBatch):
                    verify(flipped)
            assert_refused_or_read(bytes(flipped))

    def test_a_thousand_batches_with_several_bytes_changed_are_harmless(self):
        rng = random.Random(3)
        for _ in range(1_000):
            section = bytearray(section_of(build(THREE)))
            for _ in range(rng.randint(1, 4)):
                section[rng.randrange(len(section))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            assert_refused_or_read(batch_of(bytes(section), count=3, last=rng.choice((2, 5, 1_000))))

    @given(section=st.binary(max_size=120), count=st.integers(0, 20), attributes=st.integers(0, 127))
    @settings(deadline=None)
    def test_noise_is_harmless(self, section, count, attributes):
        assert_refused_or_read(batch_of(section, count=count, last=max(count - 1, 0), attributes=attributes))

    @given(st.binary(max_size=200))
    def test_bytes_that_are_no_batch_are_corrupt(self, noise):
        with pytest.raises(CorruptBatch):
            list(walk(noise))


def assert_refused_or_read(batch: bytes) -> None:
    """Every reader gives records that can be built again, or one of the three refusals."""
    for read in (keys, lambda b: list(walk(b)), lambda b: cut(b, bool), lambda b: cut(b, lambda key: key is None)):
        try:
            read(batch)
        except REFUSALS:
            continue
    try:
        records = list(walk_raw(batch))
    except REFUSALS:
        return
    assert keys(batch) == [key for _, _, key, _, _ in records]
    if records:
        assert len(list(walk_raw(build([record[1:] for record in records])))) == len(records)
    assert all(-(2**63) <= timestamp_ms < 2**63 and 0 <= offset < 2**63 for offset, timestamp_ms, *_ in records)


def test_headers_that_change_between_records_are_not_mixed_up() -> None:
    """The encoded tail after a message id is kept while it stays the same, and only then."""
    tails: list[tuple[tuple[bytes, bytes | None], ...]] = [
        ((b"content-type", b"a/b"),),
        ((b"content-type", b"a/b"),),
        ((b"content-type", b"a/c"),),
        (),
        (),
        ((b"x", None), (b"content-type", b"a/b")),
        ((b"content-type", b"a/b"),),
    ]
    ids = [f"0190a5f2-7c1e-7000-8000-{number:012d}".encode() for number in range(len(tails))]
    drafts = [(1, b"k", b"v", ((b"sprawl-message-id", ids[number]), *tail)) for number, tail in enumerate(tails)]
    read = [headers for *_, headers in walk_raw(build(drafts))]
    assert read == [((b"sprawl-message-id", ids[number]), *tail) for number, tail in enumerate(tails)]


def test_cutting_keeps_a_base_timestamp_that_readers_take() -> None:
    """Found by fuzzing: a delta that leads beyond the range of base timestamps made a batch that nobody could read."""
    limit = codec.TIMESTAMP_MS_MAX
    drafts = [(limit, b"forbidden", b"x", ()), (2 * limit - 1, b"allowed", b"y", ())]
    batch = build(drafts)
    left = cut(batch, lambda key: key == b"allowed")
    assert left is not None
    verify(left)
    assert [(record.key, record.timestamp_ms) for record in walk(left)] == [(b"allowed", 2 * limit - 1)]
