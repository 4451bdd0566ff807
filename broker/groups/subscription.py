"""What consumers tell their leader: the topics they subscribe to (Kafka's ConsumerProtocolSubscription, versions 0 and up).

int16 version, int32 topics, each int16 length and UTF-8 bytes; what follows (user data, owned partitions) is not looked at
"""

from __future__ import annotations

import struct

PROTOCOL_TYPE = "consumer"
_I16 = struct.Struct(">h")
_I32 = struct.Struct(">i")


def subscribed_topics(metadata: bytes) -> frozenset[str]:
    """Of one member. It is its client's business: what cannot be read names no topics, as in Kafka."""
    try:
        version, count = _I16.unpack_from(metadata)[0], _I32.unpack_from(metadata, 2)[0]
        if version < 0 or not 0 <= count <= len(metadata) // 2:
            return frozenset()
        found, at = [], 6
        for _ in range(count):
            end = at + 2 + _I16.unpack_from(metadata, at)[0]
            if end < at + 2 or end > len(metadata):
                return frozenset()
            found.append(metadata[at + 2 : end].decode())
            at = end
        return frozenset(found)
    except (struct.error, UnicodeDecodeError):
        return frozenset()
