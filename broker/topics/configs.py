"""Topic configs: Kafka's names, defaults and ranges. Only configs that act are known; others are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import msgspec

from broker.compression import Compression
from broker.errors import InvalidConfig

MESSAGE_BYTES_MAX = "max.message.bytes"
COMPRESSION_TYPE = "compression.type"


class ConfigRule(msgspec.Struct, frozen=True):
    """`check` returns why a value is refused, or None."""

    name: str
    default: str
    doc: str
    check: Callable[[str], str | None]


def _integer(low: int, high: int) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            return f"{value[:40]!r} is not an integer from {low} to {high}"
        return None

    return check


def _one_of(*names: str) -> Callable[[str], str | None]:
    return lambda value: None if value in names else f"{value[:40]!r} is not one of {', '.join(names)}"


RULES: Mapping[str, ConfigRule] = {
    rule.name: rule
    for rule in (
        ConfigRule(
            MESSAGE_BYTES_MAX,
            "1048588",
            "Largest record batch accepted, in bytes (Kafka: max.message.bytes).",
            _integer(1, 16 * 1024 * 1024),
        ),
        ConfigRule(
            COMPRESSION_TYPE,
            "producer",
            "Compression of batches that the gateway builds; `producer`: none, and batches of producers stay as they are.",
            _one_of("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
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


def config_value(configs: Mapping[str, str], name: str) -> str:
    """The topic's value, or the default."""
    return configs.get(name, RULES[name].default)


def batch_bytes_max(configs: Mapping[str, str]) -> int:
    return int(config_value(configs, MESSAGE_BYTES_MAX))


def edge_compression(configs: Mapping[str, str]) -> Compression:
    """What the gateway compresses batches with that it builds itself."""
    value = config_value(configs, COMPRESSION_TYPE)
    return Compression.NONE if value in ("producer", "uncompressed") else Compression[value.upper()]
