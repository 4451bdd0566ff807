"""All seams of one life of the simulated process."""

from __future__ import annotations

import random
from dataclasses import dataclass

from broker.seams import Clock, Disk, Executor, KeyedStores, Random
from tests.simulation.loop import VirtualTime

JUMP_MS = 300_000
"""From here on a step of the wall clock is a jump (`LogOptions.clock_jump_max_ms`)."""
EPOCH_MS = 1_760_000_000_000


class SimulatedClock:
    """The wall clock follows virtual time until somebody sets it; the monotonic one only follows virtual time."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._offset_ms = EPOCH_MS
        self._believed_offset_ms = EPOCH_MS
        self._believed_before_ms = 0

    def now_ms(self) -> int:
        return self._time.now_us // 1000 + self._offset_ms

    def monotonic_ms(self) -> int:
        return self._time.now_us // 1000

    def believed_ms(self) -> int:
        """The latest time that a node can have taken for true which does not believe in large jumps under its eyes."""
        return max(self._time.now_us // 1000 + self._believed_offset_ms, self._believed_before_ms)

    def start(self) -> None:
        """What a clock did while nobody looked is not seen to be a jump."""
        self._believed_before_ms = self.believed_ms()
        self._believed_offset_ms = self._offset_ms

    def settle(self) -> None:
        """What earlier lives did by their clocks is known now."""
        self._believed_before_ms = 0

    def jump(self, by_ms: int) -> None:
        self._offset_ms += by_ms
        if abs(by_ms) < JUMP_MS:
            self._believed_offset_ms += max(0, by_ms)


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
