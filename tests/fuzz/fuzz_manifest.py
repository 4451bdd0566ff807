"""Fuzz target: manifests and snapshots, in two copies or one.

Each input is tried as it is, and with the crc of its header made right.
"""

from __future__ import annotations

from contextlib import suppress

from crc32c import crc32c

from broker.errors import FormatUnsupported, KeysMismatch, StorageDamaged
from broker.log.manifest import HEADER_BYTES, MAGIC, newest_manifest, open_small_file
from broker.log.sealing import MANIFEST_PURPOSE, SNAPSHOT_PURPOSE
from broker.log.state import SNAPSHOT_MAGIC, open_snapshot
from security.errors import TamperedData
from tests.vectors.make_sealed_log_v1 import bytes_of, make, open_keys

_MADE = make()
_KEYS = open_keys(bytes_of(_MADE, "key_store"))
_WHOLE = bytes_of(_MADE, "manifest")
_SNAPSHOT = bytes_of(_MADE, "snapshot")
_MANIFEST = newest_manifest(_KEYS, [("whole", _WHOLE)])[0]
_REFUSALS = (TamperedData, FormatUnsupported, KeysMismatch)

CORPUS = [_WHOLE, _SNAPSHOT, _WHOLE[:HEADER_BYTES], _SNAPSHOT[: HEADER_BYTES + 28]]


def one_input(data: bytes) -> None:
    _try(data)
    if len(data) >= HEADER_BYTES:
        head = data[: HEADER_BYTES - 4]
        _try(head + crc32c(head).to_bytes(4, "little") + data[HEADER_BYTES:])


def _try(data: bytes) -> None:
    try:
        manifest, damaged = newest_manifest(_KEYS, [("manifest.a", data)])
        assert manifest == _MANIFEST, "another manifest authenticates"
        assert not damaged
    except (StorageDamaged, FormatUnsupported, KeysMismatch):
        pass
    for copies in ([("manifest.a", data), ("manifest.b", _WHOLE)], [("manifest.a", _WHOLE), ("manifest.b", data)]):
        try:
            assert newest_manifest(_KEYS, copies)[0] == _MANIFEST, "the whole copy does not count"
        except (FormatUnsupported, KeysMismatch):
            continue
    for magic, purpose in ((MAGIC, MANIFEST_PURPOSE), (SNAPSHOT_MAGIC, SNAPSHOT_PURPOSE), (MAGIC, SNAPSHOT_PURPOSE)):
        try:
            assert len(open_small_file(_KEYS, magic, purpose, "input", data)) <= len(data)
        except _REFUSALS:
            continue
    with suppress(*_REFUSALS):
        assert open_snapshot(_KEYS, "input", data) == open_snapshot(_KEYS, "sample", _SNAPSHOT)
