"""Looking at a node's folder without a key."""

import base64
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.layout import BATCH_HEADER_BYTES, TAG_BYTES, pack_batch_header
from gateway.cli.evidence import CHUNK_BYTES, NEEDLE_BYTES_MAX, disguises, find_batch, hex_rows, search

TOPIC_ID = uuid.UUID("6f1ed002-ab5c-4d1a-9b0e-000000000001").bytes
MARKER = "sprawl-demo-0123456789abcdef"


def sealed(base_offset: int, count: int, *, topic_id: bytes = TOPIC_ID, partition: int = 0, body: bytes = b"sealed") -> bytes:
    body += bytes(TAG_BYTES)
    header = pack_batch_header(
        0, 128 + len(body), 0, topic_id, partition, 7, bytes(12), count - 1, base_offset, 1, 0, 0, count, bytes(16)
    )
    return header + body


def write(folder: Path, name: str, *parts: bytes) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(parts))


class TestFindBatch:
    def test_by_topic_partition_and_offset(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            "journal/0000000000000001.journal",
            b"head",
            sealed(0, 10),
            b"SPB1 and no header",
            sealed(10, 5, body=b"wanted"),
        )
        write(tmp_path, "segments/0000000000000000.segment", sealed(10, 5, partition=1), sealed(10, 5, topic_id=bytes(16)))
        found = find_batch(tmp_path, TOPIC_ID, 0, 14)
        assert found is not None
        assert (found.path.name, found.header.base_offset) == ("0000000000000001.journal", 10)
        assert found.data == found.path.read_bytes()[found.position : found.position + len(found.data)]
        assert found.data.endswith(b"wanted" + bytes(TAG_BYTES))

    @pytest.mark.parametrize(("partition", "offset"), [(0, 15), (1, 0), (0, 99)])
    def test_none_where_there_is_none(self, tmp_path: Path, partition: int, offset: int) -> None:
        write(tmp_path, "journal/0000000000000001.journal", sealed(0, 15))
        write(tmp_path, "journal/0000000000000002.journal")
        assert find_batch(tmp_path, TOPIC_ID, partition, offset) is None

    def test_every_truncated_header_is_no_batch(self, tmp_path: Path) -> None:
        whole = sealed(0, 1, body=b"")
        for size in range(BATCH_HEADER_BYTES):
            write(tmp_path, "journal/0000000000000001.journal", whole[:size])
            assert find_batch(tmp_path, TOPIC_ID, 0, 0) is None


class TestSearch:
    def test_every_file_is_read_and_each_is_named_once(self, tmp_path: Path) -> None:
        write(tmp_path, "journal/a", b"..needle..needle")
        write(tmp_path, "view/b", b"nothing")
        write(tmp_path, "empty/c")
        (tmp_path / "link").symlink_to(tmp_path / "journal" / "a")
        result = search(tmp_path, {"needle": b"needle", "other": b"other"})
        assert (result.files, result.bytes) == (3, 23)
        assert result.found == {"needle": ["journal/a at byte 2"], "other": []}

    @pytest.mark.parametrize(
        "before", [CHUNK_BYTES - NEEDLE_BYTES_MAX - 1, CHUNK_BYTES - 5, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 3]
    )
    def test_nothing_hides_on_the_border_of_a_chunk(self, tmp_path: Path, before: int) -> None:
        needle = os.urandom(NEEDLE_BYTES_MAX)
        write(tmp_path, "x/a", bytes(before), needle, bytes(10))
        assert search(tmp_path, {"needle": needle}).found == {"needle": [f"x/a at byte {before}"]}

    @pytest.mark.parametrize("needle", [b"", bytes(NEEDLE_BYTES_MAX + 1)])
    def test_a_needle_that_could_be_missed_is_refused(self, tmp_path: Path, needle: bytes) -> None:
        with pytest.raises(ValueError, match="needles"):
            search(tmp_path, {"needle": needle})


@given(st.integers(0, 40), st.binary(max_size=5))
def test_every_disguise_is_recognised_wherever_it_lies(shift: int, after: bytes) -> None:
    text = bytes(shift) + MARKER.encode() + after
    forms = disguises(MARKER)
    assert forms["UTF-8"] in text
    assert forms["hex"] in text.hex().encode()
    assert any(forms[f"base64 +{alignment}"] in base64.b64encode(text) for alignment in range(3))
    assert forms["UTF-16"] in MARKER.encode("utf-16")


def test_rows_look_as_hexdump_prints_them() -> None:
    assert list(hex_rows(b"SPB1\x00\xff" + bytes(11), 5)) == [
        "00000000  53 50 42 31 00 ff 00 00  00 00 00 00 00 00 00 00  |SPB1............|",
        "00000010  00                                                |.|",
    ]
    assert len(list(hex_rows(bytes(1000), 5))) == 5
