"""The data-encryption keys (DEKs) of one process: those it seals with, and those it found on disk and opens with.

    KEK -> TRK (key store) -> DEK -> batches, state, values of the view

A DEK is wrapped by its topic's TRK, AES-256-GCM under the context cluster id || topic id || key id (u32, little-endian): the 60
bytes that decision 0001 puts into journals and footers. The TRK also roots `derived` keys by HKDF-SHA256; it serves two
primitives (AES and HMAC) that share no structure, and neither ever shows an output of the other.

States. The DEK of a topic's current epoch is *active*: this process seals with it. Every other one is *previous*: it opens
what it sealed, in this process or an earlier one. *Retired* is a DEK whose root key is shredded: nothing opens it.

Nonces. A DEK is made by the process that seals with it and by no other, is never loaded for sealing, and counts its nonces
from 0. So no two seals share a key and a nonce, whatever is restored, restarted or retried; no random nonce is needed, and no
counter need be stored. A process that forks seals in one of the two only.
"""

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from security.crypto.envelope import KEY_BYTES, WRAPPED_KEY_BYTES, Cipher, derive_key, unwrap_key, wrap_key
from security.crypto.keystore import KeyStore
from security.errors import KeyMissing, KeyShredded, KeyWrong, NonceExhausted, TamperedData

SEALS_MAX = 2**32
"""Seals under one DEK, NIST SP 800-38D, 8.3. With counted nonces more would be safe; the bound also limits what one key opens."""

CIPHERS_MAX = 1024
KEY_ID_BYTES = 4

_NONCE = struct.Struct(">IQ")
_KEY_ID = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class KeyringCounts:
    """A snapshot for `sprawl keys status`: numbers only."""

    topics: int
    active: int
    previous: int
    ciphers_cached: int


class Epoch:
    """One DEK while this process seals with it. Belongs to one thread, as counting nonces is not atomic."""

    __slots__ = ("_seals", "_seals_max", "cipher", "key_id", "topic_id", "wrapped")

    def __init__(self, topic_id: bytes, key_id: int, wrapped: bytes, cipher: Cipher, seals_max: int) -> None:
        self.topic_id = topic_id
        self.key_id = key_id
        self.wrapped = wrapped
        self.cipher = cipher
        self._seals = 0
        self._seals_max = seals_max

    @property
    def exhausted(self) -> bool:
        return self._seals >= self._seals_max

    def next_nonce(self) -> bytes:
        """12 bytes, never given out before: u32 zero, u64 counter, big-endian. A failed append does not give it back.

        Raises NonceExhausted at the bound; `Keyring.sealing_epoch` then opens a new epoch.
        """
        if self._seals >= self._seals_max:
            raise NonceExhausted(self.topic_id, self.key_id, self._seals_max)
        nonce = _NONCE.pack(0, self._seals)
        self._seals += 1
        return nonce

    def __repr__(self) -> str:
        return f"Epoch(topic {self.topic_id.hex()}, key {self.key_id:08x}, {self._seals} seals)"


class Keyring:
    """DEKs by topic and key id.

    Sealing, adopting and forgetting belong to one owner thread. `opening_cipher` may be called from any thread: the lock is
    held for look-ups only, unwrapping happens outside it, and a cipher enters the cache only while its key is still known.
    """

    def __init__(
        self,
        keystore: KeyStore,
        random: Callable[[int], bytes],
        *,
        ciphers_max: int = CIPHERS_MAX,
        seals_max: int = SEALS_MAX,
    ) -> None:
        self._keystore = keystore
        self._random = random
        self._ciphers_max = ciphers_max
        self._seals_max = seals_max
        self._epochs: dict[bytes, Epoch] = {}
        self._wrapped: dict[bytes, dict[int, bytes]] = {}
        self._ciphers: OrderedDict[tuple[bytes, int], Cipher] = OrderedDict()
        self._lock = threading.Lock()

    def sealing_epoch(self, topic_id: bytes) -> Epoch:
        """The epoch to seal the topic's next batch with; a new one at first use, after `rotate` and at the bound.

        Whoever gets an epoch for the first time writes its `wrapped` key before the first batch sealed with it.
        Raises KeyShredded.
        """
        if topic_id not in self._keystore:  # fails closed after a shredding, even before `forget` was called
            raise KeyShredded(topic_id)
        epoch = self._epochs.get(topic_id)
        if epoch is None or epoch._seals >= epoch._seals_max:  # its `exhausted`, asked for each batch
            epoch = self._epochs[topic_id] = self._open_epoch(topic_id)
        return epoch

    def separate_epoch(self, topic_id: bytes) -> Epoch:
        """One beside the epoch that batches are appended under, for whoever seals on another thread: it is his alone.

        Its `wrapped` key has to be durable before anything under it counts. Raises KeyShredded.
        """
        self._require_root(topic_id)
        return self._open_epoch(topic_id)

    def rotate(self, topic_id: bytes) -> None:
        """Seal with the current DEK no more: the next `sealing_epoch` makes a new one."""
        self._epochs.pop(topic_id, None)

    def adopt(self, topic_id: bytes, key_id: int, wrapped: bytes) -> None:
        """Register a wrapped DEK read from disk. Again is fine; another key under a known id is TamperedData."""
        what = f"the wrapped key {key_id:08x} of topic {topic_id.hex()}"
        if len(wrapped) != WRAPPED_KEY_BYTES:
            raise TamperedData(f"{what}, {len(wrapped)} bytes long,")
        with self._lock:
            known = self._wrapped.setdefault(topic_id, {}).setdefault(key_id, bytes(wrapped))
        if known != wrapped:
            raise TamperedData(f"{what}, not the one read before,")

    def wrapped(self, topic_id: bytes, key_id: int) -> bytes:
        """The wrapped DEK, 60 bytes. Raises KeyMissing."""
        found = self._wrapped.get(topic_id, {}).get(key_id)
        if found is None:
            raise _unknown(topic_id, key_id)
        return found

    def known(self, topic_id: bytes) -> list[tuple[int, bytes]]:
        """Key ids and wrapped DEKs of a topic, as far as read or made."""
        with self._lock:
            return list(self._wrapped.get(topic_id, {}).items())

    def opening_cipher(self, topic_id: bytes, key_id: int) -> Cipher:
        """The cipher of a DEK, from any thread. Raises KeyShredded, KeyMissing, TamperedData (does not unwrap)."""
        self._require_root(topic_id)
        place = (topic_id, key_id)
        with self._lock:
            cipher = self._ciphers.get(place)
            if cipher is not None:
                self._ciphers.move_to_end(place)
                return cipher
        return self._unwrap(topic_id, key_id)

    def forget(self, topic_id: bytes) -> None:
        """Drop every key of a deleted or shredded topic."""
        with self._lock:
            for key_id in self._wrapped.pop(topic_id, {}):
                self._ciphers.pop((topic_id, key_id), None)
        self._epochs.pop(topic_id, None)

    def derived(self, topic_id: bytes, purpose: bytes) -> bytes:
        """A 32-byte key of the topic for one purpose, the same in every process. Raises KeyShredded."""
        return derive_key(self._keystore.root_key(topic_id), purpose)

    def describe(self) -> KeyringCounts:
        """Counts of keys, never keys."""
        with self._lock:
            keys = sum(map(len, self._wrapped.values()))
            return KeyringCounts(len(self._wrapped), len(self._epochs), keys - len(self._epochs), len(self._ciphers))

    def __repr__(self) -> str:
        return f"Keyring({self.describe()})"

    def _require_root(self, topic_id: bytes) -> None:
        """Fails closed after a shredding, even before `forget` was called."""
        if topic_id not in self._keystore:
            raise KeyShredded(topic_id)

    def _open_epoch(self, topic_id: bytes) -> Epoch:
        key_id = self._fresh_key_id(topic_id)
        key = self._random(KEY_BYTES)
        wrapped = wrap_key(self._wrapping(topic_id), key, self._context(topic_id, key_id), self._random)
        self.adopt(topic_id, key_id, wrapped)
        cipher = Cipher(key)
        self._remember(topic_id, key_id, wrapped, cipher)
        return Epoch(topic_id, key_id, wrapped, cipher, self._seals_max)

    def _fresh_key_id(self, topic_id: bytes) -> int:
        taken = self._wrapped.get(topic_id, {})
        key_id = int(_KEY_ID.unpack(self._random(KEY_ID_BYTES))[0])
        while key_id in taken:
            key_id = int(_KEY_ID.unpack(self._random(KEY_ID_BYTES))[0])
        return key_id

    def _unwrap(self, topic_id: bytes, key_id: int) -> Cipher:
        wrapped = self.wrapped(topic_id, key_id)
        try:
            key = unwrap_key(self._wrapping(topic_id), wrapped, self._context(topic_id, key_id))
        except KeyWrong:  # the root key is authenticated by the key store, so these bytes are what is wrong
            raise TamperedData(f"the wrapped key {key_id:08x} of topic {topic_id.hex()}") from None
        cipher = Cipher(key)
        self._remember(topic_id, key_id, wrapped, cipher)
        return cipher

    def _remember(self, topic_id: bytes, key_id: int, wrapped: bytes, cipher: Cipher) -> None:
        with self._lock:
            if self._wrapped.get(topic_id, {}).get(key_id) != wrapped:
                return  # forgotten while it was being unwrapped
            self._ciphers[topic_id, key_id] = cipher
            if len(self._ciphers) > self._ciphers_max:
                self._ciphers.popitem(last=False)

    def _wrapping(self, topic_id: bytes) -> Cipher:
        return Cipher(self._keystore.root_key(topic_id))

    def _context(self, topic_id: bytes, key_id: int) -> bytes:
        return self._keystore.cluster_id + topic_id + _KEY_ID.pack(key_id)


def _unknown(topic_id: bytes, key_id: int) -> KeyMissing:
    what_to_do = "the data that carries this wrapped key is gone or not read yet; restore it from a backup"
    return KeyMissing(f"the keyring of topic {topic_id.hex()}", f"{key_id:08x}", what_to_do)
