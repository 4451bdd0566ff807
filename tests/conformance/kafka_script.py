"""What the random sequences of `kafka_sequences.py` have in common: their state, and how a call is asked."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeAlias

from tests.conformance.kafka_side import Ask, Side

Step: TypeAlias = list[Ask]
Answers: TypeAlias = list[dict[str, Any]]
Steps: TypeAlias = Generator[Step, Answers, None]

SESSION_MS = 30_000
MEMBERS = (1, 2, 3)
# Versions above are those in which brokers ask each other.
VERSION_MAX = {"add_partitions_to_txn": 3}
# From these on topics have ids instead of names.
IDS_FROM = {"produce": 13, "fetch": 13, "offset_commit": 10, "offset_fetch": 10}
NO_SUCH_ID = str(uuid.UUID(int=0xD1FF))
UNSETTLED = frozenset({5, 6, 9, 14, 15, 16})  # no leader yet, coordinator loading
UNTOLD = {"include_cluster_authorized_operations?": False, "include_topic_authorized_operations?": False}
NEVER_MS = "600000000"  # nobody says when compaction comes, so it does not
MEMBER_ID_REQUIRED = 79
IN_PROGRESS = frozenset({51})  # the transaction before is still being ended


class Script:
    """`versions` are those that both brokers serve, by name of the API."""

    def __init__(self, seed: int, versions: Mapping[str, tuple[int, int]], started_ms: int) -> None:
        self.versions, self.started_ms = versions, started_ms
        self.tag = f"{seed}-{started_ms % 1_000_000}"  # a broker may have met this seed before
        self.rng = random.Random(seed)
        self.topics: dict[str, int] = {}
        self.ends: dict[tuple[str, int], int] = {}
        self.trimmed: set[tuple[str, int]] = set()  # partitions of which records were deleted
        self.compacted: set[str] = set()
        self.made = 0
        self.calls = 0
        self.group = f"g{self.tag}"
        self.joined: dict[int, int] = {}  # member -> generation
        self.seen: set[int] = set()
        self.joins = 0
        self.static_group = f"s{self.tag}"
        self.static: dict[int, int] = {}
        self.consumer_group = f"c{self.tag}"
        self.consumers: dict[int, int] = {}  # member -> epoch
        self.lives = 0
        self.sequences: dict[tuple[str, int], int] = {}
        self.epoch = -1

    def _ask(self, api: str, fields: Mapping[str, Any] | Callable[[Side], Mapping[str, Any]], **more: Any) -> Ask:
        self.calls += 1
        version = more.pop("version", None)
        chosen = self.version_of(api) if version is None else version
        resolve = fields if callable(fields) else lambda side: fields
        return Ask(api, chosen, resolve, **more)

    def _topic(self, *, wrong: bool = True) -> str:
        if self.topics and not (wrong and self.rng.random() < 0.06):
            return self.rng.choice(list(self.topics))
        return f"d{self.tag}-none"

    def _partition(self, topic: str, *, wrong: bool = True) -> int:
        count = self.topics.get(topic, 1)
        return count + 7 if wrong and self.rng.random() < 0.04 else self.rng.randrange(count)

    def _end(self, topic: str, partition: int) -> int:
        return self.ends.get((topic, partition), 0)

    def version_of(self, api: str, low: int = 0, high: int = 99) -> int:
        own_low, own_high = self.versions[api]
        return self.rng.randint(max(low, own_low), min(high, own_high, VERSION_MAX.get(api, own_high)))


def about(api: str, version: int, topic: str, side: Side, name: str = "name") -> dict[str, Any]:
    """The topic as this version names it."""
    if version < IDS_FROM.get(api, 99):
        return {name: topic}
    return {"topic_id": uuid.UUID(side.id(f"topic:{topic}", NO_SUCH_ID))}
