"""SASL as Kafka's clients send it: the mechanisms, and the one message of PLAIN (RFC 4616). OAUTHBEARER's: `oauthbearer.py`."""

from __future__ import annotations

import msgspec

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.oauthbearer import OAUTHBEARER

PLAIN = "PLAIN"
SCRAM_SHA_256, SCRAM_SHA_512 = "SCRAM-SHA-256", "SCRAM-SHA-512"
MECHANISMS = (PLAIN, SCRAM_SHA_256, SCRAM_SHA_512, OAUTHBEARER)
"""Those that this node can speak; offered are those of them that its chain can judge."""

PLAIN_BYTES_MAX = 8 * 1024


class PlainCredentials(msgspec.Struct, frozen=True, gc=False):
    """`acts_as` is empty, or the name itself."""

    acts_as: str
    name: str
    password: str

    def __repr__(self) -> str:
        return f"PlainCredentials({self.name!r})"


def read_plain(message: bytes) -> PlainCredentials:
    """`[authzid] NUL authcid NUL passwd`. MessageInvalid, which repeats nothing of it."""
    if len(message) > PLAIN_BYTES_MAX:
        raise MessageInvalid(f"a PLAIN message of {len(message)} bytes, where {PLAIN_BYTES_MAX} are the most")
    try:
        parts = message.decode().split("\0")
    except UnicodeDecodeError:
        raise MessageInvalid("a PLAIN message that is no UTF-8") from None
    if len(parts) != 3:
        raise MessageInvalid("a PLAIN message that has not three parts")
    return PlainCredentials(*parts)
