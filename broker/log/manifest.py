"""The manifest: which files there are (decision 0001, section 8)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeVar

import msgspec
from crc32c import crc32c

from broker.errors import FormatUnsupported, KeysMismatch, StorageDamaged
from broker.log.layout import FORMAT_VERSION
from broker.log.sealing import MANIFEST_PURPOSE, LogKeys
from security.errors import TamperedData

MAGIC = b"SPM1"
Content = TypeVar("Content")
_HEADER = struct.Struct("<4sHH16sQI")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size


class _Preamble(msgspec.Struct, array_like=True):
    """What every version of a sealed array begins with."""

    version: int


class FileKind(IntEnum):
    JOURNAL = 0
    SEGMENT = 1


class FileState(IntEnum):
    OPEN = 0
    CLOSED = 1  # ended at data_end without a footer, after a failed write
    SEALED = 2


class FileEntry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One file. `data_end` is 0 while it may grow: an open one that is full has it, and all before it is durable; `first_group`
    0 for segments."""

    number: int
    kind: FileKind
    state: FileState
    data_end: int
    first_group: int
    system_key_id: int
    wrapped_system_key: bytes
    summary_tag: bytes

    @property
    def path(self) -> str:
        return f"journal/{self.number:016x}.journal" if self.kind is FileKind.JOURNAL else f"segments/{self.number:016x}.segment"


class Manifest(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """`next_sequence`: no commit sequence below it is given out again, though the batches that had them may be gone.
    `snapshot_group`: a view older than this needs the snapshot, whose own word for it may be damaged."""

    version: int
    number: int
    next_file: int
    files: list[FileEntry]
    snapshot: int | None = None
    next_sequence: int = 1
    snapshot_group: int = 0


def _header(magic: bytes, cluster_id: bytes, number: int, sealed_bytes: int) -> bytes:
    head = _HEADER.pack(magic, FORMAT_VERSION, 0, cluster_id, number, sealed_bytes)
    return head + _CRC.pack(crc32c(head))


def seal_small_file(keys: LogKeys, magic: bytes, purpose: bytes, number: int, clear: bytes) -> bytes:
    """Header and sealed content of a manifest or snapshot."""
    sealed_bytes = len(clear) + 12 + 16
    header = _header(magic, keys.cluster_id, number, sealed_bytes)
    return header + keys.seal_for(purpose, clear, header)


def open_small_file(keys: LogKeys, magic: bytes, purpose: bytes, path: str, data: bytes) -> bytes:
    """TamperedData for damage; FormatUnsupported and KeysMismatch for a file that is whole but not ours to read."""
    if len(data) < HEADER_BYTES or _CRC.unpack_from(data, _HEADER.size)[0] != crc32c(data[: _HEADER.size]):
        raise TamperedData(path)
    found, version, _, cluster_id, _, sealed_bytes = _HEADER.unpack_from(data)
    if found != magic:
        raise TamperedData(path)
    if version > FORMAT_VERSION:
        raise FormatUnsupported(path, version, FORMAT_VERSION)
    if cluster_id != keys.cluster_id:
        raise KeysMismatch(path, keys.cluster_id.hex(), cluster_id.hex())
    return keys.open_for(purpose, data[HEADER_BYTES : HEADER_BYTES + sealed_bytes], data[:HEADER_BYTES])


def decode_content(path: str, clear: bytes, kind: type[Content]) -> Content:
    """The authenticated content of a manifest, snapshot or footer; FormatUnsupported when a newer version wrote it."""
    version = msgspec.msgpack.decode(clear, type=_Preamble).version
    if version > FORMAT_VERSION:
        raise FormatUnsupported(path, version, FORMAT_VERSION)
    return msgspec.msgpack.decode(clear, type=kind)


def seal_manifest(keys: LogKeys, manifest: Manifest) -> bytes:
    return seal_small_file(keys, MAGIC, MANIFEST_PURPOSE, manifest.number, msgspec.msgpack.encode(manifest))


def newest_manifest(keys: LogKeys, copies: list[tuple[str, bytes]]) -> tuple[Manifest | None, list[str]]:
    """The newest whole copy, and the paths of damaged ones. None when there is no copy at all.

    Raises StorageDamaged when there are copies and none is whole: without the list of files nothing can be served.
    """
    best: Manifest | None = None
    damaged: list[str] = []
    for path, data in copies:
        try:
            clear = open_small_file(keys, MAGIC, MANIFEST_PURPOSE, path, data)
        except TamperedData:
            damaged.append(path)
            continue
        manifest = decode_content(path, clear, Manifest)
        if best is None or manifest.number > best.number:
            best = manifest
    if best is None and damaged:
        raise StorageDamaged(" and ".join(damaged), "no copy of the manifest is whole")
    return best, damaged
