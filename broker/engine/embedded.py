"""The embedded engine: one node, one sealed log on one disk (decision 0001, design of the log in broker/log).

    append: check -> offsets, sequence, seal (owner thread) -> group -> write + sync (commit lane) -> visible -> acknowledged
    read:   ring of the newest batches in memory, else index -> files -> open (read lane)

All state lives on the owner thread; executor lanes touch files and the keyed store only. Lock order: there are no locks but the
ones inside the keyring and on a file's reader count, and neither calls out while held.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from broker.batch_header import with_log_append_time
from broker.engine.base import (
    Append,
    Appended,
    Capabilities,
    Damage,
    Decided,
    Fetched,
    Gap,
    KeyCopy,
    OffsetForTime,
    PartitionEnds,
    PartitionOffsets,
    Scan,
    StateChanges,
    StateSpace,
    Stored,
    Tail,
    Told,
    Topic,
)
from broker.errors import (
    BatchRefused,
    BrokerError,
    Closed,
    DiskFailed,
    DiskFull,
    IllegalTopicName,
    InvalidConfig,
    OffsetOutOfRange,
    PartitionsRefused,
    RecordTooLarge,
    TopicExists,
    UnknownPartition,
    UnknownTopic,
)
from broker.log.cleaner import Cleaner
from broker.log.commit import Committer
from broker.log.compaction import Compaction
from broker.log.footer import DamagedRange
from broker.log.journal import Group, PendingBatch, PendingFrame
from broker.log.key_walk import KeyWalk
from broker.log.layout import FLAG_CONTROL, FLAG_HAS_EXPIRY, FLAG_KEYS_COMPLETE, FLAG_TRANSACTIONAL, NO_TAG
from broker.log.log_start import forgotten_starts, log_start_entry, start_at
from broker.log.lookup import InOrder, Lookup
from broker.log.merge import Merge, choose
from broker.log.options import LogOptions
from broker.log.partition import PartitionLog
from broker.log.recent import Recent
from broker.log.record_keys import NULL_KEY, UNREADABLE_KEY
from broker.log.record_keys import key_hashes as hashes_of
from broker.log.retention import RetentionClock, expired_up_to
from broker.log.startup import Opened, RecoveryReport, Startup
from broker.log.state import (
    Entry,
    Kind,
    StateTable,
    StateView,
    TopicState,
    check_entry_version,
    is_system,
    wrapped_key_entry,
)
from broker.log.state_space import StateSpaces
from broker.log.store import LogStore
from broker.log.sweep import dead_files, drop_dead_extents, sweep
from broker.retained import NO_TIMESTAMP, holds_records
from broker.seams import Seams
from broker.stats import EngineStats
from broker.topics.addresses import legal_topic_name
from broker.topics.configs import batch_bytes_max, check_configs, check_together, compacted, dated_by_node
from security.crypto.keyring import Epoch
from security.crypto.keystore import KeyStore
from security.errors import KeyMissing, KeyProblem, KeyShredded

logger = logging.getLogger("sprawl.log")

LOCK_PATH = "LOCK"
NEAR_BATCHES = 64  # a follower at most so far behind is served from the newest batches of all partitions
_BATCH_HEAD = struct.Struct(">qiibIhiqqqhii")
_PLACE = struct.Struct(">qii")
BATCH_HEAD_BYTES = 61
Result = TypeVar("Result")
KAFKA_TRANSACTIONAL, KAFKA_CONTROL = 0x10, 0x20
KAFKA_FLAGS = KAFKA_TRANSACTIONAL | KAFKA_CONTROL


class EmbeddedEngine:
    """`broker.engine.base.Engine` over this machine's disk (or a simulated one)."""

    def __init__(
        self, seams: Seams, keystore: KeyStore, options: LogOptions | None = None, holder: str = "a Sprawl node"
    ) -> None:
        self._seams = seams
        self._keystore = keystore
        self.options = options or LogOptions()
        self._holder = holder
        self._store = LogStore(seams, self.options)
        self._lookup = Lookup(self._store)
        self._topics: dict[str, Topic] = {}
        self._topics_view = MappingProxyType(self._topics)  # asked for at each request
        self._by_id: dict[bytes, Topic] = {}
        self._batch_bytes_max: dict[str, int] = {}  # looked at for every batch
        self._dated_here: set[str] = set()
        self._watchers: dict[str, dict[Callable[[], None], None]] = {}  # dicts keep order: a seed replays
        self._watchers_of_all: dict[Callable[[], None], None] = {}
        self._recent = Recent(self.options.ring_bytes_max)
        self._next_sequence = 1
        self._table = StateTable()
        self._spaces = StateSpaces(self.options, self._table)
        self._unlock: Callable[[], None] | None = None
        self._view: StateView
        self._committer: Committer
        self._merging: asyncio.Task[None] | None = None
        self._naming = asyncio.Lock()
        self._changes: dict[asyncio.Task[Any], None] = {}
        self._running = False
        self._batches = 0
        self._retaining: asyncio.Task[None] | None = None
        self._watching_space: asyncio.Task[None] | None = None
        self._retention_due = asyncio.Event()
        self._retention_clock = RetentionClock(seams.clock, self.options)
        self._log_starts_moved = 0
        self._cut_newest = 0  # the newest commit sequence of which records were let go
        self._swept_files = 0
        self._swept_bytes = 0
        self._merges = 0
        self._merged_bytes = 0
        self._compactions = 0
        self._compaction_epochs: dict[bytes, Epoch] = {}
        self._cleaner = Cleaner(self._store, self._compaction_epoch)
        self._key_walk = KeyWalk(self._store)
        self.recovery = RecoveryReport()
        self.decided: Decided | None = None

    # -- start and stop ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """FolderInUse, KeyMissing, KeyWrong, KeysMismatch, FormatUnsupported, StorageDamaged: each before anything is changed."""
        run = self._seams.executor.run
        self._unlock = await run("background", lambda: self._seams.disk.lock(LOCK_PATH, self._holder))
        try:
            await run("background", self._store.space.prepare)
            opened = await run("background", self._open)
            await self._take(opened)
        except BaseException:
            await run("background", self._let_go)
            raise
        await self._store.space.look()
        self._running = True
        self._consider_merge()
        loop = asyncio.get_running_loop()
        self._retaining = loop.create_task(self._retain(), name="retention")
        self._watching_space = loop.create_task(self._store.space.watch(), name="disk space")

    def _open(self) -> Opened:
        """Blocking."""
        self._open_keystore()
        return Startup(self._seams, self._store, self._keystore).run()

    def _open_keystore(self) -> None:
        try:
            self._keystore.load()
        except KeyMissing as missing:
            if missing.key_id is not None or self._store.holds_data():
                raise
            self._keystore.create(self._seams.random.bytes(16))

    async def _take(self, opened: Opened) -> None:
        self._view, self._table, self.recovery = opened.view, opened.table, opened.report
        self._spaces = StateSpaces(self.options, self._table)
        self._load_topics()
        self._next_sequence = self._store.next_sequence = opened.next_sequence
        for log in self._store.partitions.values():
            self._settle_partition(log)
            self._cut_newest = max(self._cut_newest, log.cut_sequence)
        self._committer = Committer(self._store, self._view, self._publish, self._roll_back, self._consider_merge)
        for found in opened.recovered:
            file = self._store.files[found.entry.number]
            await self._store.write_again(file, found.confirmed_end, found.data_end)
            await self._store.seal_in_place(
                file, found.data_end, found.first_group, found.last_group, list(found.keys.values()), found.unattributed
            )
        await self._seal_repaired()
        await self._catch_view_up(opened)
        replaced = await self._renew_snapshot(opened.state_group)
        await self._committer.open(opened.last_group)
        await self._drop_snapshot(replaced)
        await self._begin_epoch()
        self._log_recovery()

    async def _catch_view_up(self, opened: Opened) -> None:
        """Values sealed here need their epoch in the same view: it is written with them."""
        if opened.view_lacks is None:
            return
        epoch = self._store.keys.system_epoch()
        own = wrapped_key_entry(epoch.topic_id, epoch.key_id, epoch.wrapped)
        staged = self._view.stage(opened.state_group, [own, *opened.view_lacks])

        def write() -> None:
            self._view.write(staged)
            self._view.flush()

        await self._seams.executor.run("background", write)

    async def _seal_repaired(self) -> None:
        """Files whose footers were damaged get new ones. Until then they stay listed with the old ones, and are read as before
        if the node stops meanwhile."""
        for number, found in self._store.repaired.items():
            file = self._store.files[number]
            topics = dict.fromkeys(extent.summary.topic_id for extent in self._store.live_extents(file))
            keys = [key for topic_id in topics for key in self._store.known_keys(topic_id)]
            await self._store.seal_in_place(
                file, file.entry.data_end, file.entry.first_group, found.last_group, keys, found.unattributed
            )
        self._store.repaired.clear()

    async def _renew_snapshot(self, group: int) -> int | None:
        """After damage to what the state would be restored from: the state as found, for the next manifest to list, so that it
        is held twice again. Returns the number of the one it replaces."""
        old = self._store.manifest.snapshot
        if not self.recovery.state_damaged:
            return None
        number = await self._store.save_snapshot(group, self._table.entries())
        self._store.list_snapshot(number, group)
        return old

    async def _drop_snapshot(self, number: int | None) -> None:
        if number is not None:
            try:
                await self._store.drop_snapshot(number)
            except OSError as problem:
                logger.warning("snapshot %d is not listed any more and could not be removed: %s", number, problem)

    async def _begin_epoch(self) -> None:
        """The first group of this process names its system key and finishes shreddings that a crash interrupted."""
        epoch = self._store.keys.system_epoch()
        entries = [wrapped_key_entry(epoch.topic_id, epoch.key_id, epoch.wrapped)]
        for entry in self._table.entries(Kind.SHREDDING):
            await self._shred(entry.key)
            entries.append(Entry(Kind.SHREDDING, entry.key, None))
        await self._commit_entries(entries, flush_view=True)

    def _load_topics(self) -> None:
        for entry in self._table.entries(Kind.TOPIC):
            assert entry.value is not None
            self._add_topic(_topic_of(entry.key, entry.value))
        for topic_id in dict.fromkeys(topic_id for topic_id, _ in self._store.partitions):
            if topic_id not in self._by_id:
                self._store.forget_topic(topic_id)

    def _settle_partition(self, log: PartitionLog) -> None:
        """After a start everything that was found is visible."""
        if log.first_kept is not None:
            log.next_offset, log.tag = log.first_kept.offset, log.first_kept.chain_in or NO_TAG
        if log.extents:
            last = log.extents[-1].summary
            log.next_offset, log.tag = max(log.next_offset, last.next_offset), last.chain_out or NO_TAG
            log.ring_floor = max(extent.summary.max_sequence for extent in log.extents)
        log.high_watermark, log.visible_tag = log.next_offset, log.tag

    def _log_recovery(self) -> None:
        report = self.recovery
        for cut in report.tail_cuts:
            if cut.size:
                logger.warning("%s: %d unconfirmed bytes at %d cut (%s)", cut.path, cut.size, cut.position, cut.reason)
        for path in report.damaged_files:
            logger.error("%s is damaged; a whole copy or its own data was used instead", path)
        for damage in self.damage():
            logger.error(
                "damaged: %s/%d offsets %d to %d (%s)",
                damage.topic,
                damage.partition,
                damage.from_offset,
                damage.to_offset - 1,
                damage.reason,
            )
        for lost in self._store.unattributed:  # of no known partition: state, or batches whose headers are gone
            logger.error("damaged: commit sequences %d to %d (%s)", lost.start, lost.end, lost.reason)

    async def close(self) -> None:
        if not self._running:
            return
        self._running = False
        for task in (self._retaining, self._watching_space):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._changes:
            await asyncio.wait(self._changes)
        await self._committer.close()
        await self._lookup.close()
        await self._key_walk.close()
        if self._merging is not None:
            self._merging.cancel()
            await asyncio.wait([self._merging])
        self._wake([*self._watchers, ""])  # and those who watch all topics, also where nobody watches one
        for lane in ("manifest", "commit", "space"):  # what a cancelled merge or sealing had begun to save
            await self._seams.executor.run(lane, lambda: None)
        await self._seams.executor.run("background", self._let_go)

    def _let_go(self) -> None:
        """Blocking."""
        self._store.close()
        if hasattr(self, "_view"):
            self._view.close()
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability=self.options.durability,
            commit_sequence=True,
            key_index=True,
            groups=True,
            transactions=True,
            compaction=True,
        )

    # -- topics -----------------------------------------------------------------------------------------------------------

    def topics(self) -> Mapping[str, Topic]:
        return self._topics_view

    def topic_of(self, topic_id: bytes) -> Topic | None:
        return self._by_id.get(topic_id)

    async def create_topic(self, name: str, partitions: int, configs: Mapping[str, str]) -> Topic:
        self.check_new_topic(name, partitions, configs)
        return await self._to_the_end(self._create(name, partitions, configs))

    def check_new_topic(self, name: str, partitions: int, configs: Mapping[str, str]) -> None:
        self._require_running()
        if not legal_topic_name(name):
            raise IllegalTopicName(name)
        self._require_new(name)
        self._check_partitions(name, partitions)
        check_configs(name, configs)
        check_together(name, configs)

    def _require_new(self, name: str) -> None:
        if name in self._topics:
            raise TopicExists(name)
        if len(self._topics) >= self.options.topics_max:
            raise InvalidConfig(name, "topics_max", f"the node has {len(self._topics)} topics already, its bound")

    async def _to_the_end(self, change: Coroutine[Any, Any, Result]) -> Result:
        """A caller that goes away meanwhile leaves no change half made: durable and not in memory, or the reverse."""
        task = asyncio.get_running_loop().create_task(change, name="topic change")
        self._changes[task] = None
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        del self._changes[task]
        problem = None if task.cancelled() else task.exception()  # taken here too: the caller may be gone
        if problem is not None:  # a refusal is its caller's: clients could fill the log with them
            level = logging.DEBUG if isinstance(problem, BrokerError) else logging.ERROR
            logger.log(level, "a change of topics failed: %s", problem)

    async def _create(self, name: str, partitions: int, configs: Mapping[str, str]) -> Topic:
        async with self._naming:
            self._require_new(name)
            topic_id = _uuid4(self._seams.random.bytes(16))
            topic = Topic(topic_id, name, partitions, dict(configs), self._seams.clock.now_ms())
            await self._change_keystore("adding a topic's root key", lambda: self._keystore.add(topic_id))
            await self._commit_entries([_topic_entry(topic)], flush_view=True)
            self._add_topic(topic)
        return topic

    async def alter_topic(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        self._require_running()
        return await self._to_the_end(self._alter(name, partitions, configs or {}))

    def check_altered(
        self, name: str, *, partitions: int | None = None, configs: Mapping[str, str | None] | None = None
    ) -> Topic:
        self._require_running()
        return self._altered(self._topic(name), partitions, configs or {})

    async def _alter(self, name: str, partitions: int | None, configs: Mapping[str, str | None]) -> Topic:
        async with self._naming:
            topic = self._topic(name)
            changed = self._altered(topic, partitions, configs)
            await self._commit_entries([_topic_entry(changed)], flush_view=True)
            self._add_topic(changed)
        self._retention_due.set()
        return changed

    def _altered(self, topic: Topic, partitions: int | None, configs: Mapping[str, str | None]) -> Topic:
        count = topic.partitions if partitions is None else partitions
        self._check_partitions(topic.name, count)
        if count < topic.partitions:
            raise PartitionsRefused(topic.name, f"{topic.partitions} partitions cannot become {count}: they only grow")
        check_configs(topic.name, {key: value for key, value in configs.items() if value is not None})
        merged = {**topic.configs, **configs}
        kept = {key: value for key, value in merged.items() if value is not None}
        check_together(topic.name, kept)
        return msgspec.structs.replace(topic, partitions=count, configs=kept)

    def _check_partitions(self, name: str, partitions: int) -> None:
        if not 1 <= partitions <= self.options.partitions_max:
            raise PartitionsRefused(name, f"{partitions} is not between 1 and {self.options.partitions_max}")

    async def delete_topic(self, name: str) -> list[KeyCopy]:
        """First the deletion is durable, then the root key goes, then that is noted: a crash in between is finished at start."""
        self._require_running()
        return await self._to_the_end(self._delete(name))

    async def _delete(self, name: str) -> list[KeyCopy]:
        async with self._naming:
            topic = self._topic(name)
            self._remove_topic(topic)  # from here on nothing is appended to it, so nothing follows its deletion
            try:
                gone = [Entry(Kind.TOPIC, topic.topic_id, None), Entry(Kind.SHREDDING, topic.topic_id, b"\x01")]
                await self._commit_entries(gone + forgotten_starts(self._table, topic.topic_id), flush_view=True)
            except BrokerError:
                self._add_topic(topic)
                raise
            await self._shred(topic.topic_id)
            self._store.forget_topic(topic.topic_id)
            self._compaction_epochs.pop(topic.topic_id, None)
            await self._commit_entries([Entry(Kind.SHREDDING, topic.topic_id, None)], flush_view=False)
        self._wake([name])
        self._consider_merge()
        return await self._key_copies(topic)

    async def _shred(self, topic_id: bytes) -> None:
        if topic_id in self._keystore and not is_system(topic_id):
            await self._change_keystore("destroying a topic's root key", lambda: self._keystore.shred(topic_id))

    async def _key_copies(self, topic: Topic) -> list[KeyCopy]:
        try:
            run = self._seams.executor.run
            backups = await run("manifest", lambda: self._keystore.backups_holding(topic.topic_id))
        except (KeyProblem, OSError) as problem:
            logger.error("whether key backups hold the key of topic %s cannot be told: %s", topic.name, problem)
            return [KeyCopy("unknown", "", 0)]
        for backup in backups:
            logger.warning(
                "topic %s is deleted, and key backup %s (%s) still holds its key: destroy it",
                topic.name,
                backup.backup_id,
                backup.path,
            )
        return [KeyCopy(backup.backup_id, backup.path, backup.expires_at_ms) for backup in backups]

    async def _change_keystore(self, what: str, change: Callable[[], None]) -> None:
        try:
            await self._seams.executor.run("manifest", change)
        except OSError as problem:
            raise DiskFailed(what, str(problem)) from problem

    def _add_topic(self, topic: Topic) -> None:
        self._topics[topic.name] = topic
        self._by_id[topic.topic_id] = topic
        self._batch_bytes_max[topic.name] = batch_bytes_max(topic.configs)
        (self._dated_here.add if dated_by_node(topic.configs) else self._dated_here.discard)(topic.name)
        for partition in range(topic.partitions):
            self._store.partition(topic.topic_id, partition)

    def _remove_topic(self, topic: Topic) -> None:
        del self._topics[topic.name]
        del self._by_id[topic.topic_id]
        del self._batch_bytes_max[topic.name]
        self._dated_here.discard(topic.name)

    def _topic(self, name: str) -> Topic:
        found = self._topics.get(name)
        if found is None:
            raise UnknownTopic(name)
        return found

    def _log(self, topic: Topic, partition: int) -> PartitionLog:
        if not 0 <= partition < topic.partitions:
            raise UnknownPartition(topic.name, partition, topic.partitions)
        return self._store.partition(topic.topic_id, partition)

    def _logs(self, topic: Topic, partitions: Sequence[int] | None = None) -> list[PartitionLog]:
        return [self._log(topic, partition) for partition in (range(topic.partitions) if partitions is None else partitions)]

    async def _commit_entries(self, entries: list[Entry], *, flush_view: bool) -> None:
        """What the log itself has to say is never refused for want of space: the reserve is for it."""
        try:
            await self._commit_once(entries, flush_view=flush_view)
        except DiskFull:  # met the end of the disk: by now the reserve is given back
            await self._commit_once(entries, flush_view=flush_view)

    async def _commit_once(self, entries: list[Entry], *, flush_view: bool) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        frame = PendingFrame(self._next_sequence, waiter)
        frame.entries, frame.flush_view, frame.size = entries, flush_view, 64
        self._committer.require_room(0)
        self._committer.submit(frame)
        await waiter

    def _require_running(self) -> None:
        if not self._running:
            raise Closed

    # -- append -----------------------------------------------------------------------------------------------------------

    async def append(self, appends: Sequence[Append], *, durable: bool = True, changes: StateChanges = ()) -> list[Appended]:
        answers, waiter = self.submit(appends, durable=durable, changes=changes)
        if waiter is not None:
            await waiter
        return answers

    def submit(
        self, appends: Sequence[Append], *, durable: bool = True, changes: StateChanges = (), told: Told | None = None
    ) -> tuple[list[Appended], asyncio.Future[None] | None]:
        if not self._running:
            raise Closed
        if not appends and not changes:
            if told is not None:
                asyncio.get_running_loop().call_soon(told, None)
            return [], None
        checked, size = [], 0
        for append in appends:
            checked.append(self._check(append))
            size += len(append.batch)
        adds = bool(appends)
        if changes:
            if callable(changes):
                adds = True
            else:
                size += sum([len(change.value or b"") for change in changes])
                adds = adds or any(change.value is not None for change in changes)
        if adds and self._store.space.space:
            self._store.space.require(records=bool(appends))
        self._committer.require_room(size)
        waiter: asyncio.Future[None] | None = None
        if durable and (told is None or changes):
            waiter = asyncio.get_running_loop().create_future()
        frame = PendingFrame(self._next_sequence, waiter, told)
        now_ms = self._seams.clock.now_ms()
        answers: list[Appended] = []
        try:
            for append, (log, head) in zip(appends, checked, strict=True):
                answers.append(self._add(frame, append, log, head, now_ms))
            if changes:
                self._spaces.admit(frame, changes(answers) if callable(changes) else changes)
        except BaseException:
            self._take_back(frame)
            raise
        self._committer.submit(frame)
        return answers, waiter

    def _check(self, append: Append) -> tuple[PartitionLog, tuple[int, ...]]:
        """Nothing is handed out before every batch of the call has passed."""
        topic = self._topics.get(append.topic)
        if topic is None:
            raise UnknownTopic(append.topic)
        log = self._store.partitions.get((topic.topic_id, append.partition))
        if log is None or append.partition >= topic.partitions:
            log = self._log(topic, append.partition)
        batch = append.batch
        size, size_max = len(batch), self._batch_bytes_max[append.topic]
        if size > size_max:
            raise RecordTooLarge("record batch", size, f"max.message.bytes of topic {topic.name!r}", size_max)
        if size < BATCH_HEAD_BYTES:
            raise BatchRefused(f"{size} bytes are no record batch")
        head = _BATCH_HEAD.unpack_from(batch)
        if head[1] != size - 12 or head[3] != 2 or head[6] < 0 or not 0 < head[12] <= head[6] + 1:
            raise BatchRefused("length, magic, last offset delta or count contradict each other")
        return log, head

    def _add(self, frame: PendingFrame, append: Append, log: PartitionLog, head: tuple[int, ...], now_ms: int) -> Appended:
        delta, max_timestamp_ms, count, attributes = head[6], head[8], head[12], head[5]
        base, previous_tag = log.next_offset, log.tag
        sequence = self._next_sequence
        batch = append.batch
        if append.topic in self._dated_here and not attributes & KAFKA_CONTROL:
            batch, max_timestamp_ms = with_log_append_time(batch, now_ms), now_ms
        clear = b"".join((_PLACE.pack(base, head[1], 0), batch[16:]))  # base offset, length, leader epoch
        hashes = None if append.keys is None else self._hashes(log.topic_id, append.keys)
        flags = 0 if hashes is None else FLAG_KEYS_COMPLETE
        if append.has_expiry or attributes & KAFKA_FLAGS:
            flags |= _flags(attributes, append.has_expiry)
        sealed = self._store.keys.seal_batch(
            clear,
            flags=flags,
            topic_id=log.topic_id,
            partition=log.partition,
            last_offset_delta=delta,
            base_offset=base,
            sequence=sequence,
            max_timestamp_ms=max_timestamp_ms,
            append_time_ms=now_ms,
            records=count,
            previous_tag=previous_tag,
            key_hashes=hashes,
        )
        following = base + delta + 1
        stored = Stored(log.partition, base, following, sequence, max_timestamp_ms, clear, append.has_expiry)
        frame.batches.append(PendingBatch(log, stored, sealed, previous_tag, flags, hashes))
        frame.size += sealed.size
        log.next_offset, log.tag = following, sealed.tag
        self._next_sequence = sequence + 1
        return Appended(append.topic, append.partition, base, delta + 1, sequence, now_ms, log.log_start)

    def _hashes(self, topic_id: bytes, keys: Sequence[bytes | None]) -> list[int]:
        hasher = self._store.keys.hasher(topic_id)
        if len(keys) == 1 and (key := keys[0]) is not None:
            return [hasher.hash(key)]
        return hashes_of(hasher, keys)

    def _take_back(self, frame: PendingFrame) -> None:
        """A frame that failed while it was built: its offsets, tags and sequences were handed to nobody."""
        for batch in reversed(frame.batches):
            batch.partition.next_offset, batch.partition.tag = batch.stored.base_offset, batch.previous_tag
        self._next_sequence = frame.first_sequence

    def _publish(self, group: Group) -> None:
        """The group is durable (or written, with `os`): make it visible."""
        changed: dict[bytes, None] = {}
        recent, file = self._recent, group.file
        for frame in group.frames:
            if frame.entries:
                self._table.apply(frame.entries)
                self._spaces.settle(frame)
            for batch in frame.batches:
                log = batch.partition
                sealed = batch.sealed
                log.grow(
                    file,
                    batch.stored,
                    batch.position,
                    sealed.size,
                    batch.flags,
                    sealed.tag,
                    batch.previous_tag,
                    batch.key_hashes,
                )
                recent.push(log, batch.stored)
                self._batches += 1
                changed[log.topic_id] = None
                self._store.next_sequence = batch.stored.sequence + 1
        if recent.size > recent.bytes_max:
            recent.trim()
        if changed and (self._watchers or self._watchers_of_all):
            self._wake([topic.name for topic_id in changed if (topic := self._by_id.get(topic_id)) is not None])

    def _roll_back(self) -> None:
        """After a failed write: nothing that was only handed out exists any more."""
        for log in self._store.partitions.values():
            log.roll_back()
        self._spaces.roll_back()
        self._next_sequence = self._store.next_sequence

    # -- state beside data ------------------------------------------------------------------------------------------------

    def state(self, space: StateSpace, key: bytes) -> bytes | None:
        return self._spaces.get(space, key)

    def states(self, space: StateSpace) -> Iterator[tuple[bytes, bytes]]:
        return self._spaces.items(space)

    # -- waking readers ---------------------------------------------------------------------------------------------------

    def watch(self, topic: str, wake: Callable[[], None]) -> Callable[[], None]:
        watchers = self._watchers.setdefault(topic, {})
        watchers[wake] = None

        def unwatch() -> None:
            watchers.pop(wake, None)
            if not watchers and self._watchers.get(topic) is watchers:
                del self._watchers[topic]

        return unwatch

    def watch_all(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._watchers_of_all[wake] = None

        def unwatch() -> None:
            self._watchers_of_all.pop(wake, None)

        return unwatch

    def _wake(self, names: Sequence[str]) -> None:
        wakes = [wake for name in names for wake in self._watchers.get(name, ())]
        for wake in [*wakes, *self._watchers_of_all] if names else ():
            try:
                wake()
            except Exception:  # one reader's mistake must not undo what is durable for everybody
                logger.exception("a reader of %s could not be woken", ", ".join(names))

    async def _visible(self, topic: str, deadline_ms: int, seen: int) -> bool:
        """Wait for the next commit on the topic; False when the deadline passed first.

        `seen` is what `next_sequence` was when the caller began to look: a commit since then woke nobody.
        """
        if deadline_ms > self._seams.clock.monotonic_ms():
            self._topic(topic)  # deleted since the caller looked: nobody would wake it any more
        return await self._woken(lambda wake: self.watch(topic, wake), deadline_ms, seen)

    async def _woken(self, watch: Callable[[Callable[[], None]], Callable[[], None]], deadline_ms: int, seen: int) -> bool:
        left_ms = deadline_ms - self._seams.clock.monotonic_ms()
        if left_ms <= 0:
            return False
        self._require_running()  # closed since the caller looked
        if self._store.next_sequence != seen:
            return True
        happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not happened.done():
                happened.set_result(None)

        unwatch = watch(wake)
        try:
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that meets the result, and the reader would never end.
            async with asyncio.timeout(left_ms / 1000):
                await happened
        except TimeoutError:
            return False
        finally:
            unwatch()
        return True

    # -- reading ----------------------------------------------------------------------------------------------------------

    async def fetch(
        self, topic: str, partition: int, offset: int, *, bytes_max: int, bytes_min: int = 1, wait_max_ms: int = 0
    ) -> Fetched:
        deadline_ms = self._seams.clock.monotonic_ms() + wait_max_ms
        while True:
            seen = self._store.next_sequence
            fetched = await self._fetch_now(topic, partition, offset, bytes_max)
            cut_short = fetched.next_offset < fetched.high_watermark  # by `bytes_max`: waiting would not bring more
            if cut_short or fetched.damage or sum(len(stored.batch) for stored in fetched.batches) >= bytes_min:
                return fetched
            if not await self._visible(topic, deadline_ms, seen):
                return fetched

    def fetch_recent(self, topic: str, partition: int, offset: int, *, bytes_max: int) -> Fetched | None:
        self._require_running()
        found = self._topic(topic)
        log = self._log(found, partition)
        if not log.log_start <= offset <= log.high_watermark:
            raise OffsetOutOfRange(topic, partition, offset, log.log_start, log.high_watermark)
        if offset == log.high_watermark:
            return Fetched([], offset, log.log_start, log.high_watermark, [])
        taken = self._lookup.at_once(log, offset, min(bytes_max, self.options.fetch_bytes_max))
        if not taken:
            return None
        if offset <= log.log_start:
            taken = [_kept(log, stored) for stored in taken]
        return Fetched(taken, taken[-1].next_offset, log.log_start, log.high_watermark, [])

    async def _fetch_now(self, name: str, partition: int, offset: int, bytes_max: int) -> Fetched:
        self._require_running()
        topic = self._topic(name)
        log = self._log(topic, partition)
        if not log.log_start <= offset <= log.high_watermark:
            raise OffsetOutOfRange(name, partition, offset, log.log_start, log.high_watermark)
        if offset == log.high_watermark:
            return Fetched([], offset, log.log_start, log.high_watermark, [])
        with _unknown_when_deleted(name):
            found = await self._lookup.from_offset(log, offset, min(bytes_max, self.options.fetch_bytes_max))
        if offset < log.log_start:  # it moved meanwhile, and files may have gone from under the read
            raise OffsetOutOfRange(name, partition, offset, log.log_start, log.high_watermark)
        damage = _damages([(topic, log, lost) for lost in found.damage])
        stored = [_kept(log, batch) for batch in found.stored]
        return Fetched(stored, found.reached, log.log_start, log.high_watermark, damage)

    async def tail(
        self,
        topic: str,
        from_sequence: int,
        *,
        bytes_max: int,
        wait_max_ms: int = 0,
        partitions: Sequence[int] | None = None,
        key: bytes | None = None,
    ) -> Tail:
        deadline_ms = self._seams.clock.monotonic_ms() + wait_max_ms
        while True:
            seen = self._store.next_sequence
            tail = await self._tail_now(topic, from_sequence, bytes_max, partitions, key)
            if tail.batches or tail.damage or tail.gap:
                return tail
            if from_sequence < tail.next_sequence < seen:  # past what was aborted, or compacted
                from_sequence = tail.next_sequence
                await asyncio.sleep(0)
                continue
            from_sequence = max(from_sequence, tail.next_sequence)
            if not await self._visible(topic, deadline_ms, seen):
                return tail

    async def _tail_now(
        self, name: str, from_sequence: int, bytes_max: int, partitions: Sequence[int] | None, key: bytes | None
    ) -> Tail:
        self._require_running()
        topic = self._topic(name)
        end = self._end_of((topic.topic_id,))
        if from_sequence >= end:
            return Tail([], from_sequence, [])
        key_hashes = None if key is None else self._read_by_key(topic.topic_id, key, UNREADABLE_KEY)
        logs = self._logs(topic, partitions)
        bytes_max = min(bytes_max, self.options.fetch_bytes_max)
        recent = self._recent.newest(from_sequence, NEAR_BATCHES) if key is None else None
        if recent is not None:
            found = self._lookup.from_memory(recent, lambda log: log in logs, bytes_max)
        else:
            with _unknown_when_deleted(name):
                found = await self._lookup.from_sequence(logs, from_sequence, bytes_max, key_hashes)
        batches = [_kept(log, stored) for log, stored in self._decided(found.stored, end)]
        damage = _damages([(topic, log, lost) for log, lost in found.damage])
        reached = min(found.reached, end)
        return Tail(batches, reached, damage, _gaps([(topic.name, log) for log in logs], from_sequence, reached))

    def _end_of(self, topic_ids: Iterable[bytes]) -> int:
        """Where commit order ends for now: before what a transaction has left open."""
        return self._store.next_sequence if self.decided is None else self.decided.stable_sequence(topic_ids)

    def _decided(self, found: list[tuple[PartitionLog, Stored]], end: int) -> list[tuple[PartitionLog, Stored]]:
        """Without markers and what was aborted, up to the end; and without batches of which compaction left nothing."""
        found = [pair for pair in found if pair[1].max_timestamp_ms != NO_TIMESTAMP or holds_records(pair[1].batch)]
        found = [pair for pair in found if pair[1].sequence < end]  # more may have come while files were read
        if (decided := self.decided) is None:
            return found
        return [(log, stored) for log, stored in found if decided.committed(log.topic_id, stored)]

    async def scan(self, from_sequence: int, *, topics: Callable[[str], bool], bytes_max: int, wait_max_ms: int = 0) -> Scan:
        deadline_ms = self._seams.clock.monotonic_ms() + wait_max_ms
        while True:
            seen = self._store.next_sequence
            scan = await self._scan_now(from_sequence, topics, min(bytes_max, self.options.fetch_bytes_max))
            if scan.batches or scan.damage or scan.gap:
                return scan
            if from_sequence < scan.next_sequence < seen:  # many batches of other topics were passed by: not to the end yet
                from_sequence = scan.next_sequence
                await asyncio.sleep(0)
                continue
            from_sequence = max(from_sequence, scan.next_sequence)
            if not await self._woken(self.watch_all, deadline_ms, seen):
                return scan

    async def _scan_now(self, from_sequence: int, topics: Callable[[str], bool], bytes_max: int) -> Scan:
        while True:
            self._require_running()
            if from_sequence >= self._store.next_sequence:
                return Scan([], from_sequence, [])
            picked = {topic.topic_id: topic for topic in self._topics.values() if topics(topic.name)}
            end = self._end_of(picked)
            if from_sequence >= end:
                return Scan([], from_sequence, [])
            try:
                found = await self._scan_topics(picked, from_sequence, bytes_max)
            except KeyShredded:
                if all(topic_id in self._by_id for topic_id in picked):
                    raise
                continue  # one was deleted while it was read: the others are not held up by it
            batches = [
                (topic.name, _kept(log, stored))
                for log, stored in self._decided(found.stored, end)
                if (topic := self._by_id.get(log.topic_id)) is not None
            ]
            reached = min(found.reached, end)
            damage = _damages(
                (topic, log, lost) for log, lost in found.damage if (topic := self._by_id.get(log.topic_id)) is not None
            )
            return Scan(batches, reached, damage, self._gaps_of(picked, from_sequence, reached))

    def _gaps_of(self, picked: Mapping[bytes, Topic], from_sequence: int, reached: int) -> list[Gap]:
        if from_sequence > self._cut_newest:
            return []  # the usual reader, whatever the number of partitions
        logs = [log for log in self._store.partitions.values() if from_sequence <= log.cut_sequence < reached]
        names = [(topic.name, log) for log in logs if (topic := picked.get(log.topic_id)) is not None]
        return _gaps(names, from_sequence, reached)

    async def _scan_topics(self, picked: Mapping[bytes, Topic], from_sequence: int, bytes_max: int) -> InOrder:
        recent = self._recent.since(from_sequence)
        if recent is not None:
            return self._lookup.from_memory(recent, lambda log: log.topic_id in picked, bytes_max)
        logs = [log for topic in picked.values() for log in self._logs(topic)]
        return await self._lookup.from_sequence(logs, from_sequence, bytes_max, None)

    def _read_by_key(self, topic_id: bytes, *keys: bytes) -> tuple[int, ...]:
        """Their hashes. Batches of the topic that came without are walked from now on."""
        if self._key_walk.note(topic_id):
            self._consider_merge()
        hasher = self._store.keys.hasher(topic_id)
        return tuple([hasher.hash(key) for key in keys])

    def _readable(self, topic_id: bytes) -> Callable[[Stored], bool]:
        decided = self.decided
        return lambda stored: decided is None or decided.committed(topic_id, stored)

    async def find_latest(self, topic: str, partition: int, key: bytes | None) -> Stored | None:
        self._require_running()
        found = self._topic(topic)
        log = self._log(found, partition)
        (key_hash,) = self._read_by_key(found.topic_id, NULL_KEY if key is None else key)
        with _unknown_when_deleted(topic):
            latest = await self._lookup.newest_with_key(log, key, key_hash, self._readable(found.topic_id))
        return None if latest is None else _kept(log, latest)

    def offsets(self, topic: str) -> list[PartitionOffsets]:
        return [PartitionOffsets(log.partition, log.log_start, log.high_watermark) for log in self._logs(self._topic(topic))]

    def partition_offsets(self, topic: str, partition: int) -> PartitionOffsets:
        log = self._log(self._topic(topic), partition)
        return PartitionOffsets(partition, log.log_start, log.high_watermark)

    def partition_ends(self, topic: Topic, partition: int) -> PartitionEnds:
        return self._log(topic, partition)

    def sizes(self, topic: str) -> list[int]:
        return [sum(extent.summary.size for extent in log.extents) for log in self._logs(self._topic(topic))]

    async def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> OffsetForTime:
        self._require_running()
        log = self._log(self._topic(topic), partition)
        with _unknown_when_deleted(topic):
            return OffsetForTime(*await self._lookup.offset_for_time(log, timestamp_ms))

    async def offset_of_max_timestamp(self, topic: str, partition: int) -> OffsetForTime:
        self._require_running()
        log = self._log(self._topic(topic), partition)
        with _unknown_when_deleted(topic):
            return OffsetForTime(*await self._lookup.newest_time(log))

    async def sequence_for_time(self, topic: str, timestamp_ms: int) -> int:
        self._require_running()
        return await self._lookup.sequence_for_time(self._logs(self._topic(topic)), timestamp_ms)

    def next_sequence(self) -> int:
        return self._store.next_sequence

    def append_problem(self) -> str | None:
        return self._committer.problem() or (str(self._store.space.problem()) if self._store.space.space else None)

    def damage(self) -> list[Damage]:
        return _damages(
            (topic, log, lost)
            for log in self._store.partitions.values()
            if (topic := self._by_id.get(log.topic_id)) is not None
            for lost in log.damage()
        )

    def stats(self) -> EngineStats:
        return EngineStats(
            topics=len(self._topics),
            partitions=len(self._store.partitions),
            files=len(self._store.files),
            groups=self._committer.groups,
            batches_appended=self._batches,
            bytes_journaled=self._committer.bytes_written,
            append_failures=self._committer.failures,
            append_queue_bytes=self._committer.pending_bytes(),
            ring_bytes=self._recent.size,
            file_reads=self._lookup.file_reads,
            sealed_in_place=self._store.sealed_in_place,
            merges=self._merges,
            merged_bytes=self._merged_bytes,
            compactions=self._compactions,
            key_walk_batches=self._store.read_by_key.batches_walked,
            key_walk_waiting=self._key_walk.waiting(),
            log_starts_moved=self._log_starts_moved,
            files_swept=self._swept_files,
            bytes_swept=self._swept_bytes,
            disk_full=int(self._store.space.space),
            disk_full_times=self._store.space.times_full,
            damaged_ranges=len(self.damage()) + len(self._store.unattributed),
            next_sequence=self._store.next_sequence,
            free_disk_bytes=self._seams.disk.free_bytes(),
        )

    # -- merging ----------------------------------------------------------------------------------------------------------

    def _consider_merge(self) -> None:
        if not self._running or (self._merging is not None and not self._merging.done()):
            return
        drop_dead_extents(self._store)
        if choose(self._store) or dead_files(self._store) or self._has_compacted() or self._store.read_by_key:
            self._merging = asyncio.get_running_loop().create_task(self._merge_all(), name="merge")

    async def _merge_all(self) -> None:
        while self._running:
            if not await self._sweep():
                return
            merge = await self._next_merge()
            if merge is None:
                if dead_files(self._store):
                    continue
                return
            size = sum(extent.summary.size for file in merge.inputs for extent in self._store.live_extents(file))
            if not self._store.space.room_for(size):
                return  # for the time of a merge both copies are there
            try:
                snapshot, group = await self._write_merged(merge)
            except (OSError, KeyProblem, BrokerError) as problem:
                # Nothing was replaced yet: what was written is removed and the next full journal tries again.
                logger.warning("merge of %d files put off: %s", len(merge.inputs), problem)
                return await self._abandon(merge)
            await merge.take_over(snapshot, group)
            self._merges += 1
            self._merged_bytes += merge.bytes_moved
            if isinstance(merge, Compaction):
                self._recent.clear()  # readers of the newest would still meet what is gone from the files
                self._compactions += 1

    async def _next_merge(self) -> Merge | None:
        if inputs := choose(self._store):
            return Merge(self._store, inputs)
        try:
            if (unwalked := await self._key_walk.next_file()) is not None:
                return Merge(self._store, [unwalked])
            if not self._has_compacted():
                return None
            return await self._cleaner.next(list(self._topics.values()), self.decided, self._retention_clock.now_ms())
        except (OSError, KeyProblem) as problem:
            logger.warning("compaction, or walking keys, is put off: %s", problem)
            return None

    def _has_compacted(self) -> bool:
        return any(compacted(topic.configs) for topic in self._topics.values())

    async def _compaction_epoch(self, topic_id: bytes) -> Epoch:
        """One a topic and life of the node; like every other it is durable in the state before anything is sealed under it."""
        epoch = self._compaction_epochs.get(topic_id)
        if epoch is None or epoch.exhausted:
            epoch = self._store.keys.keyring.separate_epoch(topic_id)
            await self._commit_entries([wrapped_key_entry(topic_id, epoch.key_id, epoch.wrapped)], flush_view=True)
            self._compaction_epochs[topic_id] = epoch
        return epoch

    async def _abandon(self, merge: Merge) -> None:
        try:
            await self._seams.executor.run("background", merge.abandon)
        except OSError as problem:
            logger.warning("what a merge wrote could not be removed (%s); the next start does it", problem)

    async def _write_merged(self, merge: Merge) -> tuple[int, int]:
        """All that must be durable before the manifest lists the merged files; returns the snapshot's number and its group."""
        await merge.write()
        if isinstance(merge, Compaction) and self.decided is not None:
            for (topic_id, partition), offsets in merge.markers_gone.items():
                await self.decided.markers_gone(topic_id, partition, offsets)
        group, entries = await self._durable_state()
        return await self._store.save_snapshot(group, entries), group

    async def _durable_state(self) -> tuple[int, list[Entry]]:
        """A group, and all entries at it, with nothing among them that is not durable. What is visible now is in sealed files
        only up to this group, so whatever came later is replayed over it."""
        group = self._committer.last_group()
        entries = await self._table.collect()
        await self._committer.flush_view()
        return group, entries

    async def _sweep(self) -> bool:
        """False when the disk refused: the next full journal tries again."""
        try:
            swept = await sweep(self._store, self._durable_state)
        except OSError as problem:
            logger.warning("removing files of which nothing is kept is put off: %s", problem)
            return False
        self._swept_files += swept.files
        self._swept_bytes += swept.size
        return True

    async def mend(self, work: Callable[[LogStore], Awaitable[None]]) -> None:
        """For `broker/log/repair.py`: footers are written again while nothing is merged or swept."""
        if self._merging is not None:
            await asyncio.wait([self._merging])
        await work(self._store)

    # -- letting records go -----------------------------------------------------------------------------------------------

    async def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        self._require_running()
        self._log(self._topic(topic), partition)
        return await self._to_the_end(self._delete_records(topic, partition, before_offset))

    async def _delete_records(self, name: str, partition: int, before_offset: int) -> int:
        async with self._naming:
            log = self._log(self._topic(name), partition)
            offset = log.high_watermark if before_offset == -1 else before_offset
            if not 0 <= offset <= log.high_watermark:
                raise OffsetOutOfRange(name, partition, offset, log.log_start, log.high_watermark)
            await self._move_log_starts([(log, offset)])
        return log.log_start

    async def _move_log_starts(self, places: Sequence[tuple[PartitionLog, int]]) -> int:
        """Durably, all together; under the lock of changes, so that no topic is deleted meanwhile."""
        starts = [(log, await start_at(self._store, log, offset)) for log, offset in places if offset > log.log_start]
        if starts:
            await self._commit_entries([log_start_entry(log, start) for log, start in starts], flush_view=False)
            for log, start in starts:
                log.begin_at(start)
                self._cut_newest = max(self._cut_newest, start.cut_sequence)
            self._log_starts_moved += len(starts)
            self._consider_merge()
        return len(starts)

    async def apply_retention(self) -> int:
        self._require_running()
        return await self._to_the_end(self._apply_retention())

    async def _apply_retention(self) -> int:
        async with self._naming:
            now_ms = self._retention_clock.now_ms()
            places = [
                (log, await expired_up_to(self._store, log, topic.configs, now_ms))
                for topic in self._topics.values()
                for log in self._logs(topic)
            ]
            return await self._move_log_starts(places)

    async def _retain(self) -> None:
        while self._running:
            try:
                async with asyncio.timeout(self.options.retention_check_ms / 1000):
                    await self._retention_due.wait()
            except TimeoutError:
                pass
            self._retention_due.clear()
            try:
                await self.apply_retention()
            except (BrokerError, KeyProblem, OSError) as problem:
                logger.warning("retention is put off to the next look: %s", problem)
            self._consider_merge()  # lags of compaction end by the clock alone


@contextmanager
def _unknown_when_deleted(name: str) -> Iterator[None]:
    """A read that meets the deletion of its topic finds the key gone."""
    try:
        yield
    except KeyShredded:
        raise UnknownTopic(name) from None


def _flags(attributes: int, has_expiry: bool) -> int:
    flags = FLAG_HAS_EXPIRY if has_expiry else 0
    if attributes & KAFKA_TRANSACTIONAL:
        flags |= FLAG_TRANSACTIONAL
    return flags | FLAG_CONTROL if attributes & KAFKA_CONTROL else flags


def _damages(found: Iterable[tuple[Topic, PartitionLog, DamagedRange]]) -> list[Damage]:
    """What of it is still part of the log."""
    return [
        Damage(topic.name, log.partition, max(lost.start, log.log_start), lost.end, lost.reason)
        for topic, log, lost in found
        if lost.end > log.log_start
    ]


def _kept(log: PartitionLog, stored: Stored) -> Stored:
    """A batch that the log start lies in keeps its bytes, and says which of its records are left."""
    if stored.base_offset >= log.log_start:
        return stored
    return msgspec.structs.replace(stored, first_offset=log.log_start)


def _gaps(logs: Sequence[tuple[str, PartitionLog]], from_sequence: int, reached: int) -> list[Gap]:
    """What a reader from a sequence on, who has got to another now, passed by because it is gone."""
    if from_sequence <= 1:
        return []
    return [
        Gap(name, log.partition, log.missed_from(from_sequence), log.log_start)
        for name, log in logs
        if from_sequence <= log.cut_sequence < reached
    ]


def _topic_entry(topic: Topic) -> Entry:
    state = TopicState(1, topic.name, topic.partitions, dict(topic.configs), topic.created_at_ms)
    return Entry(Kind.TOPIC, topic.topic_id, msgspec.msgpack.encode(state))


def _topic_of(topic_id: bytes, value: bytes) -> Topic:
    check_entry_version(f"the state entry of topic {topic_id.hex()}", value)
    state = msgspec.msgpack.decode(value, type=TopicState)
    return Topic(topic_id, state.name, state.partitions, state.configs, state.created_at_ms)


def _uuid4(data: bytes) -> bytes:
    """Random bytes with version and variant set (RFC 9562, section 5.4)."""
    return data[:6] + bytes((data[6] & 0x0F | 0x40, data[7], data[8] & 0x3F | 0x80)) + data[9:]
