"""One transactional id as the coordinator knows it, and how that is stored in StateSpace.TRANSACTION (msgpack arrays):

    "t", transactional id                                                   Transaction
    "o", length of the id (2), id, topic id (16), name of the group         offsets to commit with it (`Pending`)

There is no prepared state: the end is one append, so it has happened or it has not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgspec

from broker.engine.base import StateChange, StateSpace
from broker.errors import FormatUnsupported

VERSION = 1
NO_PRODUCER = -1
EPOCH_MAX = 2**15 - 1
EPOCH_EXHAUSTED = EPOCH_MAX - 1  # the one epoch after it is for fencing (KIP-360)
_TRANSACTION, _PENDING = b"t", b"o"
_LENGTH = struct.Struct(">H")


class TransactionState(IntEnum):
    """Numbers and names are Kafka's; the states between do not exist here."""

    EMPTY = 0
    ONGOING = 1
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5

    @property
    def label(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_"))


class Place(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A partition of a topic. The name is for reading: a topic of that name made later has another id."""

    topic: str
    topic_id: bytes
    partition: int


class Transaction(msgspec.Struct, frozen=True, array_like=True):
    """`last_epoch`: the epoch before, when its producer asked for the bump itself; it may ask again."""

    version: int
    producer_id: int
    epoch: int
    last_producer_id: int
    last_epoch: int
    timeout_ms: int
    state: TransactionState
    started_ms: int
    updated_ms: int
    topics: dict[bytes, tuple[str, list[int]]] = {}
    groups: list[str] = []

    @property
    def places(self) -> list[Place]:
        return [Place(name, id, partition) for id, (name, partitions) in self.topics.items() for partition in partitions]

    @property
    def is_ongoing(self) -> bool:
        return self.state is TransactionState.ONGOING

    def has(self, topic_id: bytes, partition: int) -> bool:
        found = self.topics.get(topic_id)
        return self.is_ongoing and found is not None and partition in found[1]

    def over_at_ms(self) -> int:
        return self.started_ms + self.timeout_ms


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """One offset of a group, committed if the transaction is."""

    partition: int
    offset: int
    leader_epoch: int
    metadata: str


_encode = msgspec.msgpack.Encoder().encode
_transaction = msgspec.msgpack.Decoder(Transaction)
_pending = msgspec.msgpack.Decoder(list[Pending])


def with_partitions(topics: Mapping[bytes, tuple[str, list[int]]], added: list[Place]) -> dict[bytes, tuple[str, list[int]]]:
    found = {topic_id: (name, list(partitions)) for topic_id, (name, partitions) in topics.items()}
    for place in added:
        partitions = found.setdefault(place.topic_id, (place.topic, []))[1]
        if place.partition not in partitions:
            partitions.append(place.partition)
    return found


def transaction_change(transactional_id: str, transaction: Transaction | None) -> StateChange:
    value = None if transaction is None else _encode(transaction)
    return StateChange(StateSpace.TRANSACTION, _TRANSACTION + transactional_id.encode(), value)


def pending_change(transactional_id: str, group: str, topic_id: bytes, offsets: list[Pending] | None) -> StateChange:
    id = transactional_id.encode()
    key = b"".join((_PENDING, _LENGTH.pack(len(id)), id, topic_id, group.encode()))
    return StateChange(StateSpace.TRANSACTION, key, None if offsets is None else _encode(offsets))


def read_transaction(key: bytes, value: bytes) -> tuple[str, Transaction] | None:
    """None for an entry of the other kind."""
    if not key.startswith(_TRANSACTION):
        return None
    version = msgspec.msgpack.decode(value, type=list[Any])[0]
    if version > VERSION:
        raise FormatUnsupported("the state of a transaction", version, VERSION)
    return key[1:].decode(), _transaction.decode(value)


def read_pending(key: bytes, value: bytes) -> tuple[str, str, bytes, list[Pending]] | None:
    """Transactional id, group, topic id, offsets; None for an entry of the other kind."""
    if not key.startswith(_PENDING):
        return None
    end = 3 + _LENGTH.unpack_from(key, 1)[0]
    return key[3:end].decode(), key[end + 16 :].decode(), key[end : end + 16], _pending.decode(value)


def transaction_key(transactional_id: str) -> bytes:
    return _TRANSACTION + transactional_id.encode()
