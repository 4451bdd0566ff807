"""The bytes of the key store, version 1. Numbers are unsigned, little-endian, as in decision 0001.

Every version starts with the first four fields and ends with the digest.

    size  field
       8  magic "SPRAWLKS"
       2  version = 1
      16  cluster id
       8  generation: 1 when created, one more at each write
       2  number of KEKs, K >= 1; then K times, in order of first use:
             2 + n   length and UTF-8 of the KEK's id
             2 + w   length and bytes of the store key, wrapped by this KEK
                     under the context "sprawl/v1/store-key" || cluster id
      12  nonce, random at each write
       4  size of the sealed table, s
       s  sealed table: AES-256-GCM under the store key; associated data is every byte above
      32  SHA-256 of every byte above

    The table, opened:
       4  number of topics, T; then T times, by ascending topic id:
             16      topic id
              2      which KEK of the list above (0 .. K-1) wrapped this TRK
             2 + w   length and bytes of the TRK, wrapped by that KEK
                     under the context "sprawl/v1/topic-root-key" || cluster id || topic id

With `LocalFileKms` a wrapped key has 60 bytes: nonce (12) || ciphertext (32) || tag (16), AES-256-GCM, associated data is the
context. Another KMS may return up to 65,535.

Who finds what. The digest has no key: it tells bytes damaged by accident from a wrong KEK, and lets whoever keeps the two
copies choose between them (`generation`) before any key is at hand. The store key is random and wrapped by each KEK in use, so
it is each KEK's check value: a KEK that does not open it is reported by name. The seal of the table binds entries to their
topics, to each other, to the cluster and to the generation, so no entry can be moved, replaced or brought back alone. Bringing
back the *whole* store of an earlier generation is not detectable here; keep the generation with the data to find it.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass

from security.crypto.envelope import NONCE_BYTES, TAG_BYTES, Cipher, Secret
from security.crypto.kms import KeyManagement
from security.errors import KeyFormatUnsupported, KeyStoreDamaged, KeyWrong, TamperedData

MAGIC = b"SPRAWLKS"
VERSION = 1
ID_BYTES = 16
DIGEST_BYTES = 32
STORE_KEY_CONTEXT = b"sprawl/v1/store-key"
ROOT_KEY_CONTEXT = b"sprawl/v1/topic-root-key"

_HEAD = struct.Struct("<8sH16sQ")
_COUNT = struct.Struct("<H")
_SIZE = struct.Struct("<H")
_TABLE_SIZE = struct.Struct("<I")
_TABLE_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<16sH")


@dataclass(frozen=True, slots=True)
class Entry:
    """One TRK, wrapped."""

    kek_id: str
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store says. Replaced whole, never changed in place."""

    cluster_id: bytes
    generation: int
    store_key: Secret
    store_key_wraps: dict[str, bytes]  # by KEK id
    entries: dict[bytes, Entry]  # by topic id


def store_key_context(cluster_id: bytes) -> bytes:
    return STORE_KEY_CONTEXT + cluster_id


def root_key_context(cluster_id: bytes, topic_id: bytes) -> bytes:
    return ROOT_KEY_CONTEXT + cluster_id + topic_id


def generation(data: bytes) -> int:
    """How often an undamaged store had been written. Needs no key: for choosing among copies.

    Raises KeyStoreDamaged, or KeyFormatUnsupported for a newer version.
    """
    if len(data) < _HEAD.size + DIGEST_BYTES:
        raise KeyStoreDamaged(f"it has only {len(data)} bytes")
    magic, version, _, written = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise KeyStoreDamaged("it does not start like a key store")
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise KeyStoreDamaged("its SHA-256 does not match its bytes")
    if version > VERSION:
        raise KeyFormatUnsupported("the key store", version, VERSION)
    if version != VERSION:
        raise KeyStoreDamaged(f"it has format version {version}, which never was")
    return int(written)


def seal_store(contents: Contents, random: Callable[[int], bytes]) -> bytes:
    """The bytes of a store."""
    wraps = contents.store_key_wraps
    head = _HEAD.pack(MAGIC, VERSION, contents.cluster_id, contents.generation) + _COUNT.pack(len(wraps))
    keks = b"".join(_sized(kek_id.encode()) + _sized(wrapped) for kek_id, wrapped in wraps.items())
    table = _pack_table(contents)
    nonce = random(NONCE_BYTES)
    clear = head + keks + nonce + _TABLE_SIZE.pack(len(table) + TAG_BYTES)
    sealed = clear + Cipher(contents.store_key.reveal()).seal(nonce, table, clear)
    return sealed + hashlib.sha256(sealed).digest()


def open_store(data: bytes, kms: KeyManagement) -> Contents:
    """Check everything and read it; TRKs stay wrapped.

    Raises KeyStoreDamaged, KeyFormatUnsupported, KeyMissing (a KEK is not there), KeyWrong (another KEK of that name).
    """
    written = generation(data)
    cluster_id = _HEAD.unpack_from(data)[2]
    fields = _Fields(data[:-DIGEST_BYTES], _HEAD.size)
    kek_count = fields.number(_COUNT)
    wraps = {fields.text(): fields.sized() for _ in range(kek_count)}
    nonce = fields.take(NONCE_BYTES)
    table_size = fields.number(_TABLE_SIZE)
    clear = data[: fields.position]
    sealed = fields.take(table_size)
    fields.end()
    if not wraps or len(wraps) != kek_count:
        raise KeyStoreDamaged(f"its {kek_count} KEKs have {len(wraps)} ids")
    store_key = _unwrap_store_key(wraps, cluster_id, kms)
    try:
        table = Cipher(store_key.reveal()).open(nonce, sealed, clear)
    except TamperedData:
        raise KeyStoreDamaged("its table does not authenticate under its store key") from None
    return Contents(cluster_id, written, store_key, wraps, _unpack_table(table, list(wraps)))


def _unwrap_store_key(wraps: dict[str, bytes], cluster_id: bytes, kms: KeyManagement) -> Secret:
    """The one key that every KEK of the store must give."""
    context = store_key_context(cluster_id)
    opened = [_unwrap_check(kms, kek_id, wrapped, context) for kek_id, wrapped in wraps.items()]
    if not all(hmac.compare_digest(opened[0], other) for other in opened):
        raise KeyStoreDamaged("its KEKs wrap different store keys")
    return Secret(opened[0])


def _unwrap_check(kms: KeyManagement, kek_id: str, wrapped: bytes, context: bytes) -> bytes:
    try:
        return kms.unwrap(kek_id, wrapped, context)
    except KeyWrong:
        raise KeyWrong(kek_id, "the key store") from None


def _pack_table(contents: Contents) -> bytes:
    numbers = {kek_id: number for number, kek_id in enumerate(contents.store_key_wraps)}
    packed = (
        _ENTRY.pack(topic_id, numbers[entry.kek_id]) + _sized(entry.wrapped)
        for topic_id, entry in sorted(contents.entries.items())
    )
    return _TABLE_COUNT.pack(len(contents.entries)) + b"".join(packed)


def _unpack_table(table: bytes, kek_ids: list[str]) -> dict[bytes, Entry]:
    """Authentic by now: what does not fit is a mistake of the writer, told all the same."""
    fields = _Fields(table, 0)
    entries: dict[bytes, Entry] = {}
    for _ in range(fields.number(_TABLE_COUNT)):
        topic_id = fields.take(ID_BYTES)
        kek_number = fields.number(_COUNT)
        if kek_number >= len(kek_ids) or topic_id in entries:
            raise KeyStoreDamaged(f"its entry of topic {topic_id.hex()} contradicts the others")
        entries[topic_id] = Entry(kek_ids[kek_number], fields.sized())
    fields.end()
    return entries


def _sized(field: bytes) -> bytes:
    return _SIZE.pack(len(field)) + field


class _Fields:
    """Reads fields one after the other and refuses to read past the end."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise KeyStoreDamaged(f"a field at byte {self.position} ends past the store")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def number(self, form: struct.Struct) -> int:
        return int(form.unpack(self.take(form.size))[0])

    def sized(self) -> bytes:
        return self.take(self.number(_SIZE))

    def text(self) -> str:
        try:
            return self.sized().decode()
        except UnicodeDecodeError:
            raise KeyStoreDamaged("the id of a KEK is not UTF-8") from None

    def end(self) -> None:
        if self.position != len(self._data):
            raise KeyStoreDamaged(f"{len(self._data) - self.position} bytes follow its last field")
