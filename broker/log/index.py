"""Where the batches of one partition lie in one file: columns, and which batches hold which key hash.

One index is either growing (the file is being appended to; hashes are kept as they come and grouped when somebody asks) or
settled (columns of a footer; keys sorted, looked up by bisection). 60 bytes a batch, 12 bytes a key and batch.

The tag of each batch is kept, so that a read is bound to the very batch that became visible: one that was validly sealed for the
same place, and rolled back, does not pass.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import NamedTuple

from broker.log.layout import FLAG_KEYS_COMPLETE, TAG_BYTES

_COLUMN_BYTES = 44 + TAG_BYTES
_COUNTS = struct.Struct("<II")
SAMPLED_RUNS = 256  # batches whose keys decide how the footer's are sorted


class Place(NamedTuple):
    """One batch in a file."""

    ordinal: int
    base_offset: int
    next_offset: int
    position: int
    size: int
    sequence: int
    max_timestamp_ms: int
    flags: int
    tag: bytes


class BatchIndex:
    """Columns in offset order. Sequences grow with offsets, timestamps need not."""

    __slots__ = (
        "_frozen",
        "_grouped",
        "_grouped_to",
        "_opaque",
        "_runs",
        "base_offsets",
        "deltas",
        "flags",
        "key_hashes",
        "key_ordinals",
        "max_timestamps",
        "positions",
        "sequences",
        "sizes",
        "tags",
    )

    def __init__(self) -> None:
        self.base_offsets = array("Q")
        self.positions = array("Q")
        self.sequences = array("Q")
        self.max_timestamps = array("q")
        self.sizes = array("I")
        self.deltas = array("I")
        self.flags = array("I")
        self.tags = bytearray()
        self.key_hashes = array("Q")
        self.key_ordinals = array("I")
        self._opaque: dict[int, None] = {}  # ordinals of batches whose keys are not known
        self._frozen = False
        self._runs: list[Sequence[int]] | None = []  # hashes of each batch, by ordinal, while the index grows
        self._grouped: dict[int, list[int]] = {}
        self._grouped_to = 0

    def __len__(self) -> int:
        return len(self.base_offsets)

    def add(
        self,
        base_offset: int,
        delta: int,
        position: int,
        size: int,
        sequence: int,
        max_timestamp_ms: int,
        flags: int,
        tag: bytes,
        key_hashes: Sequence[int] | None,
    ) -> None:
        runs = self._runs
        if runs is None:
            raise TypeError("a settled index does not grow")
        if key_hashes is None:
            self._opaque[len(self.base_offsets)] = None
        runs.append(() if key_hashes is None else key_hashes)
        self.base_offsets.append(base_offset)
        self.positions.append(position)
        self.sequences.append(sequence)
        self.max_timestamps.append(max_timestamp_ms)
        self.sizes.append(size)
        self.deltas.append(delta)
        self.flags.append(flags)
        self.tags += tag

    def place(self, ordinal: int) -> Place:
        base = self.base_offsets[ordinal]
        return Place(
            ordinal,
            base,
            base + self.deltas[ordinal] + 1,
            self.positions[ordinal],
            self.sizes[ordinal],
            self.sequences[ordinal],
            self.max_timestamps[ordinal],
            self.flags[ordinal],
            bytes(self.tags[TAG_BYTES * ordinal : TAG_BYTES * (ordinal + 1)]),
        )

    def at_offset(self, offset: int) -> int:
        """Ordinal of the batch that holds `offset`, or of the first one after it."""
        ordinal = bisect_right(self.base_offsets, offset) - 1
        if ordinal >= 0 and offset <= self.base_offsets[ordinal] + self.deltas[ordinal]:
            return ordinal
        return ordinal + 1

    def span_from(self, ordinal: int) -> int:
        """Bytes of the file from this batch to the end of the last one."""
        return self.positions[-1] + self.sizes[-1] - self.positions[ordinal]

    def at_sequence(self, sequence: int) -> int:
        return bisect_left(self.sequences, sequence)

    def with_key(self, key_hash: int) -> Sequence[int]:
        """Ordinals, ascending, of the batches that may hold the key."""
        found = self._lookup(key_hash)
        if not self._opaque:
            return found
        return sorted({*found, *self._opaque})

    def with_any(self, key_hashes: Sequence[int]) -> Sequence[int]:
        """The same for any of several keys."""
        found = {ordinal for key_hash in key_hashes for ordinal in self._lookup(key_hash)}
        return sorted(found.union(self._opaque))

    def opaque(self) -> list[int]:
        """Ordinals, ascending, of the batches whose keys are not known."""
        return list(self._opaque)

    def learn(self, ordinal: int, key_hashes: Sequence[int]) -> bool:
        """The keys of an opaque batch, walked since it was added. False when it is too late: see `freeze`."""
        runs = self._runs
        if runs is None or self._frozen:
            return False
        if ordinal in self._opaque:
            runs[ordinal] = key_hashes
            self.flags[ordinal] |= FLAG_KEYS_COMPLETE
            del self._opaque[ordinal]
            for key_hash in key_hashes if ordinal < self._grouped_to else ():
                insort(self._grouped.setdefault(key_hash, []), ordinal)
        return True

    def freeze(self) -> None:
        """A lane is about to read the columns: nothing changes them any more."""
        self._frozen = True

    def _lookup(self, key_hash: int) -> Sequence[int]:
        if self._runs is not None:
            return self._group(self._runs).get(key_hash, ())
        start = bisect_left(self.key_hashes, key_hash)
        return self.key_ordinals[start : bisect_right(self.key_hashes, key_hash, lo=start)]

    def _group(self, runs: list[Sequence[int]]) -> dict[int, list[int]]:
        """Ordinals by hash, brought up to date: 0.15 us a hash, paid by the first reader by key and not by writers."""
        grouped = self._grouped
        for ordinal in range(self._grouped_to, len(runs)):
            for key_hash in runs[ordinal]:
                known = grouped.get(key_hash)
                if known is None:
                    grouped[key_hash] = [ordinal]
                else:
                    known.append(ordinal)
        self._grouped_to = len(runs)
        return grouped

    def size_in_memory(self) -> int:
        """Bytes the columns take: what a cache of settled indexes is bounded by."""
        return _COLUMN_BYTES * len(self.base_offsets) + 12 * len(self.key_hashes) + 512

    def to_columns(self) -> bytes:
        """The footer's detail block in clear (decision 0001, section 7). Of an index that no longer grows: runs on a lane."""
        hashes, ordinals = (self.key_hashes, self.key_ordinals) if self._runs is None else _sorted_keys(self._runs)
        columns = [column.tobytes() for column in self._columns()]
        return b"".join([_COUNTS.pack(len(self), len(hashes)), *columns, self.tags, hashes.tobytes(), ordinals.tobytes()])

    def _columns(self) -> tuple[array[int], ...]:
        """Of numbers, one a batch, in the order of the format."""
        return (
            self.base_offsets,
            self.positions,
            self.sequences,
            self.max_timestamps,
            self.sizes,
            self.deltas,
            self.flags,
        )

    @classmethod
    def from_columns(cls, clear: bytes, complete_flag: int) -> BatchIndex:
        """Raises ValueError when the counts do not fit the bytes."""
        batches, keys = _COUNTS.unpack_from(clear) if len(clear) >= _COUNTS.size else (0, 0)
        if len(clear) != _COUNTS.size + _COLUMN_BYTES * batches + 12 * keys:
            raise ValueError(f"a detail block of {len(clear)} bytes for {batches} batches and {keys} keys")
        index = cls()
        index._runs = None
        at = _COUNTS.size
        for column in index._columns():
            size = column.itemsize * batches
            column.frombytes(clear[at : at + size])
            at += size
        index.tags += clear[at : at + TAG_BYTES * batches]
        at += TAG_BYTES * batches
        index.key_hashes.frombytes(clear[at : at + 8 * keys])
        index.key_ordinals.frombytes(clear[at + 8 * keys :])
        index._opaque = dict.fromkeys([ordinal for ordinal, flags in enumerate(index.flags) if not flags & complete_flag])
        return index


def _sorted_keys(runs: Sequence[Sequence[int]]) -> tuple[array[int], array[int]]:
    """Hash and ordinal columns, by hash, then ordinal."""
    return _grouped_keys(runs) if _keys_repeat(runs) else _paired_keys(runs)


def _keys_repeat(runs: Sequence[Sequence[int]]) -> bool:
    """Whether grouping is cheaper than sorting: 0.2 us a key against 1.0 where keys come again, 3.1 where none does."""
    some = runs[:SAMPLED_RUNS]
    return 2 * len(set().union(*some)) <= sum(map(len, some))


def _grouped_keys(runs: Sequence[Sequence[int]]) -> tuple[array[int], array[int]]:
    grouped: dict[int, list[int]] = {}
    for ordinal, run in enumerate(runs):
        for key_hash in run:
            known = grouped.get(key_hash)
            if known is None:
                grouped[key_hash] = [ordinal]
            else:
                known.append(ordinal)
    hashes, ordinals = array("Q"), array("I")
    for key_hash in sorted(grouped):
        held = grouped[key_hash]
        hashes.extend([key_hash] * len(held))
        ordinals.extend(held)
    return hashes, ordinals


def _paired_keys(runs: Sequence[Sequence[int]]) -> tuple[array[int], array[int]]:
    """One integer a pair, so that the sort compares integers only."""
    pairs = [key_hash << 32 | ordinal for ordinal, run in enumerate(runs) for key_hash in run]
    pairs.sort()
    return array("Q", [pair >> 32 for pair in pairs]), array("I", [pair & 0xFFFFFFFF for pair in pairs])
