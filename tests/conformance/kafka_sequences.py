"""Random sequences of calls, each made of a seed: topics, configs, records, offsets, groups, producers, transactions.

A sequence is a generator of steps (calls that go out together) and is sent the reference's answers, by which it goes on: how many
partitions there are, who is in the group. Some calls are wrong on purpose.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeAlias

from kafka.record.default_records import DefaultRecordBatchBuilder

from tests.conformance.kafka_side import Ask, Side

Step: TypeAlias = list[Ask]
Answers: TypeAlias = list[dict[str, Any]]
Steps: TypeAlias = Generator[Step, Answers, None]

CALLS_MIN = 40
SESSION_MS = 30_000
MEMBERS = (1, 2, 3)
# Versions from which on a call means something else on a newer broker: topics by id, what brokers ask each other, and
# transactions that end with a new epoch (KIP-890, part 2).
VERSION_MAX = {
    "produce": 11,
    "fetch": 12,
    "offset_commit": 9,
    "offset_fetch": 9,
    "add_partitions_to_txn": 3,
    "end_txn": 4,
    "txn_offset_commit": 4,
    "init_producer_id": 5,
    "list_offsets": 8,
}
UNSETTLED = frozenset({5, 6, 9, 14, 15, 16})  # no leader yet, coordinator loading
UNTOLD = {"include_cluster_authorized_operations?": False, "include_topic_authorized_operations?": False}
NEVER_MS = "600000000"  # nobody says when compaction comes, so it does not
MEMBER_ID_REQUIRED = 79
IN_PROGRESS = frozenset({51})  # the transaction before is still being ended


class Sequence:
    """`versions` are those that both brokers serve, by name of the API."""

    def __init__(self, seed: int, versions: Mapping[str, tuple[int, int]], started_ms: int) -> None:
        self.versions, self.started_ms = versions, started_ms
        self.tag = f"{seed}-{started_ms % 1_000_000}"  # a broker may have met this seed before
        self.rng = random.Random(seed)
        self.topics: dict[str, int] = {}
        self.ends: dict[tuple[str, int], int] = {}
        self.compacted: set[str] = set()
        self.made = 0
        self.calls = 0
        self.group = f"g{self.tag}"
        self.joined: dict[int, int] = {}  # member -> generation
        self.seen: set[int] = set()
        self.joins = 0
        self.sequences: dict[tuple[str, int], int] = {}
        self.epoch = -1
        self.transactional_epoch = -1
        self.actions: list[tuple[int, Callable[[], Steps], tuple[str, ...]]] = [
            (6, self.create_topics, ("create_topics",)),
            (2, self.delete_topics, ("delete_topics",)),
            (2, self.create_partitions, ("create_partitions",)),
            (3, self.describe_configs, ("describe_configs",)),
            (3, self.alter_configs, ("incremental_alter_configs", "alter_configs")),
            (3, self.delete_records, ("delete_records",)),
            (4, self.metadata, ("metadata",)),
            (12, self.produce, ("produce",)),
            (4, self.produce_wrongly, ("produce",)),
            (8, self.produce_idempotently, ("produce", "init_producer_id")),
            (10, self.fetch, ("fetch",)),
            (6, self.list_offsets, ("list_offsets",)),
            (2, self.leader_epoch, ("offset_for_leader_epoch",)),
            (5, self.join, ("join_group", "sync_group", "heartbeat")),
            (4, self.heartbeat, ("heartbeat",)),
            (2, self.leave, ("leave_group",)),
            (6, self.commit, ("offset_commit",)),
            (5, self.fetch_offsets, ("offset_fetch",)),
            (2, self.delete_offsets, ("offset_delete",)),
            (3, self.look_at_groups, ("list_groups", "describe_groups", "find_coordinator")),
            (1, self.delete_groups, ("delete_groups",)),
            (
                4,
                self.transact,
                ("init_producer_id", "add_partitions_to_txn", "end_txn", "add_offsets_to_txn", "txn_offset_commit"),
            ),
            (1, self.look_at_replicas, ("elect_leaders", "list_partition_reassignments", "describe_log_dirs")),
        ]

    def steps(self) -> Steps:
        yield from self.create_topics()
        possible = [row for row in self.actions if all(api in self.versions for api in row[2])]
        weights = [weight for weight, _, _ in possible]
        while self.calls < CALLS_MIN:
            ((_, action, _),) = self.rng.choices(possible, weights)
            yield from action()
        yield from self._leave_all()
        if self.topics:
            yield from self._delete(list(self.topics))

    # Parts of steps

    def _ask(self, api: str, fields: Mapping[str, Any] | Callable[[Side], Mapping[str, Any]], **more: Any) -> Ask:
        low, high = self.versions[api]
        self.calls += 1
        version = more.pop("version", None)
        chosen = self.rng.randint(low, min(high, VERSION_MAX.get(api, high))) if version is None else version
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

    # Topics

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
        yield [self._ask("delete_records", {"topics": [wanted], "timeout": 10_000})]

    def metadata(self) -> Steps:
        low, high = self.versions["metadata"]
        version = self.rng.randint(max(low, 4), high)
        names = [{"name": self._topic(), "topic_id?": None} for _ in range(self.rng.choice([1, 2]))]
        yield [self._ask("metadata", {"topics": names, "allow_auto_topic_creation?": False, **UNTOLD}, version=version)]

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

    # Records

    def produce(self) -> Steps:
        topic = self._topic()
        yield from self._produce(topic, self._partition(topic), self._batch(topic in self.compacted))

    def produce_wrongly(self) -> Steps:
        topic = self._topic()
        keyed = topic in self.compacted
        kind = self.rng.randrange(6)
        batch = self._batch(keyed)
        acks = -1
        if kind == 0:
            batch = batch[:-1] + bytes([batch[-1] ^ 1])  # wrong checksum
        elif kind == 1:
            batch = batch[: len(batch) - 5]
        elif kind == 2:
            batch = self._batch(keyed, size=1_200_000)
        elif kind == 3:
            batch = self._batch(False, keyless=True)
        elif kind == 4:
            acks = 7
        else:
            batch = batch + self._batch(keyed)
        yield from self._produce(topic, self._partition(topic), batch, acks=acks)

    def produce_idempotently(self) -> Steps:
        if self.epoch < 0:
            (answer,) = yield [
                self._ask(
                    "init_producer_id",
                    {"transactional_id": None, "transaction_timeout": 60_000, "producer_id?": -1, "producer_epoch?": -1},
                    binds={"producer": lambda told: told["producer_id"]},
                    again=UNSETTLED,
                )
            ]
            self.epoch = answer["producer_epoch"]
        topic = self._topic(wrong=False)
        partition = self._partition(topic, wrong=False)
        following = self.sequences.get((topic, partition), 0)
        skew = self.rng.choice([0, 0, 0, 0, -1, 5])  # the batch before once more, or a gap
        count = 2
        first = max(0, following + skew * count if skew < 0 else following + skew)
        epoch = self.epoch if self.rng.random() < 0.95 else self.epoch + 3
        keyed = topic in self.compacted
        body = self._records(keyed, count)

        def batch(side: Side) -> bytes:
            return _batch(body, side.id("producer"), epoch, first)

        answers = yield from self._produce(topic, partition, batch)
        if answers and answers["error_code"] == 0 and first == following:
            self.sequences[topic, partition] = following + count

    def _produce(
        self,
        topic: str,
        partition: int,
        batch: bytes | Callable[[Side], bytes],
        *,
        acks: int | None = None,
        transactional_id: str | None = None,
        high: int | None = None,
    ) -> Generator[Step, Answers, dict[str, Any] | None]:
        def fields(side: Side) -> Mapping[str, Any]:
            records = batch(side) if callable(batch) else batch
            data = [{"name": topic, "partition_data": [{"index": partition, "records": records}]}]
            return {
                "transactional_id": transactional_id,
                "acks": chosen,
                "timeout": 10_000,
                "topic_data": data,
            }

        chosen = self.rng.choice([1, -1, -1]) if acks is None else acks
        (answer,) = yield [self._ask("produce", fields)]
        told = answer["responses"][0]["partition_responses"][0] if answer["responses"] else None
        if told is not None and told["error_code"] == 0:
            wanted = {"partition_index": partition, "timestamp": -1}
            asked = {"replica_id?": -1, "isolation_level?": 0, "topics": [{"name": topic, "partitions": [wanted]}]}
            (found,) = yield [self._ask("list_offsets", asked, version=max(2, self.versions["list_offsets"][0]))]
            self.ends[topic, partition] = found["topics"][0]["partitions"][0]["offset"]
        return told

    def _records(self, keyed: bool, count: int, *, size: int = 0, keyless: bool = False) -> list[tuple[Any, ...]]:
        records = []
        for _ in range(count):
            key = self.rng.choice([b"a", b"b", b"c"]) if keyed else self.rng.choice([None, b"a", b"b", b""])
            value = b"v" * size if size else self.rng.choice([b"", b"one", b"two" * 30, None])
            headers = [("h", b"1")] if self.rng.random() < 0.3 else []
            timestamp = self.started_ms + self.rng.randrange(-100_000, 100_000)
            records.append((timestamp, None if keyless else key, value, headers))
        return records

    def _batch(self, keyed: bool, *, size: int = 0, keyless: bool = False) -> bytes:
        records = self._records(keyed, self.rng.choice([1, 2, 3, 5]) if not size else 1, size=size, keyless=keyless)
        return _batch(records, compression=self.rng.choice([0, 0, 1, 3, 4]) if not size else 0)

    def fetch(self) -> Steps:
        topic = self._topic()
        partition = self._partition(topic)
        end = self._end(topic, partition)
        offset = self.rng.choice([0, end // 2, max(0, end - 1), end, end, end + 10, -3])
        wanted = {
            "partition": partition,
            "current_leader_epoch?": -1,
            "fetch_offset": offset,
            "last_fetched_epoch?": -1,
            "log_start_offset?": -1,
            "partition_max_bytes": self.rng.choice([1_048_576, 1_048_576, 1]),
        }
        fields = {
            "cluster_id?": None,
            "replica_id?": -1,
            "max_wait": self.rng.choice([0, 20]),
            "min_bytes": 1,
            "max_bytes": 50_000_000,
            "isolation_level": self.rng.choice([0, 1]),
            "session_id?": 0,
            "session_epoch?": -1,
            "topics": [{"topic": topic, "partitions": [wanted]}],
            "forgotten_topics_data?": [],
            "rack_id?": "",
        }
        yield [self._ask("fetch", fields)]

    def list_offsets(self) -> Steps:
        topic = self._topic()
        low, high = self.versions["list_offsets"]
        high = min(high, VERSION_MAX["list_offsets"])
        timestamp = self.rng.choice([-1, -2, self.started_ms + self.rng.randrange(-120_000, 120_000), -3, -4])
        version = self.rng.randint(max(low, {-3: 7, -4: 8}.get(timestamp, low)), high)
        wanted = {"partition_index": self._partition(topic), "current_leader_epoch?": -1, "timestamp": timestamp}
        fields = {
            "replica_id?": -1,
            "isolation_level?": self.rng.choice([0, 1]),
            "topics": [{"name": topic, "partitions": [wanted]}],
        }
        yield [self._ask("list_offsets", fields, version=version)]

    def leader_epoch(self) -> Steps:
        topic = self._topic()
        wanted = {"partition": self._partition(topic), "current_leader_epoch": -1, "leader_epoch": 0}
        yield [self._ask("offset_for_leader_epoch", {"replica_id?": -1, "topics": [{"topic": topic, "partitions": [wanted]}]})]

    # Groups

    def join(self) -> Steps:
        """A member more, or one again: those that are there come along."""
        member = self.rng.choice(MEMBERS)
        if member not in self.joined:
            (told,) = yield [self._join(member)]
            if told["error_code"] != MEMBER_ID_REQUIRED:
                return
        others = [other for other in self.joined if other != member]
        step = [self._join(member)]
        if others:
            step += [self._heartbeat(others[0], through=0), *[self._join(other) for other in others]]
        answers = yield step
        self._remember([member, *others], [answers[0], *answers[2:]])
        yield from self._sync()

    def _remember(self, members: list[int], answers: Answers) -> None:
        for member, told in zip(members, answers, strict=True):
            if told["error_code"] == 0:
                self.joined[member] = told["generation_id"]
                self.seen.add(member)

    def _join(self, member: int) -> Ask:
        self.joins += 1
        # A member that says something new is a rebalance, whoever leads the group.
        metadata = _subscription(next(iter(self.topics), "none"), b"join %d" % self.joins)
        return self._ask(
            "join_group",
            lambda side: {
                "group_id": self.group,
                "session_timeout": SESSION_MS,
                "rebalance_timeout?": SESSION_MS,
                "member_id": side.id(f"member:{member}", ""),
                "group_instance_id?": None,
                "protocol_type": "consumer",
                "protocols": [{"name": "range", "metadata": metadata}, {"name": "roundrobin", "metadata": metadata}],
                "reason?": "why not",
            },
            version=self._member_version("join_group", 4),
            member=member,
            binds={f"member:{member}": lambda told: told["member_id"], "leader": lambda told: told["leader"]},
            again=UNSETTLED,
        )

    def _member_version(self, api: str, low: int) -> int:
        own_low, high = self.versions[api]
        return self.rng.randint(max(low, own_low), min(high, VERSION_MAX.get(api, high)))

    def _sync(self) -> Steps:
        generations = set(self.joined.values())
        if len(generations) != 1:
            return
        (generation,) = generations
        members = list(self.joined)

        def fields(member: int) -> Callable[[Side], Mapping[str, Any]]:
            def resolve(side: Side) -> Mapping[str, Any]:
                own = side.id(f"member:{member}")
                shares = [{"member_id": side.id(f"member:{one}"), "assignment": b"share %d" % one} for one in members]
                return {
                    "group_id": self.group,
                    "generation_id": generation,
                    "member_id": own,
                    "group_instance_id?": None,
                    "protocol_type?": "consumer",
                    "protocol_name?": "range",
                    "assignments": shares if side.id("leader") == own else [],
                }

            return resolve

        self.rng.shuffle(members)
        yield [self._ask("sync_group", fields(member), member=member) for member in members]

    def _heartbeat(self, member: int, *, through: int | None = None, wrong: bool = False) -> Ask:
        generation = self.joined.get(member, 1) + (1 if wrong else 0)
        return self._ask(
            "heartbeat",
            lambda side: {
                "group_id": self.group,
                "generation_id": generation,
                "member_id": side.id(f"member:{member}", "nobody"),
                "group_instance_id?": None,
            },
            member=member if through is None else through,
        )

    def heartbeat(self) -> Steps:
        yield [self._heartbeat(self.rng.choice(MEMBERS), wrong=self.rng.random() < 0.2)]

    def leave(self) -> Steps:
        if not self.joined:
            return
        member = self.rng.choice(list(self.joined))
        yield [self._leave(member)]
        del self.joined[member]
        if self.joined:  # the others notice, and come together again
            others = list(self.joined)
            yield [self._heartbeat(others[0])]
            answers = yield [self._join(other) for other in others]
            self._remember(others, answers)
            yield from self._sync()

    def _leave(self, member: int) -> Ask:
        low, high = self.versions["leave_group"]
        version = self.rng.randint(low, high)

        def fields(side: Side) -> Mapping[str, Any]:
            own = side.id(f"member:{member}")
            if version >= 3:
                return {"group_id": self.group, "members": [{"member_id": own, "group_instance_id": None, "reason?": None}]}
            return {"group_id": self.group, "member_id": own}

        return self._ask("leave_group", fields, version=version, member=member, forgets=(f"member:{member}",))

    def _leave_all(self) -> Steps:
        for member in list(self.joined):
            yield [self._leave(member)]
        self.joined.clear()

    def commit(self) -> Steps:
        topic = self._topic()
        member = self.rng.choice([0, *self.joined])
        generation = self.joined.get(member, -1) + (1 if member and self.rng.random() < 0.1 else 0)
        wanted = {
            "partition_index": self._partition(topic),
            "committed_offset": self.rng.choice([0, 1, 5, 1000]),
            "committed_leader_epoch?": -1,
            "committed_metadata": self.rng.choice(["", "where I was", None, "x" * 5000]),
        }
        yield [
            self._ask(
                "offset_commit",
                lambda side: {
                    "group_id": self.group,
                    "generation_id_or_member_epoch": generation,
                    "member_id": side.id(f"member:{member}") if member else "",
                    "group_instance_id?": None,
                    "retention_time?": -1,
                    "topics": [{"name": topic, "partitions": [wanted]}],
                },
                member=member,
                again=UNSETTLED,
            )
        ]

    def fetch_offsets(self) -> Steps:
        low, high = self.versions["offset_fetch"]
        version = self.rng.randint(low, min(high, VERSION_MAX["offset_fetch"]))
        topic = self._topic()
        topics: Any = [{"name": topic, "partition_indexes": [self._partition(topic), 0]}]
        if version >= 2 and self.rng.random() < 0.3:
            topics = None
        if version >= 8:
            fields: dict[str, Any] = {
                "groups": [{"group_id": self.group, "member_id?": None, "member_epoch?": -1, "topics": topics}],
                "require_stable": self.rng.random() < 0.3,
            }
        else:
            fields = {"group_id": self.group, "topics": topics, "require_stable?": False}
        yield [self._ask("offset_fetch", fields, version=version, again=UNSETTLED)]

    def delete_offsets(self) -> Steps:
        topic = self._topic()
        topics = [{"name": topic, "partitions": [{"partition_index": self._partition(topic)}]}]
        yield [self._ask("offset_delete", {"group_id": self.group, "topics": topics})]

    def look_at_groups(self) -> Steps:
        yield [self._ask("describe_groups", {"groups": [self.group], "include_authorized_operations?": False}, again=UNSETTLED)]
        low, high = self.versions["find_coordinator"]
        version = self.rng.randint(low, high)
        if version >= 4:
            fields: dict[str, Any] = {"key_type": 0, "coordinator_keys": [self.group]}
        else:
            fields = {"key": self.group, "key_type?": 0}
        yield [self._ask("find_coordinator", fields, version=version)]
        yield [
            self._ask(
                "list_groups",
                {"states_filter?": [], "types_filter?": []},
                look=lambda told: [one for one in told["groups"] if one["group_id"].startswith(self.group)],
            )
        ]

    def delete_groups(self) -> Steps:
        yield [self._ask("delete_groups", {"groups_names": [self.group, f"none-{self.tag}"]})]

    # Transactions

    def transact(self) -> Steps:
        topic = self._topic(wrong=False)
        if topic not in self.topics:
            return
        name = f"t{self.tag}"
        (answer,) = yield [
            self._ask(
                "init_producer_id",
                {"transactional_id": name, "transaction_timeout": 60_000, "producer_id?": -1, "producer_epoch?": -1},
                binds={"writer": lambda told: told["producer_id"]},
                again=UNSETTLED | IN_PROGRESS,
            )
        ]
        if answer["error_code"]:
            return
        epoch = answer["producer_epoch"]

        def who(side: Side, prefix: str = "") -> dict[str, Any]:
            return {
                f"{prefix}transactional_id": name,
                f"{prefix}producer_id": side.id("writer"),
                f"{prefix}producer_epoch": epoch - (1 if stale else 0),
            }

        stale = False
        partitions = self.rng.sample(range(self.topics[topic]), min(2, self.topics[topic]))
        old = "v3_and_below_"
        if self.rng.random() < 0.9:
            wanted = [{"name": topic, "partitions": partitions}]
            yield [
                self._ask(
                    "add_partitions_to_txn",
                    lambda side: {**who(side, old), f"{old}topics": wanted},
                    again=UNSETTLED | IN_PROGRESS,
                )
            ]
        for partition in partitions:
            body = self._records(topic in self.compacted, 2)
            yield from self._produce(
                topic,
                partition,
                lambda side, body=body: _batch(body, side.id("writer"), epoch, 0, transactional=True),
                acks=-1,
                transactional_id=name,
            )
        if self.rng.random() < 0.5:
            yield [
                self._ask(
                    "add_offsets_to_txn",
                    lambda side: {**who(side), "group_id": f"{self.group}-t"},
                    again=UNSETTLED | IN_PROGRESS,
                )
            ]
            wanted_offset = {
                "partition_index": partitions[0],
                "committed_offset": self.rng.randrange(50),
                "committed_leader_epoch?": -1,
                "committed_metadata": "",
            }
            yield [
                self._ask(
                    "txn_offset_commit",
                    lambda side: {
                        **who(side),
                        "group_id": f"{self.group}-t",
                        "generation_id?": -1,
                        "member_id?": "",
                        "group_instance_id?": None,
                        "topics": [{"name": topic, "partitions": [wanted_offset]}],
                    },
                    again=UNSETTLED,
                )
            ]
        yield from self.fetch()
        if self.rng.random() < 0.1:
            stale = True
        committed = self.rng.random() < 0.6
        yield [self._ask("end_txn", lambda side: {**who(side), "committed": committed}, again=UNSETTLED | IN_PROGRESS)]
        if stale:
            return
        yield from self._until_stable(topic, partitions)
        yield from self.fetch()

    def _until_stable(self, topic: str, partitions: list[int]) -> Steps:
        """Kafka writes the markers in the background: until the last stable offset is the end."""
        ends = {}
        for _ in range(200):
            found = []
            for isolation in (0, 1):
                wanted = [{"partition_index": one, "current_leader_epoch?": -1, "timestamp": -1} for one in partitions]
                asked = {
                    "replica_id?": -1,
                    "isolation_level": isolation,
                    "topics": [{"name": topic, "partitions": wanted}],
                }
                (told,) = yield [
                    self._ask("list_offsets", asked, version=self._member_version("list_offsets", 6), look=lambda told: None)
                ]
                self.calls -= 1
                found.append({one["partition_index"]: one["offset"] for one in told["topics"][0]["partitions"]})
            ends = found[0]
            if found[0] == found[1]:
                break
        for partition, end in ends.items():
            self.ends[topic, partition] = end


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


def _batch(
    records: list[tuple[Any, ...]],
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    *,
    transactional: bool = False,
    compression: int = 0,
) -> bytes:
    builder = DefaultRecordBatchBuilder(2, compression, transactional, producer_id, epoch, sequence, 10_000_000)
    for offset, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(offset, timestamp, key, value, headers) is not None
    return bytes(builder.build())


def _subscription(topic: str, user_data: bytes) -> bytes:
    """ConsumerProtocolSubscription, version 0: Kafka reads it, and leaves members waiting whose metadata it cannot read."""
    name = topic.encode()
    return struct.pack(f">hih{len(name)}si", 0, 1, len(name), name, len(user_data)) + user_data


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
