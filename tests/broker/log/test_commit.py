"""Committing when something refuses: the disk, the view, a reader's own callback, or the caller who went away."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.engine.base import Append, StateChange, StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.errors import AppendUnknown, BatchRefused, DiskFailed, Overloaded, UnknownTopic
from broker.log.commit import WRITTEN_AT_ONCE_BYTES_MAX, Committer
from broker.log.files import LogFile
from broker.log.journal import ActiveJournal
from broker.log.layout import FILE_HEADER_BYTES, GROUP_HEADER_BYTES
from broker.log.manifest import FileState
from broker.log.state import Entry, Kind
from broker.machine import RocksStore
from tests.broker.log.journals import one_record
from tests.conftest import OpenEngine

Start = Callable[..., Coroutine[Any, Any, EmbeddedEngine]]
HANG_S = 20


@pytest.fixture
async def start(open_engine: OpenEngine) -> AsyncIterator[Start]:
    """Starts the next life of one folder with topic `orders`; the last one is closed at the end."""
    lives: list[EmbeddedEngine] = []

    async def begin(**options: object) -> EmbeddedEngine:
        for engine in lives:
            await engine.close()
        engine = open_engine(**{"recover_retry_ms": 1, **options})
        await engine.start()
        lives.append(engine)
        if not engine.topics():
            await engine.create_topic("orders", 1, {})
        return engine

    yield begin
    await lives[-1].close()


class Trouble:
    """Makes a call fail for as long as `left` is not used up."""

    def __init__(self, times: int) -> None:
        self.left = times

    def meet(self) -> None:
        if self.left:
            self.left -= 1
            raise OSError(5, "Input/output error")


async def append(engine: EmbeddedEngine, value: bytes = b"v", topic: str = "orders") -> int:
    (landed,) = await engine.append([Append(topic, 0, one_record(value), [b"k"])])
    return landed.base_offset


async def count(engine: EmbeddedEngine, topic: str = "orders") -> int:
    fetched = await engine.fetch(topic, 0, 0, bytes_max=1 << 20)
    return len(fetched.batches)


async def append_until_one_fails(engine: EmbeddedEngine) -> int:
    """How many landed."""
    for landed in range(1_000):
        try:
            await append(engine, bytes(300))
        except AppendUnknown:
            return landed
    raise AssertionError("none failed")


async def until_mended(engine: EmbeddedEngine) -> None:
    assert engine._committer._task is not None
    await asyncio.wait_for(asyncio.wait([engine._committer._task]), HANG_S)


async def until_merged(engine: EmbeddedEngine) -> None:
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
    while engine._merging is not None and not engine._merging.done():
        await asyncio.wait([engine._merging])
    assert engine.stats().merges > 0


@pytest.fixture
def failing_sync(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    trouble = Trouble(0)

    def sync(file: LogFile) -> None:
        trouble.meet()
        file.file.sync()

    monkeypatch.setattr(Committer, "_sync_journal", staticmethod(sync))
    return trouble


@pytest.fixture
def failing_view(monkeypatch: pytest.MonkeyPatch) -> dict[str, Trouble]:
    troubles = {"write": Trouble(0), "flush": Trouble(0)}
    for name, trouble in troubles.items():
        monkeypatch.setattr(RocksStore, name, _failing(getattr(RocksStore, name), trouble))
    return troubles


def _failing(real: Callable[..., None], trouble: Trouble) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        trouble.meet()
        real(*arguments)

    return call


async def test_a_failed_sync_is_unknown_to_all_who_wait_and_never_visible(start: Start, failing_sync: Trouble) -> None:
    engine = await start()
    await append(engine)
    failing_sync.left = 1
    waiting = [asyncio.create_task(append(engine, b"lost")) for _ in range(3)]
    for task in waiting:
        with pytest.raises(AppendUnknown, match="Input/output error"):
            await asyncio.wait_for(task, HANG_S)
    await until_mended(engine)
    assert await count(engine) == 1
    assert engine.next_sequence() == 2
    assert await append(engine, b"after") == 1
    states = [file.entry.state for file in engine._store.files.values()]
    assert states[-2:] == [FileState.CLOSED, FileState.OPEN]
    again = await start()
    assert await count(again) == 2
    assert again.damage() == []
    assert again._store.unattributed == []


async def test_nonces_are_not_used_again_after_a_failure(start: Start, failing_sync: Trouble) -> None:
    engine = await start()
    epoch = engine._store.keys.keyring.sealing_epoch(engine.topics()["orders"].topic_id)
    failing_sync.left = 1
    with pytest.raises(AppendUnknown):
        await append(engine)
    await until_mended(engine)
    await append(engine)
    assert epoch._seals == 2


async def test_appends_are_refused_while_no_new_file_can_be_opened(
    start: Start, failing_sync: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(recover_retry_ms=60_000)
    no_file = Trouble(1)
    real = engine._store.new_journal

    async def new_journal(first_group: int) -> ActiveJournal:
        no_file.meet()
        return await real(first_group)

    monkeypatch.setattr(engine._store, "new_journal", new_journal)
    failing_sync.left = 1
    with pytest.raises(AppendUnknown):
        await append(engine)
    with pytest.raises(DiskFailed, match="no new journal file"):
        await append(engine)
    assert await count(engine) == 0, "reads go on"
    engine._committer._closing = True  # the retry is a minute away; closing does not wait for it
    assert engine._committer._task is not None
    engine._committer._task.cancel()


@pytest.mark.parametrize("unused", ["its listing fails", "an append fails", "an append fails before it is listed"])
async def test_a_journal_that_was_made_ready_in_vain_is_not_taken_for_one_that_lost_its_groups(
    start: Start, failing_sync: Trouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused: str
) -> None:
    """The numbers that its groups would have had are in files merged away since, when a start dies while it writes its footer."""
    engine = await start(journal_file_bytes=4096, merge_files_min=3)
    real, no_list = engine._store.save_manifest, Trouble(int(unused == "its listing fails"))
    listing, mended = asyncio.Event(), asyncio.Event()

    async def save_manifest() -> None:
        no_list.meet()
        if unused == "an append fails before it is listed" and not listing.is_set():
            listing.set()
            await mended.wait()
        await real()

    monkeypatch.setattr(engine._store, "save_manifest", save_manifest)
    landed = 0
    while engine._committer._next_journal is None:
        await append(engine, bytes(300))
        landed += 1
    if unused == "an append fails":
        await asyncio.wait([engine._committer._next_journal])
    if unused == "an append fails before it is listed":
        await asyncio.wait_for(listing.wait(), HANG_S)
    failing_sync.left = int(unused != "its listing fails")
    landed += await append_until_one_fails(engine)  # the next journal is asked for when this one is full
    await until_mended(engine)
    mended.set()
    for _ in range(50):
        await append(engine, bytes(300))
    await until_merged(engine)
    await engine.close()
    for path in (tmp_path / "data" / "journal").iterdir():
        if path.stat().st_size == FILE_HEADER_BYTES:
            with path.open("ab") as file:
                file.write(b"\xa5" * (GROUP_HEADER_BYTES + 1))  # of a footer, up to where the power failed
    again = await start()
    assert again._store.unattributed == []
    assert again.damage() == []
    assert await count(again) == landed + 50


async def test_the_queue_is_bounded_and_empties(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(append_queue_bytes_max=3000)
    held = asyncio.get_running_loop().create_future()
    real = engine._committer._write

    async def write(group: Any) -> None:
        await held
        await real(group)

    monkeypatch.setattr(engine._committer, "_write", write)
    waiting = [asyncio.create_task(append(engine, bytes(1000))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="append_queue_bytes_max is full") as refusal:
        await append(engine, bytes(1000))
    assert refusal.value.limit == 3000
    held.set_result(None)
    assert await asyncio.gather(*waiting) == [0, 1]
    assert await append(engine, bytes(1000)) == 2
    assert engine.stats().append_queue_bytes == 0


async def test_a_batch_larger_than_the_whole_queue_passes_when_it_is_empty(start: Start) -> None:
    engine = await start(append_queue_bytes_max=100)
    assert await append(engine, bytes(1000)) == 0


@pytest.mark.parametrize("call", ["write", "flush"])
async def test_a_view_that_fails_undoes_nothing_that_the_journal_holds(
    start: Start, failing_view: dict[str, Trouble], call: str
) -> None:
    engine = await start()
    failing_view[call].left = 1
    topic = await engine.create_topic("late", 1, {})
    await append(engine, topic="late")
    failing_view[call].left = 1_000_000  # it stays broken: nothing more is asked of it
    await engine.create_topic("later", 1, {})
    again_id = engine.topics()["late"].topic_id
    assert again_id == topic.topic_id
    await engine.close()
    failing_view[call].left = 0
    again = await start()
    assert sorted(again.topics()) == ["late", "later", "orders"]
    assert again.topics()["late"].topic_id == topic.topic_id
    assert await count(again, "late") == 1


async def test_a_view_that_failed_does_not_stop_files_from_being_sealed_and_merged(
    start: Start, failing_view: dict[str, Trouble]
) -> None:
    engine = await start(journal_file_bytes=2048, merge_files_min=3)
    failing_view["write"].left = 1_000_000
    await engine.create_topic("late", 1, {})
    for number in range(30):
        await append(engine, b"%d" % number + bytes(300), "late")
    await until_merged(engine)
    await engine.close()
    failing_view["write"].left = 0
    again = await start()
    assert sorted(again.topics()) == ["late", "orders"]
    assert await count(again, "late") == 30


async def test_the_position_of_the_view_never_goes_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sealing and merging stage a bare position, and the group written meanwhile is newer.
    engine = await start()
    held, real = threading.Event(), engine._committer._write_now

    def write_now(*arguments: Any) -> None:
        held.wait(HANG_S)
        real(*arguments)

    monkeypatch.setattr(engine._committer, "_write_now", write_now)
    changing = asyncio.create_task(engine._commit_entries([Entry(Kind.LOG_START, b"key", b"value")], flush_view=True))
    for _ in range(5):
        await asyncio.sleep(0)
    flushing = asyncio.create_task(engine._committer.flush_view())
    await asyncio.sleep(0)
    held.set()
    await asyncio.wait_for(asyncio.gather(changing, flushing), HANG_S)
    assert engine._view.load()[0] == engine._committer._last_group


async def test_a_reader_that_cannot_be_woken_harms_nobody(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine = await start()
    woken: list[str] = []

    def broken() -> None:
        raise RuntimeError("a mistake of this reader")

    engine.watch("orders", broken)
    engine.watch("orders", lambda: woken.append("other"))
    assert await asyncio.wait_for(append(engine), HANG_S) == 0
    assert await asyncio.wait_for(append(engine), HANG_S) == 1
    assert woken == ["other", "other"]
    assert "could not be woken" in caplog.text


async def test_a_group_that_cannot_be_made_leaves_nobody_waiting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start()

    def broken(*_: object) -> None:
        raise BatchRefused("cannot be laid out")

    monkeypatch.setattr(ActiveJournal, "_lay_out", staticmethod(broken))
    with pytest.raises(AppendUnknown, match="cannot be laid out"):
        await asyncio.wait_for(append(engine), HANG_S)
    monkeypatch.undo()
    await until_mended(engine)
    assert await append(engine) == 0


async def test_a_deletion_that_fails_leaves_the_topic(start: Start, failing_sync: Trouble) -> None:
    engine = await start()
    await append(engine)
    failing_sync.left = 1
    with pytest.raises(AppendUnknown):
        await engine.delete_topic("orders")
    await until_mended(engine)
    assert await count(engine) == 1
    await engine.delete_topic("orders")
    with pytest.raises(UnknownTopic):
        await append(engine)


async def test_a_topic_change_whose_caller_goes_away_is_made_whole(start: Start) -> None:
    engine = await start()
    creating = asyncio.create_task(engine.create_topic("late", 1, {}))
    await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await engine.create_topic("next", 1, {})  # changes are made one after the other
    assert "late" in engine.topics()
    assert sorted((await start()).topics()) == ["late", "next", "orders"]


async def test_a_cancelled_reader_ends_even_when_it_is_woken_at_the_same_time(start: Start) -> None:
    engine = await start()
    for _ in range(20):
        polling = asyncio.create_task(engine.tail("orders", engine.next_sequence(), bytes_max=1, wait_max_ms=600_000))
        await asyncio.sleep(0)
        engine._wake(["orders"])
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(polling, HANG_S)
        assert not engine._watchers


async def test_sealing_is_tried_until_it_is_done(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(journal_file_bytes=2048, merge_files_min=10_000)
    trouble = Trouble(3)
    real = engine._store._write_footer

    def write_footer(*arguments: Any) -> Any:
        trouble.meet()
        return real(*arguments)

    monkeypatch.setattr(engine._store, "_write_footer", write_footer)
    for number in range(20):
        await append(engine, b"%d" % number + bytes(300))
    while engine._committer._background:
        await asyncio.wait(engine._committer._background)
    assert trouble.left == 0
    assert [file.entry.state for file in engine._store.files.values()].count(FileState.OPEN) <= 2
    assert await count(await start()) == 20


def _at_work(engine: EmbeddedEngine) -> list[asyncio.Task[Any]]:
    """What writes to the folder, but for the one sealing that waits for its next try."""
    committer = engine._committer
    background = [] if len(committer._background) == 1 else list(committer._background)
    others = [task for task in (engine._merging, committer._next_journal) if task is not None and not task.done()]
    return [*background, *others]


@pytest.mark.parametrize("left_of_a_footer", [0, GROUP_HEADER_BYTES + 1])
async def test_a_full_journal_that_is_not_sealed_yet_is_not_taken_for_one_that_lost_its_groups(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left_of_a_footer: int
) -> None:
    """The files behind it are merged away meanwhile, and with them what said where their groups begin."""
    engine = await start(journal_file_bytes=4096, merge_files_min=3, recover_retry_ms=60_000)
    assert engine._committer._journal is not None
    number = engine._committer._journal.file.number
    real = engine._store._write_footer

    def write_footer(file: LogFile, data_end: int, *arguments: Any) -> Any:
        if file.number == number:
            file.file.write_at(data_end, [b"\xa5" * left_of_a_footer])
            raise OSError(5, "Input/output error")
        return real(file, data_end, *arguments)

    monkeypatch.setattr(engine._store, "_write_footer", write_footer)
    for _ in range(60):
        await append(engine, bytes(300))
    while at_work := _at_work(engine):
        await asyncio.wait(at_work, return_when=asyncio.FIRST_COMPLETED)
    assert engine.stats().merges
    shutil.copytree(tmp_path / "data", tmp_path / "as the power cut left it")
    for task in engine._committer._background:
        task.cancel()
    await engine.close()
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "as the power cut left it").rename(tmp_path / "data")
    again = await start()
    assert again._store.unattributed == []
    assert again.damage() == []
    assert again.recovery.tail_cuts == []
    assert await count(again) == 60


# -- durability "os" ----------------------------------------------------------------------------------------------------------


def position(key: bytes) -> StateChange:
    return StateChange(StateSpace.POSITION, key, b"value")


async def test_without_a_sync_the_view_hears_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its position would confirm groups that a power cut may take from the journal and leave in the view."""
    heard: list[bytes] = []
    write = RocksStore.write

    def listen(self: RocksStore, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        heard.extend(key for key, _ in puts)
        write(self, puts, deletes)

    engine = await start(durability="os")
    await append(engine)  # the topic's key is made durable before anything is acknowledged under it
    monkeypatch.setattr(RocksStore, "write", listen)
    await engine.append([], changes=[position(b"a")])
    await engine.append([Append("orders", 0, one_record(b"v"), [b"k"])], changes=[position(b"b")])
    assert engine.state(StateSpace.POSITION, b"b") == b"value"
    assert heard == []
    await engine.create_topic("synced", 1, {})
    assert [key[1:] for key in heard if key[:1] == bytes((StateSpace.POSITION,))] == [b"a", b"b"]
    assert len(dict((await start(durability="os")).states(StateSpace.POSITION))) == 2


async def test_a_late_sync_that_fails_changes_the_file(start: Start, failing_sync: Trouble) -> None:
    engine = await start(durability="os")
    await append(engine, b"synced, with its new key")
    await append(engine, b"kept by the system")
    failing_sync.left = 1
    with pytest.raises(OSError, match="Input/output"):
        await engine._committer.flush_view()
    with pytest.raises(AppendUnknown):
        await append(engine)
    await until_mended(engine)
    assert await append(engine, b"after") == 2
    assert [file.entry.state for file in engine._store.files.values()].count(FileState.CLOSED) == 1
    assert await count(await start(durability="os")) == 3


async def test_a_new_key_stands_in_the_view_too_before_it_is_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushed once for each key: without it everything sealed under it is lost, and a journal is one copy."""
    flushed: list[int] = []
    flush = RocksStore.flush

    def listen(self: RocksStore) -> None:
        flushed.append(1)
        flush(self)

    engine = await start()
    await engine.create_topic("readings", 1, {})
    monkeypatch.setattr(RocksStore, "flush", listen)
    for topic, flushes in (("orders", 1), ("orders", 1), ("readings", 2), ("readings", 2), ("orders", 2)):
        await append(engine, topic=topic)
        assert len(flushed) == flushes


async def test_with_os_a_small_group_is_written_at_once_and_a_large_one_beside(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(durability="os")
    await append(engine)  # its group names the topic's key, which is synced
    here, threads = threading.get_ident(), []
    write = Committer._write_now

    def noting(*arguments: Any) -> None:
        threads.append(threading.get_ident())
        write(*arguments)

    monkeypatch.setattr(Committer, "_write_now", noting)
    await append(engine)
    await append(engine, b"v" * WRITTEN_AT_ONCE_BYTES_MAX)
    await engine.append([], changes=[StateChange(StateSpace.POSITION, b"k", b"v")])
    assert [thread == here for thread in threads] == [True, False, False]
    monkeypatch.undo()
    assert await count(await start(durability="os")) == 3


async def test_with_os_a_refused_write_at_once_is_unknown_and_the_next_one_stands(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start(durability="os")
    await append(engine)
    trouble, write = Trouble(1), Committer._write_now

    def refusing(*arguments: Any) -> None:
        trouble.meet()
        write(*arguments)

    monkeypatch.setattr(Committer, "_write_now", refusing)
    with pytest.raises(AppendUnknown):
        await append(engine)
    await until_mended(engine)
    assert await append(engine) == 1
    monkeypatch.undo()
    assert await count(await start(durability="os")) == 2


# -- telling without a task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["os", "fsync"])
async def test_what_is_appended_in_one_turn_is_one_group_and_is_told_in_its_order(start: Start, durability: str) -> None:
    engine = await start(durability=durability)
    await append(engine)
    groups = engine.stats().groups
    told: list[tuple[int, int]] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(number: int, error: Exception | None) -> None:
        assert error is None
        told.append((number, engine.partition_offsets("orders", 0).high_watermark))
        if number == 4:
            done.set_result(None)

    for number in range(5):
        landed, waiter = engine.submit([Append("orders", 0, one_record(b"v"))], told=partial(hear, number))
        assert (landed[0].base_offset, waiter) == (1 + number, None)
    assert told == []
    await asyncio.wait_for(done, HANG_S)
    assert told == [(number, 6) for number in range(5)]  # visible before anybody is told
    assert engine.stats().groups == groups + 1


async def test_with_changes_there_is_a_waiter_besides(start: Start) -> None:
    engine = await start(durability="os")
    told: list[Exception | None] = []
    changes = [StateChange(StateSpace.POSITION, b"k", b"v")]
    _, waiter = engine.submit([], changes=changes, told=told.append)
    assert waiter is not None
    await waiter
    assert told == [None]
    engine.submit([], told=told.append)
    assert told == [None]  # not before `submit` has returned
    await asyncio.sleep(0)
    assert told == [None, None]


async def test_whoever_is_told_may_append_more(start: Start) -> None:
    engine = await start(durability="os")
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def again(left: int, error: Exception | None) -> None:
        if left:
            engine.submit([Append("orders", 0, one_record(b"v"))], told=partial(again, left - 1))
        else:
            done.set_result(None)

    again(50, None)
    await asyncio.wait_for(done, HANG_S)
    assert await count(engine) == 50


async def test_the_mistake_of_one_who_is_told_is_his_own(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine = await start(durability="os")
    told: list[Exception | None] = []

    def broken(error: Exception | None) -> None:
        raise RuntimeError("a mistake")

    engine.submit([Append("orders", 0, one_record(b"v"))], told=broken)
    engine.submit([Append("orders", 0, one_record(b"v"))], told=told.append)
    assert await append(engine) == 2
    assert told == [None]
    assert engine.stats().append_failures == 0
    assert "could not be told" in caplog.text


async def test_a_failed_write_is_told_to_all_and_the_next_one_stands(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(durability="os")
    await append(engine)
    trouble, write = Trouble(1), Committer._write_now
    told: list[Exception | None] = []

    def refusing(*arguments: Any) -> None:
        trouble.meet()
        write(*arguments)

    monkeypatch.setattr(Committer, "_write_now", refusing)
    for _ in range(3):
        engine.submit([Append("orders", 0, one_record(b"v"))], told=told.append)
    await asyncio.sleep(0)
    with pytest.raises(DiskFailed):  # from the failure on, not only when the task that mends it has begun
        engine.submit([Append("orders", 0, one_record(b"v"))])
    await until_mended(engine)
    assert [type(error) for error in told] == [AppendUnknown] * 3
    assert await append(engine) == 1
    monkeypatch.undo()
    assert await count(await start(durability="os")) == 2


async def test_what_was_appended_in_the_last_turn_is_there_after_the_end(start: Start) -> None:
    engine = await start(durability="os")
    told: list[Exception | None] = []
    for _ in range(3):
        engine.submit([Append("orders", 0, one_record(b"v"))], told=told.append)
    assert await count(await start(durability="os")) == 3  # which closes the one before
    assert told == [None] * 3
