"""One partition's sealed batches written again without what compaction takes (decision 0001, section 6: "compaction").

Two passes, each a job on a lane per chunk: `KeyScan` notes the newest offset of every key in batches that no compaction has
seen, `Rewriting` writes what is left, sealed anew and chained among themselves. Offsets have no holes but damage: the batch
before takes over the offsets of what is gone; where there is none before, a batch without records stands for them.

When in doubt a record is kept: in a batch that cannot be walked, in a transaction that is not known to be decided.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import compress
from typing import NamedTuple

from broker.batch_header import read_header
from broker.engine.base import AbortedRange, Stored
from broker.log.footer import DamagedRange
from broker.log.layout import FLAG_CONTROL, FLAG_HAS_EXPIRY, FLAG_KEYS_COMPLETE, FLAG_REWRITTEN, FLAG_TRANSACTIONAL, BatchHeader
from broker.log.merge import Row
from broker.log.reader import Opened, Wanted, chain_broken, open_batches
from broker.log.record_keys import UNREADABLE, key_hashes, unreadable
from broker.log.recovery import NOT_CHAINED
from broker.log.sealing import LogKeys
from broker.retained import DELTA_MAX, NO_TIMESTAMP, Outline, delete_horizon, empty, holds_records, outline, outline_some
from broker.seams import File
from security.crypto.envelope import KeyHasher
from security.crypto.keyring import Epoch

LONG_KEY_BYTES = 32
FOUND_DAMAGED = "found damaged while compacting"
KEPT_FLAGS = FLAG_CONTROL | FLAG_TRANSACTIONAL | FLAG_HAS_EXPIRY


class Rules(NamedTuple):
    """What decides over the records of one partition in one compaction. `aborted` has every aborted transaction of its range."""

    topic_id: bytes
    partition: int
    log_start: int
    now_ms: int
    tombstones_kept_ms: int
    aborted: Sequence[AbortedRange]

    def is_aborted(self, batch: bytes) -> bool:
        header = read_header(batch)
        return header.is_transactional and any(
            one.producer_id == header.producer_id and one.first_offset <= header.base_offset < one.marker_offset
            for one in self.aborted
        )


class Losses:
    """Damage known before, by which a batch is not to be believed though it opens."""

    def __init__(self, damage: Iterable[DamagedRange]) -> None:
        self._damage = sorted(damage, key=lambda lost: lost.start)
        self._starts = [lost.start for lost in self._damage]
        self._longest = max((lost.end - lost.start for lost in self._damage), default=0)

    def touch(self, base_offset: int, next_offset: int) -> bool:
        at = bisect_right(self._starts, next_offset - 1)
        for lost in reversed(self._damage[:at]):
            if lost.start + self._longest <= base_offset:
                return False
            if lost.end > base_offset:
                return True
        return False


class Checked(NamedTuple):
    """A batch that opened and is the right one, as far as its predecessors say."""

    stored: Stored
    header: BatchHeader
    tag: bytes


def open_chunk(keys: LogKeys, wanted: Sequence[Wanted], losses: Losses) -> list[Checked | DamagedRange]:
    """Blocking. KeyShredded when the topic was deleted meanwhile."""
    found: list[Checked | DamagedRange] = []
    for want, opened in zip(wanted, open_batches(keys, wanted), strict=True):
        place = want.place
        if isinstance(opened, Opened) and not losses.touch(place.base_offset, place.next_offset):
            found.append(Checked(opened.stored, opened.header, place.tag))
        else:
            found.append(DamagedRange(place.base_offset, place.next_offset, FOUND_DAMAGED))
    return found


def named(key: bytes) -> bytes:
    """What stands for a key while its newest offset is looked for: itself, or 33 bytes of its own where it is longer than 32.
    (The 64 bits of the key index would do for a look-up, but not for letting go.)"""
    return key if len(key) <= LONG_KEY_BYTES else b"#" + blake2b(key, digest_size=LONG_KEY_BYTES).digest()


def names(keys: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """The same for all keys of a batch."""
    if None not in keys and max(map(len, keys), default=0) <= LONG_KEY_BYTES:  # type: ignore[arg-type]
        return keys
    return [None if key is None else named(key) for key in keys]


class KeyScan:
    """The newest offset of each key. A batch counts once its successor has confirmed that it is the right one."""

    def __init__(self, keys: LogKeys, rules: Rules, losses: Losses) -> None:
        self._keys = keys
        self._rules = rules
        self._losses = losses
        self._waiting: Checked | None = None
        self.newest: dict[bytes | None, int] = {}
        self._tombstones: dict[int, list[int]] = {}  # by base offset of those batches whose records all have their offsets
        self._staying: array[int] = array("Q")

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Blocking."""
        for found in open_chunk(self._keys, wanted, self._losses):
            if isinstance(found, DamagedRange):
                self.settle()
                continue
            if not _follows(self._waiting, found):
                self._waiting = None
            self.settle()
            self._waiting = found

    def settle(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.header.flags & FLAG_CONTROL or self._rules.is_aborted(waiting.stored.batch):
            return
        try:
            records = outline(waiting.stored.batch)
        except UNREADABLE:
            return
        self.newest.update(zip(names(records.keys), records.offsets, strict=True))  # offsets only grow
        if len(records) == records.header.last_offset_delta + 1:
            self._tombstones[waiting.header.base_offset] = records.tombstones

    def finish(self) -> None:
        """Blocking. Behind the last batch."""
        self.settle()
        self.newest.pop(None, None)  # from before it was a topic of keys
        self._staying = array("Q", sorted(self.newest.values()))

    def staying(self, base_offset: int, next_offset: int) -> tuple[list[int], bool] | None:
        """Which records of a batch that was read here are the newest of their keys, and whether one of them is a tombstone. None
        for others, which have to be looked at."""
        tombstones = self._tombstones.get(base_offset)
        if tombstones is None:
            return None
        first = bisect_left(self._staying, max(base_offset, self._rules.log_start))
        places = [offset - base_offset for offset in self._staying[first : bisect_left(self._staying, next_offset, lo=first)]]
        return places, bool(tombstones) and not set(tombstones).isdisjoint(places)


def _follows(before: Checked | None, found: Checked) -> bool:
    return before is None or not chain_broken((before.header.next_offset, before.tag, before.header.flags), found.header)


class _Left:
    """What is left of a batch, waiting to learn how far it reaches: it as it is, some of its `records`, or nothing (`gone`).
    Unreadable ones and markers never reach over what follows them, unless they go too."""

    __slots__ = ("gone", "hashes", "header", "horizon_ms", "kept", "next_offset", "records", "stored")

    def __init__(
        self,
        found: Checked,
        hashes: list[int],
        records: Outline | None = None,
        kept: Sequence[bool] = (),
        horizon_ms: int | None = None,
        *,
        gone: bool = False,
    ) -> None:
        self.stored = found.stored
        self.header = found.header
        self.hashes = hashes
        self.records = records
        self.kept = kept
        self.gone = gone or (records is not None and not any(kept))
        self.horizon_ms = horizon_ms
        self.next_offset = found.header.next_offset

    def may_reach(self, next_offset: int) -> bool:
        grows = self.gone or (self.records is not None and not self.header.flags & FLAG_CONTROL)
        return grows and next_offset - self.header.base_offset - 1 <= DELTA_MAX

    def batch(self) -> bytes:
        if self.gone:
            return empty(self.header.base_offset, self.next_offset)
        if self.records is None:
            return self.stored.batch
        return self.records.retain(self.kept, self.next_offset, self.horizon_ms)


class Rewriting:
    """Writes what is left to `target` from `end` on. The same object for all chunks of a partition, one job at a time."""

    def __init__(
        self,
        keys: LogKeys,
        epoch: Epoch,
        hasher: KeyHasher,
        rules: Rules,
        losses: Losses,
        scan: KeyScan,
        target: File,
        end: int,
        chain_in: bytes,
    ) -> None:
        self._keys = keys
        self._epoch = epoch
        self._hasher = hasher
        self._rules = rules
        self._losses = losses
        self._scan = scan
        self._target = target
        self._tag = chain_in
        self._left: _Left | None = None
        self._before: Checked | None = None
        self._with_records: set[int] = set()  # producers with a transaction under way of which there are records
        self.markers_gone: list[int] = []  # their offsets
        self._pieces: list[bytes] = []
        self._start = end
        self.end = end
        self.rows: list[Row] = []
        self.damage: list[DamagedRange] = []
        self.key_places: dict[tuple[bytes, int], None] = {(rules.topic_id, epoch.key_id): None}

    def write(self, wanted: Sequence[Wanted]) -> None:
        """Blocking. `rows` and `damage` are those of this chunk; the last batch waits for what follows it."""
        self._begin()
        for found in open_chunk(self._keys, wanted, self._losses):
            if isinstance(found, DamagedRange):
                self._lose(found)
            else:
                self._take(found)
        self._write_pieces()

    def finish(self) -> None:
        """Blocking. Behind the last chunk."""
        self._begin()
        self._flush()
        self._write_pieces()

    def _begin(self) -> None:
        self._start = self.end
        self.rows, self.damage, self._pieces = [], [], []

    def _write_pieces(self) -> None:
        if self._pieces:
            self._target.write_at(self._start, self._pieces)

    def _lose(self, lost: DamagedRange) -> None:
        """Nothing reaches over damage: readers are told of it, and of nothing else there."""
        self._flush()
        self._before = None
        self.damage.append(lost)

    def _take(self, found: Checked) -> None:
        if not _follows(self._before, found):
            self._take_back()
        self._before = found
        left = self._left_of(found)
        if self._left is not None and self._left.next_offset != found.header.base_offset:
            self._flush()
        if left.gone and self._left is not None and self._left.may_reach(left.next_offset):
            self._left.next_offset = left.next_offset
            return
        self._flush()
        self._left = left

    def _take_back(self) -> None:
        """The batch before is not the one that this one follows: it is damage, and so are its offsets."""
        assert self._before is not None
        wrong = self._before.header
        if self._left is not None and self._left.header.base_offset == wrong.base_offset:
            self._left = None
        elif self._left is not None:
            self._left.next_offset = wrong.base_offset
        self.damage.append(DamagedRange(wrong.base_offset, wrong.next_offset, NOT_CHAINED))

    def _left_of(self, found: Checked) -> _Left:
        batch = found.stored.batch
        header = read_header(batch)
        if found.header.flags & FLAG_CONTROL:
            return self._left_of_marker(found, header.producer_id)
        if header.is_transactional and holds_records(batch):
            self._with_records.add(header.producer_id)
        if self._rules.is_aborted(batch):
            return _Left(found, [], gone=True)
        staying = self._scan.staying(found.header.base_offset, found.header.next_offset)
        if staying is not None:
            return self._left_of_read(found, *staying)
        try:
            records = outline(batch)
        except UNREADABLE:
            return _Left(found, unreadable(self._hasher))
        horizon_ms = delete_horizon(batch)
        kept = self._kept(records, horizon_ms)
        marked = horizon_ms is None and any(kept[at] for at in records.tombstones)
        hashes = key_hashes(self._hasher, list(compress(records.keys, kept)))
        return _Left(found, hashes, records, kept, self._new_horizon_ms() if marked else None)

    def _left_of_read(self, found: Checked, places: Sequence[int], marked: bool) -> _Left:
        """Of a batch that the scan has read: no key is looked at twice but of what stays."""
        if not places:
            return _Left(found, [], gone=True)
        records = outline_some(found.stored.batch, places)
        hashes = key_hashes(self._hasher, records.keys)
        return _Left(found, hashes, records, [True] * len(records), self._new_horizon_ms() if marked else None)

    def _left_of_marker(self, found: Checked, producer_id: int) -> _Left:
        """The end of a transaction goes as a tombstone does, from when on a compaction finds no record of it any more (KIP-534):
        by then nobody has begun to read it who would wait for its end."""
        batch = found.stored.batch
        has_records = producer_id in self._with_records
        self._with_records.discard(producer_id)
        horizon_ms = delete_horizon(batch)
        if has_records or (horizon_ms is not None and self._rules.now_ms <= horizon_ms):
            return _Left(found, [])
        try:
            records = outline(batch)
        except UNREADABLE:
            return _Left(found, [])
        if horizon_ms is None:
            return _Left(found, [], records, [True] * len(records), self._new_horizon_ms())
        self.markers_gone.append(found.header.base_offset)
        return _Left(found, [], records, [False] * len(records))

    def _new_horizon_ms(self) -> int:
        return self._rules.now_ms + self._rules.tombstones_kept_ms

    def _kept(self, records: Outline, horizon_ms: int | None) -> list[bool]:
        newest, log_start = self._scan.newest, self._rules.log_start
        latest = map(newest.get, names(records.keys), records.offsets)
        kept = [last <= offset for last, offset in zip(latest, records.offsets, strict=True)]
        if None in records.keys:
            kept = [keep and key is not None for keep, key in zip(kept, records.keys, strict=True)]
        if horizon_ms is not None and self._rules.now_ms > horizon_ms:
            for at in records.tombstones:
                kept[at] = False
        if records.offsets and records.offsets[0] < log_start:
            kept = [keep and offset >= log_start for keep, offset in zip(kept, records.offsets, strict=True)]
        return kept

    def _flush(self) -> None:
        left, self._left = self._left, None
        if left is None:
            return
        header, clear = left.header, left.batch()
        said = read_header(clear)
        flags = (0 if left.gone else header.flags & KEPT_FLAGS) | FLAG_REWRITTEN | FLAG_KEYS_COMPLETE
        newest_ms = header.max_timestamp_ms if left.records is None else said.max_timestamp_ms if said.count else NO_TIMESTAMP
        delta = left.next_offset - header.base_offset - 1
        sealed = self._keys.seal_batch(
            clear,
            flags=flags,
            topic_id=header.topic_id,
            partition=header.partition,
            last_offset_delta=delta,
            base_offset=header.base_offset,
            sequence=header.sequence,
            max_timestamp_ms=newest_ms,
            append_time_ms=header.append_time_ms,
            records=said.count,
            previous_tag=self._tag,
            key_hashes=left.hashes,
            epoch=self._epoch,
        )
        row = (header.base_offset, delta, self.end, sealed.size, header.sequence, newest_ms, flags, sealed.tag, left.hashes)
        self.rows.append(row)
        self._pieces += sealed.parts
        self._tag = sealed.tag
        self.end += sealed.size
