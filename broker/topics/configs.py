"""Topic configs: Kafka's names, defaults and ranges. Only configs that act are known; others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
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


def strict_ttl(configs: Mapping[str, str]) -> bool:
    return config_value(configs, STRICT_TTL) == "true"


def batch_bytes_max(configs: Mapping[str, str]) -> int:
    return int(config_value(configs, MESSAGE_BYTES_MAX))


def retention_ms(configs: Mapping[str, str]) -> int | None:
    value = int(config_value(configs, RETENTION_MS))
    return None if value < 0 else value


def retention_bytes(configs: Mapping[str, str]) -> int | None:
    value = int(config_value(configs, RETENTION_BYTES))
    return None if value < 0 else value


def edge_compression(configs: Mapping[str, str]) -> Compression:
    """What the gateway compresses batches with that it builds itself."""
    value = config_value(configs, COMPRESSION_TYPE)
    return Compression.NONE if value in ("producer", "uncompressed") else Compression[value.upper()]
