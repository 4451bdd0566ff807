"""What a topic's `retention.ms` and `retention.bytes` no longer keep, from the oldest on.

By size whole extents go, a partition's parts of its files, as Kafka takes segments. By age batches go: a merged extent may span
weeks, which no record should outlive its time by. The age of a batch is that of its youngest record's timestamp, and the first
that is young enough keeps what follows it (as in Kafka since KIP-32), so one from the future keeps everything behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from broker.log.options import LogOptions
from broker.log.partition import Extent, PartitionLog
from broker.log.store import LogStore
from broker.seams import Clock
from broker.topics.configs import retention_bytes, retention_ms

logger = logging.getLogger("sprawl.log")


def kept_from(log: PartitionLog, configs: Mapping[str, str], now_ms: int | None) -> int:
    """The offset from which on the partition is kept. `now_ms` None: age does not count now."""
    age_ms, size_max = retention_ms(configs), retention_bytes(configs)
    reached = log.log_start
    if age_ms is not None and now_ms is not None:
        reached = max(reached, _by_age(log.extents, now_ms - age_ms))
    if size_max is not None:
        reached = max(reached, _by_size(log.extents, size_max))
    return min(reached, log.high_watermark)


async def expired_up_to(store: LogStore, log: PartitionLog, configs: Mapping[str, str], now_ms: int | None) -> int:
    """`kept_from`, and into the extent that it leaves at the front, batch by batch."""
    reached, age_ms = kept_from(log, configs, now_ms), retention_ms(configs)
    at = log.extent_at_offset(reached)
    if age_ms is None or now_ms is None or at >= len(log.extents):
        return reached
    oldest_ms = now_ms - age_ms
    if log.oldest[0] == reached and log.oldest[1] >= oldest_ms:
        return reached  # looked at before: nothing has to be read to know
    extent = log.extents[at]
    extent.file.hold()
    try:
        index = await store.index_of(extent)
    finally:
        extent.file.release()
    for ordinal in range(index.at_offset(reached), len(index)):
        if index.max_timestamps[ordinal] >= oldest_ms:
            log.oldest = (reached, index.max_timestamps[ordinal])
            break
        reached = index.place(ordinal).next_offset
    return min(reached, log.high_watermark)


def _by_age(extents: Sequence[Extent], oldest_ms: int) -> int:
    """Up to the first extent with a record as young as that. One that is nothing but damage goes with what follows it."""
    reached = 0
    for extent in extents:
        summary = extent.summary
        if summary.batches == 0:
            continue
        if summary.max_timestamp_ms >= oldest_ms:
            break
        reached = summary.next_offset
    return reached


def _by_size(extents: Sequence[Extent], size_max: int) -> int:
    """As long as what is left has at least that many bytes: never less is kept than was asked for."""
    size = sum(extent.summary.size for extent in extents)
    reached = 0
    for extent in extents[:-1]:
        size -= extent.summary.size
        if size < size_max:
            break
        reached = extent.summary.next_offset
    return reached


class RetentionClock:
    """The wall clock, when it can be believed. Kafka deletes by whatever it says; so does this, but not at once after a jump.

    Compared with the monotonic clock between two looks: a machine that was off or asleep is indistinguishable from one whose
    clock is wrong, and waiting costs disk space only.
    """

    def __init__(self, clock: Clock, options: LogOptions) -> None:
        self._clock = clock
        self._options = options
        self._ahead_ms = clock.now_ms() - clock.monotonic_ms()
        self._settled_at_ms = 0

    def now_ms(self) -> int | None:
        """None while the clock settles after a jump forward."""
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        jump_ms = now_ms - monotonic_ms - self._ahead_ms
        self._ahead_ms += jump_ms
        if jump_ms > self._options.clock_jump_max_ms:
            self._settled_at_ms = monotonic_ms + self._options.clock_settle_ms
            logger.warning(
                "the clock ran ahead by %d s: no records are deleted by age for the next %d s; put it right if it is wrong",
                jump_ms // 1000,
                self._options.clock_settle_ms // 1000,
            )
        elif jump_ms < -self._options.clock_jump_max_ms:
            self._settled_at_ms = 0  # put right again
        return None if monotonic_ms < self._settled_at_ms else now_ms
