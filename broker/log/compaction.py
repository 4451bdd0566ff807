"""Compaction: a merge that leaves out what newer records of the same key replace (Kafka's `cleanup.policy=compact`).

It is a merge of whole files, so that nothing but the manifest decides which of two versions of a partition counts, and a crash at
any moment leaves either. Partitions in `work` are written anew (`rewriting.py`), all others move unchanged. Of a partition always
the first files are taken, from its log start on: what is rewritten is its beginning, and has each key once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from broker.engine.base import AbortedRange
from broker.log.files import LogFile
from broker.log.index import BatchIndex
from broker.log.layout import FLAG_REWRITTEN
from broker.log.merge import Chunk, Merge, Output, Source, begin_at, chunks, joined_summary
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import PartitionKey, Wanted
from broker.log.rewriting import KeyScan, Losses, Rewriting, Rules
from broker.log.store import LogStore
from security.crypto.keyring import Epoch

EpochFor = Callable[[bytes], Awaitable[Epoch]]
"""An epoch of a topic that nobody else seals under, its wrapped key durable."""


class Work(NamedTuple):
    """What is to be done to one partition."""

    now_ms: int
    tombstones_kept_ms: int
    aborted: Sequence[AbortedRange]


class Compaction(Merge):
    """As a merge: construct on the owner thread, `write`, `take_over`; `abandon` after a failure."""

    def __init__(
        self, store: LogStore, inputs: Sequence[LogFile], work: Mapping[PartitionKey, Work], epoch_for: EpochFor
    ) -> None:
        super().__init__(store, inputs)
        self._work = work
        self._epoch_for = epoch_for
        self.markers_gone: dict[PartitionKey, list[int]] = {}
        """Offsets of the ends of transactions that it leaves out, by partition."""

    def _plan(self) -> list[list[Source]]:
        """Compacted partitions do not share a segment with others: it is rewritten more often than those need to be."""
        planned: list[list[Source]] = []
        for sources in super()._plan():
            apart = [source for source in sources if source.log.place in self._work]
            others = [source for source in sources if source.log.place not in self._work]
            planned += [part for part in (others, apart) if part] or [sources]
        return planned

    def _together(self, sources: list[Source]) -> list[list[Source]]:
        return [[source] for source in sources]

    async def _copy(self, output: Output, source: Source) -> None:
        work = self._work.get(source.log.place)
        if work is None:
            await super()._copy(output, source)
        else:
            await self._rewrite(output, source, work)

    async def _rewrite(self, output: Output, source: Source, work: Work) -> None:
        keys, log = self._store.keys, source.log
        summary = joined_summary(source.extents)
        first = await self._store.index_of(source.extents[0])
        if first_kept := first.at_offset(source.start):
            begin_at(summary, first, first_kept)
        summary.generation += 1
        losses = Losses(summary.damage)
        rules = Rules(log.topic_id, log.partition, source.start, work.now_ms, work.tombstones_kept_ms, work.aborted)
        scan = KeyScan(keys, rules, losses)
        await self._read_keys(scan, source)
        epoch = await self._epoch_for(log.topic_id)
        rewriting = Rewriting(
            keys,
            epoch,
            keys.hasher(log.topic_id),
            rules,
            losses,
            scan,
            output.file,
            output.end,
            summary.chain_in,
        )
        index = BatchIndex()
        for extent in source.extents:
            place_index = await self._store.index_of(extent)
            for chunk in chunks(extent, place_index, place_index.at_offset(source.start)):
                await self._on_lane(chunk, log, rewriting.write)
                self._take(output, rewriting, summary, index)
                await self._slowly(sum(place.size for place in chunk.places))
        await self._store.seams.executor.run("background", rewriting.finish)
        self._take(output, rewriting, summary, index)
        if rewriting.markers_gone:
            self.markers_gone[log.place] = rewriting.markers_gone
        output.parts.append((summary, index, source))

    async def _read_keys(self, scan: KeyScan, source: Source) -> None:
        """Of the batches that no compaction has seen: in those that one has seen, every key is there once."""
        for extent in source.extents:
            index = await self._store.index_of(extent)
            unseen = [
                Chunk(extent, places)
                for chunk in chunks(extent, index, index.at_offset(source.start))
                if (places := [place for place in chunk.places if not place.flags & FLAG_REWRITTEN])
            ]
            for chunk in unseen:
                await self._on_lane(chunk, source.log, scan.read)
                await self._slowly(sum(place.size for place in chunk.places))
        await self._store.seams.executor.run("background", scan.finish)

    async def _on_lane(self, chunk: Chunk, log: PartitionLog, work: Callable[[Sequence[Wanted]], None]) -> None:
        file = chunk.extent.file
        wanted = [Wanted(file, place, log.topic_id, log.partition) for place in chunk.places]
        file.hold()
        try:
            await self._store.seams.executor.run("background", lambda: work(wanted))
        finally:
            file.release()


def unseen_bytes(extent: Extent, index: BatchIndex) -> int:
    """Bytes of batches that no compaction has seen."""
    return sum([size for size, flags in zip(index.sizes, index.flags, strict=True) if not flags & FLAG_REWRITTEN])
