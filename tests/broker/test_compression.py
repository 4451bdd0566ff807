"""Streams of every codec: round trips, frames made by other hands, and hostile ones."""

from __future__ import annotations

import gzip
import struct
import zlib

import cramjam
import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.batch_errors import BatchTooLarge, CorruptBatch, UnsupportedCompression
from broker.compression import DECOMPRESSED_BYTES_MAX, Compression, codec_of, compress, decompress

COMPRESSED = [codec for codec in Compression if codec is not Compression.NONE]

REPEATING = b'{"device":"sensor-7","temperature":22.5}' * 3_000  # 120 kB: several snappy and lz4 blocks


def unsized_zstd(data: bytes) -> bytes:
    """As a Java client streams it: the frame does not say how long it becomes."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def bare_snappy(data: bytes) -> bytes:
    """As librdkafka sends it: one block, no framing."""
    return bytes(cramjam.snappy.compress_raw(data))


STREAMS = {
    "gzip": (Compression.GZIP, lambda data: compress(Compression.GZIP, data)),
    "xerial snappy": (Compression.SNAPPY, lambda data: compress(Compression.SNAPPY, data)),
    "bare snappy": (Compression.SNAPPY, bare_snappy),
    "lz4": (Compression.LZ4, lambda data: compress(Compression.LZ4, data)),
    "sized lz4": (Compression.LZ4, lambda data: lz4.frame.compress(data, block_linked=False, content_checksum=True)),
    "sized zstd": (Compression.ZSTD, lambda data: compress(Compression.ZSTD, data)),
    "unsized zstd": (Compression.ZSTD, unsized_zstd),
}


@pytest.fixture(params=STREAMS, ids=lambda name: name.replace(" ", "-"))
def stream(request):
    return STREAMS[request.param]


class TestRoundTrip:
    @given(data=st.binary(max_size=4_096), codec=st.sampled_from(Compression))
    @settings(deadline=None)
    def test_what_was_compressed_comes_back(self, data, codec):
        assert decompress(codec, compress(codec, data)) == data

    @pytest.mark.parametrize("codec", Compression)
    def test_several_blocks_come_back(self, codec):
        assert decompress(codec, compress(codec, REPEATING)) == REPEATING

    @pytest.mark.parametrize("codec", COMPRESSED)
    def test_repeating_records_get_smaller(self, codec):
        assert len(compress(codec, REPEATING)) < len(REPEATING) // 5

    @pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
    def test_any_buffer_is_read(self, stream, wrap):
        codec, encode = stream
        assert decompress(codec, wrap(encode(REPEATING))) == REPEATING


class TestForeignStreams:
    """Assembled from the formats' specifications, not by the libraries under test."""

    def test_gzip_of_the_standard_library(self):
        assert decompress(Compression.GZIP, gzip.compress(b"orders")) == b"orders"

    def test_bare_snappy_block(self):
        # Preamble: 6 bytes; then one literal of 6 bytes, whose tag is (6 - 1) << 2.
        assert decompress(Compression.SNAPPY, b"\x06\x14orders") == b"orders"

    def test_xerial_snappy_blocks(self):
        block = struct.pack(">i", 8) + b"\x06\x14orders"
        stream = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + block + block
        assert decompress(Compression.SNAPPY, stream) == b"ordersorders"

    def test_lz4_frame_with_a_stored_block(self):
        # Magic, FLG: version 1, independent blocks; BD: 64 KiB; header checksum; block of 6 bytes, not compressed; end mark.
        stream = bytes.fromhex("04224d18 60 40 82 06000080") + b"orders" + bytes(4)
        assert decompress(Compression.LZ4, stream) == b"orders"

    def test_zstd_frame_with_a_raw_block(self):
        # Magic, single segment with a one-byte content size, 6; last block, raw, 6 bytes.
        stream = bytes.fromhex("28b52ffd 20 06") + (6 << 3 | 1).to_bytes(3, "little") + b"orders"
        assert decompress(Compression.ZSTD, stream) == b"orders"


class TestWhatKafkaReads:
    def test_lz4_blocks_are_independent_and_the_size_is_left_out(self):
        flags = compress(Compression.LZ4, REPEATING)[4]
        assert flags == 0b0110_0000  # version 1, independent blocks, no checksums, no content size

    def test_snappy_is_framed_as_snappy_java_does(self):
        stream = compress(Compression.SNAPPY, REPEATING)
        assert stream[:16] == b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
        (length,) = struct.unpack_from(">i", stream, 16)
        assert cramjam.snappy.decompress_raw_len(stream[20 : 20 + length]) == 32 * 1024


class TestBound:
    def test_exactly_the_limit_passes(self, stream):
        codec, encode = stream
        assert decompress(codec, encode(bytes(70_000)), 70_000) == bytes(70_000)

    def test_one_byte_more_is_refused(self, stream):
        codec, encode = stream
        with pytest.raises(BatchTooLarge) as refusal:
            decompress(codec, encode(bytes(70_001)), 70_000)
        assert refusal.value.limit_bytes == 70_000
        assert refusal.value.size_bytes > 70_000

    def test_none_is_bounded_too(self):
        with pytest.raises(BatchTooLarge):
            decompress(Compression.NONE, b"123", 2)

    def test_the_default_holds_for_a_bomb(self, stream):
        assert DECOMPRESSED_BYTES_MAX == 67_108_864
        codec, encode = stream
        with pytest.raises(BatchTooLarge):
            decompress(codec, encode(bytes(DECOMPRESSED_BYTES_MAX + 1)))

    def test_an_unsized_zstd_bomb_is_left_soon_after_the_limit(self):
        # A window of 2 MiB, then run-length blocks of 128 KiB for ever.
        block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"a"
        with pytest.raises(BatchTooLarge) as refusal:
            decompress(Compression.ZSTD, bytes.fromhex("28b52ffd 00 58") + block * 100_000, 1024)
        assert refusal.value.size_bytes <= 1024 + 128 * 128 * 1024

    def test_a_declared_size_is_refused_before_anything_is_read(self):
        claim = bytes.fromhex("28b52ffd e0") + struct.pack("<Q", 2**60)
        with pytest.raises(BatchTooLarge) as refusal:
            decompress(Compression.ZSTD, claim)
        assert refusal.value.size_bytes == 2**60

    def test_a_snappy_block_that_claims_too_much_is_not_decompressed(self):
        with pytest.raises(BatchTooLarge):
            decompress(Compression.SNAPPY, b"\xff\xff\xff\xff\x0f")  # 4 GiB - 1


class TestHostile:
    def test_every_truncated_prefix_is_corrupt(self, stream):
        codec, encode = stream
        whole = encode(b"the quick brown fox, " * 30)
        starts = {16} if whole.startswith(b"\x82SNAPPY") else set()  # xerial framing without a block is whole, and empty
        for length in set(range(len(whole))) - starts:
            with pytest.raises(CorruptBatch):
                decompress(codec, whole[:length])

    def test_trailing_bytes_are_corrupt(self, stream):
        codec, encode = stream
        with pytest.raises(CorruptBatch):
            decompress(codec, encode(b"the quick brown fox, " * 30) + b"\x00")

    @pytest.mark.parametrize("codec", [Compression.GZIP, Compression.LZ4, Compression.ZSTD])
    def test_a_second_stream_is_corrupt(self, codec):
        with pytest.raises(CorruptBatch, match=r"followed by other bytes|does not decompress"):
            decompress(codec, compress(codec, b"one") + compress(codec, b"two"))

    def test_every_flipped_bit_gives_bytes_or_a_refusal(self, stream):
        codec, encode = stream
        whole = encode(b"the quick brown fox, " * 5)
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                assert len(decompress(codec, flipped, 65_536)) <= 65_536
            except (CorruptBatch, BatchTooLarge):
                continue

    @given(data=st.binary(max_size=200), codec=st.sampled_from(COMPRESSED))
    @settings(deadline=None)
    def test_noise_gives_bytes_or_a_refusal(self, data, codec):
        try:
            assert len(decompress(codec, data, 65_536)) <= 65_536
        except (CorruptBatch, BatchTooLarge):
            return

    @pytest.mark.parametrize(
        "block", [b"\x00\x00", struct.pack(">i", -1), struct.pack(">i", 0), struct.pack(">i", 9) + b"\x06\x14orders"]
    )
    def test_xerial_block_lengths_that_lie_are_corrupt(self, block):
        with pytest.raises(CorruptBatch, match="block length"):
            decompress(Compression.SNAPPY, b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + block)

    def test_the_library_error_stays_attached(self):
        with pytest.raises(CorruptBatch) as refusal:
            decompress(Compression.GZIP, b"not gzip at all")
        assert isinstance(refusal.value.__cause__, zlib.error)


class TestCodecNumbers:
    @pytest.mark.parametrize("codec", Compression)
    def test_the_low_three_bits_name_the_codec(self, codec):
        assert codec_of(0x78 | codec) is codec

    @pytest.mark.parametrize("number", [5, 6, 7])
    def test_other_numbers_are_unsupported(self, number):
        with pytest.raises(UnsupportedCompression, match="none, gzip, snappy, lz4 or zstd") as refusal:
            codec_of(number)
        assert refusal.value.codec == number
