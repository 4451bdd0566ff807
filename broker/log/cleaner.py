"""Which files compaction takes next, as Kafka's log cleaner chooses: by `min.cleanable.dirty.ratio`, `min.compaction.lag.ms`
(KIP-58) and `max.compaction.lag.ms` (KIP-354).

Cleanable are a partition's files from its log start on, as far as they are sealed, decided (no transaction open) and old enough.
The partition with the largest share of unseen bytes comes first; what else lies in its files is compacted along if it is due too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from broker.engine.base import Decided, Topic
from broker.log.compaction import Compaction, EpochFor, Work, unseen_bytes
from broker.log.files import LogFile
from broker.log.layout import FLAG_CONTROL, FLAG_REWRITTEN, FLAG_TRANSACTIONAL
from broker.log.manifest import FileState
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import PartitionKey
from broker.log.store import LogStore
from broker.topics.configs import compacted, compaction_lag_ms, dirty_ratio_min, tombstones_kept_ms


class Candidate(NamedTuple):
    """A partition that is due. `extents`: its cleanable ones, the first it has; `share`: of their bytes, what is unseen."""

    log: PartitionLog
    topic: Topic
    extents: list[Extent]
    share: float


class Cleaner:
    """Owner thread. What it found out of an extent is remembered while the extent is there."""

    def __init__(self, store: LogStore, epoch_for: EpochFor) -> None:
        self._store = store
        self._epoch_for = epoch_for
        self._unseen: dict[tuple[int, PartitionKey], int] = {}

    async def next(self, topics: Sequence[Topic], decided: Decided | None, now_ms: int | None) -> Compaction | None:
        """The compaction most worth doing; None: none is. `now_ms` None: the clock is not to be believed just now."""
        if now_ms is None:
            return None
        candidates = [
            found
            for topic in topics
            if compacted(topic.configs)
            for partition in range(topic.partitions)
            if (found := await self._candidate(topic, partition, decided, now_ms)) is not None
        ]
        self._forget_gone()
        for first in sorted(candidates, key=lambda found: found.share, reverse=True):
            files = self._files(first)
            if files:
                return Compaction(self._store, files, self._work(candidates, files, decided, now_ms), self._epoch_for)
        return None

    async def _candidate(self, topic: Topic, partition: int, decided: Decided | None, now_ms: int) -> Candidate | None:
        log = self._store.partition(topic.topic_id, partition)
        lag_ms, wait_ms = compaction_lag_ms(topic.configs)
        stable = log.high_watermark
        if decided is not None:
            stable = decided.stable_offset(topic.topic_id, partition, stable)
        extents: list[Extent] = []
        unseen = size = offsets = 0
        oldest_ms: int | None = None
        for extent in list(log.extents):
            part = extent.summary
            young = part.max_timestamp_ms > now_ms - lag_ms and lag_ms > 0
            if extent.file.entry.state is FileState.OPEN or part.next_offset > stable or young:
                break
            if decided is None and await self._transactional(extent):
                break
            of_extent = await self._unseen_of(extent)
            offsets += part.next_offset - part.first_offset if of_extent else 0
            if extents and unseen and offsets > self._store.options.compaction_offsets_max:
                break
            if of_extent and oldest_ms is None and wait_ms < now_ms:
                oldest_ms = await self._oldest_unseen_ms(extent)
            extents.append(extent)
            unseen += of_extent
            size += part.size
        if not unseen or log.extents[: len(extents)] != extents:
            return None
        overdue = oldest_ms is not None and oldest_ms < now_ms - wait_ms
        due = overdue or unseen / size > dirty_ratio_min(topic.configs)
        return Candidate(log, topic, extents, unseen / size) if due else None

    async def _unseen_of(self, extent: Extent) -> int:
        part = extent.summary
        if part.generation == 0:
            return part.size
        place = (extent.file.number, (part.topic_id, part.partition))
        found = self._unseen.get(place)
        if found is None:
            found = self._unseen[place] = unseen_bytes(extent, await self._store.index_of(extent))
        return found

    async def _oldest_unseen_ms(self, extent: Extent) -> int | None:
        index = await self._store.index_of(extent)
        unseen = (ms for ms, flags in zip(index.max_timestamps, index.flags, strict=True) if not flags & FLAG_REWRITTEN)
        return next(unseen, None)

    async def _transactional(self, extent: Extent) -> bool:
        """Without anybody who knows what is decided, nothing of a transaction is touched."""
        index = await self._store.index_of(extent)
        return any(flags & (FLAG_TRANSACTIONAL | FLAG_CONTROL) for flags in index.flags)

    def _forget_gone(self) -> None:
        for place in [place for place in self._unseen if place[0] not in self._store.files]:
            del self._unseen[place]

    # -- files ------------------------------------------------------------------------------------------------------------

    def _files(self, first: Candidate) -> list[LogFile]:
        """Those of the candidate, and those between them of other partitions: a merged extent has no hole. Empty when one of
        them is not sealed yet."""
        chosen = {extent.file for extent in first.extents}
        while True:
            between = {file for log in self._store.partitions.values() for file in _between(log, chosen)} - chosen
            if any(file.entry.state is FileState.OPEN for file in between):
                return []
            if not between:
                return sorted(chosen, key=lambda file: file.number)
            chosen |= between

    def _work(
        self, candidates: Sequence[Candidate], files: Sequence[LogFile], decided: Decided | None, now_ms: int
    ) -> Mapping[PartitionKey, Work]:
        """Every candidate of whose files the first are taken, and no other than cleanable ones."""
        taken = set(files)
        work: dict[PartitionKey, Work] = {}
        for found in candidates:
            extents = [extent for extent in found.log.extents if extent.file in taken]
            if not extents or extents != found.log.extents[: len(extents)] or len(extents) > len(found.extents):
                continue
            log, end = found.log, extents[-1].summary.next_offset
            aborted = () if decided is None else decided.aborted(log.topic_id, log.partition, log.log_start, end)
            work[log.place] = Work(now_ms, tombstones_kept_ms(found.topic.configs), aborted)
        return work


def _between(log: PartitionLog, files: set[LogFile]) -> list[LogFile]:
    places = [at for at, extent in enumerate(log.extents) if extent.file in files]
    return [extent.file for extent in log.extents[places[0] : places[-1] + 1]] if places else []
