"""What is known of one producer on one partition: its epoch, its last five batches, and where its open transaction began.

Five are the requests that a producer may have in flight (KIP-98, KIP-360). As stored, in StateSpace.PRODUCER:

    key     topic id (16), partition (4), producer id (8)
    value   version (1), epoch (2), last timestamp (8), first offset (8) and commit sequence (8) of the open transaction or -1,
            then for each batch, the oldest first: first and last sequence (4 each), base offset (8), append time (8)
"""

from __future__ import annotations

import struct

import msgspec

from broker.errors import FormatUnsupported

BATCHES_KEPT = 5
SEQUENCES = 2**31
NO_EPOCH = -1

KEY = struct.Struct(">16sIq")
_VERSION = 1
_HEAD = struct.Struct("<Bhqqq")
_BATCH = struct.Struct("<iiqq")
_OTHERS_BYTES = (BATCHES_KEPT - 1) * _BATCH.size


class KeptBatch(msgspec.Struct, frozen=True, gc=False):
    """Sequences first .. last at `base_offset`."""

    first: int
    last: int
    base_offset: int
    append_time_ms: int


class Producer(msgspec.Struct, frozen=True, gc=False):
    """As of its newest batch or marker. `open_offset`, `open_sequence`: where its transaction began here; -1 without one.

    Its batches stay packed as they are stored: they are looked at only when one comes that does not follow.
    """

    epoch: int
    last_ms: int
    packed: bytes = b""
    last_sequence: int = -1
    open_offset: int = -1
    open_sequence: int = -1

    @property
    def batches(self) -> list[KeptBatch]:
        """The oldest first."""
        return [KeptBatch(*fields) for fields in _BATCH.iter_unpack(self.packed)]

    @property
    def in_transaction(self) -> bool:
        return self.open_offset >= 0

    def duplicate(self, epoch: int, first: int, last: int) -> KeptBatch | None:
        """The batch with just these sequences, when it was one of the last."""
        if epoch != self.epoch:
            return None
        return next((batch for batch in reversed(self.batches) if (batch.first, batch.last) == (first, last)), None)

    def expected(self, epoch: int) -> int:
        """The sequence that its next batch of this epoch begins with."""
        return (self.last_sequence + 1) % SEQUENCES if epoch == self.epoch else 0

    def with_batch(self, epoch: int, first: int, last: int, base_offset: int, append_time_ms: int) -> Producer:
        before = self.packed[-_OTHERS_BYTES:] if epoch == self.epoch else b""
        packed = before + _BATCH.pack(first, last, base_offset, append_time_ms)
        return Producer(epoch, append_time_ms, packed, last, self.open_offset, self.open_sequence)

    def ended(self, epoch: int, at_ms: int) -> Producer:
        """After the marker of a transaction's end. A marker of a newer epoch begins the sequences anew (KIP-890)."""
        if epoch == self.epoch:
            return Producer(epoch, at_ms, self.packed, self.last_sequence)
        return Producer(epoch, at_ms)


def last_sequence(first: int, count: int) -> int:
    """Sequences wrap after 2^31 - 1."""
    return (first + count - 1) % SEQUENCES


def encode(producer: Producer) -> bytes:
    head = _HEAD.pack(_VERSION, producer.epoch, producer.last_ms, producer.open_offset, producer.open_sequence)
    return head + producer.packed


def decode(value: bytes) -> Producer:
    version, epoch, last_ms, open_offset, open_sequence = _HEAD.unpack_from(value)
    if version > _VERSION:
        raise FormatUnsupported("the state of a producer", version, _VERSION)
    packed = value[_HEAD.size :]
    last = _BATCH.unpack_from(packed, len(packed) - _BATCH.size)[1] if packed else -1
    return Producer(epoch, last_ms, packed, last, open_offset, open_sequence)
