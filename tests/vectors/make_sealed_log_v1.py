"""The committed bytes of the sealed log, format version 1, made again by the production code from fixed inputs.

    python -m tests.vectors.make_sealed_log_v1 > tests/vectors/sealed_log_v1.json

Every vector is bytes in hex and what they mean. Byte strings are hex, integers up to 2^64 - 1. The keys are test keys: they are
in the document, so that whoever writes a reader can begin anywhere. A change of these bytes is a change of the format.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from broker.batch import build
from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.footer import DamagedRange, PartitionSummary, Summary, build_footer
from broker.log.index import BatchIndex
from broker.log.journal import ActiveJournal, Group, PendingBatch, PendingFrame, pack_journal_header
from broker.log.layout import (
    FILE_HEADER_BYTES,
    FLAG_HAS_EXPIRY,
    FLAG_KEYS_COMPLETE,
    FORMAT_VERSION,
    NO_TAG,
    SEGMENT_MAGIC,
    WRAPPED_KEY_BYTES,
    FileHeader,
    pack_file_header,
    parse_batch_header,
    parse_file_header,
    parse_group_header,
)
from broker.log.manifest import FileEntry, FileKind, FileState, Manifest, seal_manifest
from broker.log.partition import PartitionLog
from broker.log.sealing import FOOTER_PURPOSE, KEY_HASH_PURPOSE, MANIFEST_PURPOSE, SNAPSHOT_PURPOSE, LogKeys
from broker.log.state import POSITION_KEY, Entry, Kind, TopicState, log_start_key, seal_snapshot, wrapped_key_entry
from broker.machine import MachineDisk
from security.crypto.envelope import Cipher, Secret, unwrap_key
from security.crypto.keyring import Keyring
from security.crypto.keystore import SYSTEM_TOPIC_ID, KeyStore
from security.crypto.kms import FORMAT, VERSION, Kek, KeyFile, LocalFileKms

VECTORS = Path(__file__).with_name("sealed_log_v1.json")

KEK_ID, KEK = "kek-of-the-vectors", bytes(range(0x40, 0x60))
CLUSTER = bytes(range(16))
ORDERS, READINGS = b"orders-topic-id.", b"reading-topic-id"
NOW_MS = 1_760_000_000_000
SALT = 0x0123456789ABCDEF
FILE_NUMBER, SEGMENT_NUMBER, SNAPSHOT_NUMBER = 7, 8, 9
FIRST_GROUP, FIRST_SEQUENCE = 42, 1000
JOURNAL_PARTS = ("journal_header", "group", "second_group", "empty_group", "footer")
RECORD_KEYS = (b"eu/7", b"eu/8", b"", b"\x00\xff")


class CountedRandom:
    """The n-th draw is SHAKE-128(seed, n as u64): the same in every run, never twice the same."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._draws = 0

    def bytes(self, count: int) -> bytes:
        self._draws += 1
        return hashlib.shake_128(self._seed + self._draws.to_bytes(8, "little")).digest(count)


class MemoryBlob:
    def __init__(self) -> None:
        self.data: bytes | None = None

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data


def make_kms() -> LocalFileKms:
    """As loaded from its file."""
    kek = Kek(KEK_ID, "active", 0, Secret(KEK))
    return LocalFileKms(Path("nowhere"), KeyFile(FORMAT, VERSION, (kek,)), CountedRandom("kms").bytes)


def open_keys(key_store: bytes) -> LogKeys:
    """What another process has that is given the key store and the KEK."""
    blob = MemoryBlob()
    blob.data = key_store
    random = CountedRandom("another process")
    keystore = KeyStore(blob, make_kms(), random.bytes)
    keystore.load()
    return LogKeys(Keyring(keystore, random.bytes), keystore.cluster_id, random)


class Maker:
    """One process that writes one journal, its footer, and the small files beside it."""

    def __init__(self, disk: MachineDisk) -> None:
        self.blob = MemoryBlob()
        self.keystore = KeyStore(self.blob, make_kms(), CountedRandom("key store").bytes)
        self.keystore.create(CLUSTER)
        self.keystore.add_many((ORDERS, READINGS))
        random = CountedRandom("node")
        self.keys = LogKeys(Keyring(self.keystore, random.bytes), CLUSTER, random)
        epoch = self.keys.system_epoch()
        self.entry = FileEntry(
            FILE_NUMBER, FileKind.JOURNAL, FileState.OPEN, 0, FIRST_GROUP, epoch.key_id, epoch.wrapped, summary_tag=b""
        )
        self.header = pack_journal_header(FILE_NUMBER, CLUSTER, NOW_MS, epoch.key_id, epoch.wrapped, SALT)
        disk.make_folder("journal")
        self.file = LogFile(disk, self.entry, disk.open(self.entry.path, create=True))
        self.active = ActiveJournal(self.file, SALT, FIRST_GROUP)
        self.partitions: dict[tuple[bytes, int], PartitionLog] = {}
        self.indexes: dict[tuple[bytes, int], BatchIndex] = {}
        self.batches: list[PendingBatch] = []
        self.next_sequence = FIRST_SEQUENCE
        self.data = self.header

    def seal(
        self, topic_id: bytes, partition: int, record_keys: Sequence[bytes | None], hashed: bool, flags: int
    ) -> PendingBatch:
        log = self.partitions.setdefault((topic_id, partition), PartitionLog(topic_id, partition))
        newest_ms = NOW_MS - 1
        drafts = [(newest_ms, key, b"value of %s" % (key or b"nobody"), ((b"source", b"till"),)) for key in record_keys]
        clear = build(drafts, base_offset=log.next_offset)
        present = [key for key in record_keys if key is not None]
        hashes = sorted(self.keys.hasher(topic_id).hash_all(present)) if hashed else None
        end = log.next_offset + len(record_keys)
        sealed = self.keys.seal_batch(
            clear,
            flags=flags,
            topic_id=topic_id,
            partition=partition,
            last_offset_delta=len(record_keys) - 1,
            base_offset=log.next_offset,
            sequence=self.next_sequence,
            max_timestamp_ms=newest_ms,
            append_time_ms=NOW_MS,
            records=len(record_keys),
            previous_tag=log.tag,
            key_hashes=hashes,
        )
        stored = Stored(partition, log.next_offset, end, self.next_sequence, newest_ms, clear)
        batch = PendingBatch(log, stored, sealed, log.tag, flags, hashes)
        log.next_offset, log.tag = end, sealed.tag
        self.next_sequence += 1
        self.batches.append(batch)
        return batch

    def frame(self, batches: Sequence[PendingBatch], entries: Iterable[Entry] = ()) -> PendingFrame:
        frame = PendingFrame(batches[0].stored.sequence, None)
        frame.batches, frame.entries = list(batches), list(entries)
        frame.size = sum(batch.sealed.size for batch in batches)
        return frame

    def group(self, *frames: PendingFrame) -> tuple[Group, bytes]:
        group = self.active.assemble(self.keys, deque(frames), 1 << 30, self.active.last_group, NOW_MS + 5, self.next_sequence)
        data = b"".join(group.buffers)
        self.active.accept(group)
        self.data += data
        return group, data


def state_entries() -> list[Entry]:
    """One of each kind, and one that deletes."""
    topic = TopicState(1, "orders", 2, {"cleanup.policy": "delete", "retention.ms": "86400000"}, NOW_MS)
    return [
        Entry(Kind.TOPIC, ORDERS, msgspec.msgpack.encode(topic)),
        Entry(Kind.LOG_START, log_start_key(ORDERS, 1), msgspec.msgpack.encode([1, 17, bytes(range(16))])),
        Entry(Kind.SHREDDING, b"a shredded topic", b""),
        Entry(Kind.TOPIC, b"a shredded topic", None),
    ]


def make() -> dict[str, Any]:
    """The whole document."""
    with TemporaryDirectory() as folder:
        maker = Maker(MachineDisk(Path(folder)))
        try:
            return _document(maker)
        finally:
            maker.file.close()


def _document(maker: Maker) -> dict[str, Any]:
    keys = maker.keys
    pair = maker.frame(
        [maker.seal(ORDERS, 1, (b"eu/7", b"eu/8", b"eu/7"), True, FLAG_HAS_EXPIRY), maker.seal(READINGS, 0, (None,), False, 0)],
        state_entries(),
    )
    first, first_bytes = maker.group(pair)
    single = maker.seal(ORDERS, 1, (b"", b"\x00\xff"), True, 0)
    second, second_bytes = maker.group(maker.frame([single]))
    last, last_bytes = maker.group()
    footer, footer_fields, tag = _footer(maker, second.number)
    segment = FileHeader(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        FILE_HEADER_BYTES,
        SEGMENT_NUMBER,
        CLUSTER,
        NOW_MS + 9,
        0,
        bytes(WRAPPED_KEY_BYTES),
        SALT + 1,
    )
    sealed_entry = msgspec.structs.replace(maker.entry, state=FileState.SEALED, data_end=len(maker.data), summary_tag=tag)
    frame_at = first_bytes.rindex(b"SPFR")
    vectors = {
        "key_store": _vector(maker.blob.data or b"", _key_store_fields(maker)),
        "wrapped_data_key": _vector(keys.keyring.wrapped(ORDERS, single.sealed.key_id), _data_key(maker, ORDERS)),
        "key_hashes": [
            {"topic_id": ORDERS.hex(), "key": key.hex(), "hash": keys.hasher(ORDERS).hash(key)} for key in RECORD_KEYS
        ],
        "journal_header": _vector(maker.header, _file_header_fields(maker.header)),
        "segment_header": _vector(pack_file_header(segment), _file_header_fields(pack_file_header(segment))),
        "group": _vector(first_bytes, _group_fields(first, first_bytes)),
        "frame": _vector(first_bytes[frame_at:], _frame_fields(pair)),
        "second_group": _vector(second_bytes, _group_fields(second, second_bytes)),
        "empty_group": _vector(last_bytes, _group_fields(last, last_bytes)),
        "batch": _vector(b"".join(single.sealed.parts), _batch_fields(single)),
        "footer": _vector(footer, footer_fields),
        "manifest": _manifest(keys, sealed_entry),
        "snapshot": _snapshot(maker, last.number),
        "view": _view(keys, first.number),
    }
    return {
        "format": "the sealed log, version 1 (docs/decisions/0001-sealed-log-format.md)",
        "notation": "byte strings in hex, magic numbers as text, integers up to 2^64 - 1",
        "journal": list(JOURNAL_PARTS),
        "inputs": _inputs(maker),
        "vectors": vectors,
    }


def _vector(data: bytes, fields: dict[str, Any]) -> dict[str, Any]:
    return {"hex": data.hex(), "fields": shown(fields)}


def shown(value: Any) -> Any:
    """As JSON: byte strings in hex, structures as lists."""
    match value:
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case dict():
            return {name: shown(inner) for name, inner in value.items()}
        case msgspec.Struct():
            return shown(list(msgspec.structs.astuple(value)))
        case list() | tuple():
            return [shown(inner) for inner in value]
        case _:
            return value


def _inputs(maker: Maker) -> dict[str, Any]:
    purposes = {"footer": FOOTER_PURPOSE, "manifest": MANIFEST_PURPOSE, "snapshot": SNAPSHOT_PURPOSE}
    keyring = maker.keys.keyring
    inputs: dict[str, Any] = shown(
        {
            "cluster_id": CLUSTER,
            "kek": {"id": KEK_ID, "key": KEK},
            "system": {
                "topic_id": SYSTEM_TOPIC_ID,
                "root_key": maker.keystore.root_key(SYSTEM_TOPIC_ID),
                "data_key": _data_key(maker, SYSTEM_TOPIC_ID),
                "derived": {name: keyring.derived(SYSTEM_TOPIC_ID, purpose) for name, purpose in purposes.items()},
            },
            "topics": [
                {
                    "topic_id": topic_id,
                    "root_key": maker.keystore.root_key(topic_id),
                    "data_key": _data_key(maker, topic_id),
                    "derived": {"key-hash": keyring.derived(topic_id, KEY_HASH_PURPOSE)},
                }
                for topic_id in (ORDERS, READINGS)
            ],
            "clock_ms": NOW_MS,
            "salt": SALT,
        }
    )
    return inputs


def _data_key(maker: Maker, topic_id: bytes) -> dict[str, Any]:
    ((key_id, wrapped),) = maker.keys.keyring.known(topic_id)
    context = CLUSTER + topic_id + key_id.to_bytes(4, "little")
    key = unwrap_key(Cipher(maker.keystore.root_key(topic_id)), wrapped, context)
    return {"topic_id": topic_id, "key_id": key_id, "key": key, "wrapped": wrapped}


def _key_store_fields(maker: Maker) -> dict[str, Any]:
    return {
        "version": 1,
        "cluster_id": CLUSTER,
        "generation": maker.keystore.generation,
        "keks": maker.keystore.kek_ids(),
        "root_keys": [[topic_id, KEK_ID, maker.keystore.root_key(topic_id)] for topic_id in sorted(maker.keystore.topic_ids())],
    }


def _file_header_fields(data: bytes) -> dict[str, Any]:
    header = parse_file_header(data)
    assert header is not None
    return header._asdict() | {"magic": header.magic.decode()}


def _batch_fields(batch: PendingBatch) -> dict[str, Any]:
    header = parse_batch_header(b"".join(batch.sealed.parts))
    assert header is not None
    hashes = {"key_hashes": batch.key_hashes or []}
    return header._asdict() | {"magic": "SPB1"} | hashes | {"record_batch": batch.stored.batch, "tag": batch.sealed.tag}


def _frame_fields(frame: PendingFrame) -> dict[str, Any]:
    directory = [
        [
            b.partition.topic_id,
            b.partition.partition,
            b.stored.next_offset - b.stored.base_offset - 1,
            b.stored.base_offset,
            b.sealed.size,
        ]
        for b in frame.batches
    ]
    return {
        "first_sequence": frame.first_sequence,
        "directory": directory,
        "batches": [_batch_fields(batch) for batch in frame.batches],
        "state": frame.entries,
    }


def _group_fields(group: Group, data: bytes) -> dict[str, Any]:
    header = parse_group_header(data, 0, SALT)
    assert header is not None
    frames = [_frame_fields(frame) for frame in group.frames]
    return header._asdict() | {"magic": "SPGR", "position": group.position, "frames": frames}


def _footer(maker: Maker, last_group: int) -> tuple[bytes, dict[str, Any], bytes]:
    parts = []
    for (topic_id, partition), log in sorted(maker.partitions.items()):
        batches = [batch for batch in maker.batches if batch.partition is log]
        index = BatchIndex()
        for batch in batches:
            stored, complete = batch.stored, FLAG_KEYS_COMPLETE if batch.key_hashes is not None else 0
            index.add(
                stored.base_offset,
                stored.next_offset - stored.base_offset - 1,
                batch.position,
                batch.sealed.size,
                stored.sequence,
                stored.max_timestamp_ms,
                batch.flags | complete,
                batch.sealed.tag,
                batch.key_hashes,
            )
        damage = [DamagedRange(log.next_offset, log.next_offset + 2, "does not authenticate")] if topic_id == READINGS else []
        part = PartitionSummary(
            topic_id,
            partition,
            0,
            0,
            damage[-1].end if damage else log.next_offset,
            len(batches),
            sum(batch.sealed.size for batch in batches),
            max(batch.stored.max_timestamp_ms for batch in batches),
            batches[0].stored.sequence,
            batches[-1].stored.sequence,
            NO_TAG,
            log.tag,
            damage=damage,
        )
        parts.append((part, index))
    wrapped = [maker.active.keys[place] for place in sorted(maker.active.keys)]
    lost = [DamagedRange(990, 992, "batches lost with their frame")]
    summary = Summary(FORMAT_VERSION, FILE_NUMBER, [], wrapped, [3, 4], lost, FIRST_GROUP, last_group)
    data_end = len(maker.data)
    buffers, tag, placed = build_footer(maker.keys, FILE_NUMBER, data_end, parts, summary)
    fields = {
        "summary": msgspec.structs.replace(summary, partitions=placed),
        "details": [_columns(index) for _, index in parts],
        "summary_tag": tag,
        "trailer": {
            "magic": "SPFT",
            "version": FORMAT_VERSION,
            "number": FILE_NUMBER,
            "data_end": data_end,
            "summary_position": data_end + sum(part.detail_size for part in placed),
            "summary_bytes": len(buffers[-2]),
        },
    }
    return b"".join(buffers), fields, tag


def _columns(index: BatchIndex) -> dict[str, Any]:
    settled = BatchIndex.from_columns(index.to_columns(), FLAG_KEYS_COMPLETE)
    places = [settled.place(ordinal) for ordinal in range(len(settled))]
    return {
        "base_offsets": [place.base_offset for place in places],
        "positions": [place.position for place in places],
        "sequences": [place.sequence for place in places],
        "max_timestamps": [place.max_timestamp_ms for place in places],
        "sizes": [place.size for place in places],
        "deltas": [place.next_offset - place.base_offset - 1 for place in places],
        "flags": [place.flags for place in places],
        "tags": [place.tag for place in places],
        "key_hashes": list(settled.key_hashes),
        "key_ordinals": list(settled.key_ordinals),
    }


def _manifest(keys: LogKeys, entry: FileEntry) -> dict[str, Any]:
    files = [entry, FileEntry(SEGMENT_NUMBER, FileKind.SEGMENT, FileState.SEALED, 4096, 0, 0, bytes(WRAPPED_KEY_BYTES), NO_TAG)]
    manifest = Manifest(FORMAT_VERSION, 23, 10, files, SNAPSHOT_NUMBER, 1004, FIRST_GROUP + 2)
    return _vector(seal_manifest(keys, manifest), {"content": manifest, "number": 23})


def _snapshot(maker: Maker, group: int) -> dict[str, Any]:
    data_key = _data_key(maker, ORDERS)
    entries = [entry for entry in state_entries() if entry.value is not None]
    entries.append(wrapped_key_entry(ORDERS, data_key["key_id"], data_key["wrapped"]))
    content = [1, group, entries]
    return _vector(seal_snapshot(maker.keys, group, entries), {"content": content, "number": group})


def _view(keys: LogKeys, group: int) -> list[dict[str, Any]]:
    topic = state_entries()[0]
    key, value = bytes((topic.kind,)) + topic.key, topic.value or b""
    position = group.to_bytes(8, "little")
    return [
        {"key": name.hex(), "hex": keys.seal_value(name, clear).hex(), "value": clear.hex()}
        for name, clear in ((key, value), (POSITION_KEY, position))
    ]


def bytes_of(document: dict[str, Any], *names: str) -> bytes:
    """Vectors, one after the other."""
    return b"".join([bytes.fromhex(document["vectors"][name]["hex"]) for name in names])


def text() -> str:
    return json.dumps(make(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")
