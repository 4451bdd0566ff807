"""The in-memory record and message ids."""

from __future__ import annotations

import uuid

import pytest

from broker.record import MESSAGE_ID_HEADER, RESERVED_HEADER_PREFIX, Record, new_message_id, valid_message_id

VALID = "01a2087a-4b49-779a-b9d0-b706fe2554a5"


def record(*headers: tuple[str, bytes | None]) -> Record:
    return Record(offset=7, timestamp_ms=1_700_000_000_000, key=b"eu/7", value=b"{}", headers=headers)


class TestRecord:
    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            record().offset = 8

    def test_message_id_is_read_from_its_header(self):
        assert record(("content-type", b"text/plain"), (MESSAGE_ID_HEADER, VALID.encode())).message_id == VALID

    def test_the_first_message_id_counts(self):
        assert record((MESSAGE_ID_HEADER, VALID.encode()), (MESSAGE_ID_HEADER, b"0" * 36)).message_id == VALID

    @pytest.mark.parametrize("content", [None, b"", VALID.encode()[:-1], VALID.encode() + b"0", b"\xff" * 36])
    def test_an_unusable_message_id_is_none(self, content):
        assert record((MESSAGE_ID_HEADER, content)).message_id is None

    def test_no_message_id_is_none(self):
        assert record().message_id is None
        assert record(("trace", b"1")).message_id is None

    def test_the_message_id_header_is_reserved(self):
        assert MESSAGE_ID_HEADER.startswith(RESERVED_HEADER_PREFIX)


class TestMessageId:
    def test_new_ids_are_valid_and_in_order(self):
        ids = [new_message_id() for _ in range(1_000)]
        assert all(valid_message_id(text) for text in ids)
        assert ids == sorted(ids)
        assert len(set(ids)) == len(ids)

    def test_new_ids_are_uuid_version_7_to_the_standard_library(self):
        made = uuid.UUID(new_message_id())
        assert (made.version, made.variant) == (7, uuid.RFC_4122)

    @pytest.mark.parametrize("digit", "89ab")
    def test_every_variant_10_digit_is_valid(self, digit):
        assert valid_message_id(VALID[:19] + digit + VALID[20:])

    @pytest.mark.parametrize(
        "text",
        [
            "",
            VALID.upper(),
            VALID.replace("-", ""),
            "{" + VALID + "}",
            "urn:uuid:" + VALID,
            VALID + "\n",
            " " + VALID,
            VALID[:-1],
            VALID[:14] + "4" + VALID[15:],  # version 4
            VALID[:19] + "c" + VALID[20:],  # variant 11
            VALID[:19] + "7" + VALID[20:],  # variant 0
            VALID[:-1] + "g",
            VALID[:-1] + "５",  # a digit to Unicode, not to a UUID
        ],
    )
    def test_anything_else_is_not(self, text):
        assert not valid_message_id(text)
