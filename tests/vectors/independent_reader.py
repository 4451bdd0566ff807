"""A second reader of the sealed log, written from docs/decisions/0001-sealed-log-format.md alone.

It shares no code with Sprawl, so a mistake that writer and reader of Sprawl make alike shows here. Section numbers are those of
the decision. Everything that does not check raises `Refused`; nothing is repaired, nothing is skipped.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import msgspec
from crc32c import crc32c
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SYSTEM = bytes(16)

# After the magic, in the order of the decision's tables.
FILE_FIELDS = ("version", "header_bytes", "number", "cluster_id", "created_at_ms", "system_key_id", "wrapped_system_key", "salt")
GROUP_FIELDS = ("body_bytes", "number", "durable_through", "first_sequence", "frames", "batches", "written_at_ms", "salt")
BATCH_FIELDS = (
    *("version", "cipher", "flags", "sealed_bytes", "key_hashes", "topic_id", "partition", "key_id", "nonce"),
    *("last_offset_delta", "base_offset", "sequence", "max_timestamp_ms", "append_time_ms", "records", "previous_tag"),
)
TRAILER_FIELDS = ("version", "number", "data_end", "summary_position", "summary_bytes")


class Refused(Exception):
    """The bytes are not what a writer of version 1 wrote under these keys."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def open_sealed(key: bytes, block: bytes, associated: bytes) -> bytes:
    """nonce 12 || ciphertext || tag 16."""
    require(len(block) >= 28, "a sealed block has a nonce and a tag at least")
    return decrypt(key, block[:12], block[12:], associated)


def decrypt(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise Refused("the tag does not match") from None


def unpacked(form: str, data: bytes, magic: bytes, *, crc: bool = True) -> tuple[Any, ...]:
    """The fields after the magic; with `crc`, the last four bytes are the CRC-32C of those before."""
    size = struct.calcsize(form) + 4 * crc
    require(len(data) >= size, f"{magic!r} is cut")
    require(data[:4] == magic, f"no {magic!r}")
    if crc:
        require(crc32c(data[: size - 4]) == number(data[size - 4 : size]), f"the crc of {magic!r}")
    return struct.unpack_from(form, data)[1:]


class Reader:
    """Opens everything, given the KEK and the key store (2, 8)."""

    def __init__(self, keks: dict[str, bytes], key_store: bytes) -> None:
        self.key_store = self._open_key_store(keks, key_store)
        self.cluster_id: bytes = self.key_store["cluster_id"]
        self.roots = {topic_id: root for topic_id, _, root in self.key_store["root_keys"]}
        self.data_keys: dict[tuple[bytes, int], bytes] = {}

    # Keys (2)

    def _open_key_store(self, keks: dict[str, bytes], data: bytes) -> dict[str, Any]:
        require(hashlib.sha256(data[:-32]).digest() == data[-32:], "the digest of the key store")
        magic, version, cluster_id, generation = struct.unpack_from("<8sH16sQ", data)
        require(magic == b"SPRAWLKS" and version == 1, "no key store of version 1")
        fields = Fields(data[:-32], 34)
        wraps = [(fields.sized().decode(), fields.sized()) for _ in range(number(fields.take(2)))]
        opened = {open_sealed(keks[kek_id], wrapped, b"sprawl/v1/store-key" + cluster_id) for kek_id, wrapped in wraps}
        require(len(opened) == 1, "every KEK wraps the same store key")
        nonce = fields.take(12)
        size = number(fields.take(4))
        associated = data[: fields.at]
        table = Fields(decrypt(opened.pop(), nonce, fields.take(size), associated), 0)
        fields.end()
        roots = []
        for _ in range(number(table.take(4))):
            topic_id, kek_id = table.take(16), wraps[number(table.take(2))][0]
            context = b"sprawl/v1/topic-root-key" + cluster_id + topic_id
            roots.append((topic_id, kek_id, open_sealed(keks[kek_id], table.sized(), context)))
        table.end()
        require(roots == sorted(roots), "topics ascend")
        keks_named = [kek_id for kek_id, _ in wraps]
        return {"version": 1, "cluster_id": cluster_id, "generation": generation, "keks": keks_named, "root_keys": roots}

    def derived(self, topic_id: bytes, label: bytes) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=label).derive(self.roots[topic_id])

    def adopt(self, topic_id: bytes, key_id: int, wrapped: bytes) -> bytes:
        """A wrapped DEK, from a state entry, a footer, a file header or the manifest."""
        require(len(wrapped) == 60, "a wrapped key has 60 bytes")
        key = open_sealed(self.roots[topic_id], wrapped, self.cluster_id + topic_id + u32(key_id))
        self.data_keys[topic_id, key_id] = key
        return key

    def data_key(self, topic_id: bytes, key_id: int) -> bytes:
        require((topic_id, key_id) in self.data_keys, "a key nobody named")
        return self.data_keys[topic_id, key_id]

    def key_hash(self, topic_id: bytes, key: bytes) -> int:
        return number(hashlib.blake2b(key, key=self.derived(topic_id, b"sprawl/v1/key-hash"), digest_size=8).digest())

    # Files and groups (3 to 6)

    def file_header(self, data: bytes, magic: bytes) -> dict[str, Any]:
        header = dict(zip(FILE_FIELDS, unpacked("<4sHHQ16sQI60sQ12x", data, magic), strict=True))
        require(header["version"] == 1 and header["header_bytes"] == 128, "version 1 has 128 bytes of header")
        require(header["cluster_id"] == self.cluster_id, "another cluster's file")
        if magic == b"SPJ1":
            self.adopt(SYSTEM, header["system_key_id"], header["wrapped_system_key"])
        return {"magic": magic.decode()} | header

    def group(self, data: bytes, position: int, salt: int, system_key_id: int) -> dict[str, Any]:
        """The group that fills `data`."""
        header = dict(zip(GROUP_FIELDS, unpacked("<4sIQQQIIQQ4x", data, b"SPGR"), strict=True))
        require(header["salt"] == salt, "a group of another file")
        require(64 + header["body_bytes"] == len(data), "the group's length")
        frames = []
        at = 64
        while at < len(data):
            size = number(data[at + 4 : at + 8])
            require(32 <= size <= len(data) - at, "a frame's length")
            frames.append(self.frame(data[at : at + size], system_key_id))
            at += size
        require(len(frames) == header["frames"], "the count of frames")
        require(sum(len(frame["batches"]) for frame in frames) == header["batches"], "the count of batches")
        return {"magic": "SPGR", "position": position} | header | {"frames": frames}

    def frame(self, data: bytes, system_key_id: int) -> dict[str, Any]:
        """The frame that fills `data`."""
        size, first_sequence, count, state_bytes = unpacked("<4sIQII4x", data, b"SPFR", crc=False)
        directory_end = 32 + 40 * count
        require(size == len(data) >= directory_end + state_bytes, "the frame's length")
        require(crc32c(data[:28] + data[32:directory_end]) == number(data[28:32]), "the crc of a frame header and directory")
        directory = [struct.unpack_from("<16sIIQI4x", data, 32 + 40 * i) for i in range(count)]
        require(directory_end + sum(entry[4] for entry in directory) + state_bytes == size, "the frame's parts fill it")
        sealed = []
        at = directory_end
        for entry in directory:
            sealed.append(data[at : at + entry[4]])
            at += entry[4]
        state = self._state(data[at:], data[:directory_end], sealed, system_key_id) if state_bytes else []
        batches = [self.batch(one) for one in sealed]
        for i, (entry, batch) in enumerate(zip(directory, batches, strict=True)):
            named = ("topic_id", "partition", "last_offset_delta", "base_offset", "sealed_bytes")
            require(entry == tuple(batch[name] for name in named), "the directory repeats the header")
            require(batch["sequence"] == first_sequence + i, "the commit sequences of a frame")
        return {"first_sequence": first_sequence, "directory": directory, "batches": batches, "state": state}

    def _state(self, block: bytes, head: bytes, sealed: list[bytes], key_id: int) -> list[Any]:
        associated = head + b"".join(one[-16:] for one in sealed) + self.cluster_id
        entries: list[Any] = msgspec.msgpack.decode(open_sealed(self.data_key(SYSTEM, key_id), block, associated))
        for kind, key, value in entries:
            if kind == 2:
                self.adopt(key[:16], number(key[16:]), value)
        return entries

    def batch(self, data: bytes) -> dict[str, Any]:
        """The sealed batch that fills `data`."""
        header = dict(zip(BATCH_FIELDS, unpacked("<4sBBHII16sII12sIQQqQI4x16s12x", data, b"SPB1"), strict=True))
        require(header["version"] == 1 and header["cipher"] == 1, "version 1, AES-256-GCM")
        require(header["sealed_bytes"] == len(data), "the batch's length")
        body = 128 + 8 * header["key_hashes"]
        key = self.data_key(header["topic_id"], header["key_id"])
        clear = decrypt(key, header["nonce"], data[body:], data[:body] + self.cluster_id)
        found = struct.unpack(f"<{header['key_hashes']}Q", data[128:body])
        require(list(found) == sorted(set(found)), "key hashes are distinct and ascend")
        self._check_record_batch(header, clear)
        return {"magic": "SPB1"} | header | {"key_hashes": found, "record_batch": clear, "tag": data[-16:]}

    def _check_record_batch(self, header: dict[str, Any], clear: bytes) -> None:
        """Kafka's record batch v2 (KIP-98), big-endian."""
        base, length, _, magic, crc, _, delta = struct.unpack_from(">qiibIhi", clear)
        require((base, length, magic) == (header["base_offset"], len(clear) - 12, 2), "a record batch v2 with its offset")
        require(crc == crc32c(clear[21:]), "the record batch's own crc")
        newest, count = struct.unpack_from(">q", clear, 35)[0], struct.unpack_from(">i", clear, 57)[0]
        named = (header["last_offset_delta"], header["max_timestamp_ms"], header["records"])
        require((delta, newest, count) == named, "the header repeats the record batch's")

    # Footer (7)

    def footer(self, data: bytes, data_end: int, file_number: int) -> dict[str, Any]:
        """The footer that is `data` and begins at `data_end` of its file."""
        trailer = dict(zip(TRAILER_FIELDS, unpacked("<4sIQQQI8x", data[-48:], b"SPFT"), strict=True))
        require(trailer["version"] == 1, "version 1")
        require((trailer["number"], trailer["data_end"]) == (file_number, data_end), "the trailer of this file")
        at = trailer["summary_position"] - data_end
        require(at + trailer["summary_bytes"] + 48 == len(data), "the summary lies before the trailer")
        key = self.derived(SYSTEM, b"sprawl/v1/footer")
        block = data[at:-48]
        place = self.cluster_id + u64(file_number)
        summary = msgspec.msgpack.decode(open_sealed(key, block, b"SPFS" + place + u64(data_end)))
        require(summary[:2] == [1, file_number], "the summary of this file")
        for topic_id, key_id, wrapped in summary[3]:
            self.adopt(topic_id, key_id, wrapped)
        details = []
        for part in summary[2]:
            topic_id, partition, position, size = part[0], part[1], part[12], part[13]
            detail = data[position - data_end : position - data_end + size]
            details.append(self._columns(open_sealed(key, detail, b"SPFD" + place + topic_id + u32(partition))))
        require(sum(part[13] for part in summary[2]) == at, "detail blocks fill the footer up to the summary")
        return {"summary": summary, "details": details, "summary_tag": block[-16:], "trailer": {"magic": "SPFT"} | trailer}

    @staticmethod
    def _columns(clear: bytes) -> dict[str, Any]:
        batches, keys = struct.unpack_from("<II", clear)
        require(len(clear) == 8 + 60 * batches + 12 * keys, "the columns fill the block")
        forms = {
            "base_offsets": "Q",
            "positions": "Q",
            "sequences": "Q",
            "max_timestamps": "q",
            "sizes": "I",
            "deltas": "I",
            "flags": "I",
        }
        columns: dict[str, Any] = {}
        at = 8
        for name, form in forms.items():
            columns[name] = struct.unpack_from(f"<{batches}{form}", clear, at)
            at += struct.calcsize(form) * batches
        columns["tags"] = [clear[at + 16 * i : at + 16 * i + 16] for i in range(batches)]
        at += 16 * batches
        columns["key_hashes"] = struct.unpack_from(f"<{keys}Q", clear, at)
        columns["key_ordinals"] = struct.unpack_from(f"<{keys}I", clear, at + 8 * keys)
        return columns

    # Small files and the view (8, 9)

    def manifest(self, data: bytes) -> dict[str, Any]:
        found = self._small_file(data, b"SPM1", b"sprawl/v1/manifest")
        require(found["content"][:2] == [1, found["number"]], "the manifest's version and number")
        for _, kind, _, _, _, key_id, wrapped, _ in found["content"][3]:
            if kind == 0:
                self.adopt(SYSTEM, key_id, wrapped)
        return found

    def snapshot(self, data: bytes) -> dict[str, Any]:
        found = self._small_file(data, b"SPZ1", b"sprawl/v1/snapshot")
        require(found["content"][:2] == [1, found["number"]], "the snapshot's version and group")
        for kind, key, value in found["content"][2]:
            if kind == 2:
                self.adopt(key[:16], number(key[16:]), value)
        return found

    def _small_file(self, data: bytes, magic: bytes, label: bytes) -> dict[str, Any]:
        version, _, cluster_id, file_number, size = unpacked("<4sHH16sQI", data, magic)
        require(version == 1 and cluster_id == self.cluster_id and size == len(data) - 40, "the small file's header")
        clear = open_sealed(self.derived(SYSTEM, label), data[40:], data[:40])
        return {"content": msgspec.msgpack.decode(clear), "number": file_number}

    def view_value(self, key: bytes, value: bytes) -> bytes:
        return open_sealed(self.data_key(SYSTEM, number(value[:4])), value[4:], self.cluster_id + key)


class Fields:
    """Fields one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.at = data, at

    def take(self, size: int) -> bytes:
        taken = self._data[self.at : self.at + size]
        require(len(taken) == size, "a field ends past the end")
        self.at += size
        return taken

    def sized(self) -> bytes:
        return self.take(number(self.take(2)))

    def end(self) -> None:
        require(self.at == len(self._data), "bytes after the last field")
