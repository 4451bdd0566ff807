"""Sealing and opening what the log keeps: batches, frame states, footers, manifest, snapshots (decision 0001, sections 1 to 6).

Sealing happens on the owner thread only (one nonce counter per epoch); opening may run on reader threads.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from broker.log.layout import (
    BATCH_HEADER_BYTES,
    FLAG_KEYS_COMPLETE,
    NONCE_BYTES,
    TAG_BYTES,
    BatchHeader,
    pack_batch_header,
)
from broker.seams import Buffer, Random
from security.crypto.envelope import Cipher, KeyHasher
from security.crypto.keyring import Epoch, Keyring
from security.crypto.keystore import SYSTEM_TOPIC_ID
from security.errors import TamperedData

FOOTER_PURPOSE = b"sprawl/v1/footer"
MANIFEST_PURPOSE = b"sprawl/v1/manifest"
SNAPSHOT_PURPOSE = b"sprawl/v1/snapshot"
KEY_HASH_PURPOSE = b"sprawl/v1/key-hash"

_KEY_ID = struct.Struct("<I")


class SealedBatch(msgspec.Struct, frozen=True, gc=False):
    """Ready to be written: `parts` in order, `size` bytes together."""

    parts: tuple[bytes, ...]
    size: int
    tag: bytes
    key_id: int


class LogKeys:
    """The keyring as the log uses it: everything is bound to the cluster."""

    def __init__(self, keyring: Keyring, cluster_id: bytes, random: Random) -> None:
        self.keyring = keyring
        self.cluster_id = cluster_id
        self._random = random
        self._hashers: dict[bytes, KeyHasher] = {}
        self._derived: dict[bytes, Cipher] = {}

    def hasher(self, topic_id: bytes) -> KeyHasher:
        """Hashes record keys of a topic; on the owner thread."""
        found = self._hashers.get(topic_id)
        if found is None:
            found = KeyHasher(self.keyring.derived(topic_id, KEY_HASH_PURPOSE))
            self._hashers[topic_id] = found
        return found

    def forget(self, topic_id: bytes) -> None:
        self._hashers.pop(topic_id, None)
        self.keyring.forget(topic_id)

    def seal_batch(
        self,
        clear: Buffer,
        *,
        flags: int,
        topic_id: bytes,
        partition: int,
        last_offset_delta: int,
        base_offset: int,
        sequence: int,
        max_timestamp_ms: int,
        append_time_ms: int,
        records: int,
        previous_tag: bytes,
        key_hashes: Sequence[int] | None,
        epoch: Epoch | None = None,
    ) -> SealedBatch:
        """`key_hashes` ascending and distinct, or None when the batch's keys were not looked at. `epoch`: one that is the
        caller's alone, on whatever thread; else the topic's current one, on the owner thread."""
        epoch = epoch or self.keyring.sealing_epoch(topic_id)
        size, hashed, hashes = BATCH_HEADER_BYTES + len(clear) + TAG_BYTES, 0, b""
        if key_hashes is not None:
            hashed, flags = len(key_hashes), flags | FLAG_KEYS_COMPLETE
            hashes = struct.pack(f"<{hashed}Q", *key_hashes)
            size += len(hashes)
        nonce = epoch.next_nonce()
        head = pack_batch_header(
            flags,
            size,
            hashed,
            topic_id,
            partition,
            epoch.key_id,
            nonce,
            last_offset_delta,
            base_offset,
            sequence,
            max_timestamp_ms,
            append_time_ms,
            records,
            previous_tag,
        )
        if hashed:
            head += hashes
        sealed = epoch.cipher.seal(nonce, clear, head + self.cluster_id)
        return SealedBatch((head, sealed), size, sealed[-TAG_BYTES:], epoch.key_id)

    def open_batch(self, buffer: Buffer, position: int, header: BatchHeader) -> bytes:
        """The clear record batch. TamperedData when a bit differs; KeyMissing or KeyShredded when it cannot be opened here."""
        view = memoryview(buffer)[position : position + header.sealed_bytes]
        body_at = BATCH_HEADER_BYTES + 8 * header.key_hashes
        if len(view) < header.sealed_bytes or header.sealed_bytes < body_at + TAG_BYTES:
            raise TamperedData("a sealed batch shorter than its header says")
        cipher = self.keyring.opening_cipher(header.topic_id, header.key_id)
        return self.unseal(cipher, header.nonce, view[body_at:], b"".join((view[:body_at], self.cluster_id)))

    @staticmethod
    def unseal(cipher: Cipher, nonce: bytes, sealed: Buffer, associated: bytes) -> bytes:
        return cipher.open(nonce, sealed, associated)

    def system_epoch(self) -> Epoch:
        return self.keyring.sealing_epoch(SYSTEM_TOPIC_ID)

    def seal_state(self, clear: bytes, associated: bytes) -> bytes:
        epoch = self.system_epoch()
        nonce = epoch.next_nonce()
        return nonce + epoch.cipher.seal(nonce, clear, associated + self.cluster_id)

    def open_state(self, key_id: int, block: Buffer, associated: bytes) -> bytes:
        cipher = self.keyring.opening_cipher(SYSTEM_TOPIC_ID, key_id)
        return cipher.open(bytes(block[:NONCE_BYTES]), block[NONCE_BYTES:], associated + self.cluster_id)

    def seal_value(self, key: bytes, value: bytes) -> bytes:
        """A value of the view: names its epoch, so that it opens in any later process."""
        epoch = self.system_epoch()
        nonce = epoch.next_nonce()
        return _KEY_ID.pack(epoch.key_id) + nonce + epoch.cipher.seal(nonce, value, self.cluster_id + key)

    def open_value(self, key: bytes, sealed: bytes) -> bytes:
        if len(sealed) < 4 + NONCE_BYTES + TAG_BYTES:
            raise TamperedData("a value of the view")
        cipher = self.keyring.opening_cipher(SYSTEM_TOPIC_ID, _KEY_ID.unpack_from(sealed)[0])
        return cipher.open(sealed[4 : 4 + NONCE_BYTES], sealed[4 + NONCE_BYTES :], self.cluster_id + key)

    def seal_for(self, purpose: bytes, clear: bytes, associated: bytes) -> bytes:
        """Rare blocks (footers, manifest, snapshots): random nonce under a derived key."""
        nonce = self._random.bytes(NONCE_BYTES)
        return nonce + self._cipher_for(purpose).seal(nonce, clear, associated)

    def open_for(self, purpose: bytes, block: Buffer, associated: bytes) -> bytes:
        if len(block) < NONCE_BYTES + TAG_BYTES:
            raise TamperedData("a sealed block cut short")
        return self._cipher_for(purpose).open(bytes(block[:NONCE_BYTES]), block[NONCE_BYTES:], associated)

    def _cipher_for(self, purpose: bytes) -> Cipher:
        found = self._derived.get(purpose)
        if found is None:
            found = self._derived[purpose] = Cipher(self.keyring.derived(SYSTEM_TOPIC_ID, purpose))
        return found


def batch_tag(buffer: Buffer, position: int, header: BatchHeader) -> bytes:
    end = position + header.sealed_bytes
    return bytes(buffer[end - TAG_BYTES : end])
