"""A config as Kafka's admin answers tell it: DescribeConfigs, CreateTopics."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec


class ConfigKind(IntEnum):
    """org.apache.kafka.common.requests.DescribeConfigsResponse.ConfigType."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7
    CLASS = 8
    PASSWORD = 9


class ConfigSource(IntEnum):
    """Where a value comes from (ConfigSource of the same class); there are no dynamic configs of brokers here."""

    TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


class Described(msgspec.Struct, frozen=True):
    """One config with its value. `synonym` is the broker's config that the default of a topic's comes from in Kafka."""

    name: str
    value: str | None
    kind: ConfigKind
    source: ConfigSource
    read_only: bool
    doc: str
    default: str | None
    synonym: str | None = None

    def briefly(self) -> dict[str, Any]:
        """As CreateTopics 5+ answers it."""
        return {
            "name": self.name,
            "value": None if self.is_sensitive else self.value,
            "read_only": self.read_only,
            "config_source": int(self.source),
            "is_sensitive": self.is_sensitive,
        }

    def wholly(self, *, synonyms: bool, documentation: bool) -> dict[str, Any]:
        """As DescribeConfigs answers it."""
        return {
            **self.briefly(),
            "synonyms": self._synonyms() if synonyms else [],
            "config_type": int(self.kind),
            "documentation": self.doc if documentation else None,
        }

    @property
    def is_sensitive(self) -> bool:
        return self.kind is ConfigKind.PASSWORD

    def _synonyms(self) -> list[dict[str, Any]]:
        """What the value was looked for in, the one that counts first."""
        found = []
        if self.source is not ConfigSource.DEFAULT:
            found.append({"name": self.name, "value": self.value, "source": int(self.source)})
        if self.synonym is not None and self.default is not None:
            found.append({"name": self.synonym, "value": self.default, "source": int(ConfigSource.DEFAULT)})
        return found
