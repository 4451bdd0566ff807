"""What a record batch can be refused for.

BrokerError
├── BatchRefused
│   ├── CorruptBatch            its bytes contradict each other
│   ├── IllegalBatch            a producer may not send such a batch
│   ├── TimestampRefused        dated too far from the node's clock
│   ├── TooManyRecords          more of them than a batch may have
│   └── UnsupportedCompression  a codec number Kafka does not define
└── RecordTooLarge
    └── BatchTooLarge           longer than a batch may be, or decompresses to more than allowed
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import BatchRefused, RecordTooLarge


class CorruptBatch(BatchRefused):
    """`position` counts bytes from the start of the batch, or of its records once decompressed."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"{reason} at byte {position}; send it again, and if that repeats update the producer's library")
        self.reason, self.position = reason, position


class IllegalBatch(BatchRefused):
    """`records`: the index in the batch, and why, of those records that are to blame, where it is about records."""

    def __init__(self, reason: str, records: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(reason)
        self.records = tuple(records)


class TimestampRefused(BatchRefused):
    def __init__(self, timestamp_ms: int, now_ms: int, config: str, limit_ms: int) -> None:
        self.timestamp_ms, self.limit_ms = timestamp_ms, limit_ms
        super().__init__(f"a timestamp of {timestamp_ms}, where {config} allows {limit_ms} ms from the node's {now_ms}")


class UnsupportedCompression(BatchRefused):
    def __init__(self, codec: int) -> None:
        super().__init__(f"compression codec {codec} is unknown; use none, gzip, snappy, lz4 or zstd")
        self.codec = codec


class BatchTooLarge(RecordTooLarge):
    """`size_bytes` is the least the batch would take: reading stops where the limit is crossed."""


class TooManyRecords(BatchRefused):
    """Whoever opens the batch would take a time by their number, which a few compressed bytes can make as large as they like."""

    def __init__(self, count: int, limit_name: str, limit: int) -> None:
        self.count, self.limit_name, self.limit = count, limit_name, limit
        super().__init__(f"a batch of {count} records; {limit_name} allows {limit}: send smaller batches, or raise it")
