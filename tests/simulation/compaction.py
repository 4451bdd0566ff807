"""Worlds with a compacted topic: the node compacts, merges and lets go while the power fails, the process is killed, calls fail
and bits flip; after each start everything is read back and held against what clients were told.

    python -m tests.simulation.compaction --seed 7           replay one world
    python -m tests.simulation.compaction --runs 200         worlds 0 to 199

What has to hold of every record that was acknowledged or seen once:
- it is there, at its offset, or a newer record of its key is known, or it lies in damage that the node reports;
- once it was found missing, nobody is ever shown it again;
- the newest record of a key is there, if it is not the mark of a deletion. Those without a key may go.
Records of the topic beside, whose files are rewritten along, are all there.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

import msgspec

from broker.batch import build, walk
from broker.compression import Compression
from broker.engine.base import Append, Damage
from broker.engine.embedded import EmbeddedEngine
from broker.errors import StorageProblem, Unavailable
from security.errors import KeyProblem
from tests.simulation.ledger import Broken
from tests.simulation.small_world import SmallWorld, campaign, simulate_quietly
from tests.simulation.world import SMALL_OPTIONS

COMPACTED, PLAIN = "settings", "orders"
PARTITIONS = 2
KEYS = [b"key-%d" % number for number in range(8)]
KINDS = ("power", "power", "errors", "media", "all")
LIVES = 12
BATCHES_A_LIFE = 60
OPTIONS = msgspec.structs.replace(
    SMALL_OPTIONS,
    journal_file_bytes=6 * 1024,
    ring_bytes_max=2 * 1024,
    merge_own_bytes=12 * 1024,
    merge_files_min=5,
    compaction_offsets_max=150,
)
CONFIGS = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.3", "delete.retention.ms": "60"}

Place = tuple[str, int]


@dataclass(eq=False)
class Told:
    """A record as its client knows it. `offset` -1: nobody was told one yet; `released`: it may be gone;
    `missing`: a reader who read all did not meet it."""

    key: bytes | None
    value: bytes | None = field(repr=False)
    offset: int = -1
    missing: bool = False
    released: bool = False


@dataclass
class Model:
    """By partition: what was sent by its mark (a header of its own), and what has a place."""

    sent: dict[Place, dict[bytes, Told]] = field(default_factory=dict)

    def of(self, place: Place) -> dict[bytes, Told]:
        return self.sent.setdefault(place, {})


class CompactedWorld(SmallWorld):
    """Clients and judge."""

    name, kinds, options, lives_max = "compaction", KINDS, OPTIONS, LIVES

    def __init__(self, seed: int, kind: str | None = None) -> None:
        super().__init__(seed, kind)
        self.model = Model()
        self._keyless = bool(seed % 2)  # some records have no key: the topic was not always compacted

    async def _run(self, engine: EmbeddedEngine, last: bool) -> None:
        if not await self._started(engine):
            return
        await self._judge(engine)
        self.machine.damager.forget()
        self._phase = "working"
        try:
            await self._work(engine, 5 if last else BATCHES_A_LIFE)
        except (Unavailable, OSError):
            if not self._failing:
                raise
        self.counts["compactions"] += engine.stats().compactions
        self.counts["merges"] += engine.stats().merges - engine.stats().compactions
        await self._judge(engine)
        if not last and self._random.random() < 0.5:
            self._phase = "killed"
            self._faults.kill()
            await asyncio.sleep(1)
        await engine.close()
        self._phase = "stopped"

    async def _started(self, engine: EmbeddedEngine) -> bool:
        machine = self.machine
        try:
            await engine.start()
            if COMPACTED not in engine.topics():
                await engine.create_topic(COMPACTED, PARTITIONS, CONFIGS)
            if PLAIN not in engine.topics():
                await engine.create_topic(PLAIN, 1, {})
        except (StorageProblem, KeyProblem):
            if not machine.damager.refusal_is_right():
                raise
            machine.damager.restore()
            return False
        except (OSError, Unavailable):
            if not self._failing:
                raise
            return False
        return True

    # -- clients ----------------------------------------------------------------------------------------------------------

    async def _work(self, engine: EmbeddedEngine, count: int) -> None:
        for _ in range(count):
            appends = [self._draw(COMPACTED, self._random.randrange(PARTITIONS))]
            if self._random.random() < 0.3:
                appends.append(self._draw(PLAIN, 0))
            try:
                answers = await engine.append([append for append, _ in appends])
            except (Unavailable, OSError):
                if not self._failing:
                    raise
                await asyncio.sleep(0.02)
                continue
            for (_, told), answer in zip(appends, answers, strict=True):
                for at, one in enumerate(told):
                    one.offset = answer.base_offset + at
            if self._random.random() < 0.2:
                await asyncio.sleep(self._random.random() * 0.02)
            if self._random.random() < 0.03:
                await self._judge(engine)
            if self._random.random() < 0.01:
                await self._delete_some(engine)
        await asyncio.sleep(self._random.random() * 0.1)

    async def _delete_some(self, engine: EmbeddedEngine) -> None:
        """From the beginning: the log start moves while a compaction may be under way."""
        partition = self._random.randrange(PARTITIONS)
        offsets = engine.offsets(COMPACTED)[partition]
        before = offsets.log_start + (offsets.high_watermark - offsets.log_start) // 10
        for told in self.model.of((COMPACTED, partition)).values():
            told.released = told.released or told.offset < before
        try:
            await engine.delete_records(COMPACTED, partition, before)
        except (Unavailable, OSError):
            if not self._failing:
                raise

    def _draw(self, topic: str, partition: int) -> tuple[Append, list[Told]]:
        draw = self._random
        drafts, told = [], []
        for _ in range(draw.choice((1, 1, 2, 6))):
            self._built += 1
            mark = b"%d" % self._built
            key = (
                draw.choice(KEYS)
                if draw.random() < 0.9
                else None
                if self._keyless and self._built % 8 == 0
                else b"once-%d" % self._built
            )
            value = None if draw.random() < 0.15 else draw.randbytes(draw.choice((0, 30, 200, 1_000)))
            drafts.append((self.machine.clock.now_ms(), key, value, ((b"mark", mark),)))
            one = Told(key, value)
            self.model.of((topic, partition))[mark] = one
            told.append(one)
        batch = build(drafts, compression=draw.choice((Compression.NONE, Compression.ZSTD)))
        keys = [one.key for one in told] if draw.random() < 0.5 else None
        return Append(topic, partition, batch, keys), told

    # -- judge ------------------------------------------------------------------------------------------------------------

    async def _judge(self, engine: EmbeddedEngine) -> None:
        for topic, partitions in ((COMPACTED, PARTITIONS), (PLAIN, 1)):
            for partition in range(partitions):
                place = (topic, partition)
                # What was acknowledged before the reading began has to be in it.
                known = {mark: told for mark, told in self.model.of(place).items() if told.offset >= 0}
                found = await self._read(engine, place)
                damage = [lost for lost in engine.damage() if (lost.topic, lost.partition) == place]
                if damage and not self.machine.damage_allowed:
                    raise Broken(f"damage without a flipped bit: {damage}")
                self._check(place, engine.offsets(topic)[partition].log_start, known, found, damage)
        if engine._store.unattributed and not self.machine.damage_allowed:
            raise Broken(f"damage without a flipped bit: {engine._store.unattributed}")

    async def _read(self, engine: EmbeddedEngine, place: Place) -> set[bytes]:
        """Marks of the records served; each is checked on the way."""
        topic, partition = place
        offset = engine.offsets(topic)[partition].log_start
        found: set[bytes] = set()
        last = -1
        while offset < engine.offsets(topic)[partition].high_watermark:
            page = await engine.fetch(topic, partition, offset, bytes_max=self._random.choice((1, 4_000, 1 << 20)))
            for stored in page.batches:
                begin = max(offset, stored.first_offset)  # a batch may begin before what was asked for, as in Kafka
                for record in walk(stored.batch):
                    if record.offset < begin:
                        continue
                    told = self.model.of(place).get(record.headers[0][1] or b"")
                    if told is None or (record.key, record.value) != (told.key, told.value):
                        raise Broken(f"{place} at {record.offset}: nobody sent {record.key!r}")
                    if record.offset <= last or told.offset not in (-1, record.offset):
                        raise Broken(f"{place} at {record.offset} after {last}: known as {told}")
                    if told.missing:
                        raise Broken(f"{place} at {record.offset}: was gone, and is back: {told}")
                    last = told.offset = record.offset
                    found.add(record.headers[0][1] or b"")
            if page.next_offset <= offset:
                raise Broken(f"{place}: a page from {offset} leads to {page.next_offset}")
            offset = page.next_offset
        return found

    def _check(self, place: Place, log_start: int, known: dict[bytes, Told], found: set[bytes], damage: list[Damage]) -> None:
        everybody = self.model.of(place)
        newest: dict[bytes | None, int] = {}
        for told in everybody.values():
            newest[told.key] = max(newest.get(told.key, -1), told.offset)
        for mark, told in known.items():
            if mark in found or told.offset < log_start or told.missing or told.released:
                continue
            if place[0] == COMPACTED and (newest[told.key] > told.offset or None in (told.key, told.value)):
                told.missing = not damage
                self.counts["left out"] += 1
                continue
            lost = any(one.from_offset <= told.offset < one.to_offset for one in damage)
            unsure = bool(damage) and any(other.key == told.key and other.offset < 0 for other in everybody.values())
            if not lost and not unsure:
                if self.machine.damager.doubtful is None:
                    raise Broken(f"{place}: lost is {told}, the newest of its key; reported damage {damage}")
                told.released = True  # flipped bits have hit the newest group before anything confirmed it
            self.counts["lost in damage"] += 1


def simulate(seed: int, kind: str | None = None) -> CompactedWorld:
    world = CompactedWorld(seed, kind)
    simulate_quietly(world)
    return world


if __name__ == "__main__":
    sys.exit(campaign(__doc__, CompactedWorld, simulate, sys.argv[1:]))
