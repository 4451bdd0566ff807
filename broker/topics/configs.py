"""Topic configs: Kafka's names, defaults and ranges. Known are those that act, and those about files of Kafka's log, which tools
set (Kafka Streams on all its topics) and which hold nothing up where files are others; all else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from itertools import permutations
from re import fullmatch
from typing import Protocol

import msgspec

from broker.compression import Compression
from broker.errors import InvalidConfig
from broker.topics.addresses import legal_topic_name

MESSAGE_BYTES_MAX = "max.message.bytes"
COMPRESSION_TYPE = "compression.type"
DEAD_LETTER_TOPIC = "dead.letter.topic"
RETENTION_MS = "retention.ms"
RETENTION_BYTES = "retention.bytes"
STRICT_TTL = "strict.ttl"
CLEANUP_POLICY = "cleanup.policy"
DELETE_RETENTION_MS = "delete.retention.ms"
MIN_COMPACTION_LAG_MS = "min.compaction.lag.ms"
MAX_COMPACTION_LAG_MS = "max.compaction.lag.ms"
DIRTY_RATIO_MIN = "min.cleanable.dirty.ratio"
TIMESTAMP_TYPE = "message.timestamp.type"
TIMESTAMP_BEFORE_MAX_MS = "message.timestamp.before.max.ms"
TIMESTAMP_AFTER_MAX_MS = "message.timestamp.after.max.ms"
_INT_MAX = (1 << 31) - 1  # Kafka's configs of type int
_LONG_MAX = (1 << 63) - 1  # Kafka's configs of type long


class Check(Protocol):
    """Says why a value is refused, or None; `pattern` is a regular expression (ECMA 262) of the values that are not."""

    @property
    def pattern(self) -> str: ...
    def __call__(self, value: str) -> str | None: ...


class ConfigRule(msgspec.Struct, frozen=True):
    name: str
    default: str
    doc: str
    check: Check


class Whole(msgspec.Struct, frozen=True):
    """A whole number, `low` being 0 or 1; or -1 for none where it is a `bound`."""

    low: int
    high: int
    bound: bool = False

    @property
    def pattern(self) -> str:
        digits = str(self.high)
        # The number itself; those with its first digits and a smaller one next; those with fewer digits.
        forms = [
            digits,
            *(
                f"{digits[:at]}[{first}-{int(digit) - 1}][0-9]{{{len(digits) - at - 1}}}"
                for at, digit in enumerate(digits)
                if int(digit) > (first := int(at == 0))
            ),
        ]
        if len(digits) > 1:
            forms.append(f"[1-9][0-9]{{0,{len(digits) - 2}}}")
        forms += ["0"] * (self.low == 0) + ["-1"] * self.bound
        return f"^(?:{'|'.join(forms)})$"

    def __call__(self, value: str) -> str | None:
        if self.bound and value == "-1":
            return None
        if value.isascii() and value.isdigit() and len(value) <= 19 and self.low <= int(value) <= self.high:
            return None
        return f"{value[:40]!r} is not an integer from {self.low} to {self.high}" + (", or -1 for no bound" if self.bound else "")


class OneOf(msgspec.Struct, frozen=True):
    names: tuple[str, ...]

    @property
    def pattern(self) -> str:
        return f"^(?:{'|'.join(self.names)})$"

    def __call__(self, value: str) -> str | None:
        return None if value in self.names else f"{value[:40]!r} is not one of {', '.join(self.names)}"


class SomeOf(msgspec.Struct, frozen=True):
    """Names, each once, with commas between; or none."""

    names: tuple[str, ...]

    @property
    def pattern(self) -> str:
        lists = [",".join(some) for size in range(len(self.names) + 1) for some in permutations(self.names, size)]
        return f"^(?:{'|'.join(lists)})$"

    def __call__(self, value: str) -> str | None:
        given = value.split(",") if value else []
        if len(set(given)) == len(given) and set(given) <= set(self.names):
            return None
        return f"{value[:40]!r} is no list of {', '.join(self.names)}, each once, with commas between"


class Share(msgspec.Struct, frozen=True):
    """A number from 0 to 1."""

    @property
    def pattern(self) -> str:
        return r"^(?:0?\.[0-9]{1,17}|0(?:\.0{0,17})?|1(?:\.0{0,17})?)$"

    def __call__(self, value: str) -> str | None:
        return None if fullmatch(self.pattern[1:-1], value) else f"{value[:40]!r} is no number from 0 to 1"


class TopicName(msgspec.Struct, frozen=True):
    """Of some other topic; may be empty."""

    @property
    def pattern(self) -> str:
        return r"^(?!\.{1,2}$)[a-zA-Z0-9._-]{0,249}$"

    def __call__(self, value: str) -> str | None:
        return None if not value or legal_topic_name(value) else f"{value[:40]!r} is no legal topic name"


RULES: Mapping[str, ConfigRule] = {
    rule.name: rule
    for rule in (
        ConfigRule(
            MESSAGE_BYTES_MAX,
            "1048588",
            "Largest record batch accepted, in bytes (Kafka: max.message.bytes).",
            Whole(1, 16 * 1024 * 1024),
        ),
        ConfigRule(
            COMPRESSION_TYPE,
            "producer",
            "Compression of batches that the gateway builds; `producer`: none, and batches of producers stay as they are.",
            OneOf(("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd")),
        ),
        ConfigRule(
            RETENTION_MS,
            "604800000",
            "How long records are kept, by their timestamps, in milliseconds; -1: for ever (Kafka: retention.ms).",
            Whole(0, _LONG_MAX, bound=True),
        ),
        ConfigRule(
            RETENTION_BYTES,
            "-1",
            "How many bytes each partition keeps, as stored, the oldest going first; -1: any number (Kafka: retention.bytes).",
            Whole(0, _LONG_MAX, bound=True),
        ),
        ConfigRule(
            STRICT_TTL,
            "false",
            "Whether readers of whole batches (Kafka's) are kept from expired records too, at the cost of opening such batches.",
            OneOf(("false", "true")),
        ),
        ConfigRule(
            DEAD_LETTER_TOPIC,
            "",
            "Where consumers put records that they give up; empty: the topic's name followed by `.dlq`.",
            TopicName(),
        ),
        ConfigRule(
            CLEANUP_POLICY,
            "delete",
            "What old records go by: `delete`: by retention; `compact`: the newest of each key stays; both; or neither, empty.",
            SomeOf(("compact", "delete")),
        ),
        ConfigRule(
            DELETE_RETENTION_MS,
            "86400000",
            "How long compaction keeps the mark of a deleted key, a record without value, in milliseconds.",
            Whole(0, _LONG_MAX),
        ),
        ConfigRule(
            MIN_COMPACTION_LAG_MS,
            "0",
            "How long a record is safe from compaction, in milliseconds.",
            Whole(0, _LONG_MAX),
        ),
        ConfigRule(
            MAX_COMPACTION_LAG_MS,
            str(_LONG_MAX),
            "How long a record may at most wait for compaction, in milliseconds.",
            Whole(1, _LONG_MAX),
        ),
        ConfigRule(
            DIRTY_RATIO_MIN,
            "0.5",
            "Share of a partition's bytes that compaction has not seen, from which on it is compacted.",
            Share(),
        ),
        ConfigRule(
            TIMESTAMP_TYPE,
            "CreateTime",
            "Whose clock dates the batches of Kafka producers: theirs, or the node's as it appends them (LogAppendTime).",
            OneOf(("CreateTime", "LogAppendTime")),
        ),
        ConfigRule(
            TIMESTAMP_BEFORE_MAX_MS,
            str(_LONG_MAX),
            "How far behind the node's clock timestamps of Kafka producers may be, in milliseconds.",
            Whole(0, _LONG_MAX),
        ),
        ConfigRule(
            TIMESTAMP_AFTER_MAX_MS,
            "3600000",
            "How far ahead of the node's clock timestamps of Kafka producers may be, in milliseconds.",
            Whole(0, _LONG_MAX),
        ),
        *(
            ConfigRule(name, default, f"{what} Kept for Kafka's tools: partitions share the files of this log.", check)
            for name, default, what, check in (
                ("segment.bytes", "1073741824", "Size of a file of Kafka's log, in bytes.", Whole(1, _INT_MAX)),
                ("segment.ms", "604800000", "Time after which Kafka begins a new file, in milliseconds.", Whole(1, _LONG_MAX)),
                ("segment.jitter.ms", "0", "How far Kafka spreads that time, in milliseconds.", Whole(0, _LONG_MAX)),
                ("segment.index.bytes", "10485760", "Size of an index file of Kafka's log, in bytes.", Whole(0, _INT_MAX)),
                ("index.interval.bytes", "4096", "How densely Kafka fills its index, in bytes.", Whole(0, _INT_MAX)),
                ("file.delete.delay.ms", "60000", "How long Kafka keeps a file that is done with.", Whole(0, _LONG_MAX)),
                ("preallocate", "false", "Whether Kafka makes its files at their full size.", OneOf(("false", "true"))),
            )
        ),
    )
}


def check_configs(topic: str, configs: Mapping[str, str]) -> None:
    """Raises InvalidConfig for an unknown name (with the nearest known one) or a value out of its range."""
    for name, value in configs.items():
        rule = RULES.get(name)
        if rule is None:
            near = get_close_matches(name, RULES, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RULES)}"
            raise InvalidConfig(topic, name[:80], f"no such config; {known}")
        problem = rule.check(value)
        if problem is not None:
            raise InvalidConfig(topic, name, problem)


def check_together(topic: str, configs: Mapping[str, str]) -> None:
    """Raises InvalidConfig where all of a topic's configs contradict each other, in Kafka's words."""
    low, high = compaction_lag_ms(configs)
    if low > high:
        name = MIN_COMPACTION_LAG_MS
        reason = f"conflict topic config setting {name} ({low}) > {MAX_COMPACTION_LAG_MS} ({high})"
        raise InvalidConfig(topic, name, reason)


def config_value(configs: Mapping[str, str], name: str) -> str:
    """The topic's value, or the default."""
    return configs.get(name, RULES[name].default)


def strict_ttl(configs: Mapping[str, str]) -> bool:
    return config_value(configs, STRICT_TTL) == "true"


def batch_bytes_max(configs: Mapping[str, str]) -> int:
    return int(config_value(configs, MESSAGE_BYTES_MAX))


def retention_ms(configs: Mapping[str, str]) -> int | None:
    """None for ever, be it for want of the policy `delete`."""
    value = int(config_value(configs, RETENTION_MS))
    return None if value < 0 or not deleted(configs) else value


def retention_bytes(configs: Mapping[str, str]) -> int | None:
    """None for any number, be it for want of the policy `delete`."""
    value = int(config_value(configs, RETENTION_BYTES))
    return None if value < 0 or not deleted(configs) else value


def deleted(configs: Mapping[str, str]) -> bool:
    return "delete" in config_value(configs, CLEANUP_POLICY).split(",")


def compacted(configs: Mapping[str, str]) -> bool:
    return "compact" in config_value(configs, CLEANUP_POLICY).split(",")


def tombstones_kept_ms(configs: Mapping[str, str]) -> int:
    return int(config_value(configs, DELETE_RETENTION_MS))


def compaction_lag_ms(configs: Mapping[str, str]) -> tuple[int, int]:
    """How long a record is safe from compaction, and how long it may wait for it."""
    return int(config_value(configs, MIN_COMPACTION_LAG_MS)), int(config_value(configs, MAX_COMPACTION_LAG_MS))


def dirty_ratio_min(configs: Mapping[str, str]) -> float:
    return float(config_value(configs, DIRTY_RATIO_MIN))


def dated_by_node(configs: Mapping[str, str]) -> bool:
    """Whether batches of Kafka producers get the time of their append (message.timestamp.type=LogAppendTime)."""
    return config_value(configs, TIMESTAMP_TYPE) == "LogAppendTime"


def timestamp_bounds_ms(configs: Mapping[str, str]) -> tuple[int, int]:
    """How far timestamps of Kafka producers may be behind the node's clock, and ahead of it."""
    return int(config_value(configs, TIMESTAMP_BEFORE_MAX_MS)), int(config_value(configs, TIMESTAMP_AFTER_MAX_MS))


def edge_compression(configs: Mapping[str, str]) -> Compression:
    """What the gateway compresses batches with that it builds itself."""
    value = config_value(configs, COMPRESSION_TYPE)
    return Compression.NONE if value in ("producer", "uncompressed") else Compression[value.upper()]
