"""What a record batch can be refused for.

BrokerError
├── BatchRefused
│   ├── CorruptBatch            its bytes contradict each other
│   └── UnsupportedCompression  a codec number Kafka does not define
└── RecordTooLarge
    └── BatchTooLarge           longer than a batch may be, or decompresses to more than allowed
"""

from __future__ import annotations

from broker.errors import BatchRefused, RecordTooLarge


class CorruptBatch(BatchRefused):
    """`position` counts bytes from the start of the batch, or of its records once decompressed."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(f"{reason} at byte {position}; send it again, and if that repeats update the producer's library")
        self.reason, self.position = reason, position


class UnsupportedCompression(BatchRefused):
    def __init__(self, codec: int) -> None:
        super().__init__(f"compression codec {codec} is unknown; use none, gzip, snappy, lz4 or zstd")
        self.codec = codec


class BatchTooLarge(RecordTooLarge):
    """`size_bytes` is the least the batch would take: reading stops where the limit is crossed."""
