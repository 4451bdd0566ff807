"""Examining and mending a folder: one flipped bit in every kind of file, at every byte of the small ones; what is said of it,
what repair does, and that nothing which was acknowledged is lost without being named.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.batch import build, walk
from broker.engine.base import Append, StateChange, StateSpace
from broker.engine.embedded import LOCK_PATH, EmbeddedEngine
from broker.errors import FolderInUse, StorageDamaged
from broker.log.findings import Finding, Severity, Verdict
from broker.log.keystore_blob import KeyStoreBlob, KeyStoreCopies
from broker.log.layout import FILE_HEADER_BYTES, TRAILER_BYTES
from broker.log.options import LogOptions
from broker.log.repair import QUARANTINE_FOLDER, Action, Repair, plan
from broker.log.scan import batches
from broker.log.verify import Verifier
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

NOON_MS = 1_760_000_000_000
PLENTY = 1 << 24

Rows = dict[tuple[str, int, int], bytes | None]
"""What readers get: values by topic, partition and offset."""


class Folder:
    """A node's data and keys, between its lives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.keys = root / "keys"
        self.keys.mkdir(exist_ok=True)
        kek = self.keys / "kek.json"
        self._kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)

    def keystore(self) -> KeyStore:
        return KeyStore(KeyStoreBlob(MachineDisk(self.keys)), self._kms, os.urandom)

    def engine(self, **options: int) -> EmbeddedEngine:
        return EmbeddedEngine(MachineSeams(self.data), self.keystore(), LogOptions(**options))  # type: ignore[arg-type]

    def verify(self, *, view: bool = True) -> Verdict:
        """Without the view it takes a tenth of the time."""
        seams, keystore = MachineSeams(self.data), self.keystore()
        keystore.load()
        open_view = (lambda: seams.stores.open_for_reading("view")) if view else None
        return Verifier(seams.disk, keystore, seams.random, open_view).run()

    def repair(self) -> list[Action]:
        verdict = self.verify()
        seams = MachineSeams(self.data)
        try:
            return asyncio.run(Repair(seams, self.keystore(), LogOptions()).run(verdict))
        finally:
            seams.executor.close()

    def read(self) -> tuple[Rows, set[tuple[str, int, int]]]:
        """What a node serves, and the offsets it says are damaged."""
        return asyncio.run(self._read())

    async def _read(self) -> tuple[Rows, set[tuple[str, int, int]]]:
        engine = self.engine(merge_files_min=1 << 20)
        await engine.start()
        rows: Rows = {}
        for topic in engine.topics().values():
            for partition in range(topic.partitions):
                offset = 0
                while (page := await engine.fetch(topic.name, partition, offset, bytes_max=PLENTY)).next_offset > offset:
                    offset = page.next_offset
                    for stored in page.batches:
                        rows.update({(topic.name, partition, r.offset): r.value for r in walk(stored.batch)})
        damage = {(d.topic, d.partition, o) for d in engine.damage() for o in range(d.from_offset, d.to_offset)}
        await engine.close()
        return rows, damage

    def flip(self, path: str, at: int, bit: int = 1) -> None:
        file = self.data / path
        data = bytearray(file.read_bytes())
        data[at] ^= bit
        file.write_bytes(data)

    def digest(self) -> dict[str, str]:
        files = [path for path in self.root.rglob("*") if path.is_file() and path.name != LOCK_PATH]
        return {str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def only(self, folder: str) -> str:
        """The newest file of a folder that holds something."""
        files = [
            path for path in sorted((self.data / folder).iterdir()) if path.stat().st_size > FILE_HEADER_BYTES + TRAILER_BYTES
        ]
        return f"{folder}/{files[-1].name}"


def _two_records(n: int) -> Append:
    key = b"k%d" % (n % 5)
    batch = build([(NOON_MS + n, key, b"%d " % n + bytes(300), ()), (NOON_MS + n, key, b"second", ())])
    return Append("orders", n % 2, batch, [key, key])


async def _fill(folder: Folder) -> None:
    """A merged segment, a sealed journal and one that a kill left open; a topic that is gone."""
    engine = folder.engine(journal_file_bytes=6_000, merge_files_min=3)
    await engine.start()
    await engine.create_topic("orders", 2, {})
    for n in range(24):
        await engine.append([_two_records(n)])
    for n in range(24, 200):
        await engine.append([_two_records(n)])
        if engine._merging is not None:
            await engine._merging
        if engine.stats().merges:
            break
    assert engine.stats().merges
    await engine.close()
    engine = folder.engine(merge_files_min=1 << 20)
    await engine.start()
    await engine.create_topic("gone", 1, {})
    for _ in range(6):
        await engine.append([Append("gone", 0, build([(NOON_MS, None, b"x", ())]))])
    await engine.delete_topic("gone")
    for n in range(6):
        await engine.append([Append("orders", n % 2, build([(NOON_MS + n, b"k", b"later %d" % n, ())]), [b"k"])])
    shutil.copytree(folder.data, folder.root / "killed")  # what a kill leaves: nothing is written at the end
    await engine.close()
    shutil.rmtree(folder.data)
    (folder.root / "killed").rename(folder.data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Folder(tmp_path_factory.mktemp("made"))
    asyncio.run(_fill(folder))
    return folder.root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    shutil.copytree(made, tmp_path / "node")
    return Folder(tmp_path / "node")


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What the undamaged folder serves."""
    copy = tmp_path_factory.mktemp("whole") / "node"
    shutil.copytree(made, copy)
    rows, damage = Folder(copy).read()
    assert len(rows) >= 54
    assert not damage
    return rows


def found(verdict: Verdict, *severities: Severity) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.severity in severities]


def lost_offsets(verdict: Verdict, *severities: Severity) -> set[tuple[str, int, int]]:
    return {
        (f.topic, f.partition, offset)
        for f in found(verdict, *severities)
        if f.topic is not None and f.partition is not None and f.from_offset is not None and f.to_offset is not None
        for offset in range(f.from_offset, f.to_offset)
    }


def check_repaired(folder: Folder, whole: Rows) -> set[tuple[str, int, int]]:
    """After a repair: every record is served unchanged or its offset is on record as lost, and a second look finds it so."""
    verdict = folder.verify()
    assert verdict.whole, [finding.describe() for finding in verdict.findings]
    rows, damage = folder.read()
    assert all(rows[place] == value for place, value in whole.items() if place not in damage)
    assert rows.keys() <= whole.keys()
    assert {place for place in whole if place not in rows} <= damage
    assert lost_offsets(verdict, Severity.QUARANTINED) >= {place for place in whole if place not in rows}
    return damage


# -- whole ----------------------------------------------------------------------------------------------------------------


def test_a_folder_after_a_kill_is_whole_and_looking_changes_nothing(folder: Folder) -> None:
    before = folder.digest()
    verdict = folder.verify()
    assert verdict.whole
    assert not found(verdict, Severity.LOST, Severity.MENDABLE, Severity.HARMLESS, Severity.QUARANTINED)
    assert folder.digest() == before
    kinds = {examined.kind for examined in verdict.files}
    assert kinds == {"manifest", "snapshot", "view", "journal", "segment"}
    assert sum(examined.batches - examined.shredded for examined in verdict.files) >= 30
    assert sum(examined.shredded for examined in verdict.files) == 6, "batches of the deleted topic"


def test_nothing_to_mend_nothing_done(folder: Folder) -> None:
    verdict = folder.verify()
    assert {action.what for action in plan(verdict)} <= {"remove it: no manifest lists it"}


def test_a_running_node_is_left_alone(folder: Folder) -> None:
    release = MachineDisk(folder.data).lock(LOCK_PATH, "a node")
    try:
        with pytest.raises(FolderInUse):
            folder.repair()
    finally:
        release()


# -- small files: every byte ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", ["manifest.a", "manifest.b"])
def test_flips_of_one_manifest_copy_are_mendable(folder: Folder, copy: str, whole: Rows) -> None:
    size = (folder.data / copy).stat().st_size
    for at in range(0, size, 2):
        folder.flip(copy, at)
        (finding,) = found(folder.verify(view=False), Severity.LOST, Severity.MENDABLE)
        assert (finding.severity, finding.what, finding.path) == (Severity.MENDABLE, "manifest", copy)
        folder.flip(copy, at)
    folder.flip(copy, size // 2)
    folder.repair()
    assert (folder.data / "manifest.a").read_bytes() == (folder.data / "manifest.b").read_bytes()
    assert check_repaired(folder, whole) == set()


def test_a_manifest_copy_that_is_gone_or_older_is_mendable(folder: Folder, whole: Rows) -> None:
    old = (folder.data / "manifest.b").read_bytes()
    folder.read()  # a life: the manifest changes
    (folder.data / "manifest.b").write_bytes(old)
    (finding,) = found(folder.verify(), Severity.MENDABLE)
    assert "older" in finding.problem
    (folder.data / "manifest.b").unlink()
    (finding,) = found(folder.verify(), Severity.MENDABLE)
    assert "not there" in finding.problem
    folder.repair()
    assert check_repaired(folder, whole) == set()


def test_both_manifests_gone_is_refused_and_nothing_is_changed(folder: Folder) -> None:
    for copy in ("manifest.a", "manifest.b"):
        folder.flip(copy, 50)
    before = folder.digest()
    with pytest.raises(StorageDamaged, match="no copy of the manifest"):
        folder.verify()
    assert folder.digest() == before


def test_flips_of_the_snapshot_are_mendable(folder: Folder, whole: Rows) -> None:
    path = folder.only("state")
    size = (folder.data / path).stat().st_size
    for at in range(0, size, 3):
        folder.flip(path, at)
        (finding,) = found(folder.verify(), Severity.LOST, Severity.MENDABLE)
        assert (finding.severity, finding.what) == (Severity.MENDABLE, "snapshot")
        folder.flip(path, at)
    folder.flip(path, size - 1)
    folder.repair()
    assert check_repaired(folder, whole) == set()


def test_a_damaged_or_missing_view_is_built_again(folder: Folder, whole: Rows) -> None:
    for file in (folder.data / "view").iterdir():
        if file.suffix in (".sst", ".log"):
            file.write_bytes(bytes(len(file.read_bytes())))
    (finding,) = found(folder.verify(), Severity.LOST, Severity.MENDABLE)
    assert (finding.severity, finding.what) == (Severity.MENDABLE, "view")
    folder.repair()
    assert check_repaired(folder, whole) == set()
    shutil.rmtree(folder.data / "view")
    assert [f.what for f in found(folder.verify(), Severity.LOST, Severity.MENDABLE)] == ["view"]
    folder.repair()
    assert check_repaired(folder, whole) == set()


def test_state_that_nothing_holds_any_more_is_lost_and_refused(folder: Folder) -> None:
    folder.flip(folder.only("state"), 100)
    shutil.rmtree(folder.data / "view")
    lost = found(folder.verify(), Severity.LOST)
    assert "view" in {finding.what for finding in lost}
    with pytest.raises(StorageDamaged):
        folder.repair()


def test_the_key_stores_copies_are_named(folder: Folder) -> None:
    copies = KeyStoreCopies(MachineDisk(folder.keys))
    good = copies.read()
    assert good is not None
    assert copies.wrong == []
    (folder.keys / "keystore.b").write_bytes(good[:-1])
    (folder.keys / "keystore.a").rename(folder.keys / "kept")
    assert KeyStoreCopies(MachineDisk(folder.keys)).read() is not None
    again = KeyStoreCopies(MachineDisk(folder.keys))
    again.read()
    assert again.wrong == [("keystore.a", "is not there"), ("keystore.b", "is damaged")]
    with pytest.raises(PermissionError):
        again.write(good)


# -- log files ------------------------------------------------------------------------------------------------------------


def _shredded(folder: Folder, path: str) -> set[int]:
    """Bytes of batches whose topic is gone."""
    keystore = folder.keystore()
    keystore.load()
    data = (folder.data / path).read_bytes()
    return {
        at
        for batch in batches(data, FILE_HEADER_BYTES, len(data))
        if batch.header is not None and batch.header.topic_id not in keystore.topic_ids()
        for at in range(batch.position, batch.position + batch.header.sealed_bytes)
    }


def _places(start: int, end: int, seed: int, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(start, end), min(count, end - start)))


def _kinds(folder: Folder) -> Iterator[tuple[str, int]]:
    """Every file of the log, and where its data ends."""
    for path in sorted([*(folder.data / "segments").iterdir(), *(folder.data / "journal").iterdir()]):
        yield str(path.relative_to(folder.data)), path.stat().st_size


@pytest.mark.parametrize("seed", range(6))
def test_a_flip_anywhere_in_the_log_is_found_and_repair_loses_only_what_it_names(folder: Folder, whole: Rows, seed: int) -> None:
    chosen = random.Random(seed)
    path, size = chosen.choice([(path, size) for path, size in _kinds(folder) if size > FILE_HEADER_BYTES])
    at = chosen.randrange(size)
    folder.flip(path, at, 1 << chosen.randrange(8))
    verdict = folder.verify()
    told = [finding for finding in verdict.findings if finding.path == path and finding.what != "orphan"]
    listed = path in {examined.path for examined in verdict.files}
    assert told or not listed or at in _shredded(folder, path), f"a flip at {at} of {path} was not seen"
    actions = folder.repair()
    named = lost_offsets(verdict, Severity.LOST)
    damage = check_repaired(folder, whole)
    assert damage & whole.keys() <= named
    for finding in found(verdict, Severity.LOST):
        if finding.start is not None:
            copy = folder.data / QUARANTINE_FOLDER / f"{finding.path.replace('/', '-')}.{finding.start}-{finding.end}"
            assert copy.stat().st_size == (finding.end or 0) - finding.start
    assert bool(actions) or not found(verdict, Severity.LOST, Severity.MENDABLE)


def test_every_kind_of_flip_in_a_segment(folder: Folder, whole: Rows) -> None:
    """In its header, its batches, its footer: never unseen."""
    path = folder.only("segments")
    size = (folder.data / path).stat().st_size
    seen: set[tuple[Severity, str]] = set()
    for at in [*_places(0, FILE_HEADER_BYTES, 1, 10), *_places(FILE_HEADER_BYTES, size, 2, 150), *range(size - 60, size)]:
        folder.flip(path, at)
        told = [(finding.severity, finding.what) for finding in folder.verify(view=False).findings if finding.path == path]
        assert told, at
        seen.update(told)
        folder.flip(path, at)
    assert seen == {
        (Severity.HARMLESS, "header"),
        (Severity.LOST, "batch"),
        (Severity.MENDABLE, "index"),
        (Severity.MENDABLE, "footer"),
    }


def test_flips_of_an_unsealed_journal_are_told(folder: Folder) -> None:
    path = max(path for path, size in _kinds(folder) if path.startswith("journal") and size > FILE_HEADER_BYTES)
    size = (folder.data / path).stat().st_size
    seen: set[tuple[Severity, str]] = set()
    shredded = _shredded(folder, path)
    assert shredded
    for at in sorted(set(range(0, size, 11)) - shredded):  # what nothing opens any more may flip unseen
        folder.flip(path, at)
        told = [(finding.severity, finding.what) for finding in folder.verify().findings if finding.path == path]
        assert told, at
        seen.update(told)
        folder.flip(path, at)
    assert {what for _, what in seen} >= {"header", "batch", "state", "group", "tail"}
    assert not {what for severity, what in seen if severity is Severity.MENDABLE}


def test_a_file_that_is_gone_is_lost_by_name_and_not_repaired(folder: Folder) -> None:
    path = folder.only("segments")
    (folder.data / path).unlink()
    assert (path, "file") in {(finding.path, finding.what) for finding in found(folder.verify(), Severity.LOST)}
    with pytest.raises(StorageDamaged, match="is gone"):
        folder.repair()


def test_a_lost_batch_is_put_on_record_before_anybody_reads_it(folder: Folder, whole: Rows) -> None:
    path = folder.only("segments")
    folder.flip(path, FILE_HEADER_BYTES + 200)
    (lost,) = found(folder.verify(), Severity.LOST)
    assert (lost.what, lost.topic, lost.start) == ("batch", "orders", FILE_HEADER_BYTES)
    folder.repair()
    again = folder.verify()
    assert again.whole
    assert lost_offsets(again, Severity.QUARANTINED) == lost_offsets(Verdict(cluster_id="", findings=[lost]), Severity.LOST)
    assert check_repaired(folder, whole) == lost_offsets(again, Severity.QUARANTINED)
    assert [action for action in plan(again) if action.path == path] == [], "a second repair has nothing to do there"


def test_a_file_cut_short_is_told(folder: Folder, whole: Rows) -> None:
    path = folder.only("segments")
    data = (folder.data / path).read_bytes()
    for size in (0, 100, FILE_HEADER_BYTES + 50, len(data) // 2, len(data) - 1):
        (folder.data / path).write_bytes(data[:size])
        verdict = folder.verify()
        assert not verdict.whole
        assert path in {finding.path for finding in verdict.findings}
    folder.repair()
    assert check_repaired(folder, whole) == set()


def test_a_dry_run_says_what_repair_then_does(folder: Folder) -> None:
    folder.flip(folder.only("segments"), FILE_HEADER_BYTES + 200)
    folder.flip("manifest.a", 60)
    before = folder.digest()
    planned = plan(folder.verify())
    assert folder.digest() == before
    assert folder.repair() == planned
    assert [action.what.split(" ")[0] for action in planned if action.path != "manifest.a"][:2] == ["copy", "put"]


def test_progress_adds_up(folder: Folder) -> None:
    seen: list[int] = []
    seams, keystore = MachineSeams(folder.data), folder.keystore()
    keystore.load()
    verifier = Verifier(seams.disk, keystore, seams.random, None, seen.append)
    total = verifier.bytes_to_read()
    verifier.run()
    assert 0 < sum(seen) <= 2 * total


# -- no false alarms ------------------------------------------------------------------------------------------------------


async def _live(folder: Folder, chosen: random.Random) -> None:
    """A life of appends, state, deletions of records and of topics, merges and sweeps."""
    engine = folder.engine(journal_file_bytes=8_000, merge_files_min=2, ring_bytes_max=2_000, merge_dead_bytes=2_000)
    await engine.start()
    for step in range(40):
        names = list(engine.topics())
        what = chosen.random()
        if what < 0.1 or not names:
            await engine.create_topic(f"topic-{chosen.randrange(1 << 40)}", chosen.randint(1, 3), {})
            continue
        name = chosen.choice(names)
        partition = chosen.randrange(engine.topics()[name].partitions)
        if what < 0.15:
            await engine.delete_topic(name)
        elif what < 0.3:
            high_watermark = engine.offsets(name)[partition].high_watermark
            await engine.delete_records(name, partition, chosen.randint(0, high_watermark))
        else:
            keys = [b"k%d" % chosen.randrange(9) for _ in range(chosen.randint(1, 3))]
            batch = build([(NOON_MS + step, key, bytes(chosen.choice([5, 200, 900])), ()) for key in keys])
            change = StateChange(StateSpace.POSITION, b"p%d" % chosen.randrange(5), chosen.choice([None, b"%d" % step]))
            append = Append(name, partition, batch, chosen.choice([None, keys]))
            await asyncio.gather(engine.append([append, append], changes=[change]), engine.append([append]))
    await engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_log_that_was_only_used_is_whole(tmp_path: Path, seed: int) -> None:
    folder, chosen = Folder(tmp_path), random.Random(seed)
    for _ in range(3):
        asyncio.run(_live(folder, chosen))
        verdict = folder.verify()
        assert not [finding.describe() for finding in verdict.findings if finding.severity is not Severity.NOTE]
