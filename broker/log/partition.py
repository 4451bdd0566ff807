"""One partition of the log: what is visible, what is only handed out, and where it lies."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.footer import DamagedRange, PartitionSummary
from broker.log.index import BatchIndex
from broker.log.layout import NO_TAG


class Extent:
    """A run of offsets in one file. `index` is there while the file grows, else read from the footer when needed."""

    __slots__ = ("file", "index", "summary")

    def __init__(self, file: LogFile, summary: PartitionSummary, index: BatchIndex | None) -> None:
        self.file = file
        self.summary = summary
        self.index = index


class Ring:
    """The newest batches in clear, in order: a list with a moving start, so that bisection works on it."""

    __slots__ = ("_dropped", "items")

    def __init__(self) -> None:
        self.items: list[Stored] = []
        self._dropped = 0

    def push(self, stored: Stored) -> None:
        self.items.append(stored)

    def drop_first(self) -> None:
        """Amortised: the list is shortened when half of it is gone."""
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
        return iter(self.items[at:])

    def at(self, base_offset: int) -> Stored | None:
        """The batch that begins at this offset, if the ring has it."""
        at = bisect_left(self.items, base_offset, lo=self._dropped, key=lambda stored: stored.base_offset)
        return self.items[at] if at < len(self.items) and self.items[at].base_offset == base_offset else None

    def from_sequence(self, sequence: int) -> list[Stored]:
        at = bisect_right(self.items, sequence - 1, lo=self._dropped, key=lambda stored: stored.sequence)
        return self.items[at:]


class PartitionLog:
    """Owner thread only. `next_offset` and `tag` are handed out; `high_watermark` and `visible_tag` are what readers may see."""

    __slots__ = (
        "extents",
        "high_watermark",
        "log_start",
        "next_offset",
        "partition",
        "ring",
        "ring_floor",
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
        self.next_offset = 0
        self.high_watermark = 0
        self.tag = NO_TAG
        self.visible_tag = NO_TAG

    def roll_back(self) -> None:
        """Forget what was handed out and never became visible."""
        self.next_offset, self.tag = self.high_watermark, self.visible_tag

    def grow(
        self,
        file: LogFile,
        stored: Stored,
        *,
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
        extent.index.add(
            stored.base_offset,
            stored.next_offset - stored.base_offset - 1,
            position,
            size,
            stored.sequence,
            stored.max_timestamp_ms,
            flags,
            tag,
            key_hashes,
        )
        summary.next_offset = stored.next_offset
        summary.batches += 1
        summary.size += size
        summary.max_timestamp_ms = max(summary.max_timestamp_ms, stored.max_timestamp_ms)
        summary.max_sequence = stored.sequence
        summary.chain_out = tag
        self.high_watermark = stored.next_offset
        self.visible_tag = tag

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

    def damage(self) -> list[DamagedRange]:
        return [damage for extent in self.extents for damage in extent.summary.damage]

    def extent_at_offset(self, offset: int) -> int:
        """Position in `extents` of the one that holds `offset` or the first after it."""
        at = bisect_right(self.extents, offset, key=lambda extent: extent.summary.first_offset) - 1
        if at >= 0 and offset < self.extents[at].summary.next_offset:
            return at
        return at + 1

    def extent_at_sequence(self, sequence: int) -> int:
        """Position in `extents` of the first one that reaches `sequence`."""
        return bisect_right(self.extents, sequence - 1, key=lambda extent: extent.summary.max_sequence)
