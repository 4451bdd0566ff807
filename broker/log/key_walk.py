"""Walking the keys of batches that Kafka producers sent, on topics that are read by key: beside the event loop, and slowly.

Such batches are candidates for every key until then, so answers are right without it and dear: a look-up opens them all. Three
places learn keys: the index of a file that grows, here; a merge, which opens every batch anyway; and a merge of one sealed file
that is made for nothing else. What was learned goes into the footer, so it is done once. Nothing is walked on topics that nobody
reads by key: a walk costs 0.2 to 0.7 us a record, where storing a batch of 100 records costs 20 us.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from broker.errors import BrokerError
from broker.log.files import LogFile
from broker.log.index import BatchIndex, Place
from broker.log.manifest import FileState
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import Opened, PartitionKey, Wanted, open_batches
from broker.log.record_keys import unreadable, walked
from broker.log.sealing import LogKeys
from broker.log.store import LogStore
from security.crypto.envelope import KeyHasher
from security.errors import KeyProblem

logger = logging.getLogger("sprawl.log")

CHUNK_BYTES = 1024 * 1024  # walked in one job of the lane, at least one batch


class Unknown(NamedTuple):
    """Batches of which no keys are known."""

    batches: int
    size: int


class KeyWalk:
    """Owner thread. Its task lives as long as topics are read by key."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._sealed: dict[tuple[int, PartitionKey], Unknown] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, topic_id: bytes) -> bool:
        """Somebody reads this topic by key; whether nobody did of late."""
        fresh = self._store.read_by_key.note(topic_id)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._walk_all(), name="key walk")
        return fresh

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def waiting(self) -> int:
        """Batches of topics read by key whose keys are not known yet, as far as their indexes were looked at."""
        if not self._store.read_by_key:
            return 0
        growing = [len(extent.index.opaque()) for log in self._logs() for extent in log.extents if extent.index is not None]
        sealed = [unknown.batches for (_, (topic_id, _)), unknown in self._sealed.items() if topic_id in self._store.read_by_key]
        return sum(growing) + sum(sealed)

    def _logs(self) -> list[PartitionLog]:
        return [log for log in self._store.partitions.values() if log.topic_id in self._store.read_by_key]

    # -- files that grow --------------------------------------------------------------------------------------------------

    async def _walk_all(self) -> None:
        while self._store.read_by_key:
            for log in self._logs():
                try:
                    for extent in list(log.extents):
                        await self._walk(log, extent)
                except (OSError, KeyProblem, BrokerError) as problem:  # deleted meanwhile, or the disk says no
                    logger.info("the keys of %s/%d are not walked for now: %s", log.topic_id.hex(), log.partition, problem)
            await asyncio.sleep(self._store.options.key_walk_interval_ms / 1000)

    async def _walk(self, log: PartitionLog, extent: Extent) -> None:
        index = extent.index
        while index is not None and (ordinals := index.opaque()):
            places = _up_to(index, ordinals)
            extent.file.hold()
            try:
                learned = await self._learn(log, extent.file, places)
            finally:
                extent.file.release()
            for place, hashes in zip(places, learned, strict=True):
                if not index.learn(place.ordinal, hashes):
                    return  # its footer is being written
                self._store.read_by_key.batches_walked += 1
            await asyncio.sleep(sum(place.size for place in places) / self._store.options.key_walk_bytes_per_s)

    async def _learn(self, log: PartitionLog, file: LogFile, places: Sequence[Place]) -> list[list[int]]:
        keys, hasher = self._store.keys, self._store.keys.hasher(log.topic_id)
        known = {place.ordinal: stored.batch for place in places if (stored := log.ring.at(place.base_offset)) is not None}
        wanted = [Wanted(file, place, log.topic_id, log.partition) for place in places if place.ordinal not in known]
        return await self._store.seams.executor.run("background", lambda: _walk_keys(keys, hasher, places, known, wanted))

    # -- sealed files -----------------------------------------------------------------------------------------------------

    async def next_file(self) -> LogFile | None:
        """A sealed file that is worth writing again for its keys, the newest first: that is the order of look-ups."""
        for place in [place for place in self._sealed if place[0] not in self._store.files]:
            del self._sealed[place]
        sealed = [
            (log, extent)
            for log in self._logs()
            for extent in log.extents
            if extent.index is None and extent.file.entry.state is FileState.SEALED
        ]
        for log, extent in sorted(sealed, key=lambda pair: pair[1].summary.max_sequence, reverse=True):
            found = await self._unknown(log, extent)
            if found.size >= self._store.options.key_walk_file_bytes_min and extent in log.extents:
                return extent.file
        return None

    async def _unknown(self, log: PartitionLog, extent: Extent) -> Unknown:
        place = (extent.file.number, log.place)
        found = self._sealed.get(place)
        if found is None:
            index = await self._store.index_of(extent)
            sizes = [index.sizes[ordinal] for ordinal in index.opaque()]
            found = self._sealed[place] = Unknown(len(sizes), sum(sizes))
        return found


def _up_to(index: BatchIndex, ordinals: Sequence[int]) -> list[Place]:
    places: list[Place] = []
    size = 0
    for ordinal in ordinals:
        place = index.place(ordinal)
        size += place.size
        if places and size > CHUNK_BYTES:
            break
        places.append(place)
    return places


def _walk_keys(
    keys: LogKeys, hasher: KeyHasher, places: Sequence[Place], known: dict[int, bytes], wanted: Sequence[Wanted]
) -> list[list[int]]:
    """Blocking. Hashes of each place; of a batch that is damaged nobody knows them, and readers by key are told when they meet
    it."""
    for want, opened in zip(wanted, open_batches(keys, wanted), strict=True):
        if isinstance(opened, Opened):
            known[want.place.ordinal] = opened.stored.batch
    return [unreadable(hasher) if (batch := known.get(place.ordinal)) is None else walked(hasher, batch) for place in places]
