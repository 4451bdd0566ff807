"""Consumers on a real engine, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.consumer import Consumed, Consumer
from broker.delivery.consumer_options import ConsumerOptions, DeliveryOptions
from broker.delivery.consumers import Consumers
from broker.delivery.dead_letter import Letter, read_letter
from broker.delivery.filter import Filter
from broker.delivery.position import Position
from broker.engine.embedded import EmbeddedEngine
from broker.machine import MachineClock
from broker.record import Record

OWNER = "token:owner"
EVERYTHING: dict[str, int] = {"bytes_max": 1 << 20, "records_max": 10_000, "wait_max_ms": 0}


class SetClock:
    """Stands still until the test moves it. It begins today: the engine's own clock decides what is old."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        self._began_ms = MachineClock().now_ms() - self.ms

    def now_ms(self) -> int:
        return self._began_ms + self.ms

    def monotonic_ms(self) -> int:
        return self.ms

    def pass_ms(self, by_ms: int) -> None:
        self.ms += by_ms


class SeededRandom:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class Post:
    """A broker with consumers; `again` is the node's next life on the same engine."""

    def __init__(self, engine: EmbeddedEngine, **options: Any) -> None:
        self.engine, self.clock = engine, SetClock()
        self.options = DeliveryOptions(**options)
        self.consumers = self._make()
        self.broker = Broker(engine, self.clock, BrokerOptions(partitions_default=2), self.consumers)
        self.number = 0

    def _make(self) -> Consumers:
        return Consumers(self.engine, self.clock, SeededRandom(), self.options)

    async def again(self) -> None:
        """As after a kill: nothing is saved that was not confirmed."""
        self.consumers = self._make()

    async def put(
        self, count: int = 1, *, topic: str = "orders", key: bytes | None = b"k", batch: bool = False, **members: Any
    ) -> None:
        """Records whose values are numbers, each a commit of its own or all of them one batch."""
        records = [Outgoing(key, b"%d" % (self.number + n), **members) for n in range(count)]
        self.number += count
        for part in [records] if batch else [[record] for record in records]:
            await self.broker.publish(topic, part, durable=True, auto_create=True)

    async def open(
        self,
        address: str = "orders",
        name: str = "billing",
        position: Position = "earliest",
        *,
        owner: str = OWNER,
        **options: Any,
    ) -> Consumer:
        return await self.consumers.attach(owner, name, Filter.parse(address), ConsumerOptions(**options), position)

    async def letters(self, topic: str = "orders.dlq") -> list[tuple[Record, Letter]]:
        if topic not in self.broker.topics():
            return []
        reader = await self.broker.subscribe(topic, None, "earliest")
        found = []
        for one in await reader.next(**EVERYTHING):
            letter = read_letter(one.record)
            assert letter is not None
            found.append((one.record, letter))
        return found


MakePost = Callable[..., Post]


@pytest.fixture
async def make_post(engine: EmbeddedEngine) -> AsyncIterator[MakePost]:
    made: list[Post] = []

    def make(**options: Any) -> Post:
        made.append(Post(engine, **options))
        return made[-1]

    yield make
    for post in made:
        await post.consumers.close()


@pytest.fixture
def post(make_post: MakePost) -> Post:
    return make_post()


async def take(consumer: Consumer, **bounds: int) -> list[Consumed]:
    """What can be had now."""
    return await consumer.next(**(EVERYTHING | bounds))


async def drain(consumer: Consumer, **bounds: int) -> list[Consumed]:
    """All there is, over as many calls as it takes."""
    found: list[Consumed] = []
    while page := await take(consumer, **bounds):
        found += page
    return found


def numbers(consumed: Sequence[Consumed]) -> list[int]:
    return [int(one.record.value or b"-1") for one in consumed]


def tags(consumed: Sequence[Consumed]) -> list[str]:
    return [one.tag for one in consumed]


async def settled_down() -> None:
    """What runs in the background had its turns."""
    for _ in range(20):
        await asyncio.sleep(0.001)
