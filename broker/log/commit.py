"""Committing: what was appended becomes durable, visible and acknowledged, in this order and together.

A group is what arrived in one turn of the loop, or while the group before it was written and synced; there is no timer. Small
ones that only go to the system's memory are written in the next turn itself. Whatever has to wait for something (a sync, a lane,
the next file) goes through a task, which writes until nothing waits.

After a failed write or sync nothing is appended to that file again: waiters hear that the outcome is unknown, what was only
handed out is rolled back, the file is closed where the last durable group ends, and a new file takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

import msgspec

from broker.errors import AppendUnknown, BrokerError, Closed, DiskFailed, Overloaded
from broker.log.files import LogFile
from broker.log.journal import ActiveJournal, Group, PendingFrame
from broker.log.layout import FILE_HEADER_BYTES
from broker.log.manifest import FileState
from broker.log.reserve import is_full
from broker.log.state import Kind, StagedWrite, StateView
from broker.log.store import LogStore

logger = logging.getLogger("sprawl.log")

SMALL_WRITE_BUFFERS = 64  # more pieces than this are joined where they are small: a copy is cheaper than iovecs (0.2 us each)
SMALL_BUFFER_BYTES = 4096  # on average; pieces of 64 KiB are written from where they are: copying one costs 7 us and more
# What is not synced only goes to the system's memory, which takes less than waking another thread [20 us for 64 KiB, a thread and
# back 50 us and more]. State goes by the commit lane in any case: its view is told there, in the order of the syncs.
WRITTEN_AT_ONCE_BYTES_MAX = 256 * 1024
QUEUE_RETRY_AFTER_MS = 50
SEAL_AT_CLOSE_SECONDS = 10.0  # a journal that cannot be sealed while the node stops is sealed at the next start


class Committer:
    """Owner thread. `publish` makes a committed group visible; the engine gives it, and hears of failures by `roll_back`."""

    def __init__(
        self,
        store: LogStore,
        view: StateView,
        publish: Callable[[Group], None],
        roll_back: Callable[[], None],
        sealed: Callable[[], None],
    ) -> None:
        self._store = store
        self._view = view
        self._publish = publish
        self._roll_back = roll_back
        self._sealed = sealed
        self._pending: deque[PendingFrame] = deque()
        self._pending_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._due: asyncio.Handle | None = None
        self._at_once = store.options.durability == "os"
        self._background: set[asyncio.Task[None]] = set()
        self._journal: ActiveJournal | None = None
        self._next_journal: asyncio.Task[ActiveJournal] | None = None
        self._full: asyncio.Task[None] | None = None  # the sync of the file before the active one
        self._durable_through = 0
        self._last_group = 0
        self._failed: Exception | None = None
        self._no_file: OSError | None = None  # why the last attempt since then to open a new file did not help
        self._closing = False
        self._opened_at_ms = 0
        self._view_failed = False
        self._view_group = 0
        self._unsynced: deque[tuple[int, StagedWrite]] = deque()  # commit lane: what the view must not hear of yet
        self._sync_problem: OSError | None = None
        self._failing: Sequence[PendingFrame] = ()
        self._kept_keys: set[bytes] = set()
        self.groups = 0
        self.bytes_written = 0
        self.failures = 0

    async def open(self, last_group: int) -> None:
        """Everything up to `last_group` is durable; begin the next file."""
        self._last_group = self._durable_through = last_group
        self._write_to(await self._store.new_journal(last_group + 1))

    def _write_to(self, journal: ActiveJournal) -> None:
        self._journal = journal
        self._opened_at_ms = self._store.seams.clock.monotonic_ms()

    # -- appending --------------------------------------------------------------------------------------------------------

    def require_room(self, size: int) -> None:
        """Raises Closed; after a failure that is not mended yet DiskFull or DiskFailed, as nothing is tried; Overloaded at the
        queue's bound."""
        if self._closing:
            raise Closed
        if self._failed is not None:
            if self._no_file is not None and is_full(self._no_file):
                raise self._store.space.problem()  # whatever the last look at the free space said
            raise DiskFailed("appending", f"{self._failed}, and no new journal file could be opened yet")
        bound = self._store.options.append_queue_bytes_max
        if self._pending_bytes and self._pending_bytes + size > bound:
            raise Overloaded("append_queue_bytes_max", bound, QUEUE_RETRY_AFTER_MS)

    def submit(self, frame: PendingFrame) -> None:
        self._pending.append(frame)
        self._pending_bytes += frame.size
        if self._due is None:
            self._kick()

    def _kick(self) -> None:
        """At the end of this turn: what others append until then goes along."""
        if self._due is None and (self._task is None or self._task.done()):
            if self._at_once:
                self._due = self._loop.call_soon(self._commit_soon)
            else:
                self._commit_by_task(self._commit_all())

    def _commit_soon(self) -> None:
        """One group, at once or by the task. What comes after it waits for the next turn, in which others had theirs."""
        self._due = None
        if not self._pending or self._failed is not None:
            return
        if self._pending_bytes > WRITTEN_AT_ONCE_BYTES_MAX or self._sync_problem is not None:
            self._commit_by_task(self._commit_all())
            return
        try:
            journal = self._journal_in_use()
            if journal is None:
                self._commit_by_task(self._commit_all())
                return
            group = self._assemble(journal)
            if group.entries or group.end - group.position > WRITTEN_AT_ONCE_BYTES_MAX:
                self._commit_by_task(self._commit_all(group))
                return
            try:
                self._write_now(group, None, False)
            except Exception:
                self._failing = group.frames
                raise
            self._settle(journal, group)
        except Exception as problem:  # whatever it was: nobody may wait for ever, and nothing half-done may go on
            self._commit_by_task(self._recover(problem, self._stop(problem)))
            return
        if self._pending:
            self._kick()

    def _commit_by_task(self, work: Coroutine[None, None, None]) -> None:
        self._task = self._loop.create_task(work, name="commit")

    async def _commit_all(self, group: Group | None = None) -> None:
        """`group` is assembled already."""
        while (self._pending or group is not None) and self._failed is None:
            try:
                await self._commit_one(group)
            except Exception as problem:  # whatever it was: nobody may wait for ever, and nothing half-done may go on
                await self._mend(problem, self._stop(problem))
            group = None

    async def _recover(self, problem: Exception, waiting: Sequence[PendingFrame]) -> None:
        await self._mend(problem, waiting)
        await self._commit_all()

    async def _commit_one(self, group: Group | None) -> None:
        if group is None:
            if self._sync_problem is not None:
                raise self._sync_problem
            group = self._assemble(await self._room_in_journal())
        journal = self._journal
        assert journal is not None
        try:
            if self._sync_problem is not None:
                raise self._sync_problem
            await self._write(group)
        except Exception:
            self._failing = group.frames
            raise
        self._settle(journal, group)

    def _assemble(self, journal: ActiveJournal) -> Group:
        store = self._store
        return journal.assemble(
            store.keys,
            self._pending,
            store.options.group_bytes_max,
            self._durable_through,
            store.seams.clock.now_ms(),
            store.next_sequence,
        )

    def _settle(self, journal: ActiveJournal, group: Group) -> None:
        """It is as durable as promised."""
        size = group.end - group.position
        journal.accept(group)
        self._last_group = group.number
        if group.synced:
            self._durable_through = group.number
        self.groups += 1
        self.bytes_written += size
        for frame in group.frames:
            self._pending_bytes -= frame.size
        self._store.space.spent(size)
        self._acknowledge(group)

    def _acknowledge(self, group: Group) -> None:
        """Visibility first, then whoever waits: who was told can read it."""
        self._publish(group)
        for frame in group.frames:
            _tell(frame, None)

    async def _write(self, group: Group) -> None:
        staged = self._view.stage(group.number, group.entries) if group.entries else None
        keys = self._new_keys(group)
        # A key stands in two places, durably, before anything under it is acknowledged: without it all of that is lost.
        group.flush_view = group.flush_view or bool(keys)
        group.synced = not self._at_once or group.flush_view
        if staged is None and not group.synced and group.end - group.position <= WRITTEN_AT_ONCE_BYTES_MAX:
            self._write_now(group, None, False)
        else:
            if group.synced:
                await self._full_synced()
            await self._store.seams.executor.run("commit", lambda: self._write_now(group, staged, group.synced))
        self._kept_keys.update(keys)

    def _new_keys(self, group: Group) -> list[bytes]:
        """Wrapped keys of the group that the view has not made durable yet: once an epoch, not once a file."""
        return [entry.key for entry in group.entries if entry.kind == Kind.WRAPPED_KEY and entry.key not in self._kept_keys]

    def _write_now(self, group: Group, staged: StagedWrite | None, sync: bool) -> None:
        """Blocking: the journal first, then the view that follows from it."""
        buffers = group.buffers
        small = group.end - group.position < SMALL_BUFFER_BYTES * len(buffers)
        joined = small and len(buffers) > SMALL_WRITE_BUFFERS
        group.file.file.write_at(group.position, [b"".join(buffers)] if joined else buffers)
        if not sync:
            # Its position would confirm bytes that a power cut may take: with "os" the view waits for the next sync too.
            if staged is not None:
                self._unsynced.append((group.number, staged))
            return
        self._sync_journal(group.file)
        self._catch_up(group.number)
        if staged is not None:
            self._follow(staged, group.number, group.flush_view)

    def _sync_now(self, file: LogFile, through: int) -> None:
        """Blocking: everything written so far is on the media, and then in the view."""
        self._sync_journal(file)
        self._catch_up(through)

    def _catch_up(self, through: int) -> None:
        """Blocking: the journals were synced up to this group."""
        while self._unsynced and self._unsynced[0][0] <= through:
            group, staged = self._unsynced.popleft()
            self._follow(staged, group, False)

    def _follow(self, staged: StagedWrite | None, group: int, flush: bool) -> None:
        """Blocking. What the journal holds durably is decided, so a view that fails undoes nothing: nothing more is written to
        it, it stays behind, and the next start brings it up to the journals."""
        if self._view_failed:
            return
        try:
            if staged is not None and group >= self._view_group:  # a bare position staged earlier never turns it back
                self._view.write(staged)
                self._view_group = group
            if flush:
                self._view.flush()
        except OSError as problem:
            self._view_failed = True
            logger.error("the view of the state failed (%s); it is left alone until the next start mends it", problem)

    @staticmethod
    def _sync_journal(file: LogFile) -> None:
        file.file.sync()

    # -- files ------------------------------------------------------------------------------------------------------------

    async def _room_in_journal(self) -> ActiveJournal:
        """The active file, or the next one when it is full. The next one is made ready at half."""
        journal = self._journal
        assert journal is not None
        return self._journal_in_use() or await self._roll(journal)

    def _journal_in_use(self) -> ActiveJournal | None:
        """None when it is full, old, or under a system key that another one follows."""
        journal = self._journal
        assert journal is not None
        store, end = self._store, journal.end
        size = store.options.journal_file_bytes
        if end >= size or journal.system_key_id != store.keys.system_epoch().key_id:
            return None
        age_ms = store.seams.clock.monotonic_ms() - self._opened_at_ms
        if age_ms > store.options.journal_age_max_ms and end > FILE_HEADER_BYTES:
            return None
        if end * 2 >= size and self._next_journal is None:
            self._prepare_next(journal)
        return journal

    def _prepare_next(self, journal: ActiveJournal) -> None:
        """Its first group is not known yet: the entry names the group after the newest, which is at most too low."""
        make = self._store.new_journal(journal.last_group + 1)
        self._next_journal = asyncio.get_running_loop().create_task(make, name="next-journal")

    async def _roll(self, journal: ActiveJournal) -> ActiveJournal:
        """With "os" a full file is synced while the next one is written to: that takes 50 ms and more for 64 MiB. Only one is, so
        what was acknowledged and is not on the media is less than two files."""
        await self._full_synced()
        if self._next_journal is None or journal.system_key_id != self._store.keys.system_epoch().key_id:
            self._drop_next()
            self._prepare_next(journal)
        prepared, self._next_journal = self._next_journal, None
        assert prepared is not None
        following = await prepared
        following.first_group = journal.last_group + 1
        following.last_group = journal.last_group
        following.file.entry = msgspec.structs.replace(following.file.entry, first_group=following.first_group)
        self._write_to(following)
        if journal.last_group > self._durable_through:
            self._full = self._loop.create_task(self._sync_full(journal), name="sync-full-journal")
        self._spawn(self._seal(journal))
        return following

    async def _sync_full(self, journal: ActiveJournal) -> None:
        """Until it is done nothing of the file that follows is synced, confirmed or told to the view: a start takes the groups of
        both for a tail that a power cut may have shortened anywhere. A failed sync closes the file, as a failed write does."""
        through = journal.last_group
        executor = self._store.seams.executor
        await executor.run("commit", lambda: None)  # the system tells an error once: nobody else syncs this file at the same time
        try:
            await executor.run("sync", lambda: self._sync_journal(journal.file))
        except Exception as problem:  # whatever it was: it is not known to be on the media
            self.failures += 1
            _lose_trust(journal, problem)
            return
        self._durable_through = max(self._durable_through, through)
        await executor.run("commit", lambda: self._catch_up(through))

    async def _full_synced(self) -> None:
        while self._full is not None and not self._full.done():
            await asyncio.wait([self._full])

    async def _sync_unsynced(self, journal: ActiveJournal) -> None:
        """With "os": what was acknowledged unsynced goes to the media before anything is built on it. Group numbers up to here
        are durable then; a sync that fails leaves nothing to trust in this file, so the next commit changes it."""
        through = journal.last_group
        await self._full_synced()
        if through <= self._durable_through:
            return
        try:
            await self._store.seams.executor.run("commit", lambda: self._sync_now(journal.file, through))
        except OSError as problem:
            self._sync_problem = problem
            raise
        self._durable_through = max(self._durable_through, through)

    def _drop_next(self) -> None:
        """Not cancelled: half made it could be listed already. It is done before any file that is asked for later."""
        if self._next_journal is not None:
            self._spawn(self._unlist_unused(self._next_journal))
            self._next_journal = None

    async def _unlist_unused(self, prepared: asyncio.Task[ActiveJournal]) -> None:
        with suppress(OSError):  # then it is not listed
            self._store.unlist_unused((await prepared).file)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _seal(self, journal: ActiveJournal) -> None:
        """Until it is done the file stays listed as open, and a start reads it by its groups."""
        await self._full_synced()
        if journal.file.entry.state is FileState.OPEN:
            # Every manifest from now on says where it ends, so those that let go of files behind it do, and what a footer that
            # was not finished leaves there is not taken for groups that were lost.
            journal.file.entry = msgspec.structs.replace(journal.file.entry, data_end=journal.end)
            await self._store.until_done(f"sealing {journal.file.path} in place", lambda: self._seal_once(journal))
        else:
            await self._store.until_done("listing files", self._store.save_manifest)
        self._sealed()

    async def _seal_once(self, journal: ActiveJournal) -> None:
        await self._flush_view(journal.last_group)
        await self._store.seal_in_place(
            journal.file, journal.end, journal.first_group, journal.last_group, list(journal.keys.values())
        )

    # -- failure ----------------------------------------------------------------------------------------------------------

    def _stop(self, problem: Exception) -> list[PendingFrame]:
        """Nothing is appended from here on; what was handed out is taken back. Returns those who have to be told."""
        self.failures += 1
        logger.error("append failed, changing the journal file", exc_info=problem)
        self._failed = problem
        waiting = [*self._failing, *self._pending]
        self._failing = ()
        self._pending.clear()
        self._pending_bytes = 0
        self._roll_back()
        self._drop_next()
        return waiting

    async def _mend(self, problem: Exception, waiting: Sequence[PendingFrame]) -> None:
        """Nobody is acknowledged; the file ends where the last group ended, and another one takes over."""
        refused = False
        if is_full(problem):
            await self._store.space.refused()
            refused = await self._changed_file()  # the closed file ends before them, durably: they are not there
        for frame in waiting:
            _tell(frame, self._store.space.problem() if refused else AppendUnknown(str(problem)))
        await self._change_file_until_it_works()

    async def _changed_file(self) -> bool:
        try:
            await self._change_file()
        except OSError as problem:
            logger.warning("no new journal file yet: %s", problem)
            self._no_file = problem
            if is_full(problem):
                await self._store.space.refused()
            return False
        self._failed = self._no_file = None
        return True

    async def _change_file_until_it_works(self) -> None:
        while self._failed is not None and not self._closing:
            if not await self._changed_file():
                await asyncio.sleep(self._store.options.recover_retry_ms / 1000)

    async def _change_file(self) -> None:
        journal = self._journal
        assert journal is not None
        if journal.file.entry.state is FileState.OPEN:
            await self._sync_what_stands(journal)
            _close(journal)
        self._write_to(await self._store.new_journal(journal.last_group + 1))
        self._sealed()

    async def _sync_what_stands(self, journal: ActiveJournal) -> None:
        """Closed files count as durable. With "os" and a disk that cannot sync they may not be; what a power cut then takes is
        reported as damage, which it is."""
        if self._sync_problem is None:
            try:
                await self._sync_unsynced(journal)
            except OSError as problem:
                _lose_trust(journal, problem)
        self._sync_problem = None

    # -- stopping ---------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Commit what was accepted, then a group without frames that confirms it all."""
        self._closing = True
        if self._due is not None:
            self._due.cancel()
            self._commit_soon()
        while self._due is not None:  # noqa: ASYNC110  it was written at once, and the next turn writes more
            await asyncio.sleep(0)
        if self._task is not None:
            await asyncio.wait([self._task])
        await self._full_synced()
        if self._failed is None and self._journal is not None:
            await self._confirm(self._journal)
        if self._next_journal is not None:
            await asyncio.wait([self._next_journal])
        if self._background:
            await asyncio.wait(self._background, timeout=SEAL_AT_CLOSE_SECONDS)
        for task in list(self._background):
            task.cancel()

    async def _confirm(self, journal: ActiveJournal) -> None:
        try:
            await self._sync_unsynced(journal)
            group = journal.assemble(
                self._store.keys,
                deque(),
                0,
                self._durable_through,
                self._store.seams.clock.now_ms(),
                self._store.next_sequence,
            )
            group.flush_view = True
            await self._write(group)
            await self._store.seams.executor.run("commit", lambda: self._follow(None, 0, True))
        except OSError as problem:
            logger.warning("the last confirmation was not written (%s); the next start checks the newest group", problem)

    async def flush_view(self) -> int:
        """Make the view durable, saying itself how far it goes; returns the group. Journals up to it need no replay."""
        group = self._last_group
        if self._journal is not None:
            await self._sync_unsynced(self._journal)
        await self._flush_view(group)
        return group

    async def _flush_view(self, group: int) -> None:
        """Up to `group`, which is durable."""
        position = self._view.stage(group, [])
        await self._store.seams.executor.run("commit", lambda: self._follow(position, group, True))

    def last_group(self) -> int:
        """The newest visible one."""
        return self._last_group

    def problem(self) -> str | None:
        """Why nothing can be appended now."""
        return None if self._failed is None else f"the disk failed ({self._failed}) and no new journal file could be opened yet"

    def pending_bytes(self) -> int:
        return self._pending_bytes


def _close(journal: ActiveJournal) -> None:
    """It ends where its last group does, and gets no footer."""
    end = max(journal.end, FILE_HEADER_BYTES)
    journal.file.entry = msgspec.structs.replace(journal.file.entry, state=FileState.CLOSED, data_end=end)


def _lose_trust(journal: ActiveJournal, problem: Exception) -> None:
    """Closed files count as durable; what a power cut takes from this one is reported as damage, which it is."""
    logger.error("%s could not be synced (%s): a power cut may take records from it", journal.file.path, problem)
    _close(journal)


def _tell(frame: PendingFrame, refusal: BrokerError | None) -> None:
    waiter, told = frame.waiter, frame.told
    if waiter is not None and not waiter.done():
        if refusal is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(refusal)
    if told is not None:
        try:
            told(refusal)
        except Exception:  # one caller's mistake must not undo what is durable for everybody
            logger.exception("whoever appended could not be told")
