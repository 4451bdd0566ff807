"""What many tests start from: a real embedded engine on a folder of its own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import settings

from broker.engine.embedded import EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

settings.register_profile("everyday", max_examples=60, deadline=None)
settings.register_profile("campaign", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))

OpenEngine = Callable[..., EmbeddedEngine]


@pytest.fixture
def open_engine(tmp_path: Path) -> OpenEngine:
    """Makes an engine over `tmp_path/data` with keys in `tmp_path/keys`; call again for the next life of the same folder."""

    def make(**options: object) -> EmbeddedEngine:
        keys = tmp_path / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        kek = keys / "kek.json"
        kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
        keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), kms, os.urandom)
        return EmbeddedEngine(MachineSeams(tmp_path / "data"), keystore, LogOptions(**options))  # type: ignore[arg-type]

    return make


@pytest.fixture
async def engine(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    """A started engine, closed after the test."""
    made = open_engine()
    await made.start()
    yield made
    await made.close()
