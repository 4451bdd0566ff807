"""Random sequences of calls, each made of a seed: topics, configs, records, offsets, groups, producers, transactions.

A sequence is a generator of steps (calls that go out together) and is sent the reference's answers, by which it goes on: how many
partitions there are, who is in the group. Some calls are wrong on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.conformance.kafka_script import Steps
from tests.conformance.kafka_script_consumers import ConsumerCalls
from tests.conformance.kafka_script_static import StaticCalls
from tests.conformance.kafka_script_topics import TopicCalls
from tests.conformance.kafka_script_transactions import TransactionCalls

CALLS_MIN = 40
MEMBERS_MIN = 2  # of the group, from the beginning
JOINS_MAX = 20  # the dice may take one member again and again


class Sequence(TopicCalls, TransactionCalls, StaticCalls, ConsumerCalls):
    """`versions` are those that both brokers serve, by name of the API."""

    def __init__(self, seed: int, versions: Mapping[str, tuple[int, int]], started_ms: int) -> None:
        super().__init__(seed, versions, started_ms)
        self.actions: list[tuple[int, Callable[[], Steps], tuple[str, ...]]] = [
            (6, self.create_topics, ("create_topics",)),
            (2, self.delete_topics, ("delete_topics",)),
            (2, self.create_partitions, ("create_partitions",)),
            (3, self.describe_configs, ("describe_configs",)),
            (3, self.alter_configs, ("incremental_alter_configs", "alter_configs")),
            (3, self.delete_records, ("delete_records",)),
            (4, self.metadata, ("metadata",)),
            (2, self.describe_partitions, ("describe_topic_partitions",)),
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
                3,
                self.transact,
                ("init_producer_id", "add_partitions_to_txn", "end_txn", "add_offsets_to_txn", "txn_offset_commit"),
            ),
            (3, self.transact_by_joining, ("init_producer_id", "end_txn", "txn_offset_commit")),
            (4, self.look_after_static, ("join_group", "sync_group", "heartbeat", "leave_group")),
            (4, self.look_after_consumers, ("consumer_group_heartbeat", "consumer_group_describe")),
            (1, self.look_at_replicas, ("elect_leaders", "list_partition_reassignments", "describe_log_dirs")),
        ]

    def steps(self) -> Steps:
        yield from self.create_topics()
        for _ in range(JOINS_MAX):
            if len(self.joined) < MEMBERS_MIN:
                yield from self.join()
        possible = [row for row in self.actions if all(api in self.versions for api in row[2])]
        weights = [weight for weight, _, _ in possible]
        while self.calls < CALLS_MIN:
            ((_, action, _),) = self.rng.choices(possible, weights)
            yield from action()
        yield from self._leave_all()
        yield from self.leave_static()
        yield from self.leave_consumers()
        if self.topics:
            yield from self._delete(list(self.topics))
