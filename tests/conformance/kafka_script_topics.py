"""Calls about topics, their configs and their replicas."""

from __future__ import annotations

from typing import Any

from tests.conformance.kafka_script import (
    NEVER_MS,
    UNSETTLED,
    UNTOLD,
    Script,
    Steps,
)


class TopicCalls(Script):
    def create_topics(self) -> Steps:
        name = f"d{self.tag}-{self.made}"
        self.made += 1
        if self.rng.random() < 0.15 and self.topics:
            name = self.rng.choice(list(self.topics))
        if self.rng.random() < 0.05:
            name = self.rng.choice(["bad name", "", ".", "x" * 250])
        configs = dict(self.rng.sample(CONFIGS, self.rng.choice([0, 0, 1, 2])))
        if self.rng.random() < 0.1:
            configs.update([self.rng.choice(WRONG_CONFIGS)])
        if "compact" in configs.get("cleanup.policy", ""):
            configs["min.compaction.lag.ms"] = NEVER_MS
        validate_only = self.rng.random() < 0.1
        asked = {
            "name": name,
            "num_partitions": self.rng.choice([1, 1, 2, 3, 3, 4, 0, -2]),
            "replication_factor": self.rng.choice([1, 1, 1, 1, -1, 1, 2, 0]),
            "assignments": [],
            "configs": [{"name": key, "value": value} for key, value in configs.items()],
        }
        if asked["replication_factor"] == -1:
            asked["num_partitions"] = max(1, asked["num_partitions"])
        version = None
        low, high = self.versions["create_topics"]
        if asked["replication_factor"] == -1:
            version = self.rng.randint(max(low, 4), high)
        (answer,) = yield [
            self._ask(
                "create_topics",
                {"topics": [asked], "timeout": 10_000, "validate_only?": validate_only},
                version=version,
                binds={} if validate_only else {f"topic:{name}": lambda told: told["topics"][0].get("topic_id")},
            )
        ]
        if answer["topics"][0]["error_code"] == 0 and not validate_only:
            self.topics[name] = asked["num_partitions"]
            if configs.get("cleanup.policy") == "compact":
                self.compacted.add(name)
            yield from self._settle(name)

    def delete_topics(self) -> Steps:
        yield from self._delete([self._topic()])

    def _delete(self, names: list[str]) -> Steps:
        low, high = self.versions["delete_topics"]
        version = self.rng.randint(low, high)
        if version >= 6:
            asked: dict[str, Any] = {"topics": [{"name": name, "topic_id": None} for name in names]}
        else:
            asked = {"topic_names": names}
        yield [self._ask("delete_topics", {**asked, "timeout": 10_000}, version=version)]
        for name in names:
            self.topics.pop(name, None)
            self.compacted.discard(name)
            for place in [place for place in self.ends if place[0] == name]:
                del self.ends[place]
            yield from self._settle(name)

    def create_partitions(self) -> Steps:
        name = self._topic()
        count = self.topics.get(name, 1) + self.rng.choice([1, 2, 0, -1])
        validate_only = self.rng.random() < 0.2
        (answer,) = yield [
            self._ask(
                "create_partitions",
                {
                    "topics": [{"name": name, "count": count, "assignments": None}],
                    "timeout": 10_000,
                    "validate_only": validate_only,
                },
            )
        ]
        if answer["results"][0]["error_code"] == 0 and not validate_only:
            self.topics[name] = count
            yield from self._settle(name)

    def _settle(self, name: str) -> Steps:
        """Metadata reach a broker some time after the controller has answered: until they are there, both are asked again."""
        count = self.topics.get(name, 0)
        wanted = {"topics": [{"name": name, "topic_id?": None}], "allow_auto_topic_creation?": False, **UNTOLD}

        def unsettled(told: dict[str, Any]) -> bool:
            found = told["topics"][0]
            return len(found["partitions"]) != count or any(one["error_code"] for one in found["partitions"])

        yield [
            self._ask(
                "metadata",
                wanted,
                version=min(
                    10, self.versions["metadata"][1]
                ),  # the first to tell the id, which all versions of CreateTopics give
                until=lambda told: not unsettled(told),
                binds={f"topic:{name}": lambda told: told["topics"][0].get("topic_id")} if count else {},
            )
        ]
        if count and "list_offsets" in self.versions:
            partitions = [{"partition_index": one, "timestamp": -1} for one in range(count)]
            asked = {"replica_id?": -1, "isolation_level?": 0, "topics": [{"name": name, "partitions": partitions}]}
            yield [self._ask("list_offsets", asked, version=max(2, self.versions["list_offsets"][0]), again=UNSETTLED | {3})]

    def describe_configs(self) -> Steps:
        keys = self.rng.choice([None, None, ["retention.ms", "cleanup.policy", "none.such"], ["max.message.bytes"]])
        asked = {"resource_type": 2, "resource_name": self._topic(), "configuration_keys": keys}
        yield [
            self._ask(
                "describe_configs",
                {"resources": [asked], "include_synonyms": self.rng.random() < 0.5, "include_documentation?": False},
            )
        ]

    def alter_configs(self) -> Steps:
        name = self._topic()
        configs = dict(self.rng.sample(CONFIGS, self.rng.choice([0, 1, 1, 2])))
        if self.rng.random() < 0.15:
            configs.update([self.rng.choice(WRONG_CONFIGS)])
        if "compact" in configs.get("cleanup.policy", ""):
            configs["min.compaction.lag.ms"] = NEVER_MS
        validate_only = self.rng.random() < 0.15
        if self.rng.random() < 0.4:
            given = [{"name": key, "value": value} for key, value in configs.items()]
            api = "alter_configs"
        else:
            api = "incremental_alter_configs"
            given = [{"name": key, "config_operation": 0, "value": value} for key, value in configs.items()]
            if self.rng.random() < 0.3:
                given = [{"name": "retention.ms", "config_operation": 1, "value": None}]
            elif self.rng.random() < 0.2:
                given = [{"name": "retention.ms", "config_operation": 2, "value": "1"}]
        asked = {"resource_type": 2, "resource_name": name, "configs": given}
        (answer,) = yield [self._ask(api, {"resources": [asked], "validate_only": validate_only})]
        if answer["responses"][0]["error_code"] == 0 and not validate_only:
            policy = configs.get("cleanup.policy")
            if policy == "compact":
                self.compacted.add(name)
            elif policy is not None or api == "alter_configs":
                self.compacted.discard(name)
            wanted = {"resources": [{"resource_type": 2, "resource_name": name, "configuration_keys": None}]}
            yield [
                self._ask(
                    "describe_configs",
                    {**wanted, "include_synonyms": False, "include_documentation?": False},
                    until=lambda told: _has(told, given),
                )
            ]

    def delete_records(self) -> Steps:
        topic = self._topic()
        partition = self._partition(topic)
        offset = self.rng.choice([-1, 0, self._end(topic, partition) // 2, self._end(topic, partition) + 5])
        wanted = {"name": topic, "partitions": [{"partition_index": partition, "offset": offset}]}
        (answer,) = yield [self._ask("delete_records", {"topics": [wanted], "timeout": 10_000})]
        if answer["topics"][0]["partitions"][0]["low_watermark"] > 0:
            self.trimmed.add((topic, partition))

    def metadata(self) -> Steps:
        low, high = self.versions["metadata"]
        version = self.rng.randint(max(low, 4), high)
        names = [{"name": self._topic(), "topic_id?": None} for _ in range(self.rng.choice([1, 2]))]
        yield [self._ask("metadata", {"topics": names, "allow_auto_topic_creation?": False, **UNTOLD}, version=version)]

    def describe_partitions(self) -> Steps:
        """DescribeTopicPartitions (KIP-966), in pages."""
        names = sorted({self._topic() for _ in range(self.rng.choice([1, 2, 3]))})
        cursor = None
        if self.rng.random() < 0.3:
            cursor = {"topic_name": self.rng.choice(names), "partition_index": self.rng.choice([0, 1, 2])}
        yield [
            self._ask(
                "describe_topic_partitions",
                {
                    "topics": [{"name": name} for name in names],
                    "response_partition_limit": self.rng.choice([2_000, 2_000, 1, 3, 0]),
                    "cursor": cursor,
                },
            )
        ]

    def look_at_replicas(self) -> Steps:
        topic = self._topic()
        partition = self._partition(topic)
        yield [
            self._ask(
                "elect_leaders",
                {
                    "election_type?": self.rng.choice([0, 1]),
                    "topic_partitions": [{"topic": topic, "partitions": [partition]}],
                    "timeout": 10_000,
                },
            )
        ]
        wanted = [{"name": topic, "partition_indexes": [partition]}]
        yield [self._ask("list_partition_reassignments", {"timeout": 10_000, "topics": wanted})]
        yield [self._ask("describe_log_dirs", {"topics": [{"topic": topic, "partitions": [partition]}]})]


CONFIGS = [
    ("retention.ms", "86400000"),
    ("retention.ms", "-1"),
    ("retention.bytes", "1000000000"),
    ("cleanup.policy", "delete"),
    ("cleanup.policy", "compact"),
    ("cleanup.policy", "compact,delete"),
    ("max.message.bytes", "2000"),
    ("message.timestamp.type", "LogAppendTime"),
    ("message.timestamp.type", "CreateTime"),
    ("compression.type", "producer"),
    ("segment.bytes", "10000000"),
    ("min.compaction.lag.ms", NEVER_MS),
    ("delete.retention.ms", "100000"),
    ("min.insync.replicas", "1"),
    ("unclean.leader.election.enable", "false"),
    ("preallocate", "FALSE"),
    ("min.cleanable.dirty.ratio", "0.3"),
]
WRONG_CONFIGS = [
    ("retention.ms", "soon"),
    ("retention.ms", "-7"),
    ("cleanup.policy", "shred"),
    ("no.such.config", "1"),
    ("message.timestamp.type", "createtime"),
    ("compression.type", "none"),
    ("min.cleanable.dirty.ratio", "1.5"),
]


def _has(told: dict[str, Any], given: list[dict[str, Any]]) -> bool:
    """Whether the configs that were set are those described."""
    described = {config["name"]: config for result in told["results"] for config in result["configs"]}
    for config in given:
        found = described.get(config["name"])
        if found is None:
            return True
        if config.get("config_operation", 0) == 0 and found["value"] != config["value"].lower() != config["value"]:
            return False
        if config.get("config_operation", 0) == 0 and found["value"] not in (config["value"], config["value"].lower()):
            return False
        if config.get("config_operation") == 1 and found["config_source"] == 1:
            return False
    return True
