"""OAUTHBEARER as Kafka's clients send it (RFC 7628, KIP-255; the tokens of KIP-768 are the same on the wire).

    client first    n,a=alice,^Aauth=Bearer <token>^AlogicalCluster=lkc-1^A^A      ^A is the byte 1
    server          nothing, or {"status":"invalid_token"}
    client          ^A, after a challenge: then the exchange fails

The pairs beside `auth` are KIP-342's extensions. As with Apache Kafka a value is never empty, and a message that is not of this
form is no challenge's worth: the exchange fails at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from gateway.wire.kafka.errors import MessageInvalid

OAUTHBEARER = "OAUTHBEARER"
MESSAGE_BYTES_MAX = 32 * 1024  # as the head of an HTTP request, which carries the same tokens (`limits.head_bytes_max`)
EXTENSIONS_MAX = 64
ACKNOWLEDGED = b"\x01"  # what a client says to a challenge (RFC 7628, 3.2.3)

_SEPARATOR = "\x01"
# RFC 5801, section 4: a name without NUL, comma and equals sign. Channel binding (`p=`) is not offered.
_GS2 = re.compile(r"[ny],(?:a=(?P<name>(?:[^\x00-\x1f\x7f=,]|=2C|=3D)+))?,")
_PAIR = re.compile(r"(?P<key>[A-Za-z]+)=(?P<value>[\x20-\x7e\t\r\n]+)")
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<token>[A-Za-z0-9._~+/-]+=*)")  # RFC 6750, section 2.1


class BearerMessage(msgspec.Struct, frozen=True, gc=False):
    """`acts_as` is whose the token is said to be, empty where nothing is said. The extensions are told to nobody yet."""

    token: str
    acts_as: str
    extensions: Mapping[str, str]

    def __repr__(self) -> str:
        return f"BearerMessage({self.acts_as!r}, {sorted(self.extensions)})"


def read_bearer(message: bytes) -> BearerMessage:
    """The client's first message. MessageInvalid, which repeats nothing of it."""
    if len(message) > MESSAGE_BYTES_MAX:
        raise MessageInvalid(f"an OAUTHBEARER message of {len(message)} bytes, where {MESSAGE_BYTES_MAX} are the most")
    try:
        text = message.decode()
    except UnicodeDecodeError:
        raise MessageInvalid("an OAUTHBEARER message that is no UTF-8") from None
    header, _, rest = text.partition(_SEPARATOR)
    found = _GS2.fullmatch(header)
    if found is None:
        raise MessageInvalid("an OAUTHBEARER message that does not begin with a GS2 header without channel binding")
    pairs = _pairs(rest)
    bearer = _BEARER.fullmatch(pairs.pop("auth", ""))
    if bearer is None:
        raise MessageInvalid("an OAUTHBEARER message without `auth=Bearer` and a token")
    name = (found["name"] or "").replace("=2C", ",").replace("=3D", "=")
    return BearerMessage(bearer["token"], name, pairs)


def challenge(status: str = "invalid_token") -> bytes:
    """What a token that is not accepted is answered with (RFC 7628, 3.2.2). It does not say why."""
    return msgspec.json.encode({"status": status})


def _pairs(text: str) -> dict[str, str]:
    """`key=value^A` again and again, and one `^A` more at the end."""
    parts = text.split(_SEPARATOR)
    if len(parts) < 2 or parts[-2:] != ["", ""]:
        raise MessageInvalid("an OAUTHBEARER message that does not end as it should")
    if len(parts) - 2 > 1 + EXTENSIONS_MAX:
        raise MessageInvalid(f"an OAUTHBEARER message of {len(parts) - 3} extensions, where {EXTENSIONS_MAX} are the most")
    pairs: dict[str, str] = {}
    for part in parts[:-2]:
        found = _PAIR.fullmatch(part)
        if found is None or found["key"] in pairs:
            raise MessageInvalid("an OAUTHBEARER message with a pair that is none, or twice")
        pairs[found["key"]] = found["value"]
    return pairs
