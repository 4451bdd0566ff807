"""The key store: the root key of every topic (TRK), each wrapped by a key-encryption key (KEK), and nothing else.

It is small, rewritten whole at each change, and the only place where TRKs are: destroying an entry shreds a topic. Its
bytes are drawn in keystore_format.py.

An old copy in a free disk block still opens with the KEK that wrapped it. Who must be sure beyond that rotates the KEK,
calls `rewrap`, and destroys the old KEK.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from security.crypto.envelope import KEY_BYTES, Secret
from security.crypto.key_backups import KeyBackup, KeyBackups
from security.crypto.keystore_format import (
    ID_BYTES,
    Contents,
    Entry,
    open_store,
    root_key_context,
    seal_store,
    store_key_context,
)
from security.crypto.kms import KeyManagement
from security.errors import KeyMissing, KeyShredded, KeyStoreDamaged, KeyStoreExists, KeyWrong

SYSTEM_TOPIC_ID = bytes(ID_BYTES)
"""Reserved for the node's own things: journal state, manifest, footers."""


class Blob(Protocol):
    """Where the store's bytes are kept, in two copies."""

    def read(self) -> bytes | None:
        """The undamaged copy of the highest `keystore_format.generation`; any copy if all are damaged; None if there is none.

        A copy that a crash left at a lower generation is replaced first: it may hold a key that was shredded.
        """

    def write(self, data: bytes) -> None:
        """Replace every copy: atomic, durable, and nothing of what was there has a name when this returns."""


class KeyStore:
    """TRKs by topic. Call `create` or `load` first.

    One owner thread changes it. `root_key` may be called from any thread: a known key is one dictionary look-up; unwrapping
    and shredding take the lock, so that a key being destroyed cannot come back into the cache.
    """

    def __init__(self, blob: Blob, kms: KeyManagement, random: Callable[[int], bytes], backups: KeyBackups | None = None) -> None:
        self._blob = blob
        self._backups = backups
        self._kms = kms
        self._random = random
        self._contents: Contents | None = None
        self._generation = 0
        self._roots: dict[bytes, Secret] = {}
        self._lock = threading.Lock()

    def create(self, cluster_id: bytes) -> None:
        """Write a new store that holds the system topic's key. Raises KeyStoreExists; a store is never replaced."""
        _check_id(cluster_id)
        if self._blob.read() is not None:
            raise KeyStoreExists
        empty = Contents(cluster_id, 0, Secret(self._random(KEY_BYTES)), {}, {})
        self._write(empty, {SYSTEM_TOPIC_ID: self._fresh_entry(cluster_id, SYSTEM_TOPIC_ID)})

    def load(self) -> None:
        """Read the store and check all of it; TRKs stay wrapped until they are asked for.

        Raises KeyMissing (no store, or a KEK it needs is not there), KeyWrong (a KEK is another one of that name),
        KeyStoreDamaged, KeyFormatUnsupported.
        """
        data = self._blob.read()
        if data is None:
            raise KeyMissing("the data folder", None, "bring its key store back from the key backup")
        with self._lock:
            self._contents = open_store(data, self._kms)
            self._generation = self._contents.generation
            self._roots = {}

    @property
    def cluster_id(self) -> bytes:
        """16 bytes, given at creation."""
        return self._loaded().cluster_id

    @property
    def generation(self) -> int:
        """Grows by one at each write."""
        return self._loaded().generation

    @property
    def active_kek_id(self) -> str:
        """The KEK that new keys are wrapped by."""
        return self._kms.key_id

    def kek_ids(self) -> list[str]:
        """The KEKs that this store needs, the oldest first."""
        return list(self._loaded().store_key_wraps)

    def topic_ids(self) -> set[bytes]:
        """Every topic that has a TRK, `SYSTEM_TOPIC_ID` among them."""
        return set(self._loaded().entries)

    def __contains__(self, topic_id: bytes) -> bool:
        return topic_id in (self._contents or self._loaded()).entries

    def add(self, topic_id: bytes) -> None:
        """Make a TRK for a topic (16 bytes), durable when this returns. A topic that has one keeps it."""
        self.add_many((topic_id,))

    def add_many(self, topic_ids: Iterable[bytes]) -> None:
        """`add` for many topics with one write."""
        contents = self._loaded()
        fresh = {
            topic_id: self._fresh_entry(contents.cluster_id, topic_id)
            for topic_id in topic_ids
            if topic_id not in contents.entries
        }
        if fresh:
            self._write(contents, contents.entries | fresh)

    def root_key(self, topic_id: bytes) -> bytes:
        """The TRK of a topic, 32 bytes. Raises KeyShredded when it was destroyed or never made."""
        known = self._roots.get(topic_id)
        return self._unwrap(topic_id) if known is None else known.reveal()

    def shred(self, topic_id: bytes) -> None:
        """Destroy the TRK of a topic: nothing sealed under it opens again. Raises KeyShredded when there is none."""
        if topic_id == SYSTEM_TOPIC_ID:
            raise ValueError("the system topic's key opens the journal of all topics, it is never shredded")
        contents = self._loaded()
        if topic_id not in contents.entries:
            raise KeyShredded(topic_id)
        with self._lock:
            self._write(contents, {known: entry for known, entry in contents.entries.items() if known != topic_id})
            self._roots.pop(topic_id, None)

    def backups_holding(self, topic_id: bytes) -> list[KeyBackup]:
        """Key backups that still hold a topic's TRK, also after it was shredded here. Blocking (reads the list of backups)."""
        return [] if self._backups is None else self._backups.holding(topic_id)

    def rewrap(self) -> None:
        """Wrap every TRK, and a new store key, under the KMS's active KEK: older KEKs are not needed any more."""
        contents = self._loaded()
        cluster_id, kek_id = contents.cluster_id, self._kms.key_id
        entries = {}
        for topic_id in contents.entries:
            wrapped = self._kms.wrap(self.root_key(topic_id), root_key_context(cluster_id, topic_id))
            entries[topic_id] = Entry(kek_id, wrapped)
        fresh = Contents(cluster_id, contents.generation, Secret(self._random(KEY_BYTES)), {}, {})
        self._write(fresh, entries)

    def __repr__(self) -> str:
        contents = self._contents
        if contents is None:
            return "KeyStore(not loaded)"
        return f"KeyStore({contents.cluster_id.hex()}, generation {contents.generation}, {len(contents.entries)} topics)"

    def _loaded(self) -> Contents:
        if self._contents is None:
            raise RuntimeError("create or load the key store first")
        return self._contents

    def _unwrap(self, topic_id: bytes) -> bytes:
        with self._lock:
            contents = self._loaded()
            entry = contents.entries.get(topic_id)
            if entry is None:
                raise KeyShredded(topic_id)
            try:
                root = self._kms.unwrap(entry.kek_id, entry.wrapped, root_key_context(contents.cluster_id, topic_id))
            except KeyWrong:  # this KEK did open the store, so it is the right one
                raise KeyStoreDamaged(f"the root key of topic {topic_id.hex()} does not authenticate") from None
            self._roots[topic_id] = Secret(root)
            return root

    def _fresh_entry(self, cluster_id: bytes, topic_id: bytes) -> Entry:
        _check_id(topic_id)
        root = self._random(KEY_BYTES)
        return Entry(self._kms.key_id, self._kms.wrap(root, root_key_context(cluster_id, topic_id)))

    def _write(self, before: Contents, entries: dict[bytes, Entry]) -> None:
        """The blob first: a failed write leaves memory as it was. A generation is used once, even by a failed write."""
        self._generation += 1
        wraps = self._wrap_store_key(before, {entry.kek_id for entry in entries.values()})
        after = Contents(before.cluster_id, self._generation, before.store_key, wraps, entries)
        self._blob.write(seal_store(after, self._random))
        self._contents = after

    def _wrap_store_key(self, before: Contents, needed: set[str]) -> dict[str, bytes]:
        """One wrap per KEK that an entry needs; only the active KEK can be new."""
        wraps = {kek_id: wrapped for kek_id, wrapped in before.store_key_wraps.items() if kek_id in needed}
        active = self._kms.key_id
        if active in needed and active not in wraps:
            wraps[active] = self._kms.wrap(before.store_key.reveal(), store_key_context(before.cluster_id))
        assert wraps.keys() == needed
        return wraps


def _check_id(given: bytes) -> None:
    if len(given) != ID_BYTES:
        raise ValueError(f"an id has {ID_BYTES} bytes, this one {len(given)}")
