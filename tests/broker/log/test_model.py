"""Any sequence of appends, reads, deletions, retention, kills, power cuts and damage: the engine equals a list.

The engine is the real one on the simulated machine; the model is what a reader of `broker/engine/base.py` would write down: a
list of batches for each partition, where it begins, a dictionary of state. After every step everything is read back and compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.batch import build
from broker.engine.base import Append, OffsetForTime, StateChange, StateSpace, Stored
from broker.engine.embedded import EmbeddedEngine
from broker.errors import OffsetOutOfRange
from tests.simulation.disk import SimulatedDisk
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import Faults, Plan
from tests.simulation.flips import slots
from tests.simulation.loop import SimulatedLoop
from tests.simulation.run import quiet
from tests.simulation.seams import SeededRandom, SimulatedSeams
from tests.simulation.store import SimulatedKeyedStores
from tests.simulation.world import SMALL_OPTIONS, World

TOPICS = {"orders": 2, "readings": 1}
KEYS = (b"a", b"b", b"eu/7", None)
OPTIONS = msgspec.structs.replace(
    SMALL_OPTIONS, journal_file_bytes=8 * 1024, merge_own_bytes=16 * 1024, merge_dead_bytes=4 * 1024
)
NOT_FOUND = OffsetForTime(-1, -1)
RECORDS = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 2_000), st.integers(0, 50)), min_size=1, max_size=4)
CHANGES = st.dictionaries(st.sampled_from((b"a", b"b", b"")), st.booleans(), max_size=2)
PAGES = st.sampled_from((1, 2_000, 1 << 20))
PLACES = st.sampled_from([(name, partition) for name, count in TOPICS.items() for partition in range(count)])
Place = tuple[str, int]


@dataclass(eq=False)
class Entry:
    """A batch as the model has it. Records are offset, key and timestamp."""

    base_offset: int
    sequence: int
    body: bytes
    records: list[tuple[int, bytes | None, int]]
    lost: bool = False

    @property
    def next_offset(self) -> int:
        return self.base_offset + len(self.records)


@dataclass
class Log:
    start: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.entries[-1].next_offset if self.entries else 0

    def kept(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.next_offset > self.start and not entry.lost]

    def records(self) -> list[tuple[int, bytes | None, int]]:
        return [record for entry in self.kept() for record in entry.records if record[0] >= self.start]


class EngineAsModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._world = World(0, kind="media")
        self._lives = self._built = 0
        self.logs: dict[Place, Log] = {}
        self.state: dict[tuple[StateSpace, bytes], bytes] = {}
        self._quiet = quiet()
        self._quiet.__enter__()

    def teardown(self) -> None:
        self._loop.bury()
        self._quiet.__exit__(None, None, None)

    # -- the machine ------------------------------------------------------------------------------------------------------

    @initialize()
    def first_start(self) -> None:
        self._start()
        for name, partitions in TOPICS.items():
            self._run(self.engine.create_topic(name, partitions, {}))
            self.logs |= {(name, partition): Log() for partition in range(partitions)}

    def _start(self) -> None:
        world, number = self._world, self._lives
        self._lives += 1
        self._loop = SimulatedLoop(world.time)
        self._faults = Faults(Plan(), world.draw(f"faults {number}"), world.trace, self._loop.halt)
        disk = SimulatedDisk(world.data, self._faults, world.draw(f"disk {number}"), world.trace, world.wrote)
        keys = SimulatedDisk(world.keys, self._faults, world.draw(f"keys {number}"), world.trace, world.wrote)
        stores = SimulatedKeyedStores(world.stores, self._faults, world.trace, world.nonces.stored)
        executor = SimulatedExecutor(self._loop, world.draw(f"executor {number}"), world.trace)
        seams = SimulatedSeams(world.clock, SeededRandom(world.draw(f"random {number}")), disk, stores, executor)
        self.engine = EmbeddedEngine(seams, world.keystore(keys), OPTIONS, holder=f"life {number}")
        self._run(self.engine.start())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run(work)

    def _die(self) -> None:
        self._faults.kill()
        self._loop.bury()
        self._world.data.lock_holder = None

    # -- writing ----------------------------------------------------------------------------------------------------------

    def _draft(self, place: Place, records: list[tuple[bytes | None, int, int]]) -> tuple[Append, Entry]:
        now_ms = self._world.clock.now_ms()
        drafts: list[tuple[int, bytes | None, bytes | None, tuple[tuple[bytes, bytes], ...]]] = []
        for key, size, age_ms in records:
            self._built += 1
            drafts.append((now_ms - age_ms, key, b"%d " % self._built + bytes(size), ()))
        batch = build(drafts)
        entry = Entry(0, 0, batch[16:], [(n, key, time) for n, (time, key, _, _) in enumerate(drafts)])
        return Append(*place, batch, [key for key, _, _ in records] if self._built % 3 else None), entry

    @rule(parts=st.lists(st.tuples(PLACES, RECORDS), max_size=3), changes=CHANGES)
    def append(self, parts: list[tuple[Place, list[tuple[bytes | None, int, int]]]], changes: dict[bytes, bool]) -> None:
        self._built += 1
        drawn = [(place, *self._draft(place, records)) for place, records in parts]
        wanted = [StateChange(StateSpace.POSITION, key, b"%d" % self._built if kept else None) for key, kept in changes.items()]
        answers = self._run(self.engine.append([append for _, append, _ in drawn], changes=wanted))
        for (place, _, entry), answer in zip(drawn, answers, strict=True):
            assert (answer.topic, answer.partition, answer.count) == (*place, len(entry.records))
            self._add(place, entry, answer.base_offset, answer.sequence)
        self._apply(wanted)

    def _add(self, place: Place, entry: Entry, base_offset: int, sequence: int) -> None:
        log = self.logs[place]
        assert base_offset == max(log.end, log.start)
        entry.base_offset, entry.sequence = base_offset, sequence
        entry.records = [(base_offset + at, key, time) for at, key, time in entry.records]
        log.entries.append(entry)

    def _apply(self, changes: list[StateChange]) -> None:
        for change in changes:
            self.state.pop((change.space, change.key), None)
            if change.value is not None:
                self.state[change.space, change.key] = change.value

    @rule(place=PLACES, records=RECORDS, operations=st.integers(1, 4), power=st.booleans())
    def append_and_die(self, place: Place, records: list[tuple[bytes | None, int, int]], operations: int, power: bool) -> None:
        """At one of the next operations on the disk: then it is there, with its state, or neither."""
        append, entry = self._draft(place, records)
        self._built += 1
        wanted = [StateChange(StateSpace.IDEMPOTENCY, b"k", b"%d" % self._built)]
        self._faults.cut_after_operations(operations)
        answers = self._run(self.engine.append([append], changes=wanted))
        self._die()
        if power:
            self._world.data.lose_power()
            self._world.stores.lose_power()
        self._start()
        log = self.logs[place]
        if self.engine.offsets(place[0])[place[1]].high_watermark > max(log.end, log.start):
            self._add(place, entry, max(log.end, log.start), 0)
            self._apply(wanted)
        assert answers is None or log.entries[-1:] == [entry], "acknowledged and gone"

    @rule(place=PLACES, share=st.sampled_from((0.0, 0.2, 0.5, 1.0, -1.0)))
    def delete_records(self, place: Place, share: float) -> None:
        log = self.logs[place]
        end = max(log.end, log.start)
        before = -1 if share < 0 else log.start + round((end - log.start) * share)
        assert self._run(self.engine.delete_records(*place, before)) == (end if before < 0 else before)
        log.start = end if before < 0 else before

    @rule(place=PLACES, size=st.sampled_from((0, 2_000, 20_000)))
    def retain(self, place: Place, size: int) -> None:
        """Which files there are is the engine's business; that no less is kept than was asked for is not."""
        name = place[0]
        self._run(self.engine.alter_topic(name, configs={"retention.bytes": str(size)}))
        self._run(self.engine.apply_retention())
        self._run(self.engine.alter_topic(name, configs={"retention.bytes": "-1"}))
        for partition, offsets in enumerate(self.engine.offsets(name)):
            log = self.logs[name, partition]
            if offsets.log_start > log.start:
                kept = [entry for entry in log.entries if entry.base_offset >= offsets.log_start]
                assert offsets.log_start in [entry.next_offset for entry in log.entries]
                assert sum(len(entry.body) + 16 + 200 for entry in kept) >= size
                log.start = offsets.log_start

    @rule(name=st.sampled_from(sorted(TOPICS)))
    def delete_and_make_again(self, name: str) -> None:
        self._run(self.engine.delete_topic(name))
        self._run(self.engine.create_topic(name, TOPICS[name], {}))
        self.logs |= {(name, partition): Log() for partition in range(TOPICS[name])}

    # -- stopping ---------------------------------------------------------------------------------------------------------

    @rule(how=st.sampled_from(("stop", "kill", "power")), time_ms=st.integers(0, 300))
    def restart(self, how: str, time_ms: int) -> None:
        """Everything was acknowledged: nothing may change."""
        if time_ms:
            self._run(self._pass(time_ms))
        if how == "stop":
            self._run(self.engine.close())
            self._loop.bury()
        else:
            self._die()
        if how == "power":
            for media in (self._world.data, self._world.keys):
                media.lose_power()
            self._world.stores.lose_power()
        self._start()

    async def _pass(self, time_ms: int) -> None:
        await asyncio.sleep(time_ms / 1000)

    @precondition(lambda self: any(log.kept() for log in self.logs.values()))
    @rule(data=st.data(), at=st.floats(0, 0.99))
    def damage(self, data: st.DataObject, at: float) -> None:
        """A byte of one batch, while the node is stopped: that batch is lost and reported, and nothing else."""
        place, entry = data.draw(st.sampled_from([(p, e) for p, log in self.logs.items() for e in log.kept()]))
        topic_id = self.engine.topics()[place[0]].topic_id
        self._run(self.engine.close())
        self._loop.bury()
        media = self._world.data
        for path in media.files():
            for position, slot in slots(media.content(path)):
                if (slot.topic_id, slot.partition, slot.base_offset) == (topic_id, place[1], entry.base_offset):
                    body = position + 128
                    media.flip(path, [body + int((slot.sealed_bytes - 128) * at)])
        self._start()
        self._run(self._read(place, 1 << 20))  # files that are sealed are looked at when they are read
        told = [d for d in self.engine.damage() if (d.topic, d.partition) == place]
        entry.lost = any(d.from_offset <= max(entry.base_offset, self.logs[place].start) < d.to_offset for d in told)
        assert entry.lost

    # -- reading ----------------------------------------------------------------------------------------------------------

    async def _read(self, place: Place, page: int) -> list[Stored]:
        found: list[Stored] = []
        offsets = self.engine.offsets(place[0])[place[1]]
        offset = offsets.log_start
        while offset < offsets.high_watermark:
            fetched = await self.engine.fetch(*place, offset, bytes_max=page)
            found += fetched.batches
            assert fetched.next_offset > offset
            offset = fetched.next_offset
        return found

    def _compare(self, log: Log, found: list[Stored]) -> None:
        kept = log.kept()
        assert [(s.base_offset, s.next_offset, s.batch[16:]) for s in found] == [
            (entry.base_offset, entry.next_offset, entry.body) for entry in kept
        ]
        for entry, stored in zip(kept, found, strict=True):
            entry.sequence = entry.sequence or stored.sequence
            assert stored.sequence == entry.sequence
            assert max(stored.first_offset, stored.base_offset) == max(entry.base_offset, log.start)

    @invariant()
    def is_equal(self) -> None:
        if not self._lives:
            return
        page = (1, 3_000, 1 << 20)[self._built % 3]
        for place, log in self.logs.items():
            offsets = self.engine.offsets(place[0])[place[1]]
            assert (offsets.log_start, offsets.high_watermark) == (log.start, max(log.end, log.start))
            self._compare(log, self._run(self._read(place, page)))
        for space in StateSpace:
            assert dict(self.engine.states(space)) == {key: value for (s, key), value in self.state.items() if s is space}

    @rule(place=PLACES, offset=st.integers(0, 60), page=PAGES)
    def fetch(self, place: Place, offset: int, page: int) -> None:
        log = self.logs[place]
        try:
            fetched = self._run(self.engine.fetch(*place, offset, bytes_max=page))
        except OffsetOutOfRange:
            assert not log.start <= offset <= max(log.end, log.start)
            return
        wanted = [entry for entry in log.kept() if entry.next_offset > offset]
        assert [s.base_offset for s in fetched.batches] == [e.base_offset for e in wanted[: len(fetched.batches)]]
        assert fetched.batches or fetched.damage or not wanted

    @rule(page=PAGES)
    def scan(self, page: int) -> None:
        found: list[tuple[str, Stored]] = []
        sequence = 0
        while sequence < self.engine.next_sequence():
            scanned = self._run(self.engine.scan(sequence, topics=lambda name: True, bytes_max=page))
            found += scanned.batches
            sequence = scanned.next_sequence
        assert [s.sequence for _, s in found] == sorted(s.sequence for _, s in found)
        for place, log in self.logs.items():
            self._compare(log, [s for name, s in found if (name, s.partition) == place])

    @rule(place=PLACES, key=st.sampled_from(KEYS))
    def find_latest(self, place: Place, key: bytes | None) -> None:
        latest = self._run(self.engine.find_latest(*place, key))
        holding = [offset for offset, of_record, _ in self.logs[place].records() if of_record == key]
        assert (latest is None) == (not holding)
        assert latest is None or latest.base_offset <= holding[-1] < latest.next_offset

    @rule(place=PLACES, back=st.integers(0, 20))
    def by_time(self, place: Place, back: int) -> None:
        records = self.logs[place].records()
        newest = max(((time, -offset) for offset, _, time in records), default=None)
        answer = self._run(self.engine.offset_of_max_timestamp(*place))
        assert answer == (NOT_FOUND if newest is None else OffsetForTime(-newest[1], newest[0]))
        time_ms = (newest[0] if newest else 0) - back
        first = next(((offset, time) for offset, _, time in records if time >= time_ms), None)
        found = self._run(self.engine.offset_for_time(*place, time_ms))
        assert found == (NOT_FOUND if first is None else OffsetForTime(*first))


EngineAsModel.TestCase.settings = settings(
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestEngineAsModel = EngineAsModel.TestCase
