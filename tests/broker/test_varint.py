"""Kafka's zigzag numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import varint
from broker.batch_errors import CorruptBatch

# org.apache.kafka.common.utils.ByteUtilsTest
KAFKA_VECTORS = {
    0: "00",
    -1: "01",
    1: "02",
    63: "7e",
    -64: "7f",
    64: "8001",
    -65: "8101",
    8191: "fe7f",
    -8192: "ff7f",
    8192: "808001",
    -8193: "818001",
    1048575: "feff7f",
    1048576: "80808001",
    2**31 - 1: "feffffff0f",
    -(2**31): "ffffffff0f",
    2**63 - 1: "feffffffffffffffff01",
    -(2**63): "ffffffffffffffffff01",
}


def decoded(zigzag: int) -> int:
    return (zigzag >> 1) ^ -(zigzag & 1)


@pytest.mark.parametrize("number", KAFKA_VECTORS)
def test_agrees_with_kafka(number):
    encoded = bytes.fromhex(KAFKA_VECTORS[number])
    assert varint.encode(number) == encoded
    zigzag, position = varint.read_zigzag(b"\xff" + encoded + b"\xff", 1, 64)
    assert (decoded(zigzag), position) == (number, 1 + len(encoded))


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_number_comes_back(number):
    zigzag, position = varint.read_zigzag(varint.encode(number), 0, 64)
    assert (decoded(zigzag), position) == (number, len(varint.encode(number)))


def test_the_table_is_what_encode_gives():
    assert list(varint.SHORT) == [varint.encode(number) for number in range(varint.SHORT_MAX)]
    assert {len(encoded) for encoded in varint.SHORT} == {1, 2}
    assert len(varint.encode(varint.SHORT_MAX)) == 3


@pytest.mark.parametrize("number", KAFKA_VECTORS)
def test_every_truncated_prefix_ends_the_buffer(number):
    encoded = varint.encode(number)
    for length in range(len(encoded)):
        with pytest.raises(IndexError):
            varint.read_zigzag(encoded[:length], 0, 64)


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
def test_more_than_32_bits_is_corrupt_where_32_are_meant(number):
    with pytest.raises(CorruptBatch, match="longer than 32 bits"):
        varint.read_zigzag(varint.encode(number), 0, 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_number_without_end_is_left_at_its_width(bits):
    with pytest.raises(CorruptBatch, match=f"longer than {bits} bits") as refusal:
        varint.read_zigzag(b"\x00" * 3 + b"\x80" * 1_000_000, 3, bits)
    assert refusal.value.position == 3
