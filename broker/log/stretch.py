"""Stretches: batches of one partition that follow each other in one file, read and opened in one go by the thread that asks.

For readers by offset who want what the system has in memory already. Either all of a stretch is whole and what its index says,
or nothing is given out: then `reader.py` looks again, batch by batch, and says why. On the read lane the same costs a third more
CPU, in changes of threads and in Python's lock, which goes to and fro with each batch (decision 0011).
"""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

from broker.engine.base import Stored
from broker.log.index import BatchIndex
from broker.log.layout import (
    BATCH_HEADER_BYTES,
    FLAG_HAS_EXPIRY,
    TAG_BYTES,
    BatchHeader,
    chain_begins_anew,
    unpack_batch_header,
)
from broker.log.partition import PartitionLog
from broker.log.reader import READ_HOLE_BYTES_MAX
from broker.log.scratch import SCRATCH_BYTES
from broker.log.sealing import LogKeys
from security.crypto.envelope import Cipher
from security.errors import KeyProblem, TamperedData

AT_ONCE_BYTES_MAX = 1024 * 1024
"""Of one partition, read and opened in one turn of the owner thread: about 0.5 ms. Clients ask for as much (Kafka's
max.partition.fetch.bytes); whoever asks for more is served from the read lane."""


class Stretch(NamedTuple):
    """Ordinals [first, end) of an index, and the bytes of the file that they lie in. `size` is that of the batches alone."""

    first: int
    end: int
    position: int
    span: int
    size: int


def stretch_at(index: BatchIndex, ordinal: int, bytes_max: int, *, first_of_all: bool) -> Stretch | None:
    """As many batches from an ordinal on as `bytes_max` allows (of the first of all, one whatever its size) and lie close
    enough together; None where not even one does."""
    positions, sizes = index.positions, index.sizes
    start = reached = positions[ordinal]
    size, end = 0, ordinal
    for at in range(ordinal, len(sizes)):
        position, own = positions[at], sizes[at]
        if size + own > bytes_max and not (first_of_all and at == ordinal):
            break
        if not 0 <= position - reached <= READ_HOLE_BYTES_MAX or position + own - start > SCRATCH_BYTES:
            break
        size += own
        reached = position + own
        end = at + 1
    return Stretch(ordinal, end, start, reached - start, size) if end > ordinal else None


def open_stretch(keys: LogKeys, log: PartitionLog, index: BatchIndex, stretch: Stretch, view: memoryview) -> list[Stored] | None:
    """The batches, when every one is whole, the one that the index means, and chained to the one before it."""
    opened: list[Stored] = []
    ciphers: dict[int, Cipher] = {}
    topic_id, partition, cluster_id = log.topic_id, log.partition, keys.cluster_id
    before: BatchHeader | None = None
    tag = b""
    for ordinal in range(stretch.first, stretch.end):
        start, size = index.positions[ordinal] - stretch.position, index.sizes[ordinal]
        end = start + size
        header = unpack_batch_header(view, start)
        if header is None:
            return None
        _, _, _, flags, _, hashes, _, _, key_id, nonce, last_delta, base, sequence, newest_ms, _, _, previous_tag = header
        meant = (size, topic_id, partition, index.base_offsets[ordinal], index.sequences[ordinal])
        body_at = start + BATCH_HEADER_BYTES + 8 * hashes
        if _NAMED(header) != meant or body_at + TAG_BYTES > end:
            return None
        if before is not None and previous_tag != tag and _unchained(before, header):
            return None
        before, tag = header, bytes(index.tags[TAG_BYTES * ordinal : TAG_BYTES * (ordinal + 1)])
        if bytes(view[end - TAG_BYTES : end]) != tag:
            return None
        try:
            cipher = ciphers.get(key_id)
            if cipher is None:
                cipher = ciphers[key_id] = keys.keyring.opening_cipher(topic_id, key_id)
            clear = cipher.open(nonce, view[body_at:end], b"".join((view[start:body_at], cluster_id)))
        except (TamperedData, KeyProblem):
            return None
        has_expiry = bool(flags & FLAG_HAS_EXPIRY)
        opened.append(Stored(partition, base, base + last_delta + 1, sequence, newest_ms, clear, has_expiry))
    return opened


_NAMED = attrgetter("sealed_bytes", "topic_id", "partition", "base_offset", "sequence")


def _unchained(before: BatchHeader, header: BatchHeader) -> bool:
    """Whether two neighbours of which the second does not name the first should be chained."""
    return before.next_offset == header.base_offset and not chain_begins_anew(before.flags, header.flags)
