"""Fixed keys and a real folder for the tests of the log's modules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.engine.embedded import EmbeddedEngine
from broker.log.sealing import LogKeys
from broker.machine import MachineDisk
from tests.broker.log.journals import Journal, make_keys
from tests.broker.log.lives import Start
from tests.conftest import OpenEngine


@pytest.fixture
def disk(tmp_path: Path) -> MachineDisk:
    return MachineDisk(tmp_path / "data")


@pytest.fixture
def keys() -> LogKeys:
    return make_keys()


@pytest.fixture
def journal(keys: LogKeys, disk: MachineDisk) -> Journal:
    return Journal(keys, disk)


@pytest.fixture
def flipped() -> Callable[[bytes, int], bytes]:
    """The bytes with one bit of one byte changed."""

    def flip(data: bytes, at: int, bit: int = 1) -> bytes:
        changed = bytearray(data)
        changed[at] ^= bit
        return bytes(changed)

    return flip


@pytest.fixture
async def start_engine(open_engine: OpenEngine) -> AsyncIterator[Start]:
    """Starts engines with these options, one after the other; closed at the end."""
    engines: list[EmbeddedEngine] = []

    async def begin(**options: object) -> EmbeddedEngine:
        engine = open_engine(**options)
        await engine.start()
        engines.append(engine)
        return engine

    yield begin
    for engine in engines:
        await engine.close()
