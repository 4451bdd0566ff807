"""What worlds about one part of the node have in common: lives of an engine on a simulated machine that fails. Clients and judge
are their own; `World` is the machine."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

from broker.engine.embedded import EmbeddedEngine
from broker.log.options import LogOptions
from tests.simulation.disk import SimulatedDisk
from tests.simulation.executor import SimulatedExecutor
from tests.simulation.faults import Faults, Plan, draw_plan
from tests.simulation.ledger import Broken
from tests.simulation.loop import SimulatedLoop
from tests.simulation.run import quiet
from tests.simulation.seams import SeededRandom, SimulatedSeams
from tests.simulation.store import SimulatedKeyedStores
from tests.simulation.world import World


class SmallWorld:
    """`run` goes through all lives; the last two are spared of faults. `kinds` are drawn from."""

    name: ClassVar[str]
    kinds: ClassVar[Sequence[str]]
    options: ClassVar[LogOptions]
    lives_max: ClassVar[int]

    def __init__(self, seed: int, kind: str | None = None) -> None:
        drawn = random.Random(f"{seed}/{self.name}").choice(self.kinds)
        self.machine = World(seed, kind=kind or drawn)
        self.counts: Counter[str] = Counter()
        self.lives = 0
        self._built = 0

    def run(self) -> None:
        for _ in range(self.lives_max):
            self._live(last=False)
        for _ in range(2):
            self._live(last=True)

    async def _run(self, engine: EmbeddedEngine, last: bool) -> None:
        """One life, from the start of the engine on. `_phase` is `killed` and `stopped` at its end."""
        raise NotImplementedError

    def _spare(self, plan: Plan) -> None:
        """What of the faults drawn for a life is left out, or comes later."""
        if self._random.random() < 0.3:
            plan.cut_after = None

    def _live(self, *, last: bool) -> None:
        machine, number = self.machine, self.lives
        self.lives += 1
        self._random = machine.draw(f"life {number}")
        loop = SimulatedLoop(machine.time)
        machine.enter(loop)
        machine.clock.start()
        plan = draw_plan(machine.plans, () if last else machine.failing)
        if last:
            plan.cut_after = None
            plan.failures.clear()
        else:
            self._spare(plan)
        self._failing = bool(plan.failures)
        self._faults = Faults(plan, machine.draw(f"faults {number}"), machine.trace, loop.halt)
        self._phase = "starting"
        try:
            loop.run(self._run(self._engine(loop, number), last))
        finally:
            loop.bury()
        machine.check()
        if loop.complaints:
            raise Broken(f"exceptions nobody took: {loop.complaints}")
        self._machine_off(last)

    def _engine(self, loop: SimulatedLoop, number: int) -> EmbeddedEngine:
        machine, faults = self.machine, self._faults
        disk = SimulatedDisk(machine.data, faults, machine.draw(f"disk {number}"), machine.trace, machine.wrote)
        keys = SimulatedDisk(machine.keys, faults, machine.draw(f"keys {number}"), machine.trace, machine.wrote)
        stores = SimulatedKeyedStores(machine.stores, faults, machine.trace, machine.nonces.stored)
        executor = SimulatedExecutor(loop, machine.draw(f"executor {number}"), machine.trace)
        seams = SimulatedSeams(machine.clock, SeededRandom(machine.draw(f"random {number}")), disk, stores, executor)
        return EmbeddedEngine(seams, machine.keystore(keys), self.options, holder=f"life {number}")

    def _machine_off(self, last: bool) -> None:
        machine = self.machine
        machine.data.lock_holder = None
        if self._faults.off and self._phase != "killed":
            self.counts["power cut"] += 1
            machine.lose_power()
        elif self._random.random() < 0.3 and not last:
            machine.lose_power()
        self.counts["killed"] += self._phase == "killed"
        if not last:
            machine.damage_media()


def simulate_quietly(world: SmallWorld) -> None:
    with quiet():
        world.run()


def campaign(
    about: str | None, kind: type[SmallWorld], simulate: Callable[[int, str | None], SmallWorld], said: list[str]
) -> int:
    """The command line of a module of worlds."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.simulation.{kind.name}", description=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(set(kind.kinds)))
    parser.add_argument("--runs", type=int, default=1)
    chosen = parser.parse_args(said)
    counts: Counter[str] = Counter()
    failed = []
    for seed in range(chosen.seed, chosen.seed + chosen.runs):
        try:
            counts += simulate(seed, chosen.kind).counts
        except Exception as problem:
            failed.append(seed)
            print(f"seed {seed}: {type(problem).__name__}: {problem}", flush=True)
            if chosen.runs == 1:
                raise
    print(dict(sorted(counts.items())), "failed:", failed)
    return bool(failed)
