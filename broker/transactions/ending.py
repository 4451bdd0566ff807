"""The end of a transaction on one of its partitions: what is committed with the marker, and what is known from then on."""

from __future__ import annotations

from collections.abc import Sequence

from broker.engine.base import Appended, StateChange, Topic
from broker.producers.producers import Producers
from broker.transactions.stability import Aborted, Stability, Waiter, aborted_change, failed


class PartitionEnd:
    """The end of a transaction on one partition."""

    __slots__ = ("_aborted", "_at_ms", "_commit", "_epoch", "_partition", "_producer", "_producer_id", "_producers", "_topic")

    def __init__(
        self, producers: Producers, topic: Topic, partition: int, producer_id: int, epoch: int, commit: bool, at_ms: int
    ) -> None:
        self._producers, self._topic, self._partition = producers, topic, partition
        self._producer_id, self._epoch, self._commit, self._at_ms = producer_id, epoch, commit, at_ms
        self._aborted: Aborted | None = None
        self._producer = producers.find(topic, partition, producer_id)

    def changes(self, appended: Appended) -> Sequence[StateChange]:
        before = self._producer
        if before is None:  # it has written nothing here
            return ()
        self._producer = before.ended(self._epoch, self._at_ms)
        change = self._producers.changed(self._topic, self._partition, self._producer_id, self._producer)
        if self._commit or not before.in_transaction:
            return (change,)
        self._aborted = Aborted(self._producer_id, before.open_offset, appended.base_offset)
        return change, aborted_change(self._topic.topic_id, self._partition, self._aborted)

    def submitted(self, stability: Stability, appended: Appended, waiter: Waiter) -> None:
        if self._producer is None:
            return
        topic_id, partition, aborted = self._topic.topic_id, self._partition, self._aborted
        self._producers.put(self._topic, partition, self._producer_id, self._producer, waiter)
        stability.end(topic_id, partition, self._producer_id, appended.sequence, waiter)
        if aborted is None:
            return
        stability.abort(topic_id, partition, aborted)

        def settle(done: Waiter) -> None:
            if failed(done):
                stability.drop(topic_id, partition, [aborted])

        waiter.add_done_callback(settle)
