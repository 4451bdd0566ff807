"""Which topics are read by key: of those, batches that Kafka producers sent are worth walking (`key_walk.py`)."""

from __future__ import annotations

from broker.seams import Clock


class ReadByKey:
    """Topics that somebody read by key within the last `for_ms`."""

    def __init__(self, clock: Clock, for_ms: int) -> None:
        self._clock = clock
        self._for_ms = for_ms
        self._asked_ms: dict[bytes, int] = {}
        self.batches_walked = 0

    def note(self, topic_id: bytes) -> bool:
        """Whether it is one from now on that was none."""
        known = topic_id in self
        self._asked_ms[topic_id] = self._clock.monotonic_ms()
        return not known

    def __contains__(self, topic_id: bytes) -> bool:
        asked_ms = self._asked_ms.get(topic_id)
        return asked_ms is not None and self._clock.monotonic_ms() - asked_ms <= self._for_ms

    def __bool__(self) -> bool:
        for topic_id in [topic_id for topic_id in self._asked_ms if topic_id not in self]:
            del self._asked_ms[topic_id]
        return bool(self._asked_ms)
