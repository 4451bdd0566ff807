"""Which extents retention lets go, and when the clock is not believed."""

from __future__ import annotations

import logging

import pytest

from broker.log.footer import PartitionSummary
from broker.log.options import LogOptions
from broker.log.partition import Extent, PartitionLog
from broker.log.retention import RetentionClock, kept_from

TOPIC = bytes(range(16))
DAY_MS = 86_400_000
NOW_MS = 1_760_000_000_000


def log_of(*extents: tuple[int, int], log_start: int = 0) -> PartitionLog:
    """Extents of ten offsets each, by (age in days, bytes); 0 bytes: nothing but damage."""
    log = PartitionLog(TOPIC, 0)
    for number, (age_days, size) in enumerate(extents):
        first = 10 * number
        batches, newest_ms = (1, NOW_MS - age_days * DAY_MS) if size else (0, 0)
        summary = PartitionSummary(TOPIC, 0, 0, first, first + 10, batches, size, newest_ms, number, number, b"", b"")
        log.extents.append(Extent(None, summary, None))  # type: ignore[arg-type]
        log.high_watermark = first + 10
    log.log_start = log_start
    return log


def by_age(days: int) -> dict[str, str]:
    return {"retention.ms": str(days * DAY_MS)}


def by_size(size: int) -> dict[str, str]:
    return {"retention.ms": "-1", "retention.bytes": str(size)}


@pytest.mark.parametrize(
    ("extents", "configs", "kept"),
    [
        ([(9, 1), (8, 1), (6, 1)], {}, 20),
        ([(9, 1), (8, 1)], {}, 20),
        ([(9, 1), (8, 1), (6, 1)], by_age(30), 0),
        ([(9, 1), (8, 1), (6, 1)], {"retention.ms": "-1"}, 0),
        ([(9, 1), (2, 1), (9, 1)], by_age(7), 10),
        ([(-9, 1), (9, 1)], by_age(7), 0),
        ([(9, 1), (7, 1)], by_age(7), 10),
        ([(0, 0), (9, 1), (2, 1)], by_age(7), 20),
        ([(9, 1), (0, 0), (2, 1)], by_age(7), 10),
        ([(0, 0)], by_age(7), 0),
        ([], by_age(7), 0),
        ([(0, 100), (0, 100), (0, 100)], by_size(200), 10),
        ([(0, 100), (0, 100), (0, 100)], by_size(201), 0),
        ([(0, 100), (0, 100), (0, 100)], by_size(199), 10),
        ([(0, 100), (0, 100), (0, 100)], by_size(0), 20),
        ([(0, 100), (0, 100), (0, 100)], by_size(-1), 0),
        ([(9, 100), (0, 100), (0, 100)], {"retention.bytes": "100"}, 20),
        ([], by_size(0), 0),
    ],
)
def test_what_is_kept(extents: list[tuple[int, int]], configs: dict[str, str], kept: int) -> None:
    assert kept_from(log_of(*extents), configs, NOW_MS) == kept


def test_it_never_turns_back() -> None:
    assert kept_from(log_of((0, 1), (0, 1), log_start=15), {}, NOW_MS) == 15


def test_age_does_not_count_while_the_clock_settles() -> None:
    assert kept_from(log_of((9, 100), (9, 100)), {"retention.bytes": "100"}, None) == 10


class Clock:
    def __init__(self) -> None:
        self.wall_ms = NOW_MS
        self.ran_ms = 0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ms(self) -> int:
        return self.ran_ms

    def run(self, ms: int, *, jump_ms: int = 0) -> None:
        self.ran_ms += ms
        self.wall_ms += ms + jump_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention(clock: Clock) -> RetentionClock:
    return RetentionClock(clock, LogOptions(clock_jump_max_ms=300_000, clock_settle_ms=3_600_000))


def test_a_clock_that_runs_is_believed(clock: Clock, retention: RetentionClock) -> None:
    for _ in range(5):
        clock.run(7 * DAY_MS, jump_ms=300_000)
        assert retention.now_ms() == clock.wall_ms


def test_after_a_jump_forward_it_waits_and_says_so(
    clock: Clock, retention: RetentionClock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.run(300_000, jump_ms=30 * DAY_MS)
    with caplog.at_level(logging.WARNING, "sprawl.log"):
        assert retention.now_ms() is None
    assert "ran ahead by 2592000 s" in caplog.text
    clock.run(3_599_999)
    assert retention.now_ms() is None
    clock.run(1)
    assert retention.now_ms() == clock.wall_ms, "it is what the machine says after all"


def test_a_clock_that_was_put_right_is_believed_at_once(clock: Clock, retention: RetentionClock) -> None:
    clock.run(1_000, jump_ms=30 * DAY_MS)
    assert retention.now_ms() is None
    clock.run(1_000, jump_ms=-30 * DAY_MS)
    assert retention.now_ms() == clock.wall_ms


def test_a_jump_back_deletes_nothing_and_needs_no_wait(clock: Clock, retention: RetentionClock) -> None:
    clock.run(1_000, jump_ms=-30 * DAY_MS)
    assert retention.now_ms() == clock.wall_ms
