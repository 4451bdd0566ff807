"""The configs of a topic as Kafka's admin clients see them: every standard one of Apache Kafka 4.3.1, and Sprawl's own.

Those that `broker.topics.configs` knows can be altered. The others are Kafka's ways to do what this log does otherwise or not at
all (replicas, tiers, flushes): they are listed with Kafka's default, read-only, and refused with any other value, so that nobody
relies on what does not act.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from broker.errors import InvalidConfig
from broker.topics.configs import RULES
from gateway.endpoints.kafka.described_config import ConfigKind, ConfigSource, Described

# Of those that can be altered: the type, and the broker's config that Kafka takes the default from.
_ACTING: Mapping[str, tuple[ConfigKind, str | None]] = {
    "cleanup.policy": (ConfigKind.LIST, "log.cleanup.policy"),
    "compression.type": (ConfigKind.STRING, "compression.type"),
    "delete.retention.ms": (ConfigKind.LONG, "log.cleaner.delete.retention.ms"),
    "file.delete.delay.ms": (ConfigKind.LONG, "log.segment.delete.delay.ms"),
    "index.interval.bytes": (ConfigKind.INT, "log.index.interval.bytes"),
    "max.compaction.lag.ms": (ConfigKind.LONG, "log.cleaner.max.compaction.lag.ms"),
    "max.message.bytes": (ConfigKind.INT, "message.max.bytes"),
    "message.timestamp.after.max.ms": (ConfigKind.LONG, "log.message.timestamp.after.max.ms"),
    "message.timestamp.before.max.ms": (ConfigKind.LONG, "log.message.timestamp.before.max.ms"),
    "message.timestamp.type": (ConfigKind.STRING, "log.message.timestamp.type"),
    "min.cleanable.dirty.ratio": (ConfigKind.DOUBLE, "log.cleaner.min.cleanable.ratio"),
    "min.compaction.lag.ms": (ConfigKind.LONG, "log.cleaner.min.compaction.lag.ms"),
    "preallocate": (ConfigKind.BOOLEAN, "log.preallocate"),
    "retention.bytes": (ConfigKind.LONG, "log.retention.bytes"),
    "retention.ms": (ConfigKind.LONG, None),
    "segment.bytes": (ConfigKind.INT, "log.segment.bytes"),
    "segment.index.bytes": (ConfigKind.INT, "log.index.size.max.bytes"),
    "segment.jitter.ms": (ConfigKind.LONG, None),
    "segment.ms": (ConfigKind.LONG, None),
    "strict.ttl": (ConfigKind.BOOLEAN, None),
}

FIXED: Mapping[str, tuple[ConfigKind, str, str | None]] = {
    "compression.gzip.level": (ConfigKind.INT, "-1", "compression.gzip.level"),
    "compression.lz4.level": (ConfigKind.INT, "9", "compression.lz4.level"),
    "compression.zstd.level": (ConfigKind.INT, "3", "compression.zstd.level"),
    "flush.messages": (ConfigKind.LONG, "9223372036854775807", "log.flush.interval.messages"),
    "flush.ms": (ConfigKind.LONG, "9223372036854775807", None),
    "follower.replication.throttled.replicas": (ConfigKind.LIST, "", None),
    "leader.replication.throttled.replicas": (ConfigKind.LIST, "", None),
    "local.retention.bytes": (ConfigKind.LONG, "-2", "log.local.retention.bytes"),
    "local.retention.ms": (ConfigKind.LONG, "-2", "log.local.retention.ms"),
    "min.insync.replicas": (ConfigKind.INT, "1", "min.insync.replicas"),
    "remote.log.copy.disable": (ConfigKind.BOOLEAN, "false", None),
    "remote.log.delete.on.disable": (ConfigKind.BOOLEAN, "false", None),
    "remote.storage.enable": (ConfigKind.BOOLEAN, "false", None),
    "unclean.leader.election.enable": (ConfigKind.BOOLEAN, "false", "unclean.leader.election.enable"),
}

FIXED_DOC = "Apache Kafka's. Nothing of this node is set by it: only its default is accepted."


def topic_configs(configs: Mapping[str, str]) -> Iterator[Described]:
    """All of a topic that has set `configs`, by name."""
    for name in sorted({*RULES, *FIXED}):
        if (rule := RULES.get(name)) is None:
            kind, default, synonym = FIXED[name]
            yield Described(name, default, kind, ConfigSource.DEFAULT, True, FIXED_DOC, default, synonym)
            continue
        kind, synonym = _ACTING.get(name, (ConfigKind.STRING, None))
        source = ConfigSource.TOPIC if name in configs else ConfigSource.DEFAULT
        yield Described(name, configs.get(name, rule.default), kind, source, False, rule.doc, rule.default, synonym)


def kind_of(name: str) -> ConfigKind:
    return FIXED[name][0] if name in FIXED else _ACTING.get(name, (ConfigKind.STRING, None))[0]


def settable(topic: str, configs: Mapping[str, str]) -> dict[str, str]:
    """What the broker is to be told: values as Kafka reads them, without fixed configs that have their default anyway.

    InvalidConfig for a fixed config with another value; what the broker does not know is its to refuse.
    """
    values = {name: _read(kind_of(name), value) for name, value in configs.items()}
    for name in FIXED.keys() & values.keys():
        if values.pop(name) != FIXED[name][1]:
            raise InvalidConfig(topic, name, f"this node cannot act on it, so only the default {FIXED[name][1]!r} is accepted")
    return values


def listed(value: str) -> list[str]:
    """The items of a list, each once."""
    return list(dict.fromkeys(item for item in map(str.strip, value.split(",")) if item))


def _read(kind: ConfigKind, value: str) -> str:
    """As org.apache.kafka.common.config.ConfigDef.parseType and convertToString leave it."""
    match kind:
        case ConfigKind.LIST:
            return ",".join(listed(value))
        case ConfigKind.BOOLEAN:
            return value.strip().lower()
        case _:
            return value.strip()
