"""With durability "os" a full journal is synced while the next one is written to: what waits for that, what does not, and what a
power cut in between leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker.engine.base import Append, StateChange, StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.log.commit import Committer
from broker.log.files import LogFile
from broker.log.findings import Finding, Severity
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.layout import FILE_HEADER_BYTES, parse_file_header
from broker.log.manifest import FileState
from broker.log.scan import groups
from broker.log.verify import Verifier
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

JOURNAL_BYTES = 4_000
STILL_S = 0.05  # what does not wait is done by then


class Syncs:
    """Those of journals: in order, begun and returned; `held` keeps them from beginning, `failing` makes them fail."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.open = threading.Event()
        self.open.set()
        self.failing: set[int] = set()
        self._real = Committer._sync_journal

    def __call__(self, file: LogFile) -> None:
        self.seen.append(("began", file.number))
        self.open.wait(20)
        if file.number in self.failing:
            raise OSError(5, "Input/output error")
        self._real(file)
        self.seen.append(("returned", file.number))


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncs]:
    made = Syncs()
    monkeypatch.setattr(Committer, "_sync_journal", staticmethod(made))
    yield made
    made.open.set()


@pytest.fixture
async def engine(open_engine: OpenEngine) -> AsyncIterator[EmbeddedEngine]:
    made = await started(open_engine)
    await made.create_topic("orders", 1, {})
    await append(made)  # the topic's key is synced with it
    yield made
    await made.close()


async def started(open_engine: OpenEngine) -> EmbeddedEngine:
    engine = open_engine(durability="os", journal_file_bytes=JOURNAL_BYTES, merge_files_min=1 << 20, recover_retry_ms=1)
    await engine.start()
    return engine


async def append(engine: EmbeddedEngine) -> None:
    await engine.append([Append("orders", 0, one_record(bytes(300)), [b"k"])])


async def append_past_a_roll(engine: EmbeddedEngine) -> int:
    """The number of the file that is full then."""
    first = active(engine)
    while active(engine) == first:
        await append(engine)
    return first


def active(engine: EmbeddedEngine) -> int:
    assert engine._committer._journal is not None
    return engine._committer._journal.file.number


def known(engine: EmbeddedEngine) -> int:
    return engine._committer._durable_through


async def test_appends_go_on_and_nothing_counts_as_durable_meanwhile(engine: EmbeddedEngine, syncs: Syncs) -> None:
    syncs.open.clear()
    durable = known(engine)
    await engine.append([], changes=[StateChange(StateSpace.POSITION, b"of the full file", b"v")])
    full = await append_past_a_roll(engine)
    await append(engine)
    entry = engine._store.files[full].entry
    assert (entry.state, entry.data_end, known(engine)) == (FileState.OPEN, 0, durable)
    assert engine._committer._unsynced[0][0] == durable + 1  # the view hears of it later
    syncs.open.set()
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
    assert engine._store.files[full].entry.state is FileState.SEALED
    assert known(engine) == engine._store.summaries[full].last_group
    assert all(group > known(engine) for group, _ in engine._committer._unsynced)


async def test_only_one_full_file_waits_for_its_sync(engine: EmbeddedEngine, syncs: Syncs) -> None:
    """What is acknowledged and not on the media is less than two files."""
    syncs.open.clear()
    await append_past_a_roll(engine)
    second = active(engine)
    more = asyncio.create_task(append_past_a_roll(engine))
    await asyncio.wait([more], timeout=STILL_S)
    assert not more.done()
    assert active(engine) == second
    assert engine._committer._journal is not None
    assert engine._committer._journal.end < 2 * JOURNAL_BYTES
    syncs.open.set()
    assert await more == second


async def test_what_is_synced_in_the_next_file_comes_after_the_full_one(engine: EmbeddedEngine, syncs: Syncs) -> None:
    syncs.open.clear()
    full = await append_past_a_roll(engine)
    following = active(engine)
    created = asyncio.create_task(engine.create_topic("synced", 1, {}))
    await asyncio.wait([created], timeout=STILL_S)
    assert not created.done()
    assert syncs.seen[-1] == ("began", full)
    syncs.open.set()
    await created
    assert syncs.seen.index(("returned", full)) < syncs.seen.index(("began", following))


async def test_a_sync_that_fails_closes_the_full_file_and_stops_nobody(
    engine: EmbeddedEngine, syncs: Syncs, open_engine: OpenEngine
) -> None:
    syncs.failing.add(active(engine))
    full = await append_past_a_roll(engine)
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
    await append(engine)
    assert engine._store.files[full].entry.state is FileState.CLOSED
    assert engine.stats().append_failures == 1
    landed = (await engine.fetch("orders", 0, 0, bytes_max=1 << 20)).high_watermark
    await engine.close()
    again = await started(open_engine)
    assert len((await again.fetch("orders", 0, 0, bytes_max=1 << 20)).batches) == landed
    assert again.damage() == []
    await again.close()


@pytest.mark.parametrize("cut_bytes", [0, 1, 100])
async def test_a_power_cut_that_takes_the_end_of_the_full_file_takes_all_of_the_next(
    engine: EmbeddedEngine, syncs: Syncs, open_engine: OpenEngine, tmp_path: Path, cut_bytes: int
) -> None:
    """Its newest group, whole (0) or but for some bytes. Nothing of it was promised, so nothing is damage."""
    syncs.open.clear()
    full = await append_past_a_roll(engine)
    await append(engine)
    shutil.copytree(tmp_path / "data", tmp_path / "left", ignore=shutil.ignore_patterns("view"))
    shutil.copytree(tmp_path / "data" / "view", tmp_path / "left" / "view")
    syncs.open.set()
    await engine.close()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "left").rename(tmp_path / "data")
    path = tmp_path / "data" / engine._store.files[full].path
    data = path.read_bytes()
    header = parse_file_header(data[:FILE_HEADER_BYTES])
    assert header is not None
    found = list(groups(data, FILE_HEADER_BYTES, len(data), header.salt))
    os.truncate(path, found[-1].position + cut_bytes)

    verdict = verified(tmp_path)
    assert {finding.severity for finding in verdict} <= {Severity.NOTE, Severity.HARMLESS, Severity.MENDABLE}
    assert sum(finding.what == "tail" for finding in verdict) == (1 if cut_bytes == 0 else 2)
    again = await started(open_engine)
    assert again.damage() == []
    assert len(again.recovery.tail_cuts) == (1 if cut_bytes == 0 else 2)
    batches = (await again.fetch("orders", 0, 0, bytes_max=1 << 20)).batches
    assert [batch.base_offset for batch in batches] == list(range(len(batches)))
    assert len(batches) == sum(group.header.batches for group in found[:-1])
    await append(again)
    await again.close()


def verified(folder: Path) -> list[Finding]:
    seams = MachineSeams(folder / "data")
    kms = LocalFileKms.load(folder / "keys" / "kek.json")
    keystore = KeyStore(KeyStoreBlob(MachineDisk(folder / "keys")), kms, os.urandom)
    keystore.load()
    return list(Verifier(seams.disk, keystore, seams.random, None).run().findings)
