"""The committed bytes of format version 1, against an independent reader and against the code that writes them."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from broker.log.footer import read_detail, read_summary
from broker.log.layout import FILE_HEADER_BYTES
from broker.log.manifest import FileEntry, FileKind, FileState, newest_manifest
from broker.log.recovery import EVERYTHING, Recovery
from broker.log.sealing import LogKeys
from broker.log.state import open_snapshot
from broker.machine import MachineDisk
from security.crypto.keystore import SYSTEM_TOPIC_ID
from tests.vectors import independent_reader
from tests.vectors.independent_reader import SYSTEM, Reader, Refused
from tests.vectors.make_sealed_log_v1 import JOURNAL_PARTS, VECTORS, bytes_of, open_keys, shown, text

DOCUMENT: dict[str, Any] = json.loads(VECTORS.read_text())
INPUTS: dict[str, Any] = DOCUMENT["inputs"]
SEALED: dict[str, Any] = DOCUMENT["vectors"]


def data_of(name: str) -> bytes:
    return bytes_of(DOCUMENT, name)


def fields_of(name: str) -> Any:
    return SEALED[name]["fields"]


KEKS = {INPUTS["kek"]["id"]: bytes.fromhex(INPUTS["kek"]["key"])}
FILE_NUMBER = fields_of("journal_header")["number"]
DATA_END = sum(len(data_of(name)) for name in JOURNAL_PARTS[:-1])


def key_given(topic_id: bytes) -> dict[str, Any]:
    given: list[dict[str, Any]] = [INPUTS["system"], *INPUTS["topics"]]
    return next(topic["data_key"] for topic in given if topic["topic_id"] == topic_id.hex())


def fresh_reader() -> Reader:
    """Knows the key store and the data keys: each vector opens without the others."""
    reader = Reader(KEKS, data_of("key_store"))
    for topic_id in reader.roots:
        wrapped = key_given(topic_id)
        assert reader.adopt(topic_id, wrapped["key_id"], bytes.fromhex(wrapped["wrapped"])).hex() == wrapped["key"]
    return reader


def open_group(reader: Reader, data: bytes, name: str) -> dict[str, Any]:
    return reader.group(data, fields_of(name)["position"], INPUTS["salt"], key_given(SYSTEM)["key_id"])


def open_data_key(reader: Reader, data: bytes) -> dict[str, Any]:
    """As it would be found beside the names it is bound to."""
    named = fields_of("wrapped_data_key")
    topic_id, key_id = bytes.fromhex(named["topic_id"]), named["key_id"]
    return {"topic_id": topic_id, "key_id": key_id, "key": reader.adopt(topic_id, key_id, data), "wrapped": data}


OPENERS: dict[str, Callable[[Reader, bytes], Any]] = {
    "key_store": lambda _, data: Reader(KEKS, data).key_store,
    "wrapped_data_key": open_data_key,
    "journal_header": lambda reader, data: reader.file_header(data, b"SPJ1"),
    "segment_header": lambda reader, data: reader.file_header(data, b"SPS1"),
    "group": lambda reader, data: open_group(reader, data, "group"),
    "frame": lambda reader, data: reader.frame(data, key_given(SYSTEM)["key_id"]),
    "second_group": lambda reader, data: open_group(reader, data, "second_group"),
    "empty_group": lambda reader, data: open_group(reader, data, "empty_group"),
    "batch": lambda reader, data: reader.batch(data),
    "footer": lambda reader, data: reader.footer(data, DATA_END, FILE_NUMBER),
    "manifest": lambda reader, data: reader.manifest(data),
    "snapshot": lambda reader, data: reader.snapshot(data),
}


class TestIndependentReader:
    def test_shares_no_code_with_sprawl(self) -> None:
        source = ast.parse(inspect.getsource(independent_reader))
        names: set[str] = set()
        for node in ast.walk(source):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
        assert names - set(sys.stdlib_module_names) == {"crc32c", "cryptography", "msgspec"}

    def test_every_vector_with_bytes_has_an_opener(self) -> None:
        assert set(OPENERS) | {"key_hashes", "view"} == set(SEALED)

    @pytest.mark.parametrize("name", OPENERS)
    def test_opens_the_vector_to_its_fields(self, name: str) -> None:
        assert shown(OPENERS[name](fresh_reader(), data_of(name))) == fields_of(name)

    @pytest.mark.parametrize("name", OPENERS)
    def test_refuses_every_flipped_bit(self, name: str) -> None:
        data, reader = data_of(name), fresh_reader()
        for at in range(8 * len(data)):
            changed = bytearray(data)
            changed[at // 8] ^= 1 << at % 8
            with pytest.raises(Refused):
                OPENERS[name](reader, bytes(changed))

    @pytest.mark.parametrize("name", OPENERS)
    def test_refuses_other_keys(self, name: str) -> None:
        """Headers that only a crc protects are the exception, and say so."""
        wrong = {kek_id: bytes(32) for kek_id in KEKS}
        if name == "key_store":
            with pytest.raises(Refused):
                Reader(wrong, data_of(name))
            return
        reader = fresh_reader()
        reader.roots = {topic_id: bytes(32) for topic_id in reader.roots}
        reader.data_keys = dict.fromkeys(reader.data_keys, bytes(32))
        if name in ("segment_header", "empty_group"):
            assert shown(OPENERS[name](reader, data_of(name))) == fields_of(name)
            return
        with pytest.raises(Refused):
            OPENERS[name](reader, data_of(name))

    def test_reads_the_whole_journal_with_nothing_but_the_key_store(self) -> None:
        reader = Reader(KEKS, data_of("key_store"))
        header = reader.file_header(data_of("journal_header"), b"SPJ1")
        tags: dict[tuple[bytes, int], bytes] = {}
        at = FILE_HEADER_BYTES
        for name in JOURNAL_PARTS[1:-1]:
            group = reader.group(data_of(name), at, header["salt"], header["system_key_id"])
            for batch in (batch for frame in group["frames"] for batch in frame["batches"]):
                place = (batch["topic_id"], batch["partition"])
                assert batch["previous_tag"] == tags.get(place, bytes(16))
                tags[place] = batch["tag"]
            at += len(data_of(name))
        summary = reader.footer(data_of("footer"), at, header["number"])["summary"]
        assert {(part[0], part[1]): part[11] for part in summary[2]} == tags

    def test_reads_the_footer_with_nothing_but_the_key_store(self) -> None:
        reader = Reader(KEKS, data_of("key_store"))
        reader.footer(data_of("footer"), DATA_END, FILE_NUMBER)
        assert shown(reader.batch(data_of("batch"))) == fields_of("batch")

    @pytest.mark.parametrize(("data_end", "number"), [(DATA_END + 1, FILE_NUMBER), (DATA_END, FILE_NUMBER + 1)])
    def test_refuses_the_footer_of_another_file(self, data_end: int, number: int) -> None:
        with pytest.raises(Refused):
            fresh_reader().footer(data_of("footer"), data_end, number)

    @pytest.mark.parametrize("name", ["frame", "batch", "footer"])
    def test_refuses_another_cluster(self, name: str) -> None:
        reader = fresh_reader()
        reader.cluster_id = bytes(16)
        with pytest.raises(Refused):
            OPENERS[name](reader, data_of(name))

    def test_hashes_record_keys(self) -> None:
        reader = fresh_reader()
        for given in SEALED["key_hashes"]:
            topic_id, key, expected = bytes.fromhex(given["topic_id"]), bytes.fromhex(given["key"]), given["hash"]
            assert reader.key_hash(topic_id, key) == expected
            assert reader.key_hash(topic_id, key + b"\x00") != expected

    def test_the_batchs_hashes_are_those_of_its_keys(self) -> None:
        by_key = {given["key"]: given["hash"] for given in SEALED["key_hashes"]}
        assert fields_of("batch")["key_hashes"] == sorted((by_key[""], by_key["00ff"]))

    def test_derives_the_keys_given(self) -> None:
        reader = fresh_reader()
        for topic in (INPUTS["system"], *INPUTS["topics"]):
            topic_id = bytes.fromhex(topic["topic_id"])
            assert reader.roots[topic_id].hex() == topic["root_key"]
            for label, key in topic["derived"].items():
                assert reader.derived(topic_id, b"sprawl/v1/" + label.encode()).hex() == key

    @pytest.mark.parametrize("given", SEALED["view"], ids=("topic", "position"))
    def test_opens_values_of_the_view(self, given: dict[str, str]) -> None:
        reader, key, value = fresh_reader(), bytes.fromhex(given["key"]), bytes.fromhex(given["hex"])
        assert reader.view_value(key, value).hex() == given["value"]
        for at in range(8 * len(value)):
            changed = bytearray(value)
            changed[at // 8] ^= 1 << at % 8
            with pytest.raises(Refused):
                reader.view_value(key, bytes(changed))
        with pytest.raises(Refused):
            reader.view_value(key + b"\x00", value)


@pytest.fixture
def keys() -> LogKeys:
    return open_keys(data_of("key_store"))


@pytest.fixture
def entry() -> FileEntry:
    header = fields_of("journal_header")
    wrapped = bytes.fromhex(header["wrapped_system_key"])
    tag = bytes.fromhex(fields_of("footer")["summary_tag"])
    first = fields_of("group")["number"]
    return FileEntry(FILE_NUMBER, FileKind.JOURNAL, FileState.SEALED, DATA_END, first, header["system_key_id"], wrapped, tag)


def whole_journal() -> bytes:
    return bytes_of(DOCUMENT, *DOCUMENT["journal"])


class TestSprawl:
    def test_writes_exactly_these_bytes(self) -> None:
        assert text() == VECTORS.read_text()

    def test_opens_the_key_store(self, keys: LogKeys) -> None:
        assert keys.cluster_id.hex() == INPUTS["cluster_id"]
        for topic in INPUTS["topics"]:
            label = b"sprawl/v1/key-hash"
            assert keys.keyring.derived(bytes.fromhex(topic["topic_id"]), label).hex() == topic["derived"]["key-hash"]

    def test_opens_the_manifest(self, keys: LogKeys) -> None:
        manifest, damaged = newest_manifest(keys, [("manifest.a", data_of("manifest"))])
        assert not damaged
        assert manifest is not None
        assert shown(manifest) == fields_of("manifest")["content"]

    def test_opens_the_snapshot(self, keys: LogKeys) -> None:
        assert shown(open_snapshot(keys, "state", data_of("snapshot"))) == fields_of("snapshot")["content"]

    def test_opens_values_of_the_view(self, keys: LogKeys) -> None:
        system = key_given(SYSTEM)
        keys.keyring.adopt(SYSTEM_TOPIC_ID, system["key_id"], bytes.fromhex(system["wrapped"]))
        for given in SEALED["view"]:
            assert keys.open_value(bytes.fromhex(given["key"]), bytes.fromhex(given["hex"])).hex() == given["value"]

    def test_recovers_the_journal(self, keys: LogKeys, entry: FileEntry) -> None:
        first = fields_of("group")["number"]
        recovery = Recovery(keys, {}, fields_of("group")["first_sequence"], 0, first - 1, None)
        found = recovery.read_journal(entry, whole_journal()[:DATA_END], EVERYTHING, DATA_END)
        assert (found.first_group, found.last_group, found.groups) == (first, first + 2, 3)
        assert not found.unattributed
        assert found.tail_cut is None
        expected = [shown(frame["state"]) for frame in fields_of("group")["frames"]]
        assert [shown(entries) for _, entries in found.states[:2]] == expected
        details = fields_of("footer")["details"]
        kept = [found.partitions[place] for place in sorted(found.partitions)]
        assert [list(part.index.positions) for part in kept] == [detail["positions"] for detail in details]
        assert not any(part.summary.damage for part in kept)

    def test_opens_the_footer(self, keys: LogKeys, entry: FileEntry, disk: MachineDisk) -> None:
        disk.make_folder("journal")
        file = disk.open(entry.path, create=True)
        try:
            file.write_at(0, [whole_journal()])
            summary, data_end = read_summary(keys, file, entry.path, entry.number, entry.summary_tag)
            details = [read_detail(keys, file, entry.number, part) for part in summary.partitions]
        finally:
            file.close()
        assert data_end == DATA_END
        assert shown(summary) == fields_of("footer")["summary"]
        for index, expected in zip(details, fields_of("footer")["details"], strict=True):
            assert list(index.base_offsets) == expected["base_offsets"]
            assert list(index.key_hashes) == expected["key_hashes"]
            assert [index.place(i).tag.hex() for i in range(len(index))] == expected["tags"]
