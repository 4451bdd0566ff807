"""Deleting a topic destroys its key: nothing of it opens any more, save with a key backup, and then it is told of that backup."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.batch import build, walk
from broker.engine.base import Append, KeyCopy
from broker.engine.embedded import EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob, KeyStoreCopies
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.key_backups import KeyBackup, KeyBackups
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

SECRET = b"a value that must be gone"


class Home:
    def __init__(self, root: Path) -> None:
        self.data, self.keys = root / "data", root / "keys"
        self.keys.mkdir(mode=0o700, parents=True)
        LocalFileKms.create(self.keys / "kek.json")
        self.backups = KeyBackups(self.keys)
        self._seams: MachineSeams | None = None
        self.engine: EmbeddedEngine | None = None

    async def start(self) -> EmbeddedEngine:
        self._seams = MachineSeams(self.data)
        kms = LocalFileKms.load(self.keys / "kek.json")
        keystore = KeyStore(KeyStoreBlob(MachineDisk(self.keys)), kms, os.urandom, self.backups)
        self.engine = EmbeddedEngine(self._seams, keystore, LogOptions())
        await self.engine.start()
        return self.engine

    async def stop(self) -> None:
        if self.engine is not None and self._seams is not None:
            await self.engine.close()
            self._seams.executor.close()
        self.engine = None

    def back_up(self, target: Path, *topics: bytes) -> KeyBackup:
        data = KeyStoreCopies(MachineDisk(self.keys)).read()
        assert data is not None
        backup = KeyBackup(
            backup_id="0badcafe",
            path=str(target),
            made_at_ms=1,
            expires_at_ms=2,
            generation=1,
            topics=frozenset(topic.hex() for topic in topics),
        )
        self.backups.write(backup, data)
        return backup


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    made = Home(tmp_path)
    yield made
    await made.stop()


async def filled(home: Home) -> tuple[EmbeddedEngine, bytes]:
    engine = await home.start()
    topic = await engine.create_topic("orders", 1, {})
    await engine.append([Append("orders", 0, build([(1, b"k", SECRET, ())]), [b"k"])])
    return engine, topic.topic_id


async def test_without_backups_the_key_is_gone(home: Home) -> None:
    engine, _ = await filled(home)
    assert await engine.delete_topic("orders") == []


async def test_a_backup_that_holds_the_key_is_told(home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, topic_id = await filled(home)
    backup = home.back_up(tmp_path / "elsewhere", topic_id)
    assert await engine.delete_topic("orders") == [KeyCopy("0badcafe", backup.path, 2)]
    assert "key backup 0badcafe" in caplog.text


async def test_a_backup_from_before_the_topic_is_not(home: Home, tmp_path: Path) -> None:
    engine = await home.start()
    home.back_up(tmp_path / "elsewhere", bytes(16))
    await engine.create_topic("orders", 1, {})
    assert await engine.delete_topic("orders") == []


async def test_a_list_that_cannot_be_read_stops_no_deletion_and_is_told(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    engine, topic_id = await filled(home)
    home.backups.path.write_bytes(b"garbage")
    home.backups.path.chmod(0o600)
    assert [copy.backup for copy in await engine.delete_topic("orders")] == ["unknown"]
    assert "cannot be told" in caplog.text
    assert topic_id not in engine._keystore
    assert "orders" not in engine.topics()


async def test_files_copied_before_open_with_the_backup_and_not_without(home: Home, tmp_path: Path) -> None:
    """What the report is about: whoever kept the files and a key backup still reads the records."""
    engine, topic_id = await filled(home)
    home.back_up(tmp_path / "elsewhere", topic_id)
    await home.stop()
    shutil.copytree(home.data, tmp_path / "thief" / "data")
    engine = await home.start()
    await engine.delete_topic("orders")
    await home.stop()

    thief = Home(tmp_path / "with the new key store")
    shutil.copytree(tmp_path / "thief" / "data", thief.data)
    for name in ("kek.json", "keystore.a", "keystore.b"):
        shutil.copy(home.keys / name, thief.keys / name)
    opened = await thief.start()
    fetched = await opened.fetch("orders", 0, 0, bytes_max=1 << 20)
    assert fetched.batches == []
    await thief.stop()

    thief = Home(tmp_path / "with the backup")
    shutil.copytree(tmp_path / "thief" / "data", thief.data)
    shutil.copy(home.keys / "kek.json", thief.keys / "kek.json")
    shutil.copy(tmp_path / "elsewhere", thief.keys / "keystore.a")
    opened = await thief.start()
    fetched = await opened.fetch("orders", 0, 0, bytes_max=1 << 20)
    assert [record.value for stored in fetched.batches for record in walk(stored.batch)] == [SECRET]
    await thief.stop()
