"""Publications in columns: the records of one request that have a key and a value, and headers that are all the same.

That is most of what edges publish. Such records never become objects of their own: what was decoded goes into the batches'
bytes in one pass. Whatever has a timestamp, id, partition or headers of its own goes the general way, as `Outgoing`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from broker import varint
from broker.batch import Headers, encode_headers_after_id
from broker.batch_header import assemble_new
from broker.compression import Buffer, Compression, compress
from broker.engine.base import Append
from broker.message_ids import BLOCK_RECORDS, id_block
from broker.record import MESSAGE_ID_BYTES, MESSAGE_ID_HEADER
from broker.topics.partitioner import CACHED_KEY_BYTES_MAX, Partitioner

# As many as one block of message ids has.
COLUMN_RECORDS_MAX = BLOCK_RECORDS

# Keys of a topic whose partition and encoded form are remembered: some 1.5 MB.
KEYS_REMEMBERED_MAX = 4_096

MESSAGE_ID_HEADER_BYTES = len(MESSAGE_ID_HEADER) + MESSAGE_ID_BYTES

Key: TypeAlias = str | bytes | None

# Partition, the key's field in a record (its length, then itself), the key as it is stored.
Place: TypeAlias = tuple[int, bytes, bytes | None]


class SharedHeaders:
    """The headers that all records of a publication have, encoded once: edges keep one of these for each set that they imply."""

    __slots__ = ("after_ids", "before_id", "pairs", "size")

    def __init__(self, pairs: Headers) -> None:
        self.pairs = pairs
        self.size = MESSAGE_ID_HEADER_BYTES + sum(len(name) + len(content or b"") for name, content in pairs)
        """Bytes of names and contents, the message id's among them."""
        self.before_id, after_id = encode_headers_after_id(pairs)
        self.after_ids = tuple([last.encode() + after_id for last in id_block()[1]])
        """The end of each id of a block, with what follows it: a quarter of a megabyte."""


class Columns:
    """One to COLUMN_RECORDS_MAX records. `keys`: text (stored as UTF-8), bytes or None; `values`: buffers.

    Publishing fills in `ids` (what all begin with, how each ends), and takes keys and values away: while the log is waited for,
    nothing holds a second copy of them. `size` is the bytes of keys and values.
    """

    __slots__ = ("count", "headers", "ids", "keys", "size", "values")

    def __init__(self, keys: Sequence[Key], values: Sequence[Buffer], headers: SharedHeaders) -> None:
        if not 0 < len(values) <= COLUMN_RECORDS_MAX:
            raise ValueError(f"{len(values)} records, where a publication in columns has 1 to {COLUMN_RECORDS_MAX}")
        self.keys, self.values, self.headers = keys, values, headers
        self.count = len(values)
        self.size = sum(map(len, values)) + _size_of(keys)
        self.ids: tuple[str, Sequence[str]] = ("", ())

    def distinct_keys(self) -> set[bytes | None]:
        return {_stored(key) for key in set(self.keys)}

    def put_key(self, key: bytes | None) -> None:
        """The key of all records."""
        self.size -= _size_of(self.keys)
        self.keys = (key,) * self.count
        self.size += _size_of(self.keys)

    def largest(self) -> int:
        """Bytes of key and value of the largest record."""
        return max(len(value) + len(_stored(key) or b"") for key, value in zip(self.keys, self.values, strict=True))

    def pairs(self) -> list[tuple[bytes | None, bytes]]:
        """Key and value of each record, as they are stored."""
        return [(_stored(key), bytes(value)) for key, value in zip(self.keys, self.values, strict=True)]

    def release(self) -> None:
        self.keys = self.values = ()


def _stored(key: Key) -> bytes | None:
    return key.encode() if isinstance(key, str) else key


def _size_of(keys: Sequence[Key]) -> int:
    try:
        return len("".join(filter(None, keys)).encode())  # type: ignore[arg-type]  # bytes raise the TypeError
    except TypeError:
        return sum(len(_stored(key) or b"") for key in keys)


class KeyPlaces:
    """Where the keys of one topic go, those seen lately remembered. At the bound all are forgotten: hashing again is cheap."""

    def __init__(self, partitioner: Partitioner) -> None:
        self._partitioner = partitioner
        self._known: dict[Key, Place] = {}

    def __len__(self) -> int:
        """Keys remembered."""
        return len(self._known)

    def of(self, keys: Iterable[Key]) -> list[Place]:
        known = self._known
        try:
            return [known[key] for key in keys]
        except KeyError:
            return [known.get(key) or self._learn(key) for key in keys]

    def _learn(self, key: Key) -> Place:
        stored = _stored(key)
        field = varint.NULL if stored is None else varint.encode(len(stored)) + stored
        place = (self._partitioner.partition(stored), field, stored)
        if stored is None or len(stored) <= CACHED_KEY_BYTES_MAX:
            if len(self._known) >= KEYS_REMEMBERED_MAX:
                self._known.clear()
            self._known[key] = place
        return place


class Encoded:
    """What goes to one partition: the pieces of its records, in their order, and their keys."""

    __slots__ = ("keys", "parts")

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self.keys: list[bytes | None] = []


class Batches:
    """One batch a partition, of one publication or of several one after the other: `count` records, some `size` bytes."""

    __slots__ = ("_base_ms", "_by_partition", "_head", "_id_head", "_lasts", "_newest_ms", "count", "headers", "size")

    def __init__(self, headers: SharedHeaders, now_ms: int) -> None:
        self.headers = headers
        self.count = self.size = 0
        self._head, self._lasts = id_block()
        self._id_head = headers.before_id + self._head.encode()
        self._base_ms = self._newest_ms = now_ms
        self._by_partition: dict[int, Encoded] = defaultdict(Encoded)

    def add(self, columns: Columns, places: Sequence[Place], now_ms: int) -> list[tuple[int, int]]:
        """Partition and place in its batch of each record. The one loop over the records of a publication: keep it lean."""
        start, self.count = self.count, self.count + columns.count
        columns.ids = (self._head, self._lasts[start : self.count])
        by_partition, id_head, stamp = self._by_partition, self._id_head, self._stamp(now_ms)
        lengths, short_max, encode = varint.SHORT, varint.SHORT_MAX, varint.encode
        ends = self.headers.after_ids[start : self.count]
        fixed = len(stamp) + len(id_head) + len(ends[0])
        landed = []
        for (partition, key_field, key), value, end in zip(places, columns.values, ends, strict=True):
            encoded = by_partition[partition]
            index, size = len(encoded.keys), len(value)
            encoded.keys.append(key)
            landed.append((partition, index))
            delta, value_length = lengths[index], lengths[size] if size < short_max else encode(size)
            whole = fixed + len(delta) + len(key_field) + len(value_length) + size
            length = lengths[whole] if whole < short_max else encode(whole)
            encoded.parts += (length, stamp, delta, key_field, value_length, value, id_head, end)
        return landed

    def _stamp(self, now_ms: int) -> bytes:
        """Attributes (unused) and timestamp delta."""
        self._newest_ms = max(self._newest_ms, now_ms)
        return b"\x00\x00" if now_ms == self._base_ms else b"\x00" + varint.encode(now_ms - self._base_ms)

    def appends(self, topic: str, compression: Compression) -> list[Append]:
        appends = []
        for partition, encoded in self._by_partition.items():
            section = b"".join(encoded.parts)
            if compression is not Compression.NONE:
                section = compress(compression, section)
            batch = assemble_new(section, compression, len(encoded.keys), self._base_ms, self._newest_ms)
            appends.append(Append(topic, partition, batch, keys=encoded.keys))
        return appends
