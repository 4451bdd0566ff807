"""Calls that bring records and fetch them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from kafka.record.default_records import DefaultRecordBatchBuilder

from tests.conformance.kafka_script import (
    IN_PROGRESS,
    UNSETTLED,
    Answers,
    Script,
    Step,
    Steps,
    about,
)
from tests.conformance.kafka_side import Side

YOUNGEST = -3  # the record with the newest timestamp (KIP-734)


class RecordCalls(Script):
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
            return batch_of(body, side.id("producer"), epoch, first)

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
        low: int = 0,
        high: int = 99,
    ) -> Generator[Step, Answers, dict[str, Any] | None]:
        version = self.version_of("produce", low, high)

        def fields(side: Side) -> Mapping[str, Any]:
            records = batch(side) if callable(batch) else batch
            data = [{**about("produce", version, topic, side), "partition_data": [{"index": partition, "records": records}]}]
            return {
                "transactional_id": transactional_id,
                "acks": chosen,
                "timeout": 10_000,
                "topic_data": data,
            }

        chosen = self.rng.choice([1, -1, -1]) if acks is None else acks
        again = IN_PROGRESS if transactional_id is not None else frozenset()
        (answer,) = yield [self._ask("produce", fields, version=version, again=again)]
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
        return batch_of(records, compression=self.rng.choice([0, 0, 1, 3, 4]) if not size else 0)

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
            "forgotten_topics_data?": [],
            "rack_id?": "",
        }
        version = self.version_of("fetch")

        def asked(side: Side) -> Mapping[str, Any]:
            return {**fields, "topics": [{**about("fetch", version, topic, side, "topic"), "partitions": [wanted]}]}

        yield [self._ask("fetch", asked, version=version)]

    def list_offsets(self) -> Steps:
        topic = self._topic()
        timestamp = self.rng.choice([-1, -2, self.started_ms + self.rng.randrange(-120_000, 120_000), YOUNGEST, -4, -5])
        partition = self._partition(topic)
        if timestamp == YOUNGEST and (topic, partition) in self.trimmed:
            timestamp = -1  # Kafka tells a record that was deleted, until its file goes
        version = self.version_of("list_offsets", {YOUNGEST: 7, -4: 8, -5: 9}.get(timestamp, 0))
        wanted = {"partition_index": partition, "current_leader_epoch?": -1, "timestamp": timestamp}
        fields = {
            "replica_id?": -1,
            "isolation_level?": self.rng.choice([0, 1]),
            "topics": [{"name": topic, "partitions": [wanted]}],
            "timeout?": 10_000,
        }
        yield [self._ask("list_offsets", fields, version=version)]

    def leader_epoch(self) -> Steps:
        topic = self._topic()
        wanted = {"partition": self._partition(topic), "current_leader_epoch": -1, "leader_epoch": 0}
        yield [self._ask("offset_for_leader_epoch", {"replica_id?": -1, "topics": [{"topic": topic, "partitions": [wanted]}]})]


def batch_of(
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
