"""The clear headers: packed as drawn in decision 0001, refused when a single byte differs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.layout import (
    BATCH_HEADER_BYTES,
    DIRECTORY_ENTRY_BYTES,
    FILE_HEADER_BYTES,
    FRAME_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    JOURNAL_MAGIC,
    NO_TAG,
    SEGMENT_MAGIC,
    TRAILER_BYTES,
    DirectoryEntry,
    FileHeader,
    GroupHeader,
    pack_batch_header,
    pack_file_header,
    pack_frame_header,
    pack_group_header,
    pack_trailer,
    parse_batch_header,
    parse_file_header,
    parse_frame_header,
    parse_group_header,
    parse_trailer,
    salt_of_groups,
)

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SALT = 0x1122334455667788
FILE = FileHeader(JOURNAL_MAGIC, 1, FILE_HEADER_BYTES, 7, b"c" * 16, 1_700_000_000_000, 9, b"w" * 60, SALT)
GROUP = GroupHeader(GROUP_MAGIC, 500, 12, 11, 40, 2, 3, 1_700_000_000_000, SALT)
ENTRIES = [DirectoryEntry(b"t" * 16, 3, 9, 100, 300), DirectoryEntry(b"u" * 16, 0, 0, 5, 200)]


def batch_header(sealed_bytes: int = 500, key_hashes: int = 2) -> bytes:
    return pack_batch_header(16, sealed_bytes, key_hashes, b"t" * 16, 3, 77, b"n" * 12, 9, 100, 41, -5, 6, 10, b"p" * 16)


HEADERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "file": (pack_file_header(FILE), parse_file_header),
    "group": (pack_group_header(GROUP), lambda data: parse_group_header(data, 0, SALT)),
    "frame": (pack_frame_header(40, ENTRIES, 60), lambda data: parse_frame_header(data, 0)),
    "batch": (batch_header(), parse_batch_header),
    "trailer": (pack_trailer(7, 1000, 1200, 300), parse_trailer),
}


def test_sizes_are_those_of_the_decision() -> None:
    sizes = {name: len(packed) for name, (packed, _) in HEADERS.items()}
    assert sizes == {
        "file": FILE_HEADER_BYTES,
        "group": GROUP_HEADER_BYTES,
        "frame": FRAME_HEADER_BYTES + 2 * DIRECTORY_ENTRY_BYTES,
        "batch": BATCH_HEADER_BYTES,
        "trailer": TRAILER_BYTES,
    }
    assert [sizes[name] for name in ("file", "group", "frame", "batch", "trailer")] == [128, 64, 112, 128, 48]


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_read_as_packed_and_refused_with_any_byte_changed_or_missing(name: str) -> None:
    packed, parse = HEADERS[name]
    assert parse(packed) is not None
    for at in range(len(packed)):
        assert parse(packed[:at]) is None, f"prefix of {at}"
        for bit in (1, 128):
            changed = bytearray(packed)
            changed[at] ^= bit
            assert parse(bytes(changed)) is None, f"byte {at}, bit {bit}"


def test_file_header_round_trip() -> None:
    for magic in (JOURNAL_MAGIC, SEGMENT_MAGIC):
        header = FILE._replace(magic=magic)
        assert parse_file_header(pack_file_header(header) + b"more") == header


def test_a_file_header_of_a_foreign_magic_is_refused() -> None:
    assert parse_file_header(pack_file_header(FILE._replace(magic=b"ELSE"))) is None


def test_a_newer_version_is_read_so_that_it_can_be_refused_by_name() -> None:
    found = parse_file_header(pack_file_header(FILE._replace(version=2)))
    assert found is not None
    assert found.version == 2


@given(U64, U64, U32, st.binary(min_size=16, max_size=16))
def test_any_file_header_round_trips(number: int, salt: int, key_id: int, cluster_id: bytes) -> None:
    header = FILE._replace(number=number, salt=salt, system_key_id=key_id, cluster_id=cluster_id)
    assert parse_file_header(pack_file_header(header)) == header


@given(U32, U64, U64, U64, U32, U32, U64)
def test_any_group_header_round_trips_under_its_salt_only(
    body: int, number: int, durable: int, first: int, frames: int, batches: int, salt: int
) -> None:
    header = GroupHeader(GROUP_MAGIC, body, number, durable, first, frames, batches, 5, salt)
    packed = pack_group_header(header)
    assert parse_group_header(b"xx" + packed, 2, salt) == header
    assert parse_group_header(packed, 0, salt ^ 1) is None


def test_the_salt_of_a_file_is_found_in_its_first_group_that_checks() -> None:
    packed = pack_group_header(GROUP)
    other = pack_group_header(GROUP._replace(salt=SALT + 1))
    damaged = packed[:20] + bytes([packed[20] ^ 1]) + packed[21:]
    assert salt_of_groups(b"noise" * 9 + packed + other) == SALT
    assert salt_of_groups(damaged + other) == SALT + 1
    assert salt_of_groups(damaged) == 0
    assert salt_of_groups(b"") == 0
    assert salt_of_groups(GROUP_MAGIC) == 0


def test_frame_header_counts_all_its_parts() -> None:
    packed = pack_frame_header(40, ENTRIES, 60)
    found = parse_frame_header(b"." * 5 + packed, 5)
    assert found is not None
    header, entries = found
    assert entries == ENTRIES
    assert header.frame_bytes == 32 + 80 + 300 + 200 + 60
    assert (header.first_sequence, header.batches, header.state_bytes) == (40, 2, 60)


def test_a_frame_that_claims_more_entries_than_there_are_bytes_is_refused() -> None:
    packed = bytearray(pack_frame_header(40, [], 60))
    packed[16:20] = (2**32 - 1).to_bytes(4, "little")
    assert parse_frame_header(bytes(packed), 0) is None


def test_batch_header_fields() -> None:
    found = parse_batch_header(b"-" + batch_header(), 1)
    assert found is not None
    assert (found.topic_id, found.partition, found.base_offset, found.next_offset) == (b"t" * 16, 3, 100, 110)
    assert (found.sequence, found.max_timestamp_ms, found.append_time_ms, found.records) == (41, -5, 6, 10)
    assert (found.key_id, found.nonce, found.previous_tag) == (77, b"n" * 12, b"p" * 16)
    assert (found.version, found.cipher, found.flags) == (1, 1, 16)


@pytest.mark.parametrize(("sealed_bytes", "key_hashes"), [(0, 0), (127, 0), (143, 0), (151, 1), (160, 2**32 - 1), (144 + 8, 2)])
def test_a_batch_header_whose_parts_do_not_fit_its_size_is_refused(sealed_bytes: int, key_hashes: int) -> None:
    # A size of 0 would keep a scanner in its place for ever; hashes beyond the batch would be read out of its neighbour.
    assert parse_batch_header(batch_header(sealed_bytes, key_hashes)) is None


def test_the_smallest_batch_is_a_header_and_a_tag() -> None:
    assert parse_batch_header(batch_header(BATCH_HEADER_BYTES + len(NO_TAG), 0)) is not None
    assert parse_batch_header(batch_header(BATCH_HEADER_BYTES + 16 + len(NO_TAG), 2)) is not None


def test_trailer_fields() -> None:
    found = parse_trailer(pack_trailer(7, 1000, 1200, 300))
    assert found is not None
    assert (found.number, found.data_end, found.summary_position, found.summary_bytes) == (7, 1000, 1200, 300)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_parser_raise(data: bytes) -> None:
    for magic in (b"", JOURNAL_MAGIC, GROUP_MAGIC, b"SPFR", b"SPB1", b"SPFT"):
        for _, parse in HEADERS.values():
            parse(magic + data)
        salt_of_groups(magic + data)
