"""One seed, one world: a node that lives and dies on a simulated machine until enough was acknowledged, and the judge.

    python -m tests.simulation.run --seed 7          replay one world
    python -m tests.simulation.run --seed 7 --echo   the same, printing every event
    python -m tests.simulation.run --runs 300        worlds 0 to 299, with counts of everything that occurred

After TigerBeetle's VOPR. A world is one of four: `power` (cuts, kills, clean stops, a slow disk, a clock that jumps: nothing may
be missing, no damage may be reported), `errors` (in addition writes and syncs that fail, a full disk: likewise), `media` (flipped
bits, batches of a rolled-back past put back: whatever is missing must be reported), `all`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import World

EXPECTED_KINDS = frozenset(
    {
        *(f"power cut at {kind}" for kind in ("write", "sync", "create", "rename", "remove", "sync folder", "store write")),
        *(f"unsynced write {fate}" for fate in ("lost", "kept", "torn to a prefix", "torn to sectors")),
        *(f"unsynced {kind} {fate}" for kind in ("create", "rename", "remove") for fate in ("lost", "kept")),
        *(f"flipped bits in a {kind}" for kind in ("journal", "segment", "manifest", "snapshot", "key store")),
        "power cut at store flush",
        "power cut while starting",
        "power cut while idle",
        "process killed",
        "clean stop",
        "unsynced writes reordered",
        "unsynced file size lost",
        "unsynced file size ahead of the data",
        "keyed store tail lost",
        "keyed store tail kept",
        "flipped bit in the view: tail dropped",
        "flipped bit in the view: will not open",
        "rolled-back batch put back",
        "write fails with EIO",
        "write fails with ENOSPC",
        "sync fails with EIO",
        "sync folder fails with EIO",
        "disk full",
        "slow disk",
        "clock jump",
        "topic created",
        "topic grown",
        "topic deleted",
        "append answered AppendUnknown",
        "node: sealed in place",
        "node: merged",
        "node: append failed",
        "node: tail cut",
        "node: damage reported",
        "node: damaged file stepped over",
        "node: view rebuilt",
        "node: orphan removed",
        "node: refused to start",
    }
)
"""What a whole set of worlds has to show; a kind that never occurred fails the set, as nothing was proved for it."""


@dataclass
class Report:
    """What one world showed. `broken` is the judge's verdict, None when every promise held."""

    seed: int
    kind: str
    lives: int
    faults: int
    acknowledged: int
    seen: int
    lost_in_damage: int
    partitions: int
    counts: Counter[str]
    digest: str
    seconds: float
    broken: str | None = None
    last_events: list[str] = field(default_factory=list)

    @property
    def replay(self) -> str:
        return f"python -m tests.simulation.run --seed {self.seed} --kind {self.kind}"

    def line(self) -> str:
        verdict = "holds" if self.broken is None else f"BROKEN: {self.broken}\n    replay: {self.replay}"
        facts = (
            f"{self.lives} lives, {self.faults} faults, {self.acknowledged} acknowledged, {self.lost_in_damage} lost in damage"
        )
        return f"seed {self.seed} ({self.kind}): {facts}, {self.seconds:.2f} s CPU: {verdict}"


def simulate(seed: int, *, kind: str | None = None, echo: bool = False) -> Report:
    """Live through one world, of the kind drawn from the seed or of this `kind`. The report says what was broken, if anything."""
    world = World(seed, kind=kind, echo=echo)
    began = time.process_time()
    broken: str | None = None
    try:
        with quiet() if not echo else nullcontext():
            world.run()
    except Exception as problem:
        # The judge's verdict, or an exception of the engine that no client should ever see: both fail the seed.
        broken = f"{type(problem).__name__}: {problem}"
        if echo:
            traceback.print_exc()
    return Report(
        seed=seed,
        kind=world.kind,
        lives=world.lives,
        faults=world.faults,
        acknowledged=world.ledger.acknowledged,
        seen=world.ledger.seen,
        lost_in_damage=world.lost_in_damage,
        partitions=world.partitions,
        counts=world.trace.counts,
        digest=world.trace.digest(),
        seconds=time.process_time() - began,
        broken=broken,
        last_events=list(world.trace.last),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the node's log lines, which are about faults that are meant to happen."""
    logger = logging.getLogger("sprawl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def simulate_all(seeds: Iterable[int], *, talk: bool = False) -> list[Report]:
    reports = []
    for seed in seeds:
        report = simulate(seed)
        gc.collect()  # worlds are large webs of cycles
        reports.append(report)
        if talk or report.broken is not None:
            print(report.line(), flush=True)
    return reports


def tally(reports: Iterable[Report]) -> Counter[str]:
    """Counts per kind over a set of worlds."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts += report.counts
    return counts


def summary(reports: list[Report]) -> str:
    """Counts per kind, what is missing, and how to replay what failed."""
    counts = tally(reports)
    lines = [f"{count:>8}  {kind}" for kind, count in sorted(counts.items())]
    lines.append(f"{len(reports)} worlds: {dict(Counter(report.kind for report in reports))}")
    lines.append(f"{sum(r.acknowledged for r in reports)} batches acknowledged, {sum(r.faults for r in reports)} faults")
    lines += [f"never occurred: {kind}" for kind in sorted(EXPECTED_KINDS - counts.keys())]
    lines += [f"failed: {report.replay}" for report in reports if report.broken is not None]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay one world")
    parser.add_argument("--kind", choices=("power", "errors", "media", "all"), help="its kind, if not the one drawn")
    parser.add_argument("--mutation", choices=MUTATIONS, help="with a safeguard taken out: the world should break")
    parser.add_argument("--echo", action="store_true", help="print every event of that world")
    parser.add_argument("--runs", type=int, default=300, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        mutation = nullcontext if chosen.mutation is None else MUTATIONS[chosen.mutation][1]
        with mutation():
            report = simulate(chosen.seed, kind=chosen.kind, echo=chosen.echo)
        print(report.line(), f"digest {report.digest}", sep="\n")
        return report.broken is not None
    reports = simulate_all(range(chosen.first, chosen.first + chosen.runs), talk=True)
    print(summary(reports))
    missing = EXPECTED_KINDS - tally(reports).keys()
    return bool(missing) or any(report.broken is not None for report in reports)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
