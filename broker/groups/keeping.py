"""Groups as they are kept in the log's state (StateSpace.GROUP): one entry for the group and one or more for each member.

    group    key: digest of its name (16 bytes)                                        value: `Head`
    member   key: digest of the group's name, digest of its id (16), part (u16, BE)    value: a part of `KeptMember`, in msgpack

All entries of a group change in one frame, so they are of one moment. A member's value is cut into parts because one entry has at
most 64 KiB, and what a member of a Kafka Streams application says of itself may be more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from broker.engine.base import StateChange, StateSpace
from broker.errors import FormatUnsupported, StorageDamaged
from broker.groups.offsets import DIGEST_BYTES, group_digest

VERSION = 1
PART_BYTES = 60_000
_PART = struct.Struct(">H")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Fields are only ever added at its end. `kind`: classic, or consumer (KIP-848), where `generation` is the group's epoch.
    `changed_at_ms` is Unix time."""

    version: int
    name: str
    kind: str
    generation: int
    protocol_type: str
    protocol: str | None
    leader: str | None
    changed_at_ms: int
    extra: dict[str, Any] = {}


class Kept(msgspec.Struct, frozen=True):
    """One group as found: its head, and what its members' entries hold."""

    head: Head
    members: list[bytes]
    keys: frozenset[bytes]


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head)


def entries(head: Head, members: Iterable[tuple[str, bytes]]) -> dict[bytes, bytes]:
    """Keys and values of a group whose members' values are these, by member id."""
    digest = group_digest(head.name)
    found = {digest: _encode(head)}
    for member_id, value in members:
        key = digest + _member_digest(member_id)
        for part, start in enumerate(range(0, max(1, len(value)), PART_BYTES)):
            found[key + _PART.pack(part)] = value[start : start + PART_BYTES]
    return found


def member_key(name: str, member_id: str) -> bytes:
    """What the keys of all its parts begin with."""
    return group_digest(name) + _member_digest(member_id)


def member_part(key: bytes) -> bytes:
    """What keys of one member have in common; of a group's own key, the key."""
    return key[: 2 * DIGEST_BYTES]


def _member_digest(member_id: str) -> bytes:
    return blake2b(member_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def changes(new: dict[bytes, bytes], old_keys: Iterable[bytes]) -> list[StateChange]:
    """From whatever was kept under the old keys to this."""
    gone = [StateChange(StateSpace.GROUP, key, None) for key in old_keys if key not in new]
    return gone + [StateChange(StateSpace.GROUP, key, value) for key, value in new.items()]


def load(states: Iterable[tuple[bytes, bytes]]) -> list[Kept | StorageDamaged | FormatUnsupported]:
    """Every group; in its place a problem, where it cannot be read."""
    groups: dict[bytes, dict[bytes, bytes]] = {}
    for key, value in states:
        groups.setdefault(key[:DIGEST_BYTES], {})[key] = value
    return [_load(digest, found) for digest, found in groups.items()]


def _load(digest: bytes, found: dict[bytes, bytes]) -> Kept | StorageDamaged | FormatUnsupported:
    try:
        head = _head.decode(found[digest])
    except (*_UNREADABLE, KeyError) as error:
        return StorageDamaged("a group's state", str(error))
    if head.version > VERSION:
        return FormatUnsupported("a group's state", head.version, VERSION)
    members: dict[bytes, list[bytes]] = {}
    for key in sorted(found):
        if key != digest:
            members.setdefault(key[DIGEST_BYTES : 2 * DIGEST_BYTES], []).append(found[key])
    return Kept(head, [b"".join(parts) for parts in members.values()], frozenset(found))
