"""Everything the broker can refuse, one tree. `gateway/errors.py` translates it once for every protocol.

BrokerError
├── TopicProblem
│   ├── UnknownTopic            no such topic
│   ├── UnknownPartition        the topic has fewer partitions
│   ├── TopicExists             create of a name in use
│   ├── IllegalTopicName        not a Kafka-legal name
│   └── InvalidConfig           an unknown topic config, or a value out of its range
│       └── PartitionsRefused       a number of partitions that this topic, or this node, cannot have
├── OffsetOutOfRange            below the log start or above the high watermark
├── RecordTooLarge              one record or batch above its limit
├── IdempotencyProblem          about the key that a publish is to happen once by
│   ├── IdempotencyKeyReused        another publication came with this key before
│   ├── IdempotencyKeyInUse         the first publish with this key is under way
│   ├── IdempotentTooLarge          more records than the answer of one publish is kept for
│   └── IdempotencyKeysFull         no more keys are remembered
├── BatchRefused                a batch that contradicts itself (see broker/batch_errors.py for the reasons)
├── Unavailable
│   ├── Overloaded              the append queue is at its bound: retry later
│   ├── StateFull               keyed state is at its bound: entries must go before others come
│   ├── DiskFull                no space for appends: reads and deletes go on
│   ├── DiskFailed              the disk refused a read, or a write that changed nothing
│   ├── AppendUnknown           a write or sync failed: the outcome is not known, retry with the same message id
│   └── Closed                  the engine is stopping or stopped
└── StorageProblem
    ├── FolderInUse             another node holds the data folder
    ├── FormatUnsupported       written by a newer format version
    ├── StorageDamaged          the media lost what nothing else can restore
    └── KeysMismatch            this data folder was sealed under another cluster's keys
"""

from __future__ import annotations


class BrokerError(Exception):
    """Root of the broker's errors."""


class TopicProblem(BrokerError):
    """Something about a topic's name, existence or configuration."""

    topic: str


class UnknownTopic(TopicProblem):
    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} does not exist; create it first, or publish with a role that may create topics")


class UnknownPartition(TopicProblem):
    def __init__(self, topic: str, partition: int, partitions: int) -> None:
        self.topic, self.partition, self.partitions = topic, partition, partitions
        super().__init__(f"topic {topic!r} has partitions 0 to {partitions - 1}, not {partition}")


class TopicExists(TopicProblem):
    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} already exists; alter it, or choose another name")


class IllegalTopicName(TopicProblem):
    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(
            f"{topic[:80]!r} is no legal topic name: use 1 to 249 of the characters a-z A-Z 0-9 . _ - (and not '.' or '..')"
        )


class InvalidConfig(TopicProblem):
    def __init__(self, topic: str, config: str, reason: str) -> None:
        self.topic, self.config, self.reason = topic, config, reason
        super().__init__(f"config {config!r} of topic {topic!r}: {reason}")


class PartitionsRefused(InvalidConfig):
    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(topic, "partitions", reason)


class OffsetOutOfRange(BrokerError):
    def __init__(self, topic: str, partition: int, offset: int, log_start: int, high_watermark: int) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        self.log_start, self.high_watermark = log_start, high_watermark
        super().__init__(
            f"offset {offset} of {topic}/{partition} is outside {log_start} (log start) to {high_watermark} (next offset)"
        )


class RecordTooLarge(BrokerError):
    def __init__(self, what: str, size_bytes: int, limit_name: str, limit_bytes: int) -> None:
        self.what, self.size_bytes, self.limit_name, self.limit_bytes = what, size_bytes, limit_name, limit_bytes
        super().__init__(f"{what} has {size_bytes} bytes; {limit_name} allows {limit_bytes}")


class BatchRefused(BrokerError):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"record batch refused: {reason}")


class Unavailable(BrokerError):
    """Not now; the same request may succeed later."""


class Overloaded(Unavailable):
    def __init__(self, queue: str, limit: int, retry_after_ms: int) -> None:
        self.queue, self.limit, self.retry_after_ms = queue, limit, retry_after_ms
        super().__init__(f"{queue} is full ({limit}); retry in {retry_after_ms} ms")


class IdempotencyProblem(BrokerError):
    """Nothing was stored. No message repeats the key: it is the caller's data."""


class IdempotencyKeyReused(IdempotencyProblem):
    def __init__(self) -> None:
        super().__init__("the idempotency key was used for another publication on this topic; take a new key for new records")


class IdempotencyKeyInUse(IdempotencyProblem):
    def __init__(self, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__("the first publish with this idempotency key is under way; repeat the request in a moment")


class IdempotentTooLarge(IdempotencyProblem):
    def __init__(self, records: int, limit: int) -> None:
        self.records, self.limit = records, limit
        super().__init__(f"{records} records, where idempotency.records_max allows {limit} in a publish with an idempotency key")


class IdempotencyKeysFull(IdempotencyProblem):
    def __init__(self, limit_name: str, limit: int, retry_after_ms: int) -> None:
        self.limit_name, self.limit, self.retry_after_ms = limit_name, limit, retry_after_ms
        super().__init__(f"{limit_name} ({limit}) is reached: no new idempotency key until the window of an old one is over")


class StateFull(Unavailable):
    def __init__(self, limit_name: str, limit: int) -> None:
        self.limit_name, self.limit = limit_name, limit
        super().__init__(f"the node keeps no more state: {limit_name} ({limit}) is reached; let old entries expire, or raise it")


class DiskFull(Unavailable):
    """`free_bytes` as the disk says, `needed_bytes` as `reserve_bytes` asks for; appends go on by themselves above it."""

    def __init__(self, free_bytes: int, needed_bytes: int) -> None:
        self.free_bytes, self.needed_bytes = free_bytes, needed_bytes
        super().__init__(
            f"the disk is full ({free_bytes} bytes free, {needed_bytes} needed): nothing is appended until there is space; "
            "reads go on, and deleting topics or records and shorter retention give space back"
        )


class DiskFailed(Unavailable):
    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"the disk failed while {what} ({reason}); nothing was changed: retry, and look at the node's disk")


class AppendUnknown(Unavailable):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the append was interrupted ({reason}): it may or may not be stored; read back by message id before retrying"
        )


class Closed(Unavailable):
    def __init__(self) -> None:
        super().__init__("the node is stopping; connect again in a moment")


class StorageProblem(BrokerError):
    """The data folder cannot be used as it is."""


class FolderInUse(StorageProblem):
    def __init__(self, folder: str, holder: str) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(f"data folder {folder} is in use by {holder}; stop that node or choose another folder")


class FormatUnsupported(StorageProblem):
    def __init__(self, path: str, version: int, supported: int) -> None:
        self.path, self.version, self.supported = path, version, supported
        super().__init__(
            f"{path} has format version {version}; this build reads up to {supported}: run the newer build that wrote it"
        )


class StorageDamaged(StorageProblem):
    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}; restore this file from a backup")


class KeysMismatch(StorageProblem):
    def __init__(self, path: str, expected: str, found: str) -> None:
        self.path, self.expected, self.found = path, expected, found
        super().__init__(
            f"{path} belongs to cluster {found}, the key store to {expected}; start with the key store of that data folder"
        )
