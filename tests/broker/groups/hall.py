"""Groups on a real engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from broker.engine.embedded import EmbeddedEngine
from broker.groups.classic_member import Join, Joined, Sync
from broker.groups.group_errors import MemberIdRequired
from broker.groups.group_options import GroupOptions
from broker.groups.groups import Groups
from broker.machine import MachineClock


class MovedClock(MachineClock):
    """The machine's, moved on by the test."""

    def __init__(self) -> None:
        self.by_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.by_ms

    def monotonic_ms(self) -> int:
        return super().monotonic_ms() + self.by_ms


class SeededRandom:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class Hall:
    """The groups of a node; `again` is its next life on the same engine, as after a kill."""

    def __init__(self, engine: EmbeddedEngine, **options: Any) -> None:
        self.engine, self.clock = engine, MovedClock()
        self.options = GroupOptions(**{"initial_rebalance_delay_ms": 0, "session_timeout_ms_min": 1, **options})
        self.groups = self._make()

    def _make(self) -> Groups:
        made = Groups(self.engine, self.clock, SeededRandom(), self.options)
        made.start()
        return made

    async def again(self) -> Groups:
        await self.groups.close()
        self.groups = self._make()
        return self.groups

    async def join(self, name: str, member_id: str = "", **members: Any) -> Joined:
        given = {
            "instance_id": None,
            "client_id": "client",
            "client_host": "/127.0.0.1",
            "session_timeout_ms": 60_000,
            "rebalance_timeout_ms": 60_000,
            "protocol_type": "consumer",
            "protocols": (("range", b"r"),),
            **members,
        }
        try:
            return await self.groups.join(name, Join(member_id=member_id, **given))
        except MemberIdRequired as told:
            return await self.groups.join(name, Join(member_id=told.member_id, **given))

    async def sync(
        self, name: str, joined: Joined, plan: dict[str, bytes] | None = None, instance_id: str | None = None
    ) -> bytes:
        asked = Sync(joined.member_id, instance_id, joined.generation, assignments=plan or {})
        return (await self.groups.sync(name, asked)).assignment

    async def settle(self, name: str, count: int, **members: Any) -> list[Joined]:
        """A stable group of so many members, each assigned its own id."""
        joined = list(await asyncio.gather(*[self.join(name, **members) for _ in range(count)]))
        while len({one.generation for one in joined}) > 1:  # some came after the first rebalance had begun
            joined = list(await asyncio.gather(*[self.join(name, one.member_id, **members) for one in joined]))
        plan = {one.member_id: one.member_id.encode() for one in joined}
        told = await asyncio.gather(*[self.sync(name, one, plan) for one in joined])
        assert [text.decode() for text in told] == [one.member_id for one in joined]
        return joined


OpenHall = Callable[..., Hall]
