"""Answers of two brokers made comparable, and the differences that are accepted, each with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kafka.record.memory_records import MemoryRecords

from gateway.endpoints.kafka.topic_configs import FIXED

# Who the broker is, when it was asked, and words: no two brokers say the same. Leader epochs count restarts and elections.
DROPPED = frozenset(
    {
        "throttle_time",
        "error_message",
        "batch_index_error_message",
        "host",
        "port",
        "rack",
        "cluster_id",
        "controller_id",
        "node_endpoints",
        "client_host",
        "log_dir",
        "total_bytes",
        "usable_bytes",
        "partition_size",
        "documentation",
    }
)
NOW = "now"
DATED = frozenset({"log_append_time", "transaction_start_time"})  # by the broker's own clock
ABOUT = ("name", "topic", "resource_name", "group_id", "partition_index", "partition", "partition_id", "member_id")
ABOUT += ("key", "producer_id")


def opened(value: Any) -> Any:
    """With the record batches of Fetch read."""
    if isinstance(value, dict):
        return _reached({name: _records(one) if name == "records" else opened(one) for name, one in value.items()})
    return [opened(one) for one in value] if isinstance(value, list) else value


def _reached(partition: dict[str, Any]) -> dict[str, Any]:
    """Without the aborted transactions that begin behind the records that came along: Kafka looks as far as its index reaches."""
    if partition.get("aborted_transactions"):
        last = max([record[0] for batch in partition["records"] for record in batch["records"]], default=-1)
        partition["aborted_transactions"] = [one for one in partition["aborted_transactions"] if one["first_offset"] <= last]
    return partition


def comparable(value: Any, key: str = "") -> Any:
    """Without what is dropped, and items sorted, as brokers answer them in any order."""
    if isinstance(value, dict):
        return {name: comparable(one, name) for name, one in value.items() if name not in DROPPED}
    if key == "configs" and isinstance(value, list):
        return {config["name"]: comparable(config) for config in value}
    if isinstance(value, list):
        return sorted([comparable(one, key) for one in value], key=_place)
    return NOW if key in DATED and value not in (None, -1) else value


def _place(item: Any) -> tuple[str, str]:
    """By what an item is about, then by all that it says."""
    about = {name: item[name] for name in ABOUT if name in item} if isinstance(item, dict) else {}
    return json.dumps(about, default=str), json.dumps(item, sort_keys=True, default=str)


def _records(blob: bytes | None) -> list[dict[str, Any]]:
    """Whole batches; what an answer cut off at its end is not looked at, as by any client."""
    found = []
    records = MemoryRecords(blob or b"")
    while records.has_next():
        batch = records.next_batch()
        assert batch is not None
        found.append(
            {
                "base_offset": batch.base_offset,
                "producer_id": batch.producer_id,
                "producer_epoch": batch.producer_epoch,
                "base_sequence": batch.base_sequence,
                "transactional": batch.is_transactional,
                "control": batch.is_control_batch,
                "compression": batch.compression_type,
                # Kafka dates a marker as the topic says; nobody reads the date of a marker.
                "timestamp_type": None if batch.is_control_batch else batch.timestamp_type,
                # Tuples, as their order is part of the answer. A marker names its coordinator's epoch, which is the broker's own.
                "records": tuple(
                    (
                        record.offset,
                        record.key,
                        None if batch.is_control_batch else record.value,
                        NOW if batch.is_control_batch or batch.timestamp_type == 1 else record.timestamp,
                        tuple(record.headers),
                    )
                    for record in batch
                ),
            }
        )
    return found


class Difference(NamedTuple):
    api: str
    version: int
    path: str
    kafka: Any
    sprawl: Any

    def __str__(self) -> str:
        return f"{self.api} {self.version} at {self.path}: Kafka {self.kafka!r}, Sprawl {self.sprawl!r}"


class Accepted(NamedTuple):
    """`holds(difference)`; the reason stands in the report beside how often it was met."""

    reason: str
    holds: Callable[[Difference], bool]


def differences(api: str, version: int, kafka: Any, sprawl: Any, path: str = "$") -> Iterator[Difference]:
    if isinstance(kafka, dict) and isinstance(sprawl, dict):
        for name in sorted(kafka.keys() | sprawl.keys(), key=lambda name: (name != "error_code", name)):
            yield from differences(api, version, kafka.get(name), sprawl.get(name), f"{path}.{name}")
    elif isinstance(kafka, list) and isinstance(sprawl, list) and len(kafka) == len(sprawl):
        for index, (one, other) in enumerate(zip(kafka, sprawl, strict=True)):
            yield from differences(api, version, one, other, f"{path}[{index}]")
    elif kafka != sprawl:
        yield Difference(api, version, path, kafka, sprawl)


OWN_CONFIGS = ("strict.ttl", "dead.letter.topic")


def _config(found: Difference) -> str | None:
    """The config that the difference is about."""
    name = re.search(r"\.configs\.([a-z0-9.]+?)(?:\.(?:read_only|config_source|value|synonyms).*)?$", found.path)
    return name[1] if name else None


ACCEPTED: tuple[Accepted, ...] = (
    Accepted(
        "Sprawl's own topic configs are listed beside Kafka's",
        lambda found: found.kafka is None and _config(found) in OWN_CONFIGS,
    ),
    Accepted(
        "a topic that was only validated has no id: Kafka draws one",
        lambda found: found.api == "create_topics" and found.path.endswith(".topic_id") and found.sprawl is None,
    ),
    Accepted(
        "where the node dates the records, two nodes date them apart",
        lambda found: (
            found.api == "list_offsets" and found.path.endswith(".timestamp") and 0 < abs(found.kafka - found.sprawl) < 10_000
        ),
    ),
    Accepted(
        "for a batch that is there already, Kafka answers with the time of its last record; Sprawl, as for a new one, with none",
        lambda found: found.api == "produce" and found.path.endswith(".log_append_time") and found.sprawl is None,
    ),
    Accepted(
        "when a producer wrote last: Kafka tells the time in its last batch, Sprawl when that came",
        lambda found: found.api == "describe_producers" and found.path.endswith(".last_timestamp") and found.sprawl > 0,
    ),
    Accepted(
        "Kafka keeps offsets in a topic, which is part of the transactions that commit some",
        lambda found: (
            found.api == "describe_transactions"
            and found.path.endswith(".topics")
            and [one for one in found.kafka if one["topic"] != "__consumer_offsets"] == found.sprawl
        ),
    ),
    Accepted(
        "Kafka tells which epoch of its coordinator ended a producer's last transaction; Sprawl's coordinator has none",
        lambda found: found.api == "describe_producers" and found.path.endswith(".coordinator_epoch") and found.sprawl == -1,
    ),
    Accepted(
        "where nothing was aborted, Kafka answers null for some errors and an empty list for others",
        lambda found: found.path.endswith(".aborted_transactions") and not found.kafka and not found.sprawl,
    ),
    Accepted(
        "a commit of offsets that were all refused makes an empty group in Kafka, and nothing in Sprawl",
        lambda found: (
            (found.api in ("delete_groups", "offset_delete") and (found.kafka, found.sprawl) == (0, 69))
            or (found.api == "offset_delete" and found.path == "$.topics" and not found.sprawl)
        ),
    ),
    Accepted(
        "Kafka tells where the log begins with some refusals of a batch too (a gap in its sequence numbers, say)",
        lambda found: found.api == "produce" and found.path.endswith(".log_start_offset") and found.sprawl == -1,
    ),
    Accepted(
        "records deleted from the front of a batch are handed out to nobody; Kafka hands out the batch as it is",
        lambda found: (
            found.api == "fetch"
            and found.path.endswith("].records")
            and isinstance(found.sprawl, tuple)
            and 0 < len(found.sprawl) < len(found.kafka)
            and found.kafka[-len(found.sprawl) :] == found.sprawl
        ),
    ),
    Accepted(
        "CreateTopics answers a boolean config as it was read, not as it was written",
        lambda found: found.api == "create_topics" and found.path.endswith(".value") and found.sprawl == str(found.kafka).lower(),
    ),
    Accepted(
        "configs of a topic that is not there are refused for its absence, whatever they are",
        lambda found: (
            found.api in ("alter_configs", "incremental_alter_configs")
            and found.path.endswith("error_code")
            and (found.kafka, found.sprawl) == (40, 3)
        ),
    ),
    Accepted(
        "configs that cannot act on this node are read-only, and a default that was given for one is not kept",
        lambda found: (
            _config(found) in FIXED and (found.path.endswith(("read_only", "config_source")) or ".synonyms" in found.path)
        ),
    ),
)
