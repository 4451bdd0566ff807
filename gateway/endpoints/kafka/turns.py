"""Long work for one client, in turns with everybody else's.

A request may name 100,000 things, and ten microseconds of policy for each are a second in which nobody else is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

ITEMS_PER_TURN = 64  # at most some 2 ms, with a refusal and its audit line for each

Item = TypeVar("Item")


async def in_turns(items: Iterable[Item]) -> AsyncIterator[Item]:
    """The items in their order; after each ITEMS_PER_TURN the others have their turn. Rights are asked for within the loop."""
    for number, item in enumerate(items, 1):
        yield item
        if number % ITEMS_PER_TURN == 0:
            await others()


async def others() -> None:
    """Their turn."""
    await asyncio.sleep(0)
