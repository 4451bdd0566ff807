"""The query parameters of one request. A route takes what it knows; what is left is refused by name."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import parse_qsl

from broker.delivery.position import AtOffset, AtTime, Cursor, Position
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import ParameterInvalid

FIELDS_MAX = 32
OFFSET_MAX = 2**63 - 1
PARTITION_MAX = 2**31 - 1

_ENDS: dict[str, Position] = {"earliest": "earliest", "latest": "latest"}
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


class Query:
    """Parameters by name; a name given twice is refused, since nobody knows which one was meant."""

    __slots__ = ("_left",)

    def __init__(self, query_string: bytes) -> None:
        self._left: dict[str, str] = {}
        if query_string:
            for name, text in _parse(query_string):
                if name in self._left:
                    raise ParameterInvalid(name[:80], "it is given twice")
                self._left[name] = text

    def text(self, name: str) -> str | None:
        return self._left.pop(name, None)

    def number(self, name: str, default: int, number_max: int = OFFSET_MAX, number_min: int = 0) -> int:
        text = self._left.pop(name, None)
        return default if text is None else parse_number(name, text, number_max, number_min)

    def flag(self, name: str) -> bool:
        text = self._left.pop(name, "false")
        if text not in ("true", "false"):
            raise ParameterInvalid(name, "it is true or false")
        return text == "true"

    def choice(self, name: str, *choices: str) -> str:
        """The first choice is the default."""
        text = self._left.pop(name, choices[0])
        if text not in choices:
            raise ParameterInvalid(name, f"it is one of {', '.join(choices)}")
        return text

    def key(self) -> bytes | None:
        """`key` (text) or `key64` (base64url, or base64 with + and / escaped)."""
        text, coded = self._left.pop("key", None), self._left.pop("key64", None)
        if text is not None and coded is not None:
            raise ParameterInvalid("key64", "key is given too")
        if coded is not None:
            return decode_base64("key64", coded)
        return None if text is None else text.encode()

    def timestamp_ms(self) -> int | None:
        text = self._left.pop("timestamp", None)
        return None if text is None else parse_time("timestamp", text)

    def position(self, default: Position) -> Position:
        """One of `cursor`, `timestamp`, `offset` (earliest, latest, or a number and then `partition`)."""
        given = [name for name in ("cursor", "timestamp", "offset") if name in self._left]
        if len(given) > 1:
            raise ParameterInvalid(given[1], f"{given[0]} is given too")
        if (cursor := self.text("cursor")) is not None:
            return parse_cursor("cursor", cursor)
        if (timestamp_ms := self.timestamp_ms()) is not None:
            return AtTime(timestamp_ms)
        offset = self.text("offset")
        if offset is None:
            return default
        if offset in _ENDS:
            return _ENDS[offset]
        if "partition" not in self._left:
            raise ParameterInvalid("offset", "a number needs partition as well: offsets count within a partition")
        return AtOffset(self.number("partition", 0, PARTITION_MAX), parse_number("offset", offset))

    def only(self, names: frozenset[str]) -> None:
        """Refuse what the operation's row does not name."""
        for name in self._left:
            if name not in names:
                raise ParameterInvalid(name[:80], "there is no such parameter here")

    def finish(self) -> None:
        """Refuse what nobody took."""
        for name in self._left:
            raise ParameterInvalid(name[:80], "there is no such parameter here, or not together with the others")


def parse_number(name: str, text: str, number_max: int = OFFSET_MAX, number_min: int = 0) -> int:
    if not _NUMBER.fullmatch(text) or not number_min <= int(text) <= number_max:
        raise ParameterInvalid(name, f"it is a whole number from {number_min} to {number_max}")
    return int(text)


def parse_time(name: str, text: str) -> int:
    try:
        return parse_timestamp_ms(text)
    except ValueError as error:
        raise ParameterInvalid(name, str(error)) from None


def parse_cursor(name: str, text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except ValueError as error:
        raise ParameterInvalid(name, str(error)) from None


def decode_base64(name: str, text: str) -> bytes:
    """Either alphabet, padded or not (RFC 4648, 4 and 5)."""
    try:
        standard = text.translate(_TO_STANDARD).rstrip("=").encode("ascii")
        return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ParameterInvalid(name, "it is no base64 or base64url (RFC 4648)") from None


_TO_STANDARD = str.maketrans("-_", "+/")


def _parse(query_string: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError:  # UnicodeDecodeError is one
        raise ParameterInvalid("the query", f"it is no UTF-8, or has more than {FIELDS_MAX} parameters") from None
