"""A hall of groups on a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.engine.embedded import EmbeddedEngine
from tests.broker.groups.hall import Hall, OpenHall


@pytest.fixture
async def open_hall(engine: EmbeddedEngine) -> AsyncIterator[OpenHall]:
    opened: list[Hall] = []

    def make(**options: Any) -> Hall:
        opened.append(Hall(engine, **options))
        return opened[-1]

    yield make
    for hall in opened:
        await hall.groups.close()


@pytest.fixture
async def hall(open_hall: OpenHall) -> Hall:
    return open_hall()
