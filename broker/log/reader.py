"""Reading batches back from files: blocking, on the read lane, against places that the owner thread looked up.

Neighbours are read in one go, each batch is opened and checked against what the index says of it, and consecutive batches against
the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.footer import DamagedRange
from broker.log.index import Place
from broker.log.layout import (
    BATCH_HEADER_BYTES,
    FLAG_HAS_EXPIRY,
    FLAG_REWRITTEN,
    TAG_BYTES,
    BatchHeader,
    chain_begins_anew,
    parse_batch_header,
    unpack_batch_header,
)
from broker.log.sealing import LogKeys, batch_tag
from security.crypto.envelope import Cipher
from security.errors import KeyMissing, KeyProblem, KeyShredded, TamperedData

READ_BYTES_MAX = 4 * 1024 * 1024  # one read call; neighbours beyond it are read by the next
PART_BYTES_MIN = 256 * 1024  # what one thread opens in about 100 us
PART_BATCH_BYTES_MIN = 8 * 1024  # of smaller batches most of the work is done under the GIL: a second thread would only wait
READ_HOLE_BYTES_MAX = 64 * 1024  # bytes of other partitions worth reading along instead of a call of their own (about 30 us here)


PartitionKey = tuple[bytes, int]


class Wanted(NamedTuple):
    """One batch to read."""

    file: LogFile
    place: Place
    topic_id: bytes
    partition: int


class ReadBack(NamedTuple):
    """Batches that opened, in the order wanted, and ranges (with topic id and partition) that did not."""

    stored: list[Stored]
    damage: list[tuple[PartitionKey, DamagedRange]]


class _Bad(Exception):
    def __init__(self, reason: str) -> None:
        self.reason = reason


class Opened(NamedTuple):
    """A batch that opened; its header names its predecessor."""

    stored: Stored
    header: BatchHeader


def read_batches(keys: LogKeys, wanted: Sequence[Wanted]) -> ReadBack:
    """Open every wanted batch. KeyShredded when the topic was deleted meanwhile; damage is returned, not raised."""
    return chained(wanted, open_batches(keys, wanted))


def open_batches(keys: LogKeys, wanted: Sequence[Wanted]) -> list[Opened | DamagedRange]:
    """One answer for each wanted batch. Parts of one read may be opened on several threads: opening releases the GIL."""
    opened: list[Opened | DamagedRange] = []
    ciphers: dict[tuple[bytes, int], Cipher] = {}
    for run in _runs(wanted):
        start = run[0].place.position
        data = run[0].file.file.read_at(start, run[-1].place.position + run[-1].place.size - start)
        view = memoryview(data)
        for want in run:
            found = _open_quickly(keys, ciphers, view, want.place.position - start, want)
            opened.append(found or _open_or_say_why(keys, data, want.place.position - start, want))
    return opened


def chained(wanted: Sequence[Wanted], opened: Sequence[Opened | DamagedRange]) -> ReadBack:
    """What opened, but for those that are not what their successors were chained to."""
    stored: list[Stored] = []
    owners: list[PartitionKey] = []
    damage: list[tuple[PartitionKey, DamagedRange]] = []
    chains: dict[PartitionKey, tuple[LogFile, tuple[int, bytes, int]]] = {}
    for want, found in zip(wanted, opened, strict=True):
        owner = (want.topic_id, want.partition)
        if isinstance(found, DamagedRange):
            chains.pop(owner, None)
            damage.append((owner, found))
            continue
        if chain_broken(_known_before(chains.get(owner), want, found.header), found.header):
            damage.append((owner, _drop_predecessor(stored, owners, owner)))
        chains[owner] = (want.file, (found.stored.next_offset, want.place.tag, found.header.flags))
        stored.append(found.stored)
        owners.append(owner)
    return ReadBack(stored, damage)


def _known_before(
    before: tuple[LogFile, tuple[int, bytes, int]] | None, want: Wanted, header: BatchHeader
) -> tuple[int, bytes, int] | None:
    """What the batch is to be chained to. Files differ for a reader that was at work when compaction replaced one: what is
    rewritten is chained within its own file only."""
    if before is None:
        return None
    file, known = before
    return None if file is not want.file and (known[2] | header.flags) & FLAG_REWRITTEN else known


def parts(wanted: Sequence[Wanted], count: int) -> list[Sequence[Wanted]]:
    """A read cut into at most `count` parts of about the same size, none so small that a thread is not worth it."""
    size = sum(want.place.size for want in wanted)
    count = min(count, size // PART_BYTES_MIN)
    if count < 2 or size // len(wanted) < PART_BATCH_BYTES_MIN:
        return [wanted]
    cut: list[Sequence[Wanted]] = []
    first = reached = 0
    for at, want in enumerate(wanted):
        reached += want.place.size
        if reached * count >= size * (len(cut) + 1):
            cut.append(wanted[first : at + 1])
            first = at + 1
    return cut


def _runs(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    runs: list[list[Wanted]] = []
    for want in wanted:
        if runs and _joins(runs[-1], want):
            runs[-1].append(want)
        else:
            runs.append([want])
    return runs


def _joins(run: list[Wanted], want: Wanted) -> bool:
    first, last = run[0].place, run[-1].place
    hole = want.place.position - last.position - last.size
    whole = want.place.position + want.place.size - first.position
    return want.file is run[-1].file and 0 <= hole <= READ_HOLE_BYTES_MAX and whole <= READ_BYTES_MAX


def _open_quickly(
    keys: LogKeys, ciphers: dict[tuple[bytes, int], Cipher], view: memoryview, position: int, want: Wanted
) -> Opened | None:
    """The batch, when it is whole and the right one; why it is not is somebody else's question. The header's crc is not asked
    for: the tag covers it."""
    place = want.place
    header = unpack_batch_header(view, position)
    end = position + place.size
    if header is None or view[end - TAG_BYTES : end] != place.tag:
        return None
    named = (header.topic_id, header.partition, header.base_offset, header.sequence, header.sealed_bytes)
    if named != (want.topic_id, want.partition, place.base_offset, place.sequence, place.size):
        return None
    body_at = position + BATCH_HEADER_BYTES + 8 * header.key_hashes
    if body_at + TAG_BYTES > end:
        return None
    try:
        cipher = ciphers.get((want.topic_id, header.key_id))
        if cipher is None:
            cipher = ciphers[want.topic_id, header.key_id] = keys.keyring.opening_cipher(want.topic_id, header.key_id)
        clear = keys.unseal(cipher, header.nonce, view[body_at:end], b"".join((view[position:body_at], keys.cluster_id)))
    except (TamperedData, KeyMissing):
        return None
    return Opened(_stored(header, clear), header)


def _open_or_say_why(keys: LogKeys, data: bytes, position: int, want: Wanted) -> Opened | DamagedRange:
    try:
        header, clear = _open(keys, data, position, want)
    except _Bad as bad:
        return DamagedRange(want.place.base_offset, want.place.next_offset, bad.reason)
    return Opened(_stored(header, clear), header)


def _open(keys: LogKeys, data: bytes, position: int, want: Wanted) -> tuple[BatchHeader, bytes]:
    header = parse_batch_header(data, position)
    if header is None:
        raise _Bad("its header is damaged")
    expected = (want.topic_id, want.partition, want.place.base_offset, want.place.sequence, want.place.size)
    named = (header.topic_id, header.partition, header.base_offset, header.sequence, header.sealed_bytes)
    if named != expected or batch_tag(data, position, header) != want.place.tag:
        raise _Bad("another batch lies in its place")
    try:
        return header, keys.open_batch(data, position, header)
    except TamperedData:
        raise _Bad("does not authenticate") from None
    except KeyShredded:
        raise
    except KeyProblem as problem:
        raise _Bad(f"its key is not to be had ({problem})") from problem


def chain_broken(known: tuple[int, bytes, int] | None, header: BatchHeader) -> bool:
    """Whether the batch read before (next offset, tag, flags), ending where this one begins, is not the one this was chained
    to."""
    if known is None or known[0] != header.base_offset or known[1] == header.previous_tag:
        return False
    return not chain_begins_anew(known[2], header.flags)


def _drop_predecessor(stored: list[Stored], owners: list[PartitionKey], owner: PartitionKey) -> DamagedRange:
    for at in range(len(stored) - 1, -1, -1):
        if owners[at] == owner:
            del owners[at]
            gone = stored.pop(at)
            return DamagedRange(gone.base_offset, gone.next_offset, "not the batch that its successor was chained to")
    raise AssertionError("a chain that breaks has a predecessor that was read")


def _stored(header: BatchHeader, clear: bytes) -> Stored:
    return Stored(
        header.partition,
        header.base_offset,
        header.next_offset,
        header.sequence,
        header.max_timestamp_ms,
        clear,
        bool(header.flags & FLAG_HAS_EXPIRY),
    )
