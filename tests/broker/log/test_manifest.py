"""The list of files: one whole copy is enough, none is a refusal, and nobody else's is taken."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from crc32c import crc32c

from broker.errors import FormatUnsupported, KeysMismatch, StorageDamaged
from broker.log.manifest import (
    HEADER_BYTES,
    MAGIC,
    FileEntry,
    FileKind,
    FileState,
    Manifest,
    newest_manifest,
    open_small_file,
    seal_manifest,
    seal_small_file,
)
from broker.log.sealing import MANIFEST_PURPOSE, SNAPSHOT_PURPOSE, LogKeys
from security.errors import TamperedData
from tests.broker.log.journals import MemoryBlob, make_keys, make_keystore

FILES = [
    FileEntry(1, FileKind.JOURNAL, FileState.SEALED, 5000, 1, 7, b"w" * 60, b"t" * 16),
    FileEntry(2, FileKind.JOURNAL, FileState.CLOSED, 900, 4, 8, b"x" * 60, b""),
    FileEntry(3, FileKind.SEGMENT, FileState.SEALED, 100, 0, 0, b"", b"u" * 16),
]
MANIFEST = Manifest(1, 12, 4, FILES, 3, 77, 5)


def test_a_manifest_is_read_as_sealed(keys: LogKeys) -> None:
    data = seal_manifest(keys, MANIFEST)
    assert newest_manifest(keys, [("manifest.a", data), ("manifest.b", data)]) == (MANIFEST, [])


def test_paths_say_kind_and_number() -> None:
    assert [entry.path for entry in FILES] == [
        "journal/0000000000000001.journal",
        "journal/0000000000000002.journal",
        "segments/0000000000000003.segment",
    ]


def test_no_copy_is_a_new_folder(keys: LogKeys) -> None:
    assert newest_manifest(keys, []) == (None, [])


@pytest.mark.parametrize("order", [(11, 12), (12, 11)])
def test_the_higher_number_counts(keys: LogKeys, order: tuple[int, int]) -> None:
    copies = [
        (path, seal_manifest(keys, msgspec.structs.replace(MANIFEST, number=number)))
        for path, number in zip(("manifest.a", "manifest.b"), order, strict=True)
    ]
    found, damaged = newest_manifest(keys, copies)
    assert found == MANIFEST
    assert damaged == []


def test_one_damaged_copy_is_stepped_over_and_named_wherever_the_byte(keys: LogKeys, flipped: Callable[..., bytes]) -> None:
    older = seal_manifest(keys, msgspec.structs.replace(MANIFEST, number=11))
    data = seal_manifest(keys, MANIFEST)
    for at in range(len(data)):
        found, damaged = newest_manifest(keys, [("manifest.a", flipped(data, at)), ("manifest.b", older)])
        assert found is not None
        assert found.number == 11
        assert damaged == ["manifest.a"]


def test_every_prefix_is_damage(keys: LogKeys) -> None:
    data = seal_manifest(keys, MANIFEST)
    for size in range(len(data)):
        with pytest.raises(StorageDamaged, match=r"manifest\.a and manifest\.b: no copy of the manifest is whole"):
            newest_manifest(keys, [("manifest.a", data[:size]), ("manifest.b", data[: size // 2])])


def test_the_names_of_files_do_not_show(keys: LogKeys) -> None:
    data = seal_manifest(keys, MANIFEST)
    assert b"w" * 16 not in data
    assert b"t" * 16 not in data


def with_version(data: bytes, version: int) -> bytes:
    head = data[:4] + version.to_bytes(2, "little") + data[6 : HEADER_BYTES - 4]
    return head + crc32c(head).to_bytes(4, "little") + data[HEADER_BYTES:]


def test_newer_versions_are_refused_by_name_even_beside_a_copy_that_could_be_read(keys: LogKeys) -> None:
    data = seal_manifest(keys, MANIFEST)
    with pytest.raises(FormatUnsupported, match=r"manifest\.b has format version 2; this build reads up to 1"):
        newest_manifest(keys, [("manifest.a", data), ("manifest.b", with_version(data, 2))])
    newer = seal_small_file(keys, MAGIC, MANIFEST_PURPOSE, 12, msgspec.msgpack.encode([2, {"of": "another shape"}]))
    with pytest.raises(FormatUnsupported, match=r"manifest\.a has format version 2"):
        newest_manifest(keys, [("manifest.a", newer)])


def test_fields_that_a_later_build_adds_are_passed_over(keys: LogKeys) -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(MANIFEST))
    data = seal_small_file(keys, MAGIC, MANIFEST_PURPOSE, 12, msgspec.msgpack.encode([*fields, "new", 5]))
    assert newest_manifest(keys, [("manifest.a", data)]) == (MANIFEST, [])


def test_a_manifest_of_another_cluster_is_refused_by_name(keys: LogKeys) -> None:
    foreign = make_keys(make_keystore(MemoryBlob(), cluster_id=b"another cluster."))
    with pytest.raises(KeysMismatch, match=r"manifest\.a belongs to cluster 000102"):
        newest_manifest(foreign, [("manifest.a", seal_manifest(keys, MANIFEST))])


def test_a_manifest_opens_in_every_process_of_the_cluster_and_for_its_own_purpose_only(keys: LogKeys) -> None:
    data = seal_manifest(make_keys(life="second"), MANIFEST)
    assert newest_manifest(keys, [("manifest.a", data)]) == (MANIFEST, [])
    with pytest.raises(TamperedData):
        open_small_file(keys, MAGIC, SNAPSHOT_PURPOSE, "manifest.a", data)


def test_a_file_of_another_kind_does_not_pass(keys: LogKeys) -> None:
    data = seal_small_file(keys, b"SPZ1", SNAPSHOT_PURPOSE, 12, b"clear")
    assert open_small_file(keys, b"SPZ1", SNAPSHOT_PURPOSE, "x", data) == b"clear"
    with pytest.raises(TamperedData):
        open_small_file(keys, MAGIC, MANIFEST_PURPOSE, "x", data)
