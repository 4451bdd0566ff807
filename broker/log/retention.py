"""What a topic's `retention.ms` and `retention.bytes` no longer keep: whole extents, from the oldest on, as Kafka takes segments.

An extent is a partition's part of one file. Its age is that of its youngest record's timestamp, so a record outlives its
time by as much as its extent spans, and one from the future keeps what follows it (KIP-32; Kafka does the same).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from broker.log.options import LogOptions
from broker.log.partition import Extent, PartitionLog
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
