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
from broker.log.layout import FLAG_HAS_EXPIRY, BatchHeader, parse_batch_header
from broker.log.sealing import LogKeys, batch_tag
from security.errors import KeyProblem, KeyShredded, TamperedData

READ_BYTES_MAX = 4 * 1024 * 1024  # one read call; neighbours beyond it are read by the next
READ_HOLE_BYTES_MAX = 64 * 1024  # bytes of other partitions worth reading along instead of a call of their own (about 30 us here)


class Wanted(NamedTuple):
    """One batch to read."""

    file: LogFile
    place: Place
    topic_id: bytes
    partition: int


class ReadBack(NamedTuple):
    """Batches that opened, in the order wanted, and ranges (per partition) that did not."""

    stored: list[Stored]
    damage: list[tuple[int, DamagedRange]]


class _Bad(Exception):
    def __init__(self, reason: str) -> None:
        self.reason = reason


def read_batches(keys: LogKeys, wanted: Sequence[Wanted]) -> ReadBack:
    """Open every wanted batch. KeyShredded when the topic was deleted meanwhile; damage is returned, not raised."""
    stored: list[Stored] = []
    damage: list[tuple[int, DamagedRange]] = []
    chains: dict[int, tuple[int, bytes]] = {}
    for run in _runs(wanted):
        start = run[0].place.position
        data = run[0].file.file.read_at(start, run[-1].place.position + run[-1].place.size - start)
        for want in run:
            try:
                header, clear = _open(keys, data, want.place.position - start, want)
            except _Bad as bad:
                chains.pop(want.partition, None)
                damage.append((want.partition, DamagedRange(want.place.base_offset, want.place.next_offset, bad.reason)))
                continue
            if chain_broken(chains.get(want.partition), header):
                damage.append((want.partition, _drop_predecessor(stored, want.partition)))
            chains[want.partition] = (header.next_offset, batch_tag(data, want.place.position - start, header))
            stored.append(_stored(header, clear))
    return ReadBack(stored, damage)


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


def chain_broken(known: tuple[int, bytes] | None, header: BatchHeader) -> bool:
    """Whether the batch read before, ending where this one begins, is not the one this was chained to."""
    return known is not None and known[0] == header.base_offset and known[1] != header.previous_tag


def _drop_predecessor(stored: list[Stored], partition: int) -> DamagedRange:
    for at in range(len(stored) - 1, -1, -1):
        if stored[at].partition == partition:
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
