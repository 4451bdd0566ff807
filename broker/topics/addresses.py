"""How paths name records: `topic/key`.

    orders/eu/7             topic orders, key eu/7
    orders                  topic orders, no key
    orders/                 topic orders, the empty key
    orders/$key/AP8         topic orders, key 00 FF: base64url (RFC 4648, section 5) of a key that is no legal path

Every text is an address, and every address has one text that names it: `parse_address(address.text()) == address`. A text
under `$key/` that is no base64url is taken as it stands. Whether the first level may be a topic, or the whole path belongs
to the catch-all topic, is for the caller to decide (`legal_topic_name`, topics that exist, automatic creation).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

_LEGAL_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")

# MQTT forbids these in a topic name (MQTT 5.0, section 4.7): two wildcards and the null character.
_FORBIDDEN = re.compile("[+#\x00]")

_ESCAPE = "$key/"


class Address(msgspec.Struct, frozen=True, gc=False):
    """`topic` has no slash; a key of None is a record without key."""

    topic: str
    key: bytes | None

    def text(self) -> str:
        """The path, legal as an MQTT topic name if the topic is; it names no other address."""
        return self.topic if self.key is None else f"{self.topic}/{_path(self.key)}"


def parse_address(text: str) -> Address:
    """The address a path names. Never fails."""
    topic, slash, path = text.partition("/")
    return Address(topic, _key(path) if slash else None)


def legal_topic_name(name: str) -> bool:
    """Kafka's rule (org.apache.kafka.common.internals.Topic): 1 to 249 of a-z A-Z 0-9 . _ - and neither '.' nor '..'."""
    return _LEGAL_TOPIC_NAME.fullmatch(name) is not None and name not in (".", "..")


def _path(key: bytes) -> str:
    try:
        path = key.decode("utf-8")
    except UnicodeDecodeError:
        path = ""
    if (key and not path) or path.startswith(_ESCAPE) or _FORBIDDEN.search(path):
        return _ESCAPE + urlsafe_b64encode(key).rstrip(b"=").decode("ascii")
    return path


def _key(path: str) -> bytes:
    escaped = _unescape(path.removeprefix(_ESCAPE)) if path.startswith(_ESCAPE) else None
    # Text off a wire is whole Unicode; lone surrogates keep their bytes rather than fail, and come back escaped.
    return path.encode("utf-8", "surrogatepass") if escaped is None else escaped


def _unescape(text: str) -> bytes | None:
    """None for what is no base64url: another alphabet, an impossible length."""
    digits = text.rstrip("=")
    if _BASE64URL.fullmatch(text) is None or len(digits) % 4 == 1:
        return None
    return urlsafe_b64decode(digits + "=" * (-len(digits) % 4))
