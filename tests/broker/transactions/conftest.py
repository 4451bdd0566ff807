"""Lives of a data folder, and the shop in one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.broker.transactions.shop import NextLife, SetClock, Shop


@pytest.fixture
async def lives(open_engine: object) -> AsyncIterator[NextLife]:
    made = NextLife(open_engine, SetClock())
    yield made
    await made.end()


@pytest.fixture
async def shop(lives: NextLife) -> Shop:
    made = await lives()
    await made.topic()
    return made
