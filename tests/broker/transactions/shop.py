"""A shop whose producers number their batches: what Kafka clients do, without the wire."""

from __future__ import annotations

import asyncio

import msgspec

from broker.batch import build, read_header, walk
from broker.batch_header import CONTROL, HEADER_BYTES, TRANSACTIONAL, assemble
from broker.broker import Broker, BrokerOptions
from broker.engine.base import Append, Topic
from broker.engine.embedded import EmbeddedEngine
from broker.groups.group_options import GroupOptions
from broker.groups.offsets import GroupOffsets
from broker.machine import MachineClock
from broker.producers.options import ProducerOptions
from broker.producers.producers import Duplicate
from broker.transactions.options import TransactionOptions
from broker.transactions.transaction import Place

Producer = tuple[int, int]
TIMEOUT_MS = 60_000


class SetClock(MachineClock):
    """The machine's, ahead or behind."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


def numbered(producer: Producer, sequence: int, *values: bytes, transactional: bool = False, key: bytes | None = b"k") -> bytes:
    """`key` None: each record has one of its own, the first word of its value."""
    batch = build(
        [(1_000, value.split()[0] if key is None else key, value, ()) for value in values],
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=sequence,
    )
    if not transactional:
        return batch
    header = msgspec.structs.replace(read_header(batch), attributes=TRANSACTIONAL)
    return assemble(header, batch[HEADER_BYTES:])


class Shop:
    """`one` life of a data folder: engine, broker, offsets of groups."""

    def __init__(self, engine: EmbeddedEngine, clock: SetClock, **options: int) -> None:
        producer_options = {name: value for name, value in options.items() if name in ProducerOptions.__struct_fields__}
        transaction_options = {name: value for name, value in options.items() if name not in producer_options}
        self.engine, self.clock = engine, clock
        self.broker = Broker(
            engine,
            clock,
            BrokerOptions(partitions_default=2),
            producers=ProducerOptions(**producer_options),
            transactions=TransactionOptions(**{"check_ms": 60_000, **transaction_options}),
        )
        self.producers, self.transactions, self.stability = self.broker.producers, self.broker.transactions, self.broker.stability
        self.offsets = GroupOffsets(engine, clock, GroupOptions())
        self.transactions.offset_changes = self.offsets.changes

    async def open(self) -> Shop:
        await self.transactions.start()
        return self

    async def topic(self, name: str = "orders") -> Topic:
        return self.broker.topics().get(name) or await self.broker.create_topic(name)

    async def place(self, partition: int = 0, name: str = "orders") -> Place:
        topic = await self.topic(name)
        return Place(topic.name, topic.topic_id, partition)

    def submit(
        self, batch: bytes, partition: int = 0, *, id: str | None = None, joins: bool = False, name: str = "orders"
    ) -> tuple[Duplicate | None, int, asyncio.Future[None] | None]:
        """What the Kafka edge does with a batch between two awaits."""
        topic = self.broker.topic(name)
        found = self.producers.check(topic, partition, read_header(batch), transactional_id=id, joins=joins)
        if isinstance(found, Duplicate):
            return found, found.base_offset, found.pending
        landed, waiter = self.engine.submit([Append(name, partition, batch)], changes=lambda landed: found.changes(landed[0]))
        found.submitted(waiter)
        return None, landed[0].base_offset, waiter

    async def produce(
        self, batch: bytes, partition: int = 0, *, id: str | None = None, joins: bool = False, name: str = "orders"
    ) -> int:
        _, offset, waiter = self.submit(batch, partition, id=id, joins=joins, name=name)
        if waiter is not None:
            await asyncio.shield(waiter)
        return offset

    async def begin(self, id: str, *partitions: int, timeout_ms: int = TIMEOUT_MS) -> Producer:
        producer = await self.transactions.init_producer_id(id, timeout_ms)
        await self.transactions.add_partitions(id, producer, [await self.place(one) for one in partitions])
        return producer

    async def mended(self) -> None:
        """After a failed write: until the next journal file is open."""
        for _ in range(5_000):
            if self.engine.append_problem() is None:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("the log takes no appends any more")

    def stable(self, partition: int = 0, name: str = "orders") -> int:
        topic = self.broker.topic(name)
        return self.stability.stable_offset(topic.topic_id, partition, self.high(partition, name))

    def high(self, partition: int = 0, name: str = "orders") -> int:
        return self.broker.offsets(name)[partition].high_watermark

    async def raw(self, partition: int = 0, name: str = "orders") -> list[bytes]:
        """Values of every record of a partition, whatever became of it; markers are left out."""
        fetched = await self.engine.fetch(name, partition, 0, bytes_max=1 << 20)
        return [
            record.value or b""
            for stored in fetched.batches
            if not read_header(stored.batch).attributes & CONTROL
            for record in walk(stored.batch)
        ]

    async def read(self, partition: int = 0, name: str = "orders", wait_max_ms: int = 0) -> list[bytes]:
        """As a reader by offsets of another protocol has it."""
        start = self.broker.offsets(name)[partition].log_start
        page = await self.broker.fetch(name, partition, start, records_max=1_000, bytes_max=1 << 20, wait_max_ms=wait_max_ms)
        return [record.value or b"" for record in page.records]

    async def tailed(self, name: str = "orders") -> list[bytes]:
        """As a reader in commit order has it."""
        found: list[bytes] = []
        sequence = 1
        while True:
            tail = await self.engine.tail(name, sequence, bytes_max=1 << 20)
            if not tail.batches and tail.next_sequence <= sequence:
                return found
            found += [record.value or b"" for stored in tail.batches for record in walk(stored.batch)]
            sequence = tail.next_sequence


class NextLife:
    """Makes a shop over the same folder again, as after a stop."""

    def __init__(self, open_engine: object, clock: SetClock) -> None:
        self._open_engine, self._clock = open_engine, clock
        self.engines: list[EmbeddedEngine] = []
        self.shops: list[Shop] = []

    async def __call__(self, **options: int) -> Shop:
        await self.end()
        engine: EmbeddedEngine = self._open_engine()  # type: ignore[operator]
        await engine.start()
        shop = await Shop(engine, self._clock, **options).open()
        self.engines.append(engine)
        self.shops.append(shop)
        return shop

    async def end(self) -> None:
        for shop in self.shops:
            await shop.transactions.close()
        for engine in self.engines:
            await engine.close()
        self.shops, self.engines = [], []
