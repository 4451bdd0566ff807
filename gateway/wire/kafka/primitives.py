"""Kafka's primitive types, read from a buffer at a position; for the parsers that are written by hand.

Sources: Kafka's documentation, "Protocol Primitive Types"; KIP-482 for the compact forms and tagged fields. Every reader gives
the value and the position after it, believes no length, and raises MessageInvalid; IndexError and struct.error, where the buffer
ends, are left to the parser, which turns them into MessageInvalid in one place.
"""

from __future__ import annotations

from gateway.wire.kafka.errors import MessageInvalid

TAGS_MAX = 64  # tagged fields of one structure; Kafka has defined at most three
PARTITIONS_MAX = 65_536  # named in one request: some 50 ms to parse, which is what one client may hold up the others


def read_uvarint(buffer: memoryview, position: int) -> tuple[int, int]:
    """An unsigned number of at most 32 bits, in at most five bytes."""
    number = buffer[position]
    if number < 0x80:
        return number, position + 1
    number &= 0x7F
    for shift in (7, 14, 21, 28):
        position += 1
        byte = buffer[position]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 32:
                break
            return number, position + 1
    raise MessageInvalid(f"a number longer than 32 bits at byte {position}")


def read_count(buffer: memoryview, position: int, size_min: int) -> tuple[int, int]:
    """The count of a compact array whose elements take at least `size_min` bytes each; no null array."""
    number, position = read_uvarint(buffer, position)
    return check_count(number - 1, buffer, position, size_min), position


def check_count(count: int, buffer: memoryview, position: int, size_min: int) -> int:
    if count < 0 or count * size_min > len(buffer) - position:
        raise MessageInvalid(f"an array of {count} elements in the {len(buffer) - position} bytes that are left")
    if count > PARTITIONS_MAX:
        raise MessageInvalid(f"an array of {count} elements, where {PARTITIONS_MAX} are the most")
    return count


def check_partitions(total: int) -> None:
    if total > PARTITIONS_MAX:
        raise MessageInvalid(f"more than {PARTITIONS_MAX} partitions in one request")


def read_text(buffer: memoryview, position: int, size: int) -> tuple[str, int]:
    """`size` bytes of UTF-8."""
    end = position + size
    if size < 0 or end > len(buffer):
        raise MessageInvalid(f"a string of {size} bytes at byte {position}, where {len(buffer) - position} are left")
    try:
        return str(buffer[position:end], "utf-8"), end
    except UnicodeDecodeError:
        raise MessageInvalid(f"a string that is no UTF-8 at byte {position}") from None


def read_string(buffer: memoryview, position: int) -> tuple[str, int]:
    size = int.from_bytes(buffer[position : position + 2], "big", signed=True)
    return read_text(buffer, position + 2, size)


def read_nullable_string(buffer: memoryview, position: int) -> tuple[str | None, int]:
    if buffer[position] == 0xFF and buffer[position + 1] == 0xFF:
        return None, position + 2
    return read_string(buffer, position)


def read_compact_string(buffer: memoryview, position: int) -> tuple[str, int]:
    number, position = read_uvarint(buffer, position)
    return read_text(buffer, position, number - 1)


def read_compact_nullable_string(buffer: memoryview, position: int) -> tuple[str | None, int]:
    if buffer[position] == 0:
        return None, position + 1
    return read_compact_string(buffer, position)


def skip_tags(buffer: memoryview, position: int) -> int:
    """Past the tagged fields of a structure: none of those that clients send is needed here."""
    if buffer[position] == 0:
        return position + 1
    count, position = read_uvarint(buffer, position)
    if count > TAGS_MAX:
        raise MessageInvalid(f"{count} tagged fields at byte {position}, where {TAGS_MAX} are the most")
    last = -1
    for _ in range(count):
        tag, position = read_uvarint(buffer, position)
        if tag <= last:
            raise MessageInvalid(f"tagged fields out of order at byte {position}")
        last = tag
        size, position = read_uvarint(buffer, position)
        position += size
        if position > len(buffer):
            raise MessageInvalid(f"a tagged field of {size} bytes, beyond the message")
    return position


def uvarint(number: int) -> bytes:
    if number < 0x80:
        return number.to_bytes(1, "big")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def string(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def nullable_string(text: str | None) -> bytes:
    return b"\xff\xff" if text is None else string(text)


def compact_string(text: str) -> bytes:
    encoded = text.encode()
    return uvarint(len(encoded) + 1) + encoded


def compact_nullable_string(text: str | None) -> bytes:
    return b"\x00" if text is None else compact_string(text)
