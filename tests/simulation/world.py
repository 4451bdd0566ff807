"""A world: the machine, its node through many lives, its clients, and what goes wrong, all drawn from one seed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec

from broker.engine.embedded import EmbeddedEngine
from broker.errors import StorageProblem, Unavailable
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.log.reserve import RESERVE_PATH
from security.crypto.envelope import KEY_BYTES, Secret
from security.crypto.keystore import KeyStore
from security.crypto.kms import FORMAT, VERSION, Kek, KeyFile, LocalFileKms
from security.errors import KeyProblem
from tests.simulation.audit import Audit, Found
from tests.simulation.disk import CAPACITY_BYTES, Media, SimulatedDisk
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import FAILING_KINDS, FAILING_STORE_KINDS, Faults, Plan, draw_plan
from tests.simulation.flips import Damager, Slot
from tests.simulation.ledger import Broken, Ledger
from tests.simulation.loop import SimulatedLoop, VirtualTime
from tests.simulation.nonces import NonceWatch
from tests.simulation.published import Batch
from tests.simulation.seams import JUMP_MS, SeededRandom, SimulatedClock, SimulatedSeams
from tests.simulation.states import StateLedger
from tests.simulation.store import SimulatedKeyedStores, StoresMedia
from tests.simulation.trace import Trace
from tests.simulation.workload import Workload, draw_retention

ACKNOWLEDGED_MIN = 200
FAULTS_MIN = 3
LIVES_MIN, LIVES_MAX = 5, 80
KINDS = ("power", "power", "power", "power", "errors", "errors", "media", "media", "all", "all", "os")

RESERVE_BYTES = 128 * 1024
FULL_TRIES, FULL_RETRY_MS = 50, 20
"""Within a second of virtual time a deletion gets through on a full disk, and appends go on after there is space again."""

SMALL_OPTIONS = LogOptions(
    journal_file_bytes=96 * 1024,
    group_bytes_max=128 * 1024,
    append_queue_bytes_max=512 * 1024,
    ring_bytes_max=24 * 1024,
    index_cache_bytes_max=16 * 1024,
    reads_in_flight_max=4,
    merge_files_min=3,
    merge_own_bytes=128 * 1024,
    merge_input_bytes_max=1024 * 1024,
    recover_retry_ms=20,
    sweep_journal_bytes=0,
    reserve_bytes=RESERVE_BYTES,
    space_check_ms=50,
    merge_dead_bytes=16 * 1024,
    clock_jump_max_ms=JUMP_MS,
    key_walk_interval_ms=20,
    key_walk_file_bytes_min=4 * 1024,
)
"""Small enough that every world seals in place, merges, and reads from files."""


class World:
    def __init__(self, seed: int, *, kind: str | None = None, echo: bool = False) -> None:
        self.seed = seed
        self.trace = Trace(echo=echo)
        self.time = VirtualTime()
        self.clock = SimulatedClock(self.time)
        self.data = Media(self.draw("data disk"), self.trace)
        self.keys = Media(self.draw("key disk"), self.trace)
        self.stores = StoresMedia(self.draw("stores"), self.trace)
        self.ledger = Ledger(self._end, self.clock.believed_ms)
        self.ledger.starts.retention = draw_retention(self.draw("retention"))
        self.states = StateLedger(self.ledger.broken)
        self.nonces = NonceWatch(lambda what: self._end(Broken(what)))
        self.damager = Damager(self.draw("damage"), self.trace, self.data, self.keys, self.stores)
        self.plans = self.draw("plans")
        drawn = self.plans.choice(KINDS)
        self.kind = kind or drawn
        self.lives = self.faults = self.lost_in_damage = self.partitions = 0
        self._secrets = SeededRandom(self.draw("secrets"))
        self._kms = self._make_kms()
        self._broken: Broken | None = None
        self._loop: SimulatedLoop | None = None
        self.stamp_again = False
        self.interrupted_starts = 0
        self.power_lost = False
        self.store_failed = False
        self._flipped_ever = False

    def draw(self, what: str) -> random.Random:
        """A stream of chance of its own for every use, so that one more draw in one place moves nothing elsewhere."""
        return random.Random(f"{self.seed}/{what}")

    @property
    def flips_bits(self) -> bool:
        return self.kind in ("media", "all")

    @property
    def failing(self) -> tuple[str, ...]:
        """Where bits flip as well the keyed store does not fail: what it holds would then be nowhere."""
        if self.kind == "errors":
            return FAILING_KINDS + FAILING_STORE_KINDS
        return FAILING_KINDS if self.fails_calls else ()

    @property
    def fails_calls(self) -> bool:
        return self.kind in ("errors", "all")

    def run(self) -> None:
        """Until enough happened; then one quiet life and one more start, to read everything back. Raises what was broken."""
        while not self._enough():
            Life(self, self.lives, draw_plan(self.plans, self.failing), self.plans.randint(15, 90)).live()
        for _ in range(2):
            Life(self, self.lives, Plan(), 10, last=True).live()

    def _enough(self) -> bool:
        if self.lives >= LIVES_MAX:
            raise Broken(f"only {self.ledger.acknowledged} batches acknowledged in {self.lives} lives")
        done = self.ledger.acknowledged >= ACKNOWLEDGED_MIN and self.faults >= FAULTS_MIN
        return done and self.lives >= LIVES_MIN

    def _make_kms(self) -> LocalFileKms:
        """As from its file, which lies on no simulated disk: losing the KEK is not this test's subject."""
        kek = Kek("kek-simulated", "active", 0, Secret(self._secrets.bytes(KEY_BYTES)))
        return LocalFileKms(Path("nowhere"), KeyFile(FORMAT, VERSION, (kek,)), self._secrets.bytes)

    def _end(self, broken: Broken) -> None:
        """The first verdict counts; nothing runs after it."""
        self._broken = self._broken or broken
        if self._loop is not None:
            self._loop.halt()

    def enter(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.lives += 1

    def check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def excused(self) -> dict[int, Batch]:
        """Batches that may be gone: in a newest group that flipped bits hit, or, with durability "os", by a power cut."""
        if self.kind == "os" and self.power_lost:
            self.ledger.starts.power_lost()
            return self.ledger.excuse(0)
        return {} if self.damager.doubtful is None else self.ledger.excuse(self.damager.doubtful)

    @property
    def view_may_be_rebuilt(self) -> bool:
        """Where bits flipped, where a power cut tore it, where it refused a write once, and with "os", where it may outlive the
        journal."""
        return self.damage_allowed or self.stores.torn or self.store_failed or (self.kind == "os" and self.power_lost)

    def lose_power(self, mode: str | None = None) -> None:
        self.power_lost = True
        self.data.lose_power(mode)
        self.keys.lose_power(mode)
        self.stores.lose_power(may_tear=not self.damager.journals_hit)

    def wrote(self, path: str, data: bytes) -> None:
        """Everything that goes to a disk passes here."""
        self.nonces.wrote(path, data)
        if self.flips_bits:
            self.damager.wrote(path, data)

    def keystore(self, disk: SimulatedDisk) -> KeyStore:
        return KeyStore(KeyStoreBlob(disk), self._kms, self._secrets.bytes)

    def damage_media(self) -> None:
        """The machine is off: now and then the media come back other than they were."""
        if not self.flips_bits:
            return
        flip_state = self.stores.tail_lost and self.plans.random() < 0.6
        hit = self.damager.put_back(self._has_successor) or (flip_state and self.damager.flip_state())
        if not hit and self.plans.random() < 0.5:
            hit = True
            for _ in range(self.plans.choice((1, 1, 2))):
                self.damager.flip()
        if hit:
            self.faults += 1
            self._flipped_ever = True

    def _has_successor(self, slot: Slot) -> bool:
        log = self.ledger.log(slot.topic_id, slot.partition)
        return any(batch.base_offset == slot.base_offset + slot.last_offset_delta + 1 for batch in log)

    def flip_live(self) -> None:
        self.damager.flip_sealed()
        self._flipped_ever = True

    @property
    def damage_allowed(self) -> bool:
        return self._flipped_ever


class Life:
    """From one start of the process to its end."""

    def __init__(self, world: World, number: int, plan: Plan, goal: int, *, last: bool = False) -> None:
        self._world = world
        self._number = number
        self._goal = goal
        self._last = last
        self._trace = world.trace
        self._random = world.draw(f"life {number}")
        self._loop = SimulatedLoop(world.time)
        self._plan = plan
        self._ending = self._draw_ending()
        self._faults = Faults(plan, world.draw(f"faults {number}"), world.trace, self._loop.halt)
        self._executor = SimulatedExecutor(self._loop, world.draw(f"executor {number}"), world.trace)
        self._phase = "starting"
        self._full_start = world.fails_calls and not last and self._random.random() < 0.12

    def _draw_ending(self) -> str:
        if self._last:
            return "stop"
        if self._world.stamp_again:
            # The second half of a roll-back has to get as far as the stamps. Sealed or not, their file must not go unnoticed:
            # a sealed one is checked against its footer, an open one by the chain alone.
            self._plan.cut_after = None
            self._goal = 5
            return self._random.choice(("cut", "cut", "stop"))
        if self._world.flips_bits and self._random.random() < 0.4:
            self._plan.cut_after = None
            return "roll back"
        return self._random.choice(("cut", "cut", "kill", "stop"))

    def live(self) -> None:
        world = self._world
        world.enter(self._loop)
        world.clock.start()
        self._trace.note("life", self._number, self._ending)
        try:
            self._loop.run(self._run(self._make_seams()))
        finally:
            self._loop.bury()
        world.check()
        if self._loop.complaints:
            raise Broken(f"exceptions nobody took: {self._loop.complaints}")
        self._end()
        failed = [failure.kind for failure in self._plan.failures if failure.after <= 0]
        world.faults += len(failed)
        world.store_failed |= any(kind in FAILING_STORE_KINDS for kind in failed)

    def _end(self) -> None:
        """What becomes of the machine now that the process is gone."""
        world = self._world
        world.data.capacity_bytes = CAPACITY_BYTES
        world.data.lock_holder = None  # a lock is the kernel's, and goes with the process
        if self._phase in ("starting", "refused"):
            world.interrupted_starts += 1
        if self._phase == "killed":
            self._trace.count("process killed")
            world.faults += 1
        elif self._phase == "stopped":
            self._trace.count("clean stop")
        if self._faults.off and self._phase != "killed":
            if self._phase == "starting":
                self._trace.count("power cut while starting")
            world.faults += 1
            world.lose_power("lost" if self._phase == "rolling back" else None)
        elif self._random.random() < 0.3 and not self._last:
            self._trace.count("power cut while off")
            world.lose_power()
        if not self._last:
            world.damage_media()

    def _make_seams(self) -> SimulatedSeams:
        world, number = self._world, self._number
        disk = SimulatedDisk(world.data, self._faults, world.draw(f"disk {number}"), self._trace, world.wrote)
        stores = SimulatedKeyedStores(world.stores, self._faults, self._trace, world.nonces.stored)
        return SimulatedSeams(world.clock, SeededRandom(world.draw(f"random {number}")), disk, stores, self._executor)

    async def _run(self, seams: SimulatedSeams) -> None:
        world = self._world
        keys = SimulatedDisk(world.keys, self._faults, world.draw(f"key disk {self._number}"), self._trace, world.wrote)
        options = msgspec.structs.replace(SMALL_OPTIONS, durability="os" if world.kind == "os" else "fsync")
        engine = EmbeddedEngine(seams, world.keystore(keys), options, holder=f"life {self._number}")
        has_reserve = self._has_reserve()
        if self._full_start:
            self._trace.count("disk full while starting")
            world.data.capacity_bytes = world.data.used_bytes()
        if not await self._start(engine, may_fail=self._full_start and not has_reserve):
            return
        await self._audit(engine)
        self._phase = "working"
        workload = Workload(
            engine,
            world.ledger,
            world.states,
            world.clock,
            self._random,
            self._trace,
            life=self._number,
            goal=self._goal,
            whole=not world.flips_bits,
        )
        if world.stamp_again:
            world.stamp_again = not await workload.stamp(2)
        await workload.run(lambda: self._disturb(engine, workload))
        self._count(engine)
        await self._finish(engine, workload)

    def _has_reserve(self) -> bool:
        data = self._world.data
        return RESERVE_PATH in data.names and len(data.content(RESERVE_PATH)) == RESERVE_BYTES

    async def _start(self, engine: EmbeddedEngine, *, may_fail: bool) -> bool:
        """False when the node rightly refused: the operator brings back what was damaged in all copies.

        On a full disk it starts all the same, if it has a reserve: else nobody could delete anything.
        """
        damager = self._world.damager
        try:
            await engine.start()
        except (StorageProblem, KeyProblem) as refusal:
            if not damager.refusal_is_right():
                raise
            self._trace.count("node: refused to start")
            self._trace.note(str(refusal))
            damager.restore()
            self._phase = "refused"
            return False
        except (OSError, Unavailable) as failure:
            if not may_fail and not any(planned.after <= 0 for planned in self._plan.failures):
                raise
            self._trace.count("node: did not start on a failing disk")
            self._trace.note(str(failure))
            self._phase = "refused"
            return False
        return True

    async def _audit(self, engine: EmbeddedEngine) -> None:
        world = self._world
        if self._state_damage_told(engine):
            world.ledger.starts.state_damaged()
        excused = world.excused()
        self._count_recovery(engine)
        if engine.recovery.view_rebuilt is not None and not world.view_may_be_rebuilt:
            world.ledger.broken(f"the view was rebuilt ({engine.recovery.view_rebuilt}), and not one bit was flipped")
        audit = Audit(engine, world.ledger, self._random, damage_allowed=world.damage_allowed)
        found = await audit.run()
        self._check_excused(engine, excused, found)
        self._check_states(engine)
        world.damager.forget()
        world.clock.settle()
        world.interrupted_starts = 0
        world.power_lost = False
        world.lost_in_damage = max(world.lost_in_damage, len(found.missing))
        world.partitions = max(world.partitions, sum(topic.partitions for topic in engine.topics().values()))
        self._trace.note("audited", found.batches, len(found.missing), len(found.damage))

    def _state_damage_told(self, engine: EmbeddedEngine) -> bool:
        """By this start; or by one before it that did not get to its end, and left its finding in a footer (seed 281)."""
        recorded = self._world.interrupted_starts > 0 and bool(engine._store.unattributed)
        told = engine.recovery.state_damaged or recorded or self._world.damager.doubtful is not None
        return told and self._world.damage_allowed

    def _check_states(self, engine: EmbeddedEngine) -> None:
        world = self._world
        if world.kind == "os" and world.power_lost:
            world.states.reopen()
        lost = world.states.settle(engine, damage_told=self._state_damage_told(engine))
        if lost:
            self._trace.count("state lost in reported damage", lost)

    def _check_excused(self, engine: EmbeddedEngine, excused: dict[int, Batch], found: Found) -> None:
        """What may be gone is gone from the end, and not without a word."""
        ledger = self._world.ledger
        gone = [
            sequence
            for sequence, batch in excused.items()
            if batch.base_offset < 0 and not ledger.is_deleted(batch) and batch.excused_to > ledger.starts.highest(batch.place)
        ]
        if not gone or found.damage:
            return
        kept = max((sequence for sequence, batch in excused.items() if batch.base_offset >= 0), default=0)
        if min(gone) < kept:
            ledger.broken(f"of the newest batches {sorted(gone)} are gone, and {kept} is there")
        told = any(cut.size for cut in engine.recovery.tail_cuts) or self._world.interrupted_starts > 0
        if not told and self._world.kind != "os":
            ledger.broken(f"the newest group was damaged and {sorted(gone)} are gone, and the node reports no cut tail")

    def _count_recovery(self, engine: EmbeddedEngine) -> None:
        report, count = engine.recovery, self._trace.count
        for kind, amount in (
            ("tail cut", sum(cut.size > 0 for cut in report.tail_cuts)),
            ("damaged file stepped over", len(report.damaged_files)),
            ("orphan removed", len(report.orphans)),
            ("view rebuilt", int(report.view_rebuilt is not None)),
            ("damage reported", len(engine.damage())),
        ):
            if amount:
                count(f"node: {kind}", amount)

    def _count(self, engine: EmbeddedEngine) -> None:
        stats = engine.stats()
        for kind, amount in (
            ("sealed in place", stats.sealed_in_place),
            ("merged", stats.merges),
            ("batch walked for its keys", stats.key_walk_batches),
            ("log start moved", stats.log_starts_moved),
            ("file of which nothing is kept removed", stats.files_swept),
            ("append failed", stats.append_failures),
        ):
            if amount:
                self._trace.count(f"node: {kind}", amount)

    async def _finish(self, engine: EmbeddedEngine, workload: Workload) -> None:
        if self._ending == "roll back":
            # Written, never synced, lost: the next life seals another batch of the same size for the same place.
            self._phase = "rolling back"
            self._faults.cut_after_next("write")
            self._world.stamp_again = True
            await workload.stamp(1)
            return
        if self._ending == "stop":
            self._phase = "stopping"
            if self._world.fails_calls and self._random.random() < 0.3 and not self._last:
                self._trace.count("disk full while stopping")
                self._world.data.capacity_bytes = self._world.data.used_bytes()
            await engine.close()
            self._phase = "stopped"
            return
        await asyncio.sleep(self._random.choice((0.0, 0.001, 0.02)))
        if self._ending == "kill":
            self._phase = "killed"
            self._faults.kill()
        else:
            self._trace.count("power cut while idle")
            self._faults.kill()

    async def _disturb(self, engine: EmbeddedEngine, workload: Workload) -> None:
        """Now and then the disk is slow or full, the clock is set, a bit flips under the running node."""
        if self._full_start:
            await asyncio.sleep(self._random.random() * 0.1)
            await self._free_disk(engine)
        while True:
            await asyncio.sleep(self._random.random() * 0.06)
            what = self._random.choice(("slow", "clock", "full", "flip", "nothing", "nothing"))
            if what == "slow":
                self._executor.slow_down(self._random.randint(1, 30))
            elif what == "clock":
                self._trace.count("clock jump")
                self._world.clock.jump(self._random.choice((-3_600_000, -50, 50, 3_600_000)))
            elif what == "full" and self._world.fails_calls:
                await self._fill_disk(engine, workload)
            elif what == "flip" and self._world.flips_bits:
                self._world.flip_live()

    async def _fill_disk(self, engine: EmbeddedEngine, workload: Workload) -> None:
        self._trace.count("disk full")
        self._world.faults += 1
        data, has_reserve = self._world.data, self._has_reserve()
        data.capacity_bytes = data.used_bytes()
        try:
            await asyncio.sleep(self._random.random() * 0.1)
            if has_reserve and self._random.random() < 0.5:
                await self._delete_on_full_disk(workload)
        finally:
            data.capacity_bytes = CAPACITY_BYTES
        await self._free_disk(engine)

    async def _delete_on_full_disk(self, workload: Workload) -> None:
        """What the reserve is for."""
        for _ in range(FULL_TRIES):
            try:
                if await workload.delete_some():
                    self._trace.count("records deleted on a full disk")
                    return
            except Unavailable:
                self._trace.note("not yet")
            await asyncio.sleep(FULL_RETRY_MS / 1000)
        self._world.ledger.broken("the disk is full, there was a reserve, and nobody can delete anything")

    async def _free_disk(self, engine: EmbeddedEngine) -> None:
        """There is space again: appends go on by themselves."""
        self._world.data.capacity_bytes = CAPACITY_BYTES
        for _ in range(FULL_TRIES):
            if engine.append_problem() is None:
                return
            await asyncio.sleep(FULL_RETRY_MS / 1000)
        self._world.ledger.broken(f"there is space on the disk again, and still: {engine.append_problem()}")
