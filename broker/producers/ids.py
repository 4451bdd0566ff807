"""Producer ids: numbers that are handed out once, for all lives of the data folder.

They are taken from the keyed state a block at a time, as Kafka does (KIP-730): one append for a thousand producers. What a block
has left when the node ends is not used again.
"""

from __future__ import annotations

import asyncio

from broker.engine.base import Engine, StateChange, StateSpace

BLOCK = 1_000
IDS_KEY = b"next"  # shorter than the key of a producer
_BYTES = 8


class ProducerIds:
    """On the owner thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next = self._end = 0
        self._taking = asyncio.Lock()

    async def next(self) -> int:
        """What `Engine.append` raises, where a block is needed."""
        while self._next == self._end:
            async with self._taking:
                if self._next == self._end:
                    await self._take_block()
        self._next += 1
        return self._next - 1

    async def _take_block(self) -> None:
        value = self._engine.state(StateSpace.PRODUCER, IDS_KEY)
        begin = 0 if value is None else int.from_bytes(value, "big")
        end = begin + BLOCK
        await self._engine.append([], changes=[StateChange(StateSpace.PRODUCER, IDS_KEY, end.to_bytes(_BYTES, "big"))])
        self._next, self._end = begin, end
