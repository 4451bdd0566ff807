"""Which records a reader wants: by address with MQTT's wildcards, by a prefix of the key, by headers.

    orders/eu/7      one key                       orders/eu/+      one level below eu
    orders/#         every record of orders        +/status         the key "status" of every topic
    #                everything there is           orders/+/#       every record of orders that has a key

A filter is over what `Address.text` writes, so a key that is no legal path is met as `orders/$key/<base64url>`. `+` stands for
one level, which may be empty; `#` for the level above it and everything below (MQTT 5.0, 4.7.1). All parts of a filter must
hold.

Filters are compiled where they are born and come from strangers: every part has a bound, and no text takes more than one
look at each of its characters. A filter that leaves nothing out has `open` set, and costs nothing per record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from broker.errors import BrokerError
from broker.record import Record
from broker.topics.addresses import Address, legal_topic_name, parse_address

ADDRESS_BYTES_MAX = 2_048
LEVELS_MAX = 64
KEY_PREFIX_BYTES_MAX = 1_024
HEADERS_MAX = 16
HEADER_BYTES_MAX = 1_024

# ASCII without what makes a key no legal path: most keys, told by one look.
_PLAIN_KEY = re.compile(rb"(?!\$key/)[^+#\x00\x80-\xff]*")
_SHOWN_MAX = 80

BareTopic = Literal["whole", "null-key"]


class FilterInvalid(BrokerError):
    """`member` is the part of the filter that is wrong."""

    def __init__(self, member: str, reason: str) -> None:
        self.member = member
        super().__init__(f"the filter's {member}: {reason}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Make it with `parse`. Equal filters are equal, and may be keys of dictionaries.

    `topic` is the only topic that it reaches, None where there may be several. `open`: in the topics it reaches, it wants every
    record. `exact`: the one address it reaches, whose key None is the null key; headers may still leave records out.
    """

    address: str = "#"
    key_prefix: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str | None = field(init=False, compare=False, repr=False)
    open: bool = field(init=False, compare=False, repr=False)
    exact: tuple[str, bytes | None] | None = field(init=False, compare=False, repr=False)
    _keys: _Keys = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises FilterInvalid."""
        first, _, rest = self.address.partition("/")
        _check_address(self.address)
        _check_key_prefix(self.key_prefix)
        _check_headers(self.headers)
        if first not in ("+", "#") and not legal_topic_name(first):
            raise FilterInvalid("address", f"{first[:_SHOWN_MAX]!r} is no topic's name, so it can match nothing")
        topic, address = (None if first in ("+", "#") else first), self.address
        if _has_wildcards(rest) or first == "#":
            keys, exact = _Keys("#" if first == "#" else rest), None
        else:
            key = parse_address(address).key
            address = address if topic is None else Address(topic, key).text()  # a key has several texts
            keys, exact = _Keys(None, key), None if topic is None else (topic, key)
        for name, value in (
            ("address", address),
            ("topic", topic),
            ("open", keys.every and self.key_prefix is None and not self.headers),
            ("exact", exact),
            ("_keys", keys),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def parse(
        cls,
        address: str | None = None,
        *,
        key_prefix: bytes | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        bare_topic: BareTopic = "whole",
    ) -> Filter:
        """Raises FilterInvalid.

        An `address` of None is everything. One without a slash means the whole topic (`orders` is `orders/#`), as HTTP and
        WebSocket name topics; MQTT, for which it is the record without a key, asks for `bare_topic` "null-key".
        """
        if address is None:
            address = "#"
        elif bare_topic == "whole" and "/" not in address and address != "#":
            address += "/#"
        given = headers.items() if isinstance(headers, Mapping) else headers or ()
        pairs = {(name, _header_bytes(value)) for name, value in given}
        return cls(address, key_prefix or None, tuple(sorted(pairs)))

    @property
    def only_headers(self) -> bool:
        """Whether it wants records of every key."""
        return self._keys.every and self.key_prefix is None

    def topics(self, name: str) -> bool:
        """Whether it reaches records of this topic."""
        return self.topic is None or self.topic == name

    def matches(self, topic: str, record: Record) -> bool:
        return (self.topic is None or self.topic == topic) and (self.open or self.wants(record))

    def wants_key(self, key: bytes | None) -> bool:
        """Whether it may want records with this key, of a topic that it reaches."""
        if not (self._keys.every or self._keys.matches(key)):
            return False
        return self.key_prefix is None or (key is not None and key.startswith(self.key_prefix))

    def wants(self, record: Record) -> bool:
        """Of a record in a topic that it reaches."""
        if not self.wants_key(record.key):
            return False
        return not self.headers or all(wanted in record.headers for wanted in self.headers)


class _Keys:
    """The levels below the topic, as a pattern over the key's path; or one key, where they are None."""

    __slots__ = ("_begin", "_key", "_path", "every")

    def __init__(self, levels: str | None, key: bytes | None = None) -> None:
        self.every = levels == "#"
        self._key = key
        self._path = None if levels is None or self.every else re.compile(_pattern(levels))
        # By this comparison most keys that do not match are told without the pattern.
        self._begin = b"" if levels is None else _literal_begin(levels)

    def matches(self, key: bytes | None) -> bool:
        if self._path is None:
            return self.every or key == self._key
        if key is None or not key.startswith(self._begin):
            return False
        return self._path.fullmatch(key if _PLAIN_KEY.fullmatch(key) else _path_of(key)) is not None


def _literal_begin(levels: str) -> bytes:
    """What every key begins with whose path matches; nothing where that may be a path which only stands for the key."""
    literal = list(takewhile(lambda level: level not in ("+", "#"), levels.split("/")))
    return b"" if literal[:1] == ["$key"] else "/".join(literal).encode()


def _pattern(levels: str) -> bytes:
    """No part can match where the next one could, save at one place: there is nothing to go back to."""
    parts = [b"[^/]*" if level == "+" else re.escape(level.encode()) for level in levels.split("/") if level != "#"]
    return b"/".join(parts) + (rb"(?:/[\x00-\xff]*)?" if levels.endswith("#") else b"")


def _path_of(key: bytes) -> bytes:
    """As `Address.text` writes it after the topic."""
    return Address("", key).text()[1:].encode()


def _has_wildcards(address: str) -> bool:
    return "+" in address or "#" in address


def _check_address(address: str) -> None:
    size = _utf8_size("address", address)
    if size > ADDRESS_BYTES_MAX:
        raise FilterInvalid("address", f"it has {size} bytes, at most {ADDRESS_BYTES_MAX} are allowed")
    if address.count("/") >= LEVELS_MAX:
        raise FilterInvalid("address", f"it has {address.count('/') + 1} levels, at most {LEVELS_MAX} are allowed")
    levels = address.split("/")
    for number, level in enumerate(levels):
        if level not in ("+", "#") and _has_wildcards(level):
            raise FilterInvalid(
                "address", f"level {number + 1}, {level[:_SHOWN_MAX]!r}, holds a wildcard beside other text; + and # stand alone"
            )
        if level == "#" and number + 1 < len(levels):
            raise FilterInvalid("address", f"level {number + 1} is # and not the last; for one level write +")
    if "\x00" in address:
        raise FilterInvalid("address", "it holds the null character, which no address does")


def _check_key_prefix(key_prefix: bytes | None) -> None:
    if key_prefix is not None and len(key_prefix) > KEY_PREFIX_BYTES_MAX:
        raise FilterInvalid("key_prefix", f"it has {len(key_prefix)} bytes, at most {KEY_PREFIX_BYTES_MAX} are allowed")


def _check_headers(headers: tuple[tuple[str, bytes], ...]) -> None:
    if len(headers) > HEADERS_MAX:
        raise FilterInvalid("headers", f"there are {len(headers)}, at most {HEADERS_MAX} are allowed")
    for name, value in headers:
        if not name:
            raise FilterInvalid("headers", "one has no name")
        size = _utf8_size("headers", name) + len(value)
        if size > HEADER_BYTES_MAX:
            raise FilterInvalid(
                "headers", f"{name[:_SHOWN_MAX]!r} has {size} bytes with its value, at most {HEADER_BYTES_MAX} are allowed"
            )


def _header_bytes(value: str) -> bytes:
    _utf8_size("headers", value)
    return value.encode()


def _utf8_size(member: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise FilterInvalid(member, "it is no UTF-8") from None
