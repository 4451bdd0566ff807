"""A member of a consumer group, made to be killed: `python -m tests.services.kafka.member CLIENT '{settings}' TOPIC`.

Prints a line of JSON per event, as Apache Kafka's VerifiableConsumer does: `partitions_assigned`, `partitions_revoked`,
`records_consumed` (with the values). SIGTERM leaves the group.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

COMMIT_S = 20
stopping = False


def told(name: str, **facts: object) -> None:
    print(json.dumps({"name": name, **facts}), flush=True)


def librdkafka(settings: dict[str, Any], topic: str) -> None:
    from confluent_kafka import Consumer, KafkaException

    consumer = Consumer(settings)
    consumer.subscribe(
        [topic],
        on_assign=lambda _, places: told("partitions_assigned", partitions=[place.partition for place in places]),
        on_revoke=lambda _, places: told("partitions_revoked", partitions=[place.partition for place in places]),
        on_lost=lambda _, places: told("partitions_revoked", partitions=[place.partition for place in places]),
    )
    while not stopping:
        records = consumer.consume(50, timeout=0.1)
        for record in records:
            if record.error():
                raise KafkaException(record.error())
        if records:
            told("records_consumed", values=[int(record.value()) for record in records])
            try:
                consumer.commit(asynchronous=False)
            except KafkaException as refused:  # a rebalance is under way: whoever has the partition next reads them again
                told("commit_refused", reason=str(refused))
    consumer.close()


def kafka_python(settings: dict[str, Any], topic: str) -> None:
    from kafka import ConsumerRebalanceListener, KafkaConsumer
    from kafka.errors import KafkaError

    class Listener(ConsumerRebalanceListener):
        def on_partitions_assigned(self, assigned: Any) -> None:
            told("partitions_assigned", partitions=[place.partition for place in assigned])

        def on_partitions_revoked(self, revoked: Any) -> None:
            told("partitions_revoked", partitions=[place.partition for place in revoked])

    consumer = KafkaConsumer(**settings)
    consumer.subscribe([topic], listener=Listener())
    while not stopping:
        records = [record for batch in consumer.poll(timeout_ms=100).values() for record in batch]
        if records:
            told("records_consumed", values=[int(record.value) for record in records])
            try:
                consumer.commit()
            except KafkaError as refused:
                told("commit_refused", reason=str(refused))
    consumer.close()


CLIENTS: dict[str, Callable[[dict[str, Any], str], None]] = {"librdkafka": librdkafka, "kafka-python": kafka_python}


def main() -> None:
    client, settings, topic = sys.argv[1:]

    def stop(*_: object) -> None:
        global stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    told("joining")
    CLIENTS[client](json.loads(settings), topic)


if __name__ == "__main__":
    main()
