"""Worlds with a compacted topic hold; with a safeguard taken out the judge finds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import pytest

from broker.log.partition import PartitionLog
from broker.log.rewriting import KeyScan, Rewriting
from broker.retained import outline
from tests.simulation.compaction import simulate
from tests.simulation.ledger import Broken

TRIES = 20


@pytest.mark.parametrize("kind", ["power", "errors", "media", "all"])
def test_worlds_hold(kind: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(3 if kind == "power" else 2):
        counts += simulate(seed, kind).counts
    assert counts["compactions"] > 5
    assert counts["merges"] > 5
    assert counts["left out"] > 100
    assert counts["power cut"] + counts["killed"] > 5


@contextmanager
def oldest_kept() -> Iterator[None]:
    """The first record of a key counts as its newest."""

    def careless(self: KeyScan) -> None:
        waiting, self._waiting = self._waiting, None
        for key in () if waiting is None else outline(waiting.stored.batch).keys:
            self.newest.setdefault(key, 1 << 62)  # and so no record is the newest

    with patch.object(KeyScan, "settle", careless):
        yield


@contextmanager
def pages_read_ahead_kept() -> Iterator[None]:
    """A page read before a compaction is given out after it."""
    with patch.object(PartitionLog, "generation", property(lambda self: 0)):
        yield


@contextmanager
def last_one_not_written() -> Iterator[None]:
    """The batch that waits for its successor is forgotten at the end."""
    with patch.object(Rewriting, "finish", lambda self: self._begin()):
        yield


@pytest.mark.parametrize(
    ("mutation", "seed"),
    [(oldest_kept, 100), (pages_read_ahead_kept, 112), (last_one_not_written, 100)],
    ids=["oldest kept", "pages read ahead kept", "last one not written"],
)
def test_the_judge_finds_a_missing_safeguard(mutation: Callable[[], AbstractContextManager[None]], seed: int) -> None:
    """`seed`: with which to begin, to be quick."""
    with mutation(), pytest.raises(Broken):
        _simulate_several(seed)


def _simulate_several(seed: int) -> None:
    for number in range(seed, seed + TRIES):
        simulate(number, "power")


def test_a_seed_replays() -> None:
    first, again = simulate(3, "power"), simulate(3, "power")
    assert first.machine.trace.digest() == again.machine.trace.digest()
