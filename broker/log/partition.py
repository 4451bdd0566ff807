"""One partition of the log: what is visible, what is only handed out, and where it lies."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec

from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.footer import DamagedRange, PartitionSummary
from broker.log.index import BatchIndex
from broker.log.layout import NO_TAG


class LogStart(msgspec.Struct, frozen=True, gc=False):
    """Where a partition begins. `base_offset`: of the batch that holds or follows `offset`; `chain_in`: the tag of the one before
    it, empty where damage hides it; `cut_sequence`: of the newest batch of which records were let go."""

    offset: int
    chain_in: bytes
    base_offset: int
    cut_sequence: int


STEPS_MAX = 64  # log starts remembered: where a reader of a commit sequence may have stood


class Extent:
    """A run of offsets in one file. `index` is there while the file grows, else read from the footer when needed."""

    __slots__ = ("file", "index", "summary")

    def __init__(self, file: LogFile, summary: PartitionSummary, index: BatchIndex | None) -> None:
        self.file = file
        self.summary = summary
        self.index = index


_GONE = Stored(0, 0, 0, 0, 0, b"")


class Ring:
    """The newest batches in clear, in order: a list with a moving start, so that bisection works on it."""

    __slots__ = ("_dropped", "items")

    def __init__(self) -> None:
        self.items: list[Stored] = []
        self._dropped = 0

    def push(self, stored: Stored) -> None:
        self.items.append(stored)

    def drop_first(self) -> None:
        """Amortised: the list is shortened when half of it is gone. The batch itself is let go at once."""
        self.items[self._dropped] = _GONE
        self._dropped += 1
        if self._dropped * 2 > len(self.items):
            del self.items[: self._dropped]
            self._dropped = 0

    @property
    def start(self) -> int:
        return self._dropped

    def __len__(self) -> int:
        return len(self.items) - self._dropped

    def from_offset(self, offset: int) -> Iterator[Stored] | None:
        """Batches from the one holding `offset` on; None when the ring does not reach back that far."""
        if not self or offset < self.items[self._dropped].base_offset:
            return None
        at = bisect_right(self.items, offset, lo=self._dropped, key=lambda stored: stored.base_offset) - 1
        if self.items[at].next_offset <= offset:
            at += 1
        items = self.items
        return (items[n] for n in range(at, len(items)))  # most readers take a few

    def at(self, base_offset: int) -> Stored | None:
        """The batch that begins at this offset, if the ring has it."""
        at = bisect_left(self.items, base_offset, lo=self._dropped, key=lambda stored: stored.base_offset)
        return self.items[at] if at < len(self.items) and self.items[at].base_offset == base_offset else None

    def from_sequence(self, sequence: int, count: int | None = None) -> list[Stored]:
        """Batches from a commit sequence on, all or the first `count`."""
        at = bisect_right(self.items, sequence - 1, lo=self._dropped, key=lambda stored: stored.sequence)
        return self.items[at:] if count is None else self.items[at : at + count]


class PartitionLog:
    """Owner thread only. `next_offset` and `tag` are handed out; `high_watermark` and `visible_tag` are what readers may see."""

    __slots__ = (
        "cut_sequence",
        "extents",
        "first_kept",
        "high_watermark",
        "log_start",
        "next_offset",
        "oldest",
        "partition",
        "ring",
        "ring_floor",
        "steps",
        "tag",
        "topic_id",
        "visible_tag",
    )

    def __init__(self, topic_id: bytes, partition: int) -> None:
        self.topic_id = topic_id
        self.partition = partition
        self.extents: list[Extent] = []
        self.ring = Ring()
        self.ring_floor = 0  # the newest commit sequence of this partition that is no longer (or never was) in the ring
        self.log_start = 0
        self.first_kept: LogStart | None = None
        self.cut_sequence = 0
        self.steps: list[LogStart] = []
        self.oldest = (-1, 0)  # offset and timestamp of the first kept batch, where retention has looked
        self.next_offset = 0
        self.high_watermark = 0
        self.tag = NO_TAG
        self.visible_tag = NO_TAG

    @property
    def place(self) -> tuple[bytes, int]:
        """Topic id and partition."""
        return self.topic_id, self.partition

    @property
    def generation(self) -> int:
        """How often its beginning was compacted."""
        return self.extents[0].summary.generation if self.extents else 0

    def roll_back(self) -> None:
        """Forget what was handed out and never became visible."""
        self.next_offset, self.tag = self.high_watermark, self.visible_tag

    def grow(
        self,
        file: LogFile,
        stored: Stored,
        position: int,
        size: int,
        flags: int,
        tag: bytes,
        previous_tag: bytes,
        key_hashes: list[int] | None,
    ) -> None:
        """A batch became visible in `file`."""
        extent = self.extents[-1] if self.extents else None
        if extent is None or extent.file is not file or extent.index is None:
            extent = Extent(file, self._empty_summary(stored, previous_tag), BatchIndex())
            self.extents.append(extent)
        summary = extent.summary
        assert extent.index is not None
        base, following, sequence, newest_ms = stored.base_offset, stored.next_offset, stored.sequence, stored.max_timestamp_ms
        extent.index.add(base, following - base - 1, position, size, sequence, newest_ms, flags, tag, key_hashes)
        summary.batches += 1
        summary.size += size
        if newest_ms > summary.max_timestamp_ms:
            summary.max_timestamp_ms = newest_ms
        summary.max_sequence = sequence
        summary.chain_out = self.visible_tag = tag
        summary.next_offset = self.high_watermark = following

    def _empty_summary(self, stored: Stored, previous_tag: bytes) -> PartitionSummary:
        return PartitionSummary(
            self.topic_id,
            self.partition,
            0,
            stored.base_offset,
            stored.base_offset,
            0,
            0,
            stored.max_timestamp_ms,
            stored.sequence,
            stored.sequence,
            previous_tag,
            previous_tag,
        )

    def begin_at(self, start: LogStart) -> None:
        """Records below it are let go: nobody reads them any more. Their extents stay until `drop_dead`."""
        self.first_kept, self.log_start, self.cut_sequence = start, start.offset, start.cut_sequence
        self.steps.append(start)
        del self.steps[:-STEPS_MAX]

    def drop_dead(self) -> list[Extent]:
        """Take out the extents that lie wholly below the log start; returns them."""
        at = 0
        while at < len(self.extents) and self.extents[at].summary.next_offset <= self.log_start:
            at += 1
        dead = self.extents[:at]
        del self.extents[:at]
        return dead

    def missed_from(self, sequence: int) -> int:
        """The lowest offset that a reader that has got to this commit sequence may have missed."""
        return max((step.offset for step in self.steps if step.cut_sequence < sequence), default=0)

    def damage(self) -> list[DamagedRange]:
        found = [damage for extent in self.extents for damage in extent.summary.damage]
        return [damage for damage in found if damage.end > self.log_start] if self.log_start and found else found

    def extent_at_offset(self, offset: int) -> int:
        """Position in `extents` of the one that holds `offset` or the first after it."""
        at = bisect_right(self.extents, offset, key=lambda extent: extent.summary.first_offset) - 1
        if at >= 0 and offset < self.extents[at].summary.next_offset:
            return at
        return at + 1

    def extent_at_sequence(self, sequence: int) -> int:
        """Position in `extents` of the first one that reaches `sequence`."""
        return bisect_right(self.extents, sequence - 1, key=lambda extent: extent.summary.max_sequence)
