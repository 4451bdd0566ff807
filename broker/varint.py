"""Kafka's variable-length integers: zigzag, then seven bits a byte, lowest first (KIP-98; protobuf's sint32 and sint64).

The hot loops of `broker/batch.py` read and write one and two bytes themselves; longer numbers come here.
"""

from __future__ import annotations

from broker.batch_errors import CorruptBatch


def encode(number: int) -> bytes:
    """`number` is signed, 64 bits at most."""
    zigzag = (number << 1) ^ (number >> 63)
    if 0x3FFF < zigzag <= 0x1FFFFF:  # timestamp deltas up to 17 minutes, sizes up to 1 MiB
        return bytes((zigzag & 0x7F | 0x80, zigzag >> 7 & 0x7F | 0x80, zigzag >> 14))
    encoded = bytearray()
    while zigzag > 0x7F:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    encoded.append(zigzag)
    return bytes(encoded)


def read_zigzag(buffer: bytes, position: int, bits: int) -> tuple[int, int]:
    """The number still in zigzag form, and the position after it. IndexError where the buffer ends inside it.

    CorruptBatch beyond `bits`: Kafka's own reader stops there too, and a number without end would be read for ever.
    """
    zigzag = shift = 0
    start = position
    while (byte := buffer[position]) > 0x7F:
        zigzag |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if shift >= bits:
            raise CorruptBatch(f"number longer than {bits} bits", start)
    zigzag |= byte << shift
    if zigzag >> bits:
        raise CorruptBatch(f"number longer than {bits} bits", start)
    return zigzag, position + 1


# What lengths, offset deltas and timestamp deltas almost always are: 0 to 8191, in one or two bytes.
SHORT_MAX = 8192
SHORT = tuple(encode(number) for number in range(SHORT_MAX))
NULL = encode(-1)
