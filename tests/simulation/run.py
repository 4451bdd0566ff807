"""One seed, one world: a node that lives and dies on a simulated machine until enough was acknowledged, and the judge.

    python -m tests.simulation.run --seed 7                      replay one world
    python -m tests.simulation.run --seed 7 --echo               the same, printing every event
    python -m tests.simulation.run --seed 0 --runs 1000          worlds 0 to 999, with counts of everything that occurred
    python -m tests.simulation.run --runs 1000 --processes 2 --results worlds.jsonl
                                                                 in two processes; started again, it goes on where it was stopped

After TigerBeetle's VOPR. The kinds of worlds:

power   cuts, kills, clean stops, a slow disk, a clock that jumps: nothing may be missing, no damage may be reported
errors  in addition writes and syncs that fail, a full disk: likewise
media   flipped bits, batches of a rolled-back past put back: whatever is missing must be reported
all     everything above
os      power, with durability "os": a power cut may take the newest appends, whole and from the end, a kill nothing
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import KINDS, World

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
        "keyed store tail torn: will not open",
        "flipped bit in the view: tail dropped",
        "flipped bit in the view: will not open",
        "flipped bit in the state of a journal",
        "rolled-back batch put back",
        "write fails with EIO",
        "write fails with ENOSPC",
        "sync fails with EIO",
        "sync folder fails with EIO",
        "store write fails with EIO",
        "store flush fails with EIO",
        "disk full",
        "disk full while stopping",
        "disk full while starting",
        "records deleted on a full disk",
        "append answered DiskFull",
        "slow disk",
        "clock jump",
        "state changed",
        "state lost in reported damage",
        "records deleted",
        "retention applied",
        "reader overtaken by the log start",
        "node: log start moved",
        "node: file of which nothing is kept removed",
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


ALL_KINDS_RUNS = 200
"""From this many worlds on, a kind of fault or event that never occurred is a failure."""
WORLDS_PER_PROCESS = 50
ROOT = Path(__file__).parents[2]

HITTING_KINDS = (
    "flipped bits in a journal",
    "flipped bits in a segment",
    "flipped bit under the running node",
    "rolled-back batch put back",
)


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
    def hits(self) -> int:
        """How often the bytes of batches were damaged; each time at most three of them."""
        return sum(self.counts[kind] for kind in HITTING_KINDS)

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
        last_events=[] if broken is None else list(world.trace.last),
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


def simulate_all(seeds: Iterable[int], *, processes: int = 1, talk: bool = False) -> Iterator[Report]:
    """One after the other, or in several processes at once: then in the order in which they end."""
    if processes == 1:
        reports: Iterator[Report] = map(_simulate_alone, seeds)
        yield from (_tell(report, talk) for report in reports)
        return
    waiting = list(seeds)
    while waiting:
        # A pool for every few worlds, whose memory goes with it: max_tasks_per_child deadlocks in Python 3.11 (gh-115634).
        some, waiting = waiting[: processes * WORLDS_PER_PROCESS], waiting[processes * WORLDS_PER_PROCESS :]
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(_simulate_alone, seed) for seed in some]):
                yield _tell(done.result(), talk)


def _simulate_alone(seed: int) -> Report:
    report = simulate(seed)
    gc.collect()  # worlds are large webs of cycles
    return report


def _tell(report: Report, talk: bool) -> Report:
    if talk or report.broken is not None:
        print(report.line(), flush=True)
    return report


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
    lines.append(f"{len(reports)} worlds: {dict(sorted(Counter(report.kind for report in reports).items()))}")
    lines.append(
        f"{sum(r.acknowledged for r in reports)} batches acknowledged, {sum(r.faults for r in reports)} faults, "
        f"{sum(r.lives for r in reports)} lives, {sum(r.lost_in_damage for r in reports)} batches lost in reported damage, "
        f"{sum(r.seconds for r in reports):.0f} s CPU"
    )
    lines += [f"never occurred: {kind}" for kind in never_occurred(reports)]
    lines += [f"failed: {report.replay}" for report in reports if report.broken is not None]
    return "\n".join(lines)


def never_occurred(reports: list[Report]) -> list[str]:
    """Only a large set has to show every kind."""
    return sorted(EXPECTED_KINDS - tally(reports).keys()) if len(reports) >= ALL_KINDS_RUNS else []


class Results:
    """Reports in a file, a line each, as they come: a set that was stopped goes on. Those of other sources are not believed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sources = sources_digest()
        lines = path.read_text().splitlines() if path.exists() else []
        self.reports = [_report(json.loads(line)) for line in lines[1:]] if lines[:1] == [self._sources] else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([self._sources, *map(_line, self.reports)]) + "\n")

    def add(self, report: Report) -> None:
        with self._path.open("a") as file:
            file.write(_line(report) + "\n")
        self.reports.append(report)


def _line(report: Report) -> str:
    return json.dumps(vars(report))


def _report(facts: dict[str, Any]) -> Report:
    return Report(**facts | {"counts": Counter(facts["counts"])})


def sources_digest() -> str:
    """Of everything that decides how a world goes."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in ("broker", "security/crypto", "tests/simulation"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="the world, or the first of them")
    parser.add_argument("--kind", choices=sorted(set(KINDS)), help="its kind, if not the one drawn")
    parser.add_argument("--mutation", choices=MUTATIONS, help="with a safeguard taken out: the world should break")
    parser.add_argument("--echo", action="store_true", help="print every event of that world")
    parser.add_argument("--runs", type=int, help="how many worlds; without it, one")
    parser.add_argument("--processes", type=int, default=1, help="how many worlds at once")
    parser.add_argument("--results", type=Path, help="a file that keeps what is done, so that the same command goes on")
    chosen = parser.parse_args(arguments)
    if chosen.runs is None:
        mutation = nullcontext if chosen.mutation is None else MUTATIONS[chosen.mutation][1]
        with mutation():
            report = simulate(chosen.seed, kind=chosen.kind, echo=chosen.echo)
        print(report.line(), f"digest {report.digest}", sep="\n")
        return report.broken is not None
    return _run_set(range(chosen.seed, chosen.seed + chosen.runs), chosen.processes, chosen.results)


def _run_set(seeds: range, processes: int, path: Path | None) -> int:
    results = None if path is None else Results(path)
    reports = [] if results is None else [report for report in results.reports if report.seed in seeds]
    done = {report.seed for report in reports}
    for report in simulate_all([seed for seed in seeds if seed not in done], processes=processes, talk=True):
        reports.append(report)
        if results is not None:
            results.add(report)
    reports.sort(key=lambda report: report.seed)
    print(summary(reports))
    return bool(never_occurred(reports)) or any(report.broken is not None for report in reports)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
