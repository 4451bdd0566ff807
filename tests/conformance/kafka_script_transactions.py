"""Transactions, from the first call to what is read afterwards, in both protocols (KIP-98; KIP-890, part 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conformance.kafka_script import IN_PROGRESS, UNSETTLED, Steps, about
from tests.conformance.kafka_script_groups import GroupCalls
from tests.conformance.kafka_script_records import RecordCalls, batch_of
from tests.conformance.kafka_side import Side

# From these versions on a call is of the second protocol: batches and offsets join by themselves, and the end gives a new epoch.
SECOND_FROM = {"produce": 12, "txn_offset_commit": 5, "end_txn": 5}
TIMEOUT_MS = 60_000
ADMIN = ("describe_transactions", "list_transactions", "describe_producers")


class Writer:
    """Who writes a transaction: its id, as it goes by on each side, and its epoch."""

    def __init__(self, transactional_id: str, name: str, epoch: int) -> None:
        self.transactional_id, self.name, self.epoch = transactional_id, name, epoch

    def fields(self, side: Side, prefix: str = "", *, late: int = 0) -> dict[str, Any]:
        """`late`: by how many epochs."""
        return {
            f"{prefix}transactional_id": self.transactional_id,
            f"{prefix}producer_id": side.id(self.name),
            f"{prefix}producer_epoch": max(0, self.epoch - late),
        }


class TransactionCalls(RecordCalls, GroupCalls):
    def transact(self) -> Steps:
        """In the first protocol: one transaction of a producer that is new each time."""
        topic = self._topic(wrong=False)
        if topic not in self.topics:
            return
        writer = yield from self._begin("first")
        if writer is None:
            return
        partitions = self._some_partitions(topic)
        old = "v3_and_below_"
        if self.rng.random() < 0.9:
            wanted = [{"name": topic, "partitions": partitions}]
            yield [
                self._ask(
                    "add_partitions_to_txn",
                    lambda side: {**writer.fields(side, old), f"{old}topics": wanted},
                    again=UNSETTLED | IN_PROGRESS,
                )
            ]
        yield from self._write(writer, topic, partitions, high=SECOND_FROM["produce"] - 1)
        if self.rng.random() < 0.5:
            group = f"{self.group}-t"
            yield [
                self._ask(
                    "add_offsets_to_txn",
                    lambda side: {**writer.fields(side), "group_id": group},
                    again=UNSETTLED | IN_PROGRESS,
                )
            ]
            yield from self._commit_offset(writer, group, topic, partitions[0], high=SECOND_FROM["txn_offset_commit"] - 1)
        yield from self.fetch()
        late = 1 if self.rng.random() < 0.1 else 0
        committed = self.rng.random() < 0.6
        version = self.version_of("end_txn", 0, SECOND_FROM["end_txn"] - 1)
        (answer,) = yield [
            self._ask(
                "end_txn",
                lambda side: {**writer.fields(side, late=late), "committed": committed},
                version=version,
                again=UNSETTLED | IN_PROGRESS,
            )
        ]
        if answer["error_code"] == 0:
            yield from self._after(writer, topic, partitions)

    def transact_by_joining(self) -> Steps:
        """In the second: transactions one after another, each with the epoch that the end of the one before gave."""
        topic = self._topic(wrong=False)
        if topic not in self.topics:
            return
        writer = yield from self._begin("second")
        if writer is None:
            return
        partitions = self._some_partitions(topic)
        for _ in range(self.rng.choice([1, 2, 3])):
            written = self.rng.random() < 0.85
            if written:
                yield from self._write(writer, topic, partitions, low=SECOND_FROM["produce"])
            if self.rng.random() < 0.4:
                low, group = SECOND_FROM["txn_offset_commit"], self.rng.choice([self.group, f"{self.group}-t"])
                # A refused commit lets the group join in Kafka all the same.
                yield from self._commit_offset(writer, group, topic, partitions[0], low=low, wrong=written)
            if self.rng.random() < 0.4:
                yield from self.fetch_offsets()
            if self.rng.random() < 0.4:
                yield from self._look_at(writer, topic, partitions)
            epoch, late = writer.epoch, self.rng.choice([0] * 9 + [2])
            yield from self._end_second(writer, late, committed=self.rng.random() < 0.6)
            if writer.epoch == epoch:
                return
            if self.rng.random() < 0.2:  # the answer was lost
                yield from self._end_second(writer, 1, committed=self.rng.random() < 0.8)
            yield from self._after(writer, topic, partitions)
        if self.rng.random() < 0.3:
            yield from self._write(writer, topic, partitions, low=SECOND_FROM["produce"], late=self.rng.choice([0, 1]))
        if self.rng.random() < 0.3:
            yield from self._go_on(writer)

    def _some_partitions(self, topic: str) -> list[int]:
        return self.rng.sample(range(self.topics[topic]), min(2, self.topics[topic]))

    def _begin(self, name: str) -> Any:
        """A producer of its own for each protocol, newly numbered; None where that is refused."""
        transactional_id = f"t{self.tag}-{name}"
        fields = {"transactional_id": transactional_id, "transaction_timeout": TIMEOUT_MS}
        (answer,) = yield [
            self._ask(
                "init_producer_id",
                {**fields, "producer_id?": -1, "producer_epoch?": -1},
                binds={f"writer {name}": lambda told: told["producer_id"]},
                again=UNSETTLED | IN_PROGRESS,
            )
        ]
        if answer["error_code"]:
            return None
        return Writer(transactional_id, f"writer {name}", answer["producer_epoch"])

    def _go_on(self, writer: Writer) -> Steps:
        """After an error, with what it has (KIP-360)."""
        yield [
            self._ask(
                "init_producer_id",
                lambda side: {**writer.fields(side), "transaction_timeout": TIMEOUT_MS},
                version=self.version_of("init_producer_id", 3),
                binds={writer.name: lambda told: told["producer_id"]},
                again=UNSETTLED | IN_PROGRESS,
            )
        ]

    def _write(self, writer: Writer, topic: str, partitions: list[int], *, low: int = 0, high: int = 99, late: int = 0) -> Steps:
        for partition in partitions:
            body = self._records(True, 2)  # not refused: Kafka lets a partition join before it looks at the batch
            epoch = max(0, writer.epoch - late)
            yield from self._produce(
                topic,
                partition,
                lambda side, body=body, epoch=epoch: batch_of(body, side.id(writer.name), epoch, 0, transactional=True),
                acks=-1,
                transactional_id=writer.transactional_id,
                low=low,
                high=high,
            )

    def _commit_offset(
        self, writer: Writer, group: str, topic: str, partition: int, *, low: int = 0, high: int = 99, wrong: bool = True
    ) -> Steps:
        version = self.version_of("txn_offset_commit", low, high)
        wanted = {
            "partition_index": partition,
            "committed_offset": self.rng.randrange(50),
            "committed_leader_epoch?": -1,
            "committed_metadata": "",
        }
        member = self.rng.choice([0, *self.joined]) if group == self.group and version >= 3 else 0
        generation = self.joined.get(member, -1) + (1 if member and wrong and self.rng.random() < 0.2 else 0)

        def fields(side: Side) -> Mapping[str, Any]:
            return {
                **writer.fields(side),
                "group_id": group,
                "generation_id?": generation,
                "member_id?": side.id(f"member:{member}") if member else "",
                "group_instance_id?": None,
                "topics": [{**about("txn_offset_commit", version, topic, side), "partitions": [wanted]}],
            }

        yield [self._ask("txn_offset_commit", fields, version=version, again=UNSETTLED | IN_PROGRESS)]

    def _end_second(self, writer: Writer, late: int, *, committed: bool) -> Steps:
        (answer,) = yield [
            self._ask(
                "end_txn",
                lambda side: {**writer.fields(side, late=late), "committed": committed},
                version=self.version_of("end_txn", SECOND_FROM["end_txn"]),
                binds={writer.name: lambda told: told["producer_id"]},
                again=UNSETTLED | IN_PROGRESS,
            )
        ]
        if answer["error_code"] == 0:
            writer.epoch = answer["producer_epoch"]

    def _after(self, writer: Writer, topic: str, partitions: list[int]) -> Steps:
        yield from self._until_stable(topic, partitions)
        if self.rng.random() < 0.5:
            yield from self._look_at(writer, topic, partitions)
        yield from self.fetch()

    # What administrators see of them

    def _look_at(self, writer: Writer, topic: str, partitions: list[int]) -> Steps:
        if not all(api in self.versions for api in ADMIN):
            return
        yield [
            self._ask(
                "describe_transactions",
                {
                    "transactional_ids": self.rng.choice(
                        [[writer.transactional_id], [writer.transactional_id, f"none-{self.tag}"]]
                    )
                },
                again=UNSETTLED,
                until=lambda told: not any(one["transaction_state"].startswith("Prepare") for one in told["transaction_states"]),
            )
        ]
        yield [
            self._ask(
                "describe_producers",
                {"topics": [{"name": topic, "partition_indexes": [*partitions, self._partition(topic)]}]},
            )
        ]
        yield from self._list_transactions(writer)

    def _list_transactions(self, writer: Writer) -> Steps:
        states = self.rng.choice([[], [], ["Ongoing"], ["Empty", "CompleteCommit", "CompleteAbort"], ["ongoing", "Nonsense"]])
        producers = self.rng.choice([0, 0, 1, 2])
        duration = self.rng.choice([-1, -1, 0, 3_600_000])
        pattern = self.rng.choice([None, None, "", f"t{self.tag}-f.*", ".*second", "t("])

        def fields(side: Side) -> Mapping[str, Any]:
            ids = [side.id(writer.name), 987_654_321][:producers]
            filters = {"state_filters": states, "producer_id_filters": ids}
            return {**filters, "duration_filter?": duration, "transactional_id_pattern?": pattern}

        def own(told: dict[str, Any]) -> dict[str, Any]:
            found = [one for one in told["transaction_states"] if one["transactional_id"].startswith(f"t{self.tag}-")]
            return {**told, "transaction_states": found}

        yield [self._ask("list_transactions", fields, again=UNSETTLED, look=own)]

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
                    "timeout?": 10_000,
                }
                (told,) = yield [
                    self._ask("list_offsets", asked, version=self.version_of("list_offsets", 6), look=lambda told: None)
                ]
                self.calls -= 1
                found.append({one["partition_index"]: one["offset"] for one in told["topics"][0]["partitions"]})
            ends = found[0]
            if found[0] == found[1]:
                break
        for partition, end in ends.items():
            self.ends[topic, partition] = end
