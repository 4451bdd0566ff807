"""A record as an edge needs it: the one in-memory shape. Hot paths keep batches (`broker/batch.py`) and never come here."""

from __future__ import annotations

import re

import msgspec
import uuid_utils

MESSAGE_ID_HEADER = "sprawl-message-id"
CONTENT_TYPE_HEADER = "content-type"
EXPIRES_AT_HEADER = "sprawl-expires-at"  # milliseconds since the epoch, ASCII decimal

# Headers with this prefix are ours; edges refuse or drop what a publisher sends under it, save a valid message id.
RESERVED_HEADER_PREFIX = "sprawl-"

MESSAGE_ID_BYTES = 36

# RFC 9562, sections 4 and 5.7: lower-case text, version 7, variant 10.
_MESSAGE_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Record(msgspec.Struct, frozen=True, gc=False):
    """`timestamp_ms` is milliseconds since the epoch; a value of None is a tombstone; headers keep order and duplicates."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def message_id(self) -> str | None:
        """The first message id header, which is the one our edges put; None where it is missing or not 36 ASCII characters."""
        for name, value in self.headers:
            if name == MESSAGE_ID_HEADER:
                usable = value is not None and len(value) == MESSAGE_ID_BYTES and value.isascii()
                return value.decode("ascii") if usable and value is not None else None
        return None


def new_message_id() -> str:
    """A UUIDv7: ordered by the millisecond it was made in, and within this process by the order of the calls."""
    return str(uuid_utils.uuid7())


def valid_message_id(text: str) -> bool:
    """Whether `text` is a UUIDv7 in canonical form (RFC 9562), which a producer may choose as its record's id."""
    return _MESSAGE_ID.fullmatch(text) is not None
