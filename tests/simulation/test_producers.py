"""Producers and transactions in the simulator: what is promised holds, and a safeguard that is taken away is missed.

`SPRAWL_SIMULATE_RUNS=300` for the campaign, `SPRAWL_SIMULATE_SEED=7` for one world.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from broker.engine.base import Appended, StateChange, StateSpace
from broker.producers import producers
from broker.producers.producers import Admission
from broker.transactions import ending, transactions
from broker.transactions.stability import Stability
from tests.simulation.producers import simulate

pytestmark = pytest.mark.simulation

EVERYDAY_RUNS = 4
SEEDS_TO_FIND = 40

RUNS = int(os.environ.get("SPRAWL_SIMULATE_RUNS", EVERYDAY_RUNS))
SEED = os.environ.get("SPRAWL_SIMULATE_SEED")


@pytest.mark.timeout(60 + 20 * RUNS)
def test_once_and_all_or_nothing_in_every_world(capsys: pytest.CaptureFixture[str]) -> None:
    counts: Counter[str] = Counter()
    for seed in range(RUNS) if SEED is None else [int(SEED)]:
        counts += simulate(seed).counts
    with capsys.disabled():
        print(f"\nproducers: {dict(sorted(counts.items()))}")
    if SEED is None:
        for what in ("committed", "aborted", "power cut", "sent again", "gone on with", "merges", "compactions"):
            assert counts[what] >= RUNS, f"{what} hardly ever happened: {counts}"


def forgets_batches(patch: pytest.MonkeyPatch) -> None:
    """What is known of producers is not kept beside the records."""
    whole = Admission.changes

    def changes(self: Admission, appended: Appended) -> Sequence[StateChange]:
        return [change for change in whole(self, appended) if change.space is not StateSpace.PRODUCER]

    patch.setattr(Admission, "changes", changes)


def believes_failed_appends(patch: pytest.MonkeyPatch) -> None:
    """An append that failed is taken for stored."""
    patch.setattr(producers, "failed", lambda waiter: False)


def forgets_what_was_aborted(patch: pytest.MonkeyPatch) -> None:
    """It is known until the next start."""
    patch.setattr(ending, "aborted_change", lambda topic_id, partition, one: StateChange(StateSpace.POSITION, b"x", None))


def shows_what_is_open(patch: pytest.MonkeyPatch) -> None:
    def stable_offset(self: Stability, topic_id: bytes, partition: int, high_watermark: int) -> int:
        return high_watermark

    def nothing(*_: Any) -> list[Any]:
        return []

    patch.setattr(Stability, "stable_offset", stable_offset)
    patch.setattr(Stability, "_still_open", nothing)


def leaves_offsets_behind(patch: pytest.MonkeyPatch) -> None:
    """The offsets are not committed together with the copies."""
    patch.setattr(transactions.Transactions, "_offsets", lambda self, id, held, *, commit: [])


def remembers_what_lost_its_end(patch: pytest.MonkeyPatch) -> None:
    """Compaction takes the end of a transaction, and readers are still told that it was aborted."""

    async def markers_gone(*_: object) -> None:
        pass

    patch.setattr(Stability, "markers_gone", markers_gone)


MUTATIONS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "forgets batches": ("power", forgets_batches),
    "believes failed appends": ("errors", believes_failed_appends),
    "forgets what was aborted": ("power", forgets_what_was_aborted),
    "shows what is open": ("power", shows_what_is_open),
    "leaves offsets behind": ("power", leaves_offsets_behind),
    "remembers what lost its end": ("power", remembers_what_lost_its_end),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_safeguard_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kind, mutation = MUTATIONS[name]
    broken: Exception | None = None
    with monkeypatch.context() as patch:
        mutation(patch)
        for seed in range(SEEDS_TO_FIND):
            try:
                simulate(seed, kind)
            except Exception as problem:
                broken = problem
                break
    assert broken is not None, f"{name}: not noticed in {SEEDS_TO_FIND} worlds"
    simulate(seed, kind)  # and the world is whole without the mutation
    with capsys.disabled():
        print(f"\n{name}: seed {seed}: {broken!s:.160}")
