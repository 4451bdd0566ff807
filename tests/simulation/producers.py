"""Worlds with producers that number their batches, and with transactions, while the power fails, the process is killed and calls
of the disk fail. Clients outlive the node: what they were not answered they send again, as Kafka's do.

    python -m tests.simulation.producers --seed 7            replay one world
    python -m tests.simulation.producers --runs 200          worlds 0 to 199

What has to hold:
- a numbered batch that was acknowledged is there, once, at the offset that was told; no batch is there twice, or out of order;
- of a transaction readers have all or nothing: all once its commit was acknowledged, nothing once it was aborted or fenced;
- a copy made in transactions that carry their offsets is its source up to the committed offset: nothing left out, nothing twice.
All of it while the topic of the first two is compacted.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

import msgspec

from broker.batch import read_header, walk
from broker.broker import Outgoing
from broker.engine.embedded import EmbeddedEngine
from broker.errors import Unavailable
from broker.groups.offsets import GroupOffset
from broker.producers.errors import OutOfOrderSequence
from broker.transactions.transaction import Place
from tests.broker.transactions.shop import Shop, numbered
from tests.simulation.faults import Plan
from tests.simulation.ledger import Broken
from tests.simulation.small_world import SmallWorld, campaign, simulate_quietly
from tests.simulation.world import SMALL_OPTIONS

TOPIC, SOURCE, COPY, GROUP = "orders", "source", "copy", "copiers"
TOPICS = {TOPIC: 2, SOURCE: 1, COPY: 1}
# Each record has a key of its own: compaction takes what was aborted, and the ends of which nothing is left.
COMPACT = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "delete.retention.ms": "20"}
CONFIGS = {TOPIC: COMPACT, SOURCE: {"retention.ms": "-1"}, COPY: {"retention.ms": "-1"}}
KINDS = ("power", "power", "errors")
LIVES = 10
STEPS = 14
IN_FLIGHT_MAX = 5  # what a producer may have under way (KIP-98)
TIMEOUT_MS = 2_000
CHECK_MS = 50
OPTIONS = msgspec.structs.replace(
    SMALL_OPTIONS,
    journal_file_bytes=4 * 1024,
    ring_bytes_max=2 * 1024,
    merge_own_bytes=12 * 1024,
    merge_files_min=4,
    retention_check_ms=10,  # compaction is thought of as often
)

Producer = tuple[int, int]


@dataclass
class Numbering:
    """A producer without transactions: what it has sent and was not answered yet, and what it was told."""

    producer: Producer | None = None
    sequence: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0})
    waiting: dict[int, list[tuple[int, list[bytes]]]] = field(default_factory=lambda: {0: [], 1: []})
    told: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    sent: dict[int, list[bytes]] = field(default_factory=lambda: {0: [], 1: []})


@dataclass(eq=False)
class Written:
    """One transaction, as its client knows it: open, committing, committed, aborting, aborted or unknown."""

    values: list[bytes] = field(default_factory=list)
    outcome: str = "open"
    seen: bool | None = None


@dataclass
class Writer:
    """A transactional producer. `grows`: its epochs grow with each transaction, and partitions join by themselves (KIP-890)."""

    id: str
    grows: bool
    producer: Producer | None = None
    sequence: dict[int, int] = field(default_factory=dict)
    history: list[Written] = field(default_factory=list)
    under_way: bool = False
    sending: tuple[int, int, list[bytes]] | None = None
    """Partition, sequence and values of a batch that was not answered."""

    @property
    def undecided(self) -> bool:
        return bool(self.history) and self.history[-1].outcome in ("open", "committing", "aborting")

    def fenced(self, producer: Producer) -> None:
        """A new run of it: what was open is decided."""
        self.producer, self.sequence, self.under_way, self.sending = producer, {}, False, None
        for one in self.history[-1:]:
            one.outcome = {"open": "aborted", "aborting": "aborted", "committing": "unknown"}.get(one.outcome, one.outcome)

    def next(self, partition: int, count: int) -> int:
        first = self.sequence.get(partition, 0)
        self.sequence[partition] = first + count
        return first


class ProducerWorld(SmallWorld):
    """Clients and judge."""

    name, kinds, options, lives_max = "producers", KINDS, OPTIONS, LIVES

    def __init__(self, seed: int, kind: str | None = None) -> None:
        super().__init__(seed, kind)
        self.numbering = [Numbering() for _ in range(2)]
        self.writers = [Writer("steady", grows=False), Writer("growing", grows=True)]
        self.copier = Writer("copier", grows=False)

    def _spare(self, plan: Plan) -> None:
        if self._random.random() < 0.2:
            plan.cut_after = None
        elif plan.cut_after is not None:
            plan.cut_after *= self._random.choice((1, 2, 4))

    async def _run(self, engine: EmbeddedEngine, last: bool) -> None:
        try:
            shop = await self._started(engine)
        except (OSError, Unavailable):
            if not self._failing:
                raise
            return
        await self._judge(shop)
        self._phase = "working"
        clients = [self._number(shop, one) for one in self.numbering]
        clients += [self._transact(shop, one) for one in self.writers]
        clients += [self._fill_source(shop), self._copy(shop)]
        await asyncio.gather(*clients)
        if self._random.random() < 0.7:
            await self._come_to_rest(shop)
        self.counts["append failed"] += engine.stats().append_failures
        self.counts["merges"] += engine.stats().merges
        self.counts["compactions"] += engine.stats().compactions
        if last:
            await self._end_all(shop)
        await self._judge(shop, strict=last)
        if not last and self._random.random() < 0.5:
            self._phase = "killed"
            self._faults.kill()
            await asyncio.sleep(1)
        await shop.transactions.close()
        await engine.close()
        self._phase = "stopped"

    async def _started(self, engine: EmbeddedEngine) -> Shop:
        await engine.start()
        shop = Shop(engine, self.machine.clock, check_ms=CHECK_MS)  # type: ignore[arg-type]
        for name, partitions in TOPICS.items():
            if name not in engine.topics():
                await engine.create_topic(name, partitions, CONFIGS[name])
        forget = shop.stability.markers_gone

        async def markers_gone(topic_id: bytes, partition: int, offsets: Sequence[int]) -> None:
            self.counts["ends let go"] += len(offsets)
            await forget(topic_id, partition, offsets)

        shop.stability.markers_gone = markers_gone  # type: ignore[method-assign]
        return await shop.open()

    async def _come_to_rest(self, shop: Shop) -> None:
        """Nothing is open any more: compaction may go to the end."""
        for writer in (*self.writers, self.copier):
            await self._patiently(self._begin_again(shop, writer))
        await asyncio.sleep(0.1)

    # Clients

    def _draw(self, who: str) -> list[bytes]:
        values = []
        for _ in range(self._random.choice((1, 1, 2, 4))):
            self._built += 1
            values.append(b"%s-%d " % (who.encode(), self._built) + bytes(self._random.choice((0, 30, 400))))
        return values

    async def _patiently(self, work: Awaitable[object]) -> bool:
        """False where the disk failed; the client tries again later."""
        try:
            await work
        except (Unavailable, OSError):
            if not self._failing:
                raise
            await asyncio.sleep(0.02)
            return False
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.001, 0.005)))
        return True

    async def _number(self, shop: Shop, client: Numbering) -> None:
        for _ in range(STEPS):
            partition = self._random.randrange(2)
            waiting = client.waiting[partition]
            for _ in range(self._random.randint(1, IN_FLIGHT_MAX) - len(waiting)):
                values = self._draw("n")
                waiting.append((client.sequence[partition], values))
                client.sequence[partition] += len(values)
                client.sent[partition] += values
            await self._patiently(self._send(shop, client, partition))

    async def _send(self, shop: Shop, client: Numbering, partition: int) -> None:
        if client.producer is None:
            client.producer = await shop.transactions.init_producer_id(None, 0)
        waiting = client.waiting[partition]
        sent = []
        for sequence, values in waiting:
            try:
                duplicate, offset, waiter = shop.submit(numbered(client.producer, sequence, *values, key=None), partition)
            except (OutOfOrderSequence, Unavailable):
                if not self._failing:
                    raise
                break  # one before it failed just now
            self.counts["sent again"] += duplicate is not None
            sent.append((values, offset, waiter))
        for values, offset, waiter in sent:
            if waiter is not None:
                await asyncio.shield(waiter)
            for at, value in enumerate(values):
                client.told[value] = (partition, offset + at)
            waiting.pop(0)

    async def _transact(self, shop: Shop, writer: Writer) -> None:
        for _ in range(STEPS // 2):
            lost = writer.producer is None or self._random.random() < 0.15
            if lost and not await self._patiently(self._begin_again(shop, writer)):
                continue
            if not await self._patiently(self._go_on(shop, writer) if writer.under_way else self._write(shop, writer)):
                writer.producer = None

    async def _begin_again(self, shop: Shop, writer: Writer) -> None:
        writer.producer = None  # an answer that does not come may have fenced it
        writer.fenced(await shop.transactions.init_producer_id(writer.id, TIMEOUT_MS))

    async def _go_on(self, shop: Shop, writer: Writer) -> None:
        """The node was away in the midst of a transaction: what it did not answer is asked for again."""
        self.counts["gone on with"] += 1
        written = writer.history[-1]
        if written.outcome == "open" and writer.sending is not None:
            await self._add(shop, writer)
            await self._send_again(shop, writer)
        elif written.outcome == "open":
            raise Broken("nothing was sent, and a transaction is under way")
        await self._end(shop, writer, written, commit=written.outcome != "aborting")

    async def _write(self, shop: Shop, writer: Writer) -> None:
        written = Written()
        writer.history.append(written)
        await self._add(shop, writer)
        for _ in range(self._random.choice((1, 2, 3))):
            values, partition = self._draw("t"), self._random.randrange(2)
            written.values += values
            writer.sending = partition, writer.next(partition, len(values)), values
            writer.under_way = True
            await self._send_again(shop, writer)
        if self._random.random() < 0.1:
            writer.producer = None  # the client is gone, and its next run finds this open
            return
        await self._end(shop, writer, written, commit=self._random.random() < 0.7)

    async def _add(self, shop: Shop, writer: Writer) -> None:
        if not writer.grows:
            assert writer.producer is not None
            places = [await shop.place(partition) for partition in range(2)]
            await shop.transactions.add_partitions(writer.id, writer.producer, places)

    async def _send_again(self, shop: Shop, writer: Writer) -> None:
        """Kept as `sending` after its answer too: asked for once more it is a duplicate, and is not stored again."""
        assert writer.producer is not None
        assert writer.sending is not None
        partition, sequence, values = writer.sending
        batch = numbered(writer.producer, sequence, *values, transactional=True, key=None)
        await shop.produce(batch, partition, id=writer.id, joins=writer.grows)

    async def _end(self, shop: Shop, writer: Writer, written: Written, *, commit: bool) -> None:
        assert writer.producer is not None
        written.outcome = "committing" if commit else "aborting"
        tries = 3 if self._failing else 1
        for left in reversed(range(tries)):
            try:
                producer = await shop.transactions.end(writer.id, writer.producer, commit=commit, bumps=writer.grows)
                break
            except Unavailable:
                if not left:
                    raise
                self.counts["end asked for again"] += 1
                await asyncio.sleep(0.02)
        if producer != writer.producer:
            writer.producer, writer.sequence = producer, {}
        written.outcome, writer.under_way = "committed" if commit else "aborted", False
        self.counts[written.outcome] += 1

    async def _fill_source(self, shop: Shop) -> None:
        for _ in range(STEPS):
            records = [Outgoing(b"k", value, ()) for value in self._draw("s")]
            await self._patiently(shop.broker.publish(SOURCE, records, durable=True, auto_create=False))

    async def _copy(self, shop: Shop) -> None:
        for _ in range(STEPS):
            lost = self.copier.producer is None or self.copier.undecided
            if lost and not await self._patiently(self._begin_again(shop, self.copier)):
                continue
            if not await self._patiently(self._copy_some(shop)):
                self.copier.producer = None

    async def _copy_some(self, shop: Shop) -> None:
        writer, source = self.copier, shop.broker.topic(SOURCE)
        assert writer.producer is not None
        offset = self._copied(shop)
        page = await shop.broker.fetch(
            SOURCE, 0, offset, records_max=self._random.randint(1, 5), bytes_max=1 << 20, wait_max_ms=0
        )
        if not page.records:
            return
        written = Written()
        writer.history.append(written)
        values = [record.value or b"" for record in page.records]
        written.values += values
        copy = shop.broker.topic(COPY)
        await shop.transactions.add_partitions(writer.id, writer.producer, [Place(COPY, copy.topic_id, 0)])
        batch = numbered(writer.producer, writer.next(0, len(values)), *values, transactional=True)
        await shop.produce(batch, id=writer.id, name=COPY)
        await shop.transactions.add_offsets(writer.id, writer.producer, GROUP)
        offsets = [GroupOffset(source.topic_id, 0, page.next_offset)]
        await shop.transactions.commit_offsets(writer.id, writer.producer, GROUP, offsets)
        await self._end(shop, writer, written, commit=self._random.random() < 0.8)

    def _copied(self, shop: Shop) -> int:
        found = shop.offsets.committed(GROUP, shop.broker.topic(SOURCE).topic_id, 0)
        return 0 if found is None else found.offset

    async def _end_all(self, shop: Shop) -> None:
        """What is left open is fenced; what is waiting is sent."""
        for writer in (*self.writers, self.copier):
            await self._begin_again(shop, writer)
        for client in self.numbering:
            for partition in range(2):
                await self._send(shop, client, partition)

    # Judge

    async def _judge(self, shop: Shop, *, strict: bool = False) -> None:
        raw = {partition: await self._raw(shop, TOPIC, partition) for partition in range(2)}
        read = {partition: await self._read(shop, TOPIC, partition) for partition in range(2)}
        for partition in range(2):
            self._check_numbered(partition, raw[partition])
            await self._check_ends(shop, partition)
            if strict and shop.stable(partition) != shop.high(partition):
                raise Broken(f"{TOPIC}/{partition} is stable to {shop.stable(partition)} of {shop.high(partition)}")
        visible = Counter(value for values in read.values() for value in values)
        if visible and visible.most_common(1)[0][1] > 1:
            raise Broken(f"{visible.most_common(1)} is read more than once")
        whole = all(shop.stable(partition) == shop.high(partition) for partition in range(2))
        for writer in self.writers:
            for written in writer.history:
                self._check_written(writer, written, visible, whole)
        await self._check_commit_order(shop, read, whole)
        await self._check_copy(shop)

    def _check_numbered(self, partition: int, raw: list[tuple[int, bytes]]) -> None:
        places: dict[bytes, int] = {}
        for offset, value in raw:
            if value in places:
                raise Broken(f"{TOPIC}/{partition}: {value[:20]!r} is at {places[value]} and at {offset}")
            places[value] = offset
        for client in self.numbering:
            for value, (where, offset) in client.told.items():
                if where == partition and places.get(value) != offset:
                    raise Broken(f"{value[:20]!r} was acknowledged at {where}/{offset}, it is at {places.get(value)}")
            stored = [value for value in client.sent[partition] if value in places]
            if stored != client.sent[partition][: len(stored)] or [places[v] for v in stored] != sorted(
                places[v] for v in stored
            ):
                raise Broken(f"{TOPIC}/{partition}: a batch is missing before others of its producer, or they are out of order")

    async def _check_ends(self, shop: Shop, partition: int) -> None:
        """Kafka's clients are told of aborted transactions, and pass over their producers' records until they meet the end."""
        ends: set[int] = set()
        offset = 0
        while offset < shop.high(partition):
            page = await shop.engine.fetch(TOPIC, partition, offset, bytes_max=1 << 20)
            ends.update(stored.base_offset for stored in page.batches if read_header(stored.batch).is_control)
            offset = page.next_offset
        told = shop.stability.aborted(shop.broker.topic(TOPIC).topic_id, partition, 0, offset)  # after the read, as fetches do
        if missing := [one for one in told if one.marker_offset not in ends and one.marker_offset < offset]:
            raise Broken(f"{TOPIC}/{partition}: aborted is {missing[0]}, and its end is nowhere")

    def _check_written(self, writer: Writer, written: Written, visible: Counter[bytes], whole: bool) -> None:
        there = [value for value in written.values if visible[value]]
        if written.outcome in ("open", "aborting", "aborted") and there:
            raise Broken(f"{writer.id}: of a transaction that is {written.outcome} is read {there[0][:20]!r}")
        if not whole:
            return  # what is open somewhere holds back what came after it
        if there and len(there) != len(written.values):
            raise Broken(f"{writer.id}: {len(there)} of {len(written.values)} records of one transaction are read")
        if written.outcome == "committed" and len(there) != len(written.values):
            raise Broken(f"{writer.id}: committed was, and is not read, {written.values[0][:20]!r}")
        if written.outcome == "unknown":
            if written.seen not in (None, bool(there)):
                raise Broken(f"{writer.id}: a transaction was decided, and is decided otherwise now")
            written.seen = bool(there)

    async def _check_commit_order(self, shop: Shop, read: dict[int, list[bytes]], whole: bool) -> None:
        tailed: dict[int, list[bytes]] = {0: [], 1: []}
        sequence = 1
        while True:
            tail = await shop.engine.tail(TOPIC, sequence, bytes_max=self._random.choice((1, 4_000, 1 << 20)))
            for stored in tail.batches:
                tailed[stored.partition] += [record.value or b"" for record in walk(stored.batch)]
            if tail.next_sequence <= sequence:
                break
            sequence = tail.next_sequence
        for partition, values in tailed.items():
            if values != read[partition][: len(values)] or (whole and len(values) != len(read[partition])):
                raise Broken(f"{TOPIC}/{partition}: {len(values)} records in commit order, {len(read[partition])} by offsets")

    async def _check_copy(self, shop: Shop) -> None:
        source, copy = await self._read(shop, SOURCE, 0), await self._read(shop, COPY, 0)
        if copy != source[: len(copy)]:
            raise Broken("the copy is not the beginning of its source")
        copied = self._copied(shop)
        if shop.stable(0, COPY) == shop.high(0, COPY) and len(copy) != copied:
            raise Broken(f"{len(copy)} records were copied, the committed offset is {copied}")
        self.counts["most copied"] = max(self.counts["most copied"], len(copy))

    async def _raw(self, shop: Shop, topic: str, partition: int) -> list[tuple[int, bytes]]:
        """Every record there is that a numbering producer has sent."""
        found: list[tuple[int, bytes]] = []
        offset = 0
        while offset < shop.high(partition, topic):
            page = await shop.engine.fetch(topic, partition, offset, bytes_max=self._random.choice((1, 4_000, 1 << 20)))
            for stored in page.batches:
                found += [(r.offset, r.value) for r in walk(stored.batch) if r.value and r.value.startswith(b"n-")]
            offset = page.next_offset
        return found

    async def _read(self, shop: Shop, topic: str, partition: int) -> list[bytes]:
        found: list[bytes] = []
        offset = 0
        while True:
            size = self._random.choice((1, 4_000, 1 << 20))
            page = await shop.broker.fetch(topic, partition, offset, records_max=1_000, bytes_max=size, wait_max_ms=0)
            found += [record.value or b"" for record in page.records]
            if page.next_offset <= offset:
                return found
            offset = page.next_offset


def simulate(seed: int, kind: str | None = None) -> ProducerWorld:
    world = ProducerWorld(seed, kind)
    simulate_quietly(world)
    return world


if __name__ == "__main__":
    sys.exit(campaign(__doc__, ProducerWorld, simulate, sys.argv[1:]))
