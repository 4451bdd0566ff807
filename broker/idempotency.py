"""Publishing once: who repeats a publish with the same key gets the answer of the first, and nothing is stored again.

What is remembered is one entry of the engine's keyed state (StateSpace.IDEMPOTENCY), committed in one frame with the records:
after a crash there are both or neither. It names its topic by id, so a topic of the same name made later knows nothing of it.

    key     hash of who (16 bytes), hash of topic id and key (16)
    value   version (1), time of the first publish (8, Unix ms), fingerprint of the records (16), then the places in msgpack

Within the window an entry is never dropped: at the bounds new keys are refused. Entries whose window is over are deleted by later
publishes, a few with each, in the same frame.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec

from broker.columns import Columns
from broker.engine.base import Engine, StateChange, StateSpace, Topic
from broker.errors import IdempotencyKeyInUse, IdempotencyKeyReused, IdempotencyKeysFull, IdempotentTooLarge
from broker.idempotency_options import IdempotencyOptions
from broker.outgoing import Outgoing
from broker.seams import Clock

# Expired entries that one publish deletes: more than one, or they would never become fewer.
PURGED_MAX = 16
# The publish under way is a group commit or two from its end.
RETRY_AFTER_MS = 100

_VERSION = 1
_HASH_BYTES = 16
_HEAD = struct.Struct("<BQ16s")
_SIZE = struct.Struct("<Iq")

Records: TypeAlias = Sequence[Outgoing] | Columns
Place: TypeAlias = tuple[int, int]
Changes: TypeAlias = Callable[[Topic, Sequence[Place]], Sequence[StateChange]]
Result = TypeVar("Result")


class Landed(msgspec.Struct, frozen=True, array_like=True):
    """Where the records of the first publish landed: their ids, partitions and offsets, in their order."""

    ids: list[str]
    partitions: list[int]
    offsets: list[int]


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """As it is stored: ids as 16 bytes each."""

    ids: bytes
    partitions: list[int]
    offsets: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Kept)


class Idempotency:
    """On the owner thread. `owner` is whoever the gateway says it is: this knows keys, never people."""

    def __init__(self, engine: Engine, clock: Clock, options: IdempotencyOptions) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self._under_way: dict[tuple[str, str, str], asyncio.Task[object]] = {}
        # When each entry was made, the oldest first: of all owners, and of each. None until the engine was asked.
        self._began_ms: dict[bytes, int] | None = None
        self._of_owner: dict[bytes, dict[bytes, int]] = {}
        self._new: dict[bytes, int] = {}  # publishes under way, by owner

    def __len__(self) -> int:
        """Keys remembered, those under way included."""
        return len(self._known()) + sum(self._new.values())

    def earlier(self, owner: str, topic: str, key: str, records: Records, durable: bool) -> Landed | None:
        """What the publish with this key came to; None where there was none. IdempotencyKeyReused, IdempotencyKeyInUse."""
        if (owner, topic, key) in self._under_way:
            raise IdempotencyKeyInUse(RETRY_AFTER_MS)
        found = self._engine.topics().get(topic)
        if found is None:
            return None
        value = self._engine.state(StateSpace.IDEMPOTENCY, _entry_key(owner, found, key))
        if value is None:
            return None
        version, began_ms, fingerprint = _HEAD.unpack_from(value)
        if version != _VERSION or self._over(began_ms):
            return None
        if fingerprint != fingerprint_of(records, durable):
            raise IdempotencyKeyReused
        kept = _decoder.decode(value[_HEAD.size :])
        ids = [str(uuid.UUID(bytes=kept.ids[at : at + 16])) for at in range(0, len(kept.ids), 16)]
        return Landed(ids, kept.partitions, kept.offsets)

    async def once(
        self,
        owner: str,
        topic: str,
        key: str,
        records: Records,
        durable: bool,
        publish: Callable[[Changes], Awaitable[Result]],
    ) -> Result:
        """`publish` with the changes that remember it; nobody else gets in with the same key until its outcome is known, even
        where the caller goes away. IdempotencyKeysFull, IdempotentTooLarge, and what `publish` raises."""
        self._require_room(owner)
        count = records.count if isinstance(records, Columns) else len(records)
        if count > self._options.records_max:
            raise IdempotentTooLarge(count, self._options.records_max)
        fingerprint, began_ms, owner_hash = fingerprint_of(records, durable), self._clock.now_ms(), _hash(owner.encode())
        changed: list[StateChange] = []

        def changes(found: Topic, places: Sequence[Place]) -> Sequence[StateChange]:
            head = _HEAD.pack(_VERSION, began_ms, fingerprint)
            entry = StateChange(StateSpace.IDEMPOTENCY, _entry_key(owner, found, key), head + _kept(records, places))
            changed[:] = [*(StateChange(StateSpace.IDEMPOTENCY, old, None) for old in self._overdue(entry.key)), entry]
            return changed

        async def work() -> Result:
            try:
                result = await publish(changes)
            finally:
                self._end(owner_hash)
                del self._under_way[owner, topic, key]
            self._learn(changed, began_ms)
            return result

        self._new[owner_hash] = self._new.get(owner_hash, 0) + 1
        task = self._under_way[owner, topic, key] = asyncio.get_running_loop().create_task(work(), name="publish once")
        task.add_done_callback(_taken)
        return await asyncio.shield(task)  # type: ignore[arg-type]

    def _known(self) -> dict[bytes, int]:
        """Read from the engine once."""
        if self._began_ms is None:
            made = [(_HEAD.unpack_from(value)[1], key) for key, value in self._engine.states(StateSpace.IDEMPOTENCY)]
            self._began_ms = {key: began_ms for began_ms, key in sorted(made)}
            for key, began_ms in self._began_ms.items():
                self._of_owner.setdefault(key[:_HASH_BYTES], {})[key] = began_ms
        return self._began_ms

    def _over(self, began_ms: int) -> bool:
        """Also where the clock was far ahead when it was made, so that nothing is kept for ever."""
        return abs(self._clock.now_ms() - began_ms) >= self._options.window_ms

    def _overdue(self, besides: bytes) -> list[bytes]:
        """A few of the oldest whose window is over."""
        found: list[bytes] = []
        for key, began_ms in self._known().items():
            if len(found) >= PURGED_MAX or not self._over(began_ms):
                break
            if key != besides:
                found.append(key)
        return found

    def _require_room(self, owner: str) -> None:
        """What is over makes room, at the bounds too: as many go with this publish as it needs."""
        known, owner_hash = self._known(), _hash(owner.encode())
        own = self._of_owner.get(owner_hash, {})
        self._require("idempotency.keys_max", self._options.keys_max, known, sum(self._new.values()))
        self._require(
            "idempotency.keys_per_principal_max", self._options.keys_per_principal_max, own, self._new.get(owner_hash, 0)
        )

    def _require(self, name: str, limit: int, began_ms: Mapping[bytes, int], new: int) -> None:
        if len(began_ms) + new < limit:
            return
        oldest_ms = next(iter(began_ms.values()), None)
        if oldest_ms is None or not self._over(oldest_ms):
            left_ms = 0 if oldest_ms is None else oldest_ms + self._options.window_ms - self._clock.now_ms()
            raise IdempotencyKeysFull(name, limit, max(RETRY_AFTER_MS, left_ms))

    def _learn(self, changed: Iterable[StateChange], began_ms: int) -> None:
        """It is durable: the entry is the youngest, and what it replaced or deleted is gone."""
        known = self._known()
        for change in changed:
            owner = change.key[:_HASH_BYTES]
            own = self._of_owner.setdefault(owner, {})
            if known.pop(change.key, None) is not None:
                del own[change.key]
            if change.value is not None:
                known[change.key] = own[change.key] = began_ms
            if not own:
                del self._of_owner[owner]

    def _end(self, owner: bytes) -> None:
        self._new[owner] -= 1
        if not self._new[owner]:
            del self._new[owner]


def fingerprint_of(records: Records, durable: bool) -> bytes:
    """16 bytes that say what a caller asked to publish: keys, values, headers, and what else was given. Of a publication that was
    not published yet: that fills in what was left out."""
    digest = hashlib.blake2b(b"durable" if durable else b"none", digest_size=_HASH_BYTES)
    if isinstance(records, Columns):
        pairs = records.headers.pairs
        for key, value in records.pairs():
            _add(digest, key, value, pairs, ())
    else:
        for record in records:
            given = (record.timestamp_ms, record.message_id, record.partition, record.ttl_ms, record.expires_at_ms)
            _add(digest, record.key, record.value, record.headers, given)
    return digest.digest()


def _add(
    digest: hashlib.blake2b,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[bytes, bytes | None]],
    given: Sequence[int | str | None],
) -> None:
    """Each part with its length before it, so that no two publications run into the same bytes."""
    parts = [key, value]
    for name, content in headers:
        parts += (name, content)
    parts += [None if one is None else str(one).encode() for one in given] or [None] * 5
    digest.update(_SIZE.pack(len(parts), -2))
    for part in parts:
        digest.update(_SIZE.pack(0, -1 if part is None else len(part)))
        if part is not None:
            digest.update(part)


def _kept(records: Records, places: Sequence[Place]) -> bytes:
    if isinstance(records, Columns):
        head, lasts = records.ids
        ids = [head + last for last, _ in zip(lasts, places, strict=False)]
    else:
        ids = [record.message_id or "" for record in records]
    packed = b"".join([uuid.UUID(id).bytes for id in ids])
    return _encode(_Kept(packed, [partition for partition, _ in places], [offset for _, offset in places]))


def _entry_key(owner: str, topic: Topic, key: str) -> bytes:
    return _hash(owner.encode()) + _hash(topic.topic_id + key.encode())


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


def _taken(task: asyncio.Task[object]) -> None:
    """The caller may be gone: then nobody else asks for the outcome."""
    if not task.cancelled():
        task.exception()
