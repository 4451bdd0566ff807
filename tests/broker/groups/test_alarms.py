"""A timer for each group."""

from __future__ import annotations

import asyncio

from broker.groups.alarms import Alarms


async def test_the_earlier_stays_and_the_later_gives_way() -> None:
    alarms, rung = Alarms(), asyncio.Queue[str]()
    alarms.arm("g", 1_000_000, 0, lambda: rung.put_nowait("later"))
    alarms.arm("g", 0, 0, lambda: rung.put_nowait("earlier"))
    alarms.arm("g", 1, 0, lambda: rung.put_nowait("no more"))
    assert await rung.get() == "earlier"
    alarms.arm("g", 0, 500, lambda: rung.put_nowait("overdue"))
    assert await rung.get() == "overdue"
    assert rung.empty()
    alarms.close()


async def test_what_is_cancelled_does_not_ring() -> None:
    alarms, rung = Alarms(), asyncio.Queue[str]()
    for name in ("a", "b", "c"):
        alarms.arm(name, 0, 0, lambda name=name: rung.put_nowait(name))  # type: ignore[misc]
    alarms.cancel("a")
    alarms.cancel("nobody")
    assert {await rung.get(), await rung.get()} == {"b", "c"}
    alarms.arm("a", 0, 0, lambda: rung.put_nowait("a"))
    alarms.close()
    await asyncio.sleep(0.01)
    assert rung.empty()
