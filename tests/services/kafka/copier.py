"""A read-process-write loop in transactions, made to be killed: `python -m tests.services.kafka.copier '{settings}'`.

Prints each stage as it is reached. Any error ends it, as a crash would: who starts it starts it again.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from confluent_kafka import Consumer, Producer

WAIT_S = 30
BATCH = 40
ABORTED_EVERY = 7  # this transaction is given up on purpose, and its records are read again
STAGES = ("begun", "produced", "offsets", "committed")


def told(stage: str) -> None:
    print(stage, flush=True)


def copy(consumer: Consumer, producer: Producer, target: str, number: int) -> None:
    """One transaction: what was read, written to `target`, and the offsets of it."""
    records = consumer.consume(BATCH, timeout=0.2)
    if not records:
        return
    producer.begin_transaction()
    told("begun")
    for record in records:
        if record.error():
            raise RuntimeError(record.error())
        producer.produce(target, key=record.key(), value=record.value(), partition=record.partition())
    producer.flush(WAIT_S)
    told("produced")
    producer.send_offsets_to_transaction(consumer.position(consumer.assignment()), consumer.consumer_group_metadata(), WAIT_S)
    told("offsets")
    if number % ABORTED_EVERY == ABORTED_EVERY - 1:
        producer.abort_transaction(WAIT_S)
        raise SystemExit("aborted")
    producer.commit_transaction(WAIT_S)
    told("committed")


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    consumer = Consumer(asked["consumer"])
    producer = Producer(asked["producer"])
    producer.init_transactions(WAIT_S)
    consumer.subscribe([asked["source"]])
    number = 0
    while True:
        copy(consumer, producer, asked["target"], number)
        number += 1


if __name__ == "__main__":
    main()
