"""Any sequence of deliveries, acknowledgements, refusals, time-outs, power cuts and restarts, on the simulated machine.

    acknowledged for sure      never delivered again
    given up                   one dead letter, and never delivered again
    everything else            delivered again, in this life or a later one

The node is the real one over simulated disks; power fails at any write or sync, and what was not synced may be lost.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.consumer import Consumed
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.consumers import Consumers
from broker.delivery.dead_letter import read_letter
from broker.delivery.filter import Filter
from broker.engine.embedded import EmbeddedEngine
from broker.errors import Unavailable
from tests.simulation.disk import SimulatedDisk
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import Failure, Faults, Plan
from tests.simulation.loop import SimulatedLoop
from tests.simulation.seams import SeededRandom, SimulatedSeams
from tests.simulation.store import SimulatedKeyedStores
from tests.simulation.world import SMALL_OPTIONS, World

DELIVERIES_MAX = 3
OPTIONS = ConsumerOptions(ack_timeout_ms=1_000, deliveries_max=DELIVERIES_MAX, retry_backoff_ms=200, in_flight_max=8)
EVERYTHING = {"bytes_max": 1 << 20, "records_max": 1_000, "wait_max_ms": 0}
ADDRESSES = ("orders", "+/eu/#", "#")


class Act(msgspec.Struct, frozen=True):
    """`share` of the records in hand it is about, or how much of it."""

    kind: str
    share: float


class LifePlan(msgspec.Struct, frozen=True):
    """`cut_after` disk operations the power fails; None: it ends by a clean stop, or, with `kill`, without one. The writes and
    syncs with the numbers of `failing` fail."""

    acts: list[Act]
    cut_after: int | None
    kill: bool
    failing: list[int] = []


KINDS = ("publish", "next", "next", "next", "ack", "nack", "nack", "reject", "extend", "time", "reopen", "take over")
CUT_KINDS = ("cut at ack", "cut at reject", "cut at nack", "cut at next")
acts = st.builds(Act, st.sampled_from(KINDS * 3 + CUT_KINDS), st.sampled_from((0.2, 0.5, 1.0)))
failing = st.just([]) | st.lists(st.integers(20, 200), max_size=3)
lives = st.builds(LifePlan, st.lists(acts, min_size=3, max_size=30), st.none() | st.integers(1, 250), st.booleans(), failing)


class Books:
    """What must be true, over all lives."""

    def __init__(self) -> None:
        self.published: set[int] = set()
        self.tried: set[int] = set()  # acknowledged, but whether the node took it is not known
        self.settled: set[int] = set()
        self.rejected: set[int] = set()
        self.buried: set[int] = set()
        self.number = 0

    def received(self, consumed: Iterable[Consumed]) -> None:
        for one in consumed:
            number = int(one.record.value or b"")
            assert number not in self.settled, f"{number} was acknowledged, and came again"
            assert number not in self.buried, f"{number} is a dead letter, and came again"
            assert 1 <= one.attempt <= DELIVERIES_MAX

    async def read_letters(self, broker: Broker) -> None:
        found: Counter[int] = Counter()
        for topic in [name for name in broker.topics() if name.endswith(".dlq")]:
            reader = await broker.subscribe(topic, None, "earliest")
            while page := await reader.next(**EVERYTHING):
                for one in page:
                    letter = read_letter(one.record)
                    assert letter is not None
                    assert letter.topic + ".dlq" == topic
                    assert letter.reason == "rejected" or letter.attempts == DELIVERIES_MAX
                    found[int(one.record.value or b"")] += 1
        assert not [number for number, times in found.items() if times > 1], "a record has two dead letters"
        assert self.buried <= set(found), "a dead letter is gone"
        assert self.rejected <= set(found), "rejected for sure, and no dead letter"
        self.buried = set(found)


class Life:
    """From one start to its end."""

    def __init__(self, world: World, books: Books, address: str, plan: LifePlan, number: int) -> None:
        self.world, self.books, self.plan, self.address = world, books, plan, address
        self.random = random.Random(f"{world.seed}/{number}")
        self.loop = SimulatedLoop(world.time)
        failures = [Failure(self.random.choice(("write", "sync")), after, errno.EIO) for after in plan.failing]
        self.faults = Faults(Plan(cut_after=plan.cut_after, failures=failures), self.random, world.trace, self.loop.halt)
        self.hand: dict[int, Consumed] = {}
        self.came: Counter[int] = Counter()

    def live(self, *, last: bool = False) -> None:
        world = self.world
        world.enter(self.loop)
        try:
            self.loop.run(self.run(last=last))
        finally:
            self.loop.bury()
        world.check()
        assert self.loop.complaints == []
        world.data.lock_holder = None
        if self.faults.off and not self.plan.kill:
            world.lose_power()

    async def run(self, *, last: bool) -> None:
        world = self.world
        disks = [SimulatedDisk(media, self.faults, self.random, world.trace, world.wrote) for media in (world.data, world.keys)]
        stores = SimulatedKeyedStores(world.stores, self.faults, world.trace, world.nonces.stored)
        executor = SimulatedExecutor(self.loop, self.random, world.trace)
        seams = SimulatedSeams(world.clock, SeededRandom(self.random), disks[0], stores, executor)
        engine = EmbeddedEngine(seams, world.keystore(disks[1]), SMALL_OPTIONS)
        if not await self.started(engine):
            return
        self.consumers = Consumers(engine, world.clock, SeededRandom(self.random))
        self.broker = Broker(engine, world.clock, BrokerOptions(partitions_default=2), self.consumers)
        for topic in ("orders", "returns"):
            while topic not in engine.topics():
                await self.attempt(self.broker.create_topic(topic))
        await self.books.read_letters(self.broker)
        while not await self.attempt(self.reopen()):
            pass
        if last:
            await self.finish()
        else:
            for act in (Act("publish", 1.0), Act("next", 0.5), *self.plan.acts):
                await self.attempt(self.do(act))
                await self.books.read_letters(self.broker)
        if self.plan.kill and not last:
            self.faults.kill()
            return
        await self.consumers.close()
        await engine.close()

    async def started(self, engine: EmbeddedEngine) -> bool:
        try:
            await engine.start()
        except (OSError, Unavailable):
            assert self.plan.failing
            return False
        return True

    async def attempt(self, work: Coroutine[Any, Any, Any]) -> bool:
        """False where the disk failed: nothing is confirmed, and the node recovers by itself."""
        try:
            await work
        except Unavailable:
            assert self.plan.failing
            await asyncio.sleep(0.1)
            return False
        return True

    async def reopen(self) -> None:
        self.hand.clear()
        self.consumer = await self.consumers.attach("me", "c", Filter.parse(self.address), OPTIONS, "earliest")

    def some(self, share: float) -> tuple[set[int], list[str]]:
        chosen = [number for number in self.hand if self.random.random() < share]
        tags = [self.hand.pop(number).tag for number in chosen]
        return set(chosen), tags

    async def do(self, act: Act) -> None:
        books, kind = self.books, act.kind
        if kind.startswith("cut at "):  # the next thing that is written, or synced, is the last
            kind = kind.removeprefix("cut at ")
            self.faults.cut_after_next(self.random.choice(("write", "sync")))
        match kind:
            case "publish":
                count = 1 + int(act.share * 6)
                numbers = range(books.number, books.number + count)
                books.number += count
                topic = "orders" if self.address == "orders" else self.random.choice(("orders", "returns"))
                records = [Outgoing(b"eu/%d" % number, b"%d" % number) for number in numbers]
                await self.broker.publish(topic, records, durable=True, auto_create=False)
                books.published |= set(numbers)
            case "next":
                await self.receive(1 + int(act.share * 10))
            case "ack":
                numbers_acked, tags = self.some(act.share)
                books.tried |= numbers_acked
                assert (await self.consumer.ack(tags)).unknown == []
                books.settled |= numbers_acked
            case "nack":
                _, tags = self.some(act.share)
                await self.consumer.nack(tags, delay_ms=self.random.choice((None, 0, 0, 0)))
            case "reject":
                numbers_rejected, tags = self.some(act.share)
                assert (await self.consumer.reject(tags)).unknown == []
                books.rejected |= numbers_rejected - books.tried
            case "extend":
                self.consumer.extend([one.tag for one in self.hand.values()])
            case "time":
                await asyncio.sleep(act.share * 4)
            case "reopen":
                self.consumer.close()
                await self.reopen()
            case "take over":
                await self.reopen()

    async def receive(self, records_max: int) -> list[Consumed]:
        found = await self.consumer.next(bytes_max=1 << 20, records_max=records_max, wait_max_ms=0)
        letters = [one.tag for one in found if one.topic.endswith(".dlq")]  # it reads everything, its own dead letters too
        if letters:
            await self.consumer.ack(letters)
        records = [one for one in found if not one.topic.endswith(".dlq")]
        self.books.received(records)
        self.came.update(int(one.record.value or b"") for one in records)
        assert max(self.came.values(), default=0) <= DELIVERIES_MAX
        self.hand |= {int(one.record.value or b""): one for one in records}
        return records

    async def finish(self) -> None:
        """A consumer that works: everything that was not settled comes, and is settled."""
        books, came = self.books, set()
        quiet = 0
        while quiet < 3:
            records = await self.receive(1_000)
            came |= {int(one.record.value or b"") for one in records}
            await self.consumer.ack([one.tag for one in records])
            quiet = 0 if records else quiet + 1
            await asyncio.sleep(0 if records else 61)
        await books.read_letters(self.broker)
        missing = books.published - books.tried - books.buried - came
        assert not missing, f"{sorted(missing)} came no more, and nobody acknowledged them"
        info = await self.consumers.info("me", "c")
        assert (info.pending, info.in_flight, info.lag_records) == (0, 0, 0)


# An example is several lives of a machine.
@pytest.mark.timeout(600)
@settings(max_examples=settings.default.max_examples // 3)  # type: ignore[union-attr]
@given(st.integers(0, 2**32), st.sampled_from(ADDRESSES), st.lists(lives, min_size=1, max_size=5))
def test_at_least_once_whatever_happens(seed: int, address: str, plans: list[LifePlan]) -> None:
    world, books = World(seed, kind="power"), Books()
    for number, plan in enumerate(plans):
        Life(world, books, address, plan, number).live()
    Life(world, books, address, LifePlan([], None, kill=False), len(plans)).live(last=True)
