"""A loop that is held up is seen to be late."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.observe import loop_lag
from gateway.observe.loop_lag import LoopLag


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(loop_lag, "SAMPLE_S", 0.005)
    return []


async def test_a_held_up_loop_is_late_by_as_much(samples: list[float]) -> None:
    lag = LoopLag(samples.append)
    lag.start()
    time.sleep(0.1)  # noqa: ASYNC251  # this is the point
    while not samples:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    lag.stop()
    assert samples[0] > 0.05


async def test_it_goes_on_until_it_is_stopped(samples: list[float]) -> None:
    lag = LoopLag(samples.append)
    lag.start()
    while len(samples) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    lag.stop()
    taken = len(samples)
    await asyncio.sleep(0.03)
    assert len(samples) == taken
    assert min(samples) >= 0
