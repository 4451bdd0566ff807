"""Journals written by the production code, without an engine: fixed keys, fixed clock, bytes in memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

from broker.batch import build
from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.journal import ActiveJournal, PendingBatch, PendingFrame, pack_journal_header
from broker.log.layout import FLAG_KEYS_COMPLETE
from broker.log.manifest import FileEntry, FileKind, FileState
from broker.log.partition import PartitionLog
from broker.log.sealing import LogKeys
from broker.log.state import Entry
from broker.machine import MachineDisk
from security.crypto.envelope import Cipher, unwrap_key, wrap_key
from security.crypto.keyring import Keyring
from security.crypto.keystore import KeyStore
from security.errors import KeyMissing

CLUSTER = bytes(range(16))
ORDERS, READINGS = b"orders-topic-id.", b"reading-topic-id"
NOW_MS = 1_760_000_000_000
SALT = 0x0123456789ABCDEF


class FixedRandom:
    """Bytes that look random, never repeat and are the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._calls = 0

    def bytes(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.shake_128(self._seed + self._calls.to_bytes(8, "little")).digest(count)


class FixedKms:
    """One KEK with a known key."""

    key_id = "kek-1"
    key = bytes(range(100, 132))

    def __init__(self, random: FixedRandom) -> None:
        self._random = random

    def key_ids(self) -> list[str]:
        return [self.key_id]

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        return wrap_key(Cipher(self.key), plaintext, context, self._random.bytes)

    def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        if key_id != self.key_id:
            raise KeyMissing("the test", key_id, "use the other one")
        return unwrap_key(Cipher(self.key), wrapped, context, key_id)


class MemoryBlob:
    def __init__(self) -> None:
        self.data: bytes | None = None

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data


def make_keystore(blob: MemoryBlob, topics: Sequence[bytes] = (ORDERS, READINGS), cluster_id: bytes = CLUSTER) -> KeyStore:
    random = FixedRandom("key store")
    store = KeyStore(blob, FixedKms(random), random.bytes)
    store.create(cluster_id)
    store.add_many(topics)
    return store


def make_keys(keystore: KeyStore | None = None, life: str = "first") -> LogKeys:
    """As one process has them: another `life` seals with other keys."""
    random = FixedRandom(life)
    store = keystore or make_keystore(MemoryBlob())
    return LogKeys(Keyring(store, random.bytes), store.cluster_id, random)


def one_record(value: bytes, key: bytes | None = b"k", timestamp_ms: int = NOW_MS) -> bytes:
    return build([(timestamp_ms, key, value, ())])


class Journal:
    """A journal file in memory that grows by groups, as the committer makes them."""

    def __init__(
        self, keys: LogKeys, disk: MachineDisk, *, number: int = 1, first_group: int = 1, first_sequence: int = 1
    ) -> None:
        self.keys = keys
        epoch = keys.system_epoch()
        self.entry = FileEntry(
            number, FileKind.JOURNAL, FileState.OPEN, 0, first_group, epoch.key_id, epoch.wrapped, summary_tag=b""
        )
        self.data = pack_journal_header(number, keys.cluster_id, NOW_MS, epoch.key_id, epoch.wrapped, SALT)
        disk.make_folder("journal")
        self.file = LogFile(disk, self.entry, disk.open(self.entry.path, create=True))
        self.file.file.write_at(0, [self.data])
        self.active = ActiveJournal(self.file, SALT, first_group)
        self.partitions: dict[tuple[bytes, int], PartitionLog] = {}
        self.next_sequence = 1
        self.durable_through = first_group - 1
        self.sealed: list[PendingBatch] = []
        self.group_ends: list[int] = []

    def partition(self, topic_id: bytes, partition: int) -> PartitionLog:
        return self.partitions.setdefault((topic_id, partition), PartitionLog(topic_id, partition))

    def frame(
        self, *batches: tuple[bytes, int, bytes], entries: Sequence[Entry] = (), key_hashes: Sequence[int] | None = None
    ) -> PendingFrame:
        """Seal `(topic id, partition, batch)` at the ends of their partitions."""
        frame = PendingFrame(self.next_sequence, None)
        frame.entries = list(entries)
        for topic_id, partition, batch in batches:
            frame.batches.append(self._seal(self.partition(topic_id, partition), batch, key_hashes))
            frame.size += frame.batches[-1].sealed.size
        return frame

    def _seal(self, log: PartitionLog, batch: bytes, key_hashes: Sequence[int] | None) -> PendingBatch:
        delta = int.from_bytes(batch[23:27], "big")
        timestamp_ms = int.from_bytes(batch[35:43], "big", signed=True)
        base, previous = log.next_offset, log.tag
        clear = base.to_bytes(8, "big") + batch[8:]
        sealed = self.keys.seal_batch(
            clear,
            flags=0,
            topic_id=log.topic_id,
            partition=log.partition,
            last_offset_delta=delta,
            base_offset=base,
            sequence=self.next_sequence,
            max_timestamp_ms=timestamp_ms,
            append_time_ms=NOW_MS,
            records=delta + 1,
            previous_tag=previous,
            key_hashes=key_hashes,
        )
        stored = Stored(log.partition, base, base + delta + 1, self.next_sequence, timestamp_ms, clear)
        log.next_offset, log.tag = stored.next_offset, sealed.tag
        self.next_sequence += 1
        hashes = None if key_hashes is None else list(key_hashes)
        pending = PendingBatch(log, stored, sealed, previous, 0 if hashes is None else FLAG_KEYS_COMPLETE, hashes)
        self.sealed.append(pending)
        return pending

    def group(self, *frames: PendingFrame, confirms: bool = True) -> None:
        """One commit group of these frames; `confirms` says that all groups before it are durable."""
        if confirms:
            self.durable_through = self.active.last_group
        group = self.active.assemble(self.keys, deque(frames), 1 << 40, self.durable_through, NOW_MS, self.next_sequence)
        self.data += b"".join(group.buffers)
        self.file.file.write_at(group.position, group.buffers)
        self.active.accept(group)
        self.group_ends.append(len(self.data))

    def served(self) -> dict[tuple[bytes, int, int], bytes]:
        """What every reader must get: clear batches by topic, partition and base offset."""
        return {(p.partition.topic_id, p.partition.partition, p.stored.base_offset): p.stored.batch for p in self.sealed}
