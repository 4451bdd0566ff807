"""Files, manifest and indexes on a real disk, through a started engine; what start does with a folder that is not as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from broker.batch import walk
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.errors import FormatUnsupported, KeysMismatch, StorageDamaged
from broker.log.layout import TRAILER_BYTES, parse_trailer
from broker.log.manifest import FileKind, FileState
from broker.log.store import LogStore
from security.errors import KeyMissing, KeyWrong
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

Folder = Path
Start = Callable[..., Coroutine[Any, Any, EmbeddedEngine]]


@pytest.fixture
def data(tmp_path: Path) -> Folder:
    return tmp_path / "data"


async def live(open_engine: OpenEngine, *values: bytes, topic: str = "orders", kill: bool = False, **options: object) -> None:
    """One life: append the values to partition 0, in a batch each. `kill` leaves as a killed process does."""
    engine = open_engine(**options)
    await engine.start()
    if topic not in engine.topics():
        await engine.create_topic(topic, 2, {})
    for value in values:
        await engine.append([Append(topic, 0, one_record(value), [b"k"])])
    await (vanish(engine) if kill else engine.close())


async def vanish(engine: EmbeddedEngine) -> None:
    """Let go of the folder and write nothing more, not even the group that confirms the last one."""
    await engine._seams.executor.run("background", engine._let_go)


async def values(engine: EmbeddedEngine, topic: str = "orders") -> list[bytes]:
    """The values of all records that are served, in offset order."""
    found, offset = [], 0
    high_watermark = engine.offsets(topic)[0].high_watermark
    while offset < high_watermark:
        fetched = await engine.fetch(topic, 0, offset, bytes_max=1 << 20)
        assert fetched.next_offset > offset
        found += [record.value or b"" for stored in fetched.batches for record in walk(stored.batch)]
        offset = fetched.next_offset
    return found


def store_of(engine: EmbeddedEngine) -> LogStore:
    return engine._store


@pytest.fixture
async def reopened(open_engine: OpenEngine) -> AsyncIterator[Start]:
    """Start the next life of the folder; closed at the end."""
    engines: list[EmbeddedEngine] = []

    async def start(**options: object) -> EmbeddedEngine:
        engine = open_engine(**options)
        await engine.start()
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.close()


async def test_files_are_owner_only_and_in_their_folders(open_engine: OpenEngine, data: Folder) -> None:
    await live(open_engine, b"a")
    assert sorted(path.name for path in data.iterdir()) == [
        "LOCK",
        "journal",
        "manifest.a",
        "manifest.b",
        "segments",
        "state",
        "view",
    ]
    files = [data / "LOCK", data / "manifest.a", *(data / "journal").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (data, data / "journal", data / "view")} <= {0o700, 0o755}
    assert data.stat().st_mode & 0o777 == 0o700


async def test_each_life_writes_a_file_of_its_own_and_seals_the_ones_before(open_engine: OpenEngine, reopened: Start) -> None:
    await live(open_engine, b"a")
    await live(open_engine, b"b", kill=True)
    engine = await reopened()
    entries = store_of(engine).manifest.files
    assert [(entry.kind, entry.state) for entry in entries] == [
        (FileKind.JOURNAL, FileState.SEALED),
        (FileKind.JOURNAL, FileState.SEALED),
        (FileKind.JOURNAL, FileState.OPEN),
    ]
    assert await values(engine) == [b"a", b"b"]
    assert engine.damage() == []


async def test_a_full_journal_is_sealed_in_place_and_the_next_one_takes_over(open_engine: OpenEngine, reopened: Start) -> None:
    engine = await reopened(journal_file_bytes=4096, merge_files_min=100)
    await engine.create_topic("orders", 1, {})
    written = [b"%d" % n * 600 for n in range(12)]
    for value in written:
        await engine.append([Append("orders", 0, one_record(value))])
    assert len(store_of(engine).files) > 2
    assert await values(engine) == written


@pytest.mark.parametrize("copy", ["manifest.a", "manifest.b"])
async def test_one_damaged_manifest_is_stepped_over_and_reported(
    open_engine: OpenEngine, data: Folder, reopened: Start, copy: str
) -> None:
    await live(open_engine, b"a")
    (data / copy).write_bytes(b"SPM1" + bytes(200))
    engine = await reopened()
    assert engine.recovery.damaged_files == [copy]
    assert await values(engine) == [b"a"]


async def test_both_manifests_damaged_or_gone_is_a_refusal_by_name(open_engine: OpenEngine, data: Folder) -> None:
    await live(open_engine, b"a")
    damages: list[Callable[[Path], object]] = [lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), Path.unlink]
    for damage in damages:
        for copy in ("manifest.a", "manifest.b"):
            damage(data / copy)
        before = sorted(path.name for path in (data / "journal").iterdir())
        with pytest.raises(StorageDamaged, match=r"manifest\.a and manifest\.b"):
            await open_engine().start()
        assert sorted(path.name for path in (data / "journal").iterdir()) == before


async def test_a_file_that_the_manifest_lists_and_is_gone_is_a_refusal_by_name(open_engine: OpenEngine, data: Folder) -> None:
    await live(open_engine, b"a")
    await live(open_engine, b"b")
    journal = min((data / "journal").iterdir())
    journal.unlink()
    with pytest.raises(StorageDamaged, match=journal.name):
        await open_engine().start()


async def test_what_the_manifest_does_not_list_is_removed_and_named(
    open_engine: OpenEngine, data: Folder, reopened: Start
) -> None:
    await live(open_engine, b"a")
    for path in ("journal/ffffffffffffffff.journal", "segments/00000000000000aa.segment.new", "state/0000000000000099.snapshot"):
        (data / path).write_bytes(b"left behind")
    engine = await reopened()
    assert len(engine.recovery.orphans) == 3
    assert not (data / "journal/ffffffffffffffff.journal").exists()
    assert await values(engine) == [b"a"]


def with_version(header: bytes, at: int, size: int, version: int) -> bytes:
    head = header[:at] + version.to_bytes(size, "little") + header[at + size : -4]
    return head + crc32c(head).to_bytes(4, "little")


async def test_a_newer_journal_is_refused_by_name_and_nothing_is_changed(open_engine: OpenEngine, data: Folder) -> None:
    await live(open_engine, b"a", kill=True)
    journal = next((data / "journal").iterdir())
    whole = journal.read_bytes()
    journal.write_bytes(with_version(whole[:128], 4, 2, 2) + whole[128:])
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and "view" not in path.parts}
    with pytest.raises(FormatUnsupported, match=rf"{journal.name} has format version 2; this build reads up to 1"):
        await open_engine().start()
    assert {path: path.read_bytes() for path in before} == before


async def test_a_newer_footer_is_refused_by_name(open_engine: OpenEngine, data: Folder) -> None:
    await live(open_engine, b"a")
    await live(open_engine, b"b")
    sealed = min((data / "journal").iterdir())
    whole = sealed.read_bytes()
    assert parse_trailer(whole[-TRAILER_BYTES:]) is not None
    sealed.write_bytes(whole[:-TRAILER_BYTES] + with_version(whole[-TRAILER_BYTES:], 4, 4, 2))
    with pytest.raises(FormatUnsupported, match=rf"{sealed.name} has format version 2"):
        await open_engine().start()


async def test_the_folder_opens_again_in_this_process_after_a_refusal(
    open_engine: OpenEngine, data: Folder, reopened: Start
) -> None:
    await live(open_engine, b"a", kill=True)
    journal = next((data / "journal").iterdir())
    whole = journal.read_bytes()
    journal.write_bytes(with_version(whole[:128], 4, 2, 2) + whole[128:])
    with pytest.raises(FormatUnsupported):
        await open_engine().start()
    journal.write_bytes(whole)
    assert await values(await reopened()) == [b"a"]


async def test_every_byte_of_a_footer_flipped_and_the_data_is_still_served(
    open_engine: OpenEngine, data: Folder, tmp_path: Path
) -> None:
    await live(open_engine, b"a", b"b")
    await live(open_engine, b"c")
    sealed = min((data / "journal").iterdir())
    whole = sealed.read_bytes()
    trailer = parse_trailer(whole[-TRAILER_BYTES:])
    assert trailer is not None
    shutil.copytree(tmp_path / "data", tmp_path / "kept")
    for at in range(trailer.data_end, len(whole), 41):
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "kept", data)
        sealed.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        engine = open_engine()
        await engine.start()
        assert await values(engine) == [b"a", b"b", b"c"], f"byte {at}"
        assert engine.damage() == []
        assert engine.recovery.damaged_files or store_of(engine).footers_repaired
        await engine.close()


async def test_a_damaged_footer_is_written_anew(open_engine: OpenEngine, data: Folder, reopened: Start) -> None:
    await live(open_engine, b"a")
    await live(open_engine, b"b")
    sealed = min((data / "journal").iterdir())
    whole = sealed.read_bytes()
    sealed.write_bytes(whole[:-60] + bytes(60))
    await live(open_engine, b"c")
    engine = await reopened()
    assert engine.recovery.damaged_files == []
    assert await values(engine) == [b"a", b"b", b"c"]


async def test_holes_found_while_reindexing_are_told(open_engine: OpenEngine, data: Folder, reopened: Start) -> None:
    # Footer detail and a batch header damaged: nothing names that batch but the hole it leaves.
    await live(open_engine, b"a", b"b", b"c")
    await live(open_engine)
    sealed = min((data / "journal").iterdir())
    whole = bytearray(sealed.read_bytes())
    trailer = parse_trailer(bytes(whole[-TRAILER_BYTES:]))
    assert trailer is not None
    whole[trailer.data_end + 30] ^= 1
    whole[whole.rindex(b"SPB1", 0, trailer.data_end) + 50] ^= 1
    sealed.write_bytes(whole)
    engine = await reopened()
    assert await values(engine) == [b"a", b"b"]
    assert [(lost.from_offset, lost.to_offset) for lost in engine.damage()] == [(2, 3)]


def view_files(data: Folder) -> list[Path]:
    return [
        path for path in (data / "view").iterdir() if path.suffix in (".sst", ".log") or path.name.startswith(("MANI", "CURR"))
    ]


async def test_a_view_that_is_gone_is_rebuilt(open_engine: OpenEngine, data: Folder, reopened: Start) -> None:
    for value in (b"a", b"b", b"c"):
        await live(open_engine, value)
    shutil.rmtree(data / "view")
    engine = await reopened()
    assert list(engine.topics()) == ["orders"]
    assert await values(engine) == [b"a", b"b", b"c"]
    assert store_of(engine).unattributed == []


async def test_a_view_flipped_anywhere_is_rebuilt_and_no_topic_is_lost(
    open_engine: OpenEngine, data: Folder, tmp_path: Path
) -> None:
    await live(open_engine, b"a")
    await live(open_engine, b"b", topic="other")
    shutil.copytree(data, tmp_path / "kept")
    for kept in view_files(tmp_path / "kept"):
        path, whole = data / "view" / kept.name, kept.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 4)):
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "kept", data)
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            engine = open_engine()
            await engine.start()
            assert sorted(engine.topics()) == ["orders", "other"], f"{path.name} byte {at}"
            assert await values(engine) == [b"a"]
            await engine.close()


async def test_a_view_of_an_older_day_is_brought_up_to_the_journals(
    open_engine: OpenEngine, data: Folder, reopened: Start
) -> None:
    await live(open_engine, b"a")
    shutil.copytree(data / "view", data.parent / "older")
    await live(open_engine, b"b", topic="later")
    await live(open_engine, b"c")
    shutil.rmtree(data / "view")
    shutil.copytree(data.parent / "older", data / "view")
    engine = await reopened()
    assert sorted(engine.topics()) == ["later", "orders"]
    assert await values(engine, "later") == [b"b"]


async def test_a_missing_key_store_is_not_replaced_while_data_is_there(
    open_engine: OpenEngine, data: Folder, tmp_path: Path
) -> None:
    await live(open_engine, b"a")
    for copy in (tmp_path / "keys").glob("keystore.*"):
        copy.unlink()
    with pytest.raises(KeyMissing):
        await open_engine().start()
    for copy in data.glob("manifest.*"):
        copy.unlink()
    with pytest.raises(KeyMissing):
        await open_engine().start()
    assert not list((tmp_path / "keys").glob("keystore.*"))


async def test_a_missing_or_wrong_kek_is_named(open_engine: OpenEngine, tmp_path: Path) -> None:
    await live(open_engine, b"a")
    kek = tmp_path / "keys" / "kek.json"
    original = kek.read_text()
    kek.unlink()
    with pytest.raises(KeyMissing, match="does not hold the key kek-"):
        await open_engine().start()  # the fixture made another one
    name, made = json.loads(original)["keys"][0]["id"], json.loads(kek.read_text())["keys"][0]["id"]
    kek.write_text(kek.read_text().replace(made, name))
    with pytest.raises(KeyWrong, match=name):
        await open_engine().start()


async def test_a_foreign_key_store_is_named(open_engine: OpenEngine, data: Folder, tmp_path: Path) -> None:
    await live(open_engine, b"a")
    data.rename(tmp_path / "ours")
    for copy in (tmp_path / "keys").glob("keystore.*"):
        copy.unlink()
    await live(open_engine, b"theirs")
    shutil.rmtree(data)
    (tmp_path / "ours").rename(data)
    with pytest.raises(KeysMismatch, match=r"manifest\.a belongs to cluster [0-9a-f]{32}, the key store to [0-9a-f]{32}"):
        await open_engine().start()


async def test_indexes_kept_in_memory_are_bounded(open_engine: OpenEngine, reopened: Start) -> None:
    for value in (b"a", b"b", b"c"):
        await live(open_engine, value)
    engine = await reopened(index_cache_bytes_max=600, merge_files_min=100)
    store = store_of(engine)
    for _ in range(2):
        assert await values(engine) == [b"a", b"b", b"c"]
        assert len(store._indexes) == 1
    assert store._indexes_bytes <= 600


async def test_a_deleted_topic_leaves_no_index_behind(open_engine: OpenEngine, reopened: Start) -> None:
    await live(open_engine, b"a")
    engine = await reopened()
    await values(engine)
    assert store_of(engine)._indexes_bytes > 0
    await engine.delete_topic("orders")
    assert store_of(engine)._indexes_bytes == 0
    assert not store_of(engine)._indexes
