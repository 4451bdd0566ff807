"""Everything that goes to disk is looked through for sealed blocks: no (key, nonce) may ever seal two different things.

Batches and frame states are found by their headers (decision 0001, sections 5 and 6) in what is written, wherever they lie and
also when the write is lost afterwards: an attacker who sees the disk at that moment has both. Values of the keyed store
(section 9) share the system key of the frame states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from broker.log.layout import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC,
    FRAME_MAGIC,
    JOURNAL_MAGIC,
    NONCE_BYTES,
    parse_batch_header,
    parse_file_header,
    parse_frame_header,
)

SYSTEM_TOPIC = bytes(16)
WRAPPED_KEY_KIND = 2


class NonceWatch:
    """`complain` is told of a reuse: it happens inside the engine's own disk calls, where an exception might be handled."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._sealed: dict[tuple[bytes, int, bytes], bytes] = {}
        self._system_keys: dict[str, int] = {}
        self.seen = 0

    def wrote(self, path: str, data: bytes) -> None:
        """A write to a file, whole, before anything can be lost of it."""
        if data.startswith(JOURNAL_MAGIC):
            header = parse_file_header(data)
            if header is not None:
                self._system_keys[path] = header.system_key_id
        self._batches(data)
        self._states(path, data)

    def stored(self, puts: Sequence[tuple[bytes, bytes]]) -> None:
        """A write to the keyed store. Wrapped keys go in as they are: sealed under a topic's root key, by random nonces."""
        for key, value in puts:
            if key[:1] != bytes((WRAPPED_KEY_KIND,)):
                self._note(SYSTEM_TOPIC, int.from_bytes(value[:4], "little"), value[4 : 4 + NONCE_BYTES], value[16:])

    def _batches(self, data: bytes) -> None:
        at = data.find(BATCH_MAGIC)
        while at >= 0:
            header = parse_batch_header(data, at)
            if header is None or at + header.sealed_bytes > len(data):
                at = data.find(BATCH_MAGIC, at + 1)
                continue
            end = at + header.sealed_bytes
            body = at + BATCH_HEADER_BYTES + 8 * header.key_hashes
            self._note(header.topic_id, header.key_id, header.nonce, data[body:end])
            at = data.find(BATCH_MAGIC, end)

    def _states(self, path: str, data: bytes) -> None:
        at = data.find(FRAME_MAGIC)
        while at >= 0:
            parsed = parse_frame_header(data, at)
            if parsed is None or at + parsed[0].frame_bytes > len(data):
                at = data.find(FRAME_MAGIC, at + 1)
                continue
            end = at + parsed[0].frame_bytes
            if parsed[0].state_bytes:
                block = data[end - parsed[0].state_bytes : end]
                self._note(SYSTEM_TOPIC, self._system_keys[path], block[:NONCE_BYTES], block[NONCE_BYTES:])
            at = data.find(FRAME_MAGIC, end)

    def _note(self, topic_id: bytes, key_id: int, nonce: bytes, sealed: bytes) -> None:
        self.seen += 1
        digest = hashlib.blake2b(sealed, digest_size=16).digest()
        if self._sealed.setdefault((topic_id, key_id, nonce), digest) != digest:
            self._complain(f"nonce reused: {nonce.hex()} sealed two blocks under key {key_id} of topic {topic_id.hex()}")
