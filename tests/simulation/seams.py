"""All seams of one life of the simulated process."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.seams import Clock, Disk, Executor, KeyedStores, Random
from tests.simulation.loop import VirtualTime

EPOCH_MS = 1_760_000_000_000


class SimulatedClock:
    """The wall clock follows virtual time until somebody sets it; the monotonic one only follows virtual time."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._offset_ms = EPOCH_MS

    def now_ms(self) -> int:
        return self._time.now_us // 1000 + self._offset_ms

    def monotonic_ms(self) -> int:
        return self._time.now_us // 1000

    def jump(self, by_ms: int) -> None:
        self._offset_ms += by_ms


class SeededRandom:
    """Bytes fit for nothing but a simulation."""

    def __init__(self, random: random.Random) -> None:
        self._random = random

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


@dataclass
class SimulatedSeams:
    clock: Clock
    random: Random
    disk: Disk
    stores: KeyedStores
    executor: Executor
