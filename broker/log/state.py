"""Keyed state that changes with data: entries in the journal's frames, their view in the keyed store, snapshots (decision 0001,
sections 5 and 9).

The journal is the truth. The view follows it, group by group and never ahead of what is synced.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import msgspec

from broker.errors import FormatUnsupported, StorageDamaged
from broker.log.manifest import decode_content, open_small_file, seal_small_file
from broker.log.sealing import SNAPSHOT_PURPOSE, LogKeys
from broker.seams import KeyedStore
from security.crypto.keystore import SYSTEM_TOPIC_ID
from security.errors import KeyProblem, TamperedData

SNAPSHOT_MAGIC = b"SPZ1"
ENTRIES_AT_ONCE = 1_000  # under 1 ms
ENTRY_VERSION = 1  # of the values that are arrays of ours
POSITION_KEY = b"\x00"
FIRST_SPACE = 10  # kinds from here on are spaces that others keep beside their data (`broker.engine.base.StateSpace`)
_GROUP = struct.Struct("<Q")
_KEY_ID = struct.Struct("<I")
_PARTITION = struct.Struct("<I")


class Kind(IntEnum):
    """What an entry is about. Numbers are the format; 10 to 17 are reserved by decision 0001."""

    TOPIC = 1
    WRAPPED_KEY = 2
    LOG_START = 3
    SHREDDING = 4


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One change: `value` None deletes."""

    kind: int
    key: bytes
    value: bytes | None


class TopicState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Value of a topic's entry."""

    version: int
    name: str
    partitions: int
    configs: dict[str, str]
    created_at_ms: int


class Snapshot(msgspec.Struct, frozen=True, gc=False, array_like=True):
    version: int
    group: int
    entries: list[Entry]


def check_entry_version(what: str, value: bytes) -> None:
    """FormatUnsupported when a newer build wrote this entry."""
    (version, *_) = msgspec.msgpack.decode(value, type=list[Any])
    if version > ENTRY_VERSION:
        raise FormatUnsupported(what, version, ENTRY_VERSION)


def wrapped_key_entry(topic_id: bytes, key_id: int, wrapped: bytes) -> Entry:
    return Entry(Kind.WRAPPED_KEY, topic_id + _KEY_ID.pack(key_id), wrapped)


def parse_wrapped_key(entry: Entry) -> tuple[bytes, int, bytes]:
    assert entry.value is not None
    return entry.key[:16], _KEY_ID.unpack(entry.key[16:])[0], entry.value


def encode_entries(entries: Sequence[Entry]) -> bytes:
    return msgspec.msgpack.encode(entries)


def decode_entries(clear: bytes) -> list[Entry]:
    return msgspec.msgpack.decode(clear, type=list[Entry])


StagedWrite = tuple[list[tuple[bytes, bytes]], list[bytes]]
"""Puts and deletes of one write of the view, values sealed."""


class StateView:
    """The entries in a keyed store. `stage` runs on the owner thread (it seals), `write` and `flush` on the commit lane."""

    def __init__(self, store: KeyedStore, keys: LogKeys) -> None:
        self._store = store
        self._keys = keys

    def stage(self, group: int, entries: Iterable[Entry]) -> StagedWrite:
        """Puts and deletes of one group; the newest entry of a key wins."""
        puts: dict[bytes, bytes] = {}
        deletes: dict[bytes, None] = {}
        for entry in entries:
            key = bytes((entry.kind,)) + entry.key
            if entry.value is None:
                puts.pop(key, None)
                deletes[key] = None
                continue
            deletes.pop(key, None)
            # A wrapped key is sealed by nature and must open before the system epoch that would seal it again.
            puts[key] = entry.value if entry.kind == Kind.WRAPPED_KEY else self._keys.seal_value(key, entry.value)
        puts[POSITION_KEY] = self._keys.seal_value(POSITION_KEY, _GROUP.pack(group))
        return list(puts.items()), list(deletes)

    def write(self, staged: StagedWrite) -> None:
        self._store.write(*staged)

    def flush(self) -> None:
        self._store.flush()

    def close(self) -> None:
        self._store.close()

    def load(self) -> tuple[int, list[Entry]]:
        """The newest group reflected (0: none) and all entries. StorageDamaged when anything does not authenticate."""
        prefix = bytes((Kind.WRAPPED_KEY,))
        keys = [Entry(Kind.WRAPPED_KEY, key[1:], value) for key, value in self._store.items(prefix)]
        for entry in keys:
            self._keys.keyring.adopt(*parse_wrapped_key(entry))
        try:
            position = self._store.get(POSITION_KEY)
            group = 0 if position is None else _GROUP.unpack(self._keys.open_value(POSITION_KEY, position))[0]
            return group, keys + [
                Entry(key[0], key[1:], self._keys.open_value(key, value))
                for key, value in self._store.items(b"")
                if key != POSITION_KEY and key[0] != Kind.WRAPPED_KEY
            ]
        except (TamperedData, KeyProblem) as problem:
            raise StorageDamaged("view", f"an entry does not open ({problem})") from problem


def seal_snapshot(keys: LogKeys, group: int, entries: list[Entry]) -> bytes:
    """Runs on a lane: a million entries take a second or more."""
    return seal_small_file(keys, SNAPSHOT_MAGIC, SNAPSHOT_PURPOSE, group, encode_snapshot(group, entries))


def encode_snapshot(group: int, entries: list[Entry]) -> bytes:
    """What msgspec makes of the whole `Snapshot`, piece by piece: it holds the interpreter while it encodes, and the owner
    thread must not wait for a million entries."""
    count = len(entries)
    if count <= 15:
        head = bytes((0x90 | count,))
    else:
        head = b"\xdc" + count.to_bytes(2, "big") if count <= 0xFFFF else b"\xdd" + count.to_bytes(4, "big")
    pieces = [b"\x93\x01", msgspec.msgpack.encode(group), head]
    for start in range(0, count, ENTRIES_AT_ONCE):
        chunk = entries[start : start + ENTRIES_AT_ONCE]
        pieces.append(msgspec.msgpack.encode(chunk)[1 if len(chunk) <= 15 else 3 :])
    return b"".join(pieces)


def open_snapshot(keys: LogKeys, path: str, data: bytes) -> Snapshot:
    return decode_content(path, open_small_file(keys, SNAPSHOT_MAGIC, SNAPSHOT_PURPOSE, path, data), Snapshot)


class StateTable:
    """All entries in memory, as visible: what snapshots are written from and a rebuilt view is filled with."""

    def __init__(self) -> None:
        self._entries: dict[int, dict[bytes, bytes]] = {}
        self.space_entries = 0  # of the kinds that others keep beside their data
        self.space_bytes = 0
        self.bytes_of: dict[int, int] = {}  # the same by kind

    def apply(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            kept = self._entries.setdefault(entry.kind, {})
            known = kept.pop(entry.key, None) if entry.value is None else kept.get(entry.key)
            if entry.value is not None:
                kept[entry.key] = entry.value
            if entry.kind >= FIRST_SPACE:
                self._count(entry, known)

    def _count(self, entry: Entry, known: bytes | None) -> None:
        grown = 0
        if known is not None:
            self.space_entries -= 1
            grown -= len(entry.key) + len(known)
        if entry.value is not None:
            self.space_entries += 1
            grown += len(entry.key) + len(entry.value)
        self.space_bytes += grown
        self.bytes_of[entry.kind] = self.bytes_of.get(entry.kind, 0) + grown

    def entries(self, kind: int | None = None) -> list[Entry]:
        kinds = self._entries if kind is None else (kind,)
        return [Entry(k, key, value) for k in kinds for key, value in self._entries.get(k, {}).items()]

    async def collect(self) -> list[Entry]:
        """All entries as they were when this began, with some of the changes since: for a snapshot, whose reader has the changes
        replayed over it whether it knows them or not. Lets others run in between."""
        found: list[Entry] = []
        for kind, kept in list(self._entries.items()):
            keys = list(kept)
            for start in range(0, len(keys), ENTRIES_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                found += [
                    Entry(kind, key, v) for key in keys[start : start + ENTRIES_AT_ONCE] if (v := kept.get(key)) is not None
                ]
        return found

    def items(self, kind: int) -> list[tuple[bytes, bytes]]:
        return list(self._entries.get(kind, {}).items())

    def get(self, kind: int, key: bytes) -> bytes | None:
        return self._entries.get(kind, {}).get(key)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def adopt_keys(self, keys: LogKeys) -> None:
        for entry in self.entries(Kind.WRAPPED_KEY):
            keys.keyring.adopt(*parse_wrapped_key(entry))


def log_start_key(topic_id: bytes, partition: int) -> bytes:
    return topic_id + _PARTITION.pack(partition)


def is_system(topic_id: bytes) -> bool:
    return topic_id == SYSTEM_TOPIC_ID
