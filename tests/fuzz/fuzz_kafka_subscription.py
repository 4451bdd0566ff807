"""Fuzz target: what consumers of a classic group say they subscribe to. Never an exception; what a client could have written is
read as it was meant."""

from __future__ import annotations

from broker.groups.subscription import subscribed_topics


def subscription(version: int, *topics: bytes, rest: bytes = b"\xff\xff\xff\xff") -> bytes:
    names = b"".join([len(topic).to_bytes(2, "big") + topic for topic in topics])
    return version.to_bytes(2, "big") + len(topics).to_bytes(4, "big") + names + rest


CORPUS = [
    subscription(0),
    subscription(1, b"orders", b"readings", rest=b"\xff\xff\xff\xff" + bytes(4)),
    subscription(3, b"orders", "größe".encode(), rest=b"\0\0\0\2ab" + bytes(4) + b"\0\0\0\1" + b"\xff\xff"),
    subscription(0xFFFF, b"orders"),
    subscription(1, b"\xff\xfe"),
    b"\0\1\x7f\xff\xff\xff\0\1a",
    b"\0\1\0\0\0\2\xff\xff\0\1a",
]


def one_input(data: bytes) -> None:
    found = subscribed_topics(data)
    assert isinstance(found, frozenset)
    assert sum(len(topic.encode()) + 2 for topic in found) <= len(data)
    again = subscription(1, *[topic.encode() for topic in sorted(found)])
    assert subscribed_topics(again) == found
