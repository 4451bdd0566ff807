"""Transactions, from the first call to what is read afterwards."""

from __future__ import annotations

from typing import Any

from tests.conformance.kafka_script import (
    IN_PROGRESS,
    UNSETTLED,
    Steps,
)
from tests.conformance.kafka_script_records import RecordCalls, batch_of
from tests.conformance.kafka_side import Side


class TransactionCalls(RecordCalls):
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
                lambda side, body=body: batch_of(body, side.id("writer"), epoch, 0, transactional=True),
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
                    self._ask("list_offsets", asked, version=self.version_of("list_offsets", 6), look=lambda told: None)
                ]
                self.calls -= 1
                found.append({one["partition_index"]: one["offset"] for one in told["topics"][0]["partitions"]})
            ends = found[0]
            if found[0] == found[1]:
                break
        for partition, end in ends.items():
            self.ends[topic, partition] = end
