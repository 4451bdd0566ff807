"""Committed offsets of groups: entries of the engine's keyed state (StateSpace.GROUP_OFFSET), so they survive as records do.

    key     digest of the group's name (16 bytes), topic id (16), partition (u32, big-endian)
    value   msgpack array: version, group, offset, leader epoch, metadata, committed at (Unix ms)

Keys name the topic by id, so a topic of the same name made later begins without offsets. The engine's state is the truth; in
memory is only which places each group has. That index may name a place whose entry never landed or is gone: it is asked for then.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import msgspec

from broker.engine.base import Engine, StateChange, StateSpace
from broker.errors import FormatUnsupported, StorageDamaged
from broker.groups.group_errors import OffsetMetadataTooLarge
from broker.groups.group_options import GroupOptions
from broker.seams import Clock

VERSION = 1
DIGEST_BYTES = 16
_PLACE = struct.Struct(">16sI")


class GroupOffset(msgspec.Struct, frozen=True, gc=False):
    """One offset to commit: the next record to read of a partition, and what the consumer notes beside it."""

    topic_id: bytes
    partition: int
    offset: int
    leader_epoch: int = -1
    metadata: str = ""


class Committed(msgspec.Struct, frozen=True, gc=False):
    """One offset as committed. `committed_at_ms` is Unix time."""

    topic_id: bytes
    partition: int
    offset: int
    leader_epoch: int
    metadata: str
    committed_at_ms: int


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    version: int
    group: str
    offset: int
    leader_epoch: int
    metadata: str
    committed_at_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Kept)


class GroupOffsets:
    """On the owner thread. `unstable(group, topic_id, partition)` says whether a transaction under way holds an offset there
    (set by whoever keeps transactions; KIP-447)."""

    def __init__(self, engine: Engine, clock: Clock, options: GroupOptions) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self._places: dict[str, dict[bytes, None]] | None = None
        self.unstable: Callable[[str, bytes, int], bool] = _nothing_is

    def check(self, offset: GroupOffset) -> None:
        """OffsetMetadataTooLarge."""
        if len(offset.metadata.encode("utf-8", "surrogatepass")) > self._options.offset_metadata_bytes_max:
            raise OffsetMetadataTooLarge(self._options.offset_metadata_bytes_max)

    def changes(self, group: str, offsets: Iterable[GroupOffset]) -> list[StateChange]:
        """What commits these offsets once it is appended: alone, or in the frame that ends a transaction."""
        now_ms, digest = self._clock.now_ms(), group_digest(group)
        places = self._index().setdefault(group, {})
        found = []
        for one in offsets:
            place = _PLACE.pack(one.topic_id, one.partition)
            places[place] = None
            value = _encode(_Kept(VERSION, group, one.offset, one.leader_epoch, one.metadata, now_ms))
            found.append(StateChange(StateSpace.GROUP_OFFSET, digest + place, value))
        return found

    def removals(self, group: str, wanted: Iterable[tuple[bytes, int]] | None = None) -> list[StateChange]:
        """What deletes these offsets (topic id, partition), or all of the group, once it is appended."""
        places = self._index().get(group, {})
        gone = list(places) if wanted is None else [_PLACE.pack(*one) for one in wanted]
        digest = group_digest(group)
        return [StateChange(StateSpace.GROUP_OFFSET, digest + place, None) for place in gone if place in places]

    def forget(self, group: str) -> None:
        """What was removed is durable: places without an entry are not asked for any more."""
        places, digest = self._index().get(group, {}), group_digest(group)
        for place in [place for place in places if self._engine.state(StateSpace.GROUP_OFFSET, digest + place) is None]:
            del places[place]
        if not places:
            self._index().pop(group, None)

    def committed(self, group: str, topic_id: bytes, partition: int) -> Committed | None:
        return self._read(group_digest(group), _PLACE.pack(topic_id, partition))

    def all(self, group: str) -> list[Committed]:
        """Every offset of the group, in the order of topic ids and partitions."""
        digest = group_digest(group)
        found = [self._read(digest, place) for place in sorted(self._index().get(group, ()))]
        return [one for one in found if one is not None]

    def groups(self) -> Sequence[str]:
        """Names of groups that have offsets, or had some under way."""
        return list(self._index())

    def __contains__(self, group: str) -> bool:
        return bool(self._index().get(group)) and bool(self.all(group))

    def expired(self, group: str, before_ms: int, in_use: Callable[[bytes], bool]) -> list[tuple[bytes, int]]:
        """Places committed before that time and not in use, and those of topics that are gone."""
        topics = {topic.topic_id for topic in self._engine.topics().values()}
        return [
            (one.topic_id, one.partition)
            for one in self.all(group)
            if one.topic_id not in topics or (one.committed_at_ms < before_ms and not in_use(one.topic_id))
        ]

    def _read(self, digest: bytes, place: bytes) -> Committed | None:
        value = self._engine.state(StateSpace.GROUP_OFFSET, digest + place)
        if value is None:
            return None
        kept = _decode(value)
        topic_id, partition = _PLACE.unpack(place)
        return Committed(topic_id, partition, kept.offset, kept.leader_epoch, kept.metadata, kept.committed_at_ms)

    def _index(self) -> dict[str, dict[bytes, None]]:
        """Read from the engine once."""
        if self._places is None:
            self._places = {}
            for key, value in self._engine.states(StateSpace.GROUP_OFFSET):
                self._places.setdefault(_decode(value).group, {})[key[DIGEST_BYTES:]] = None
        return self._places


def group_digest(group: str) -> bytes:
    """Keys of state stand in the clear on the disk: a digest, so that they name nobody."""
    return blake2b(group.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _decode(value: bytes) -> _Kept:
    """FormatUnsupported, StorageDamaged."""
    try:
        kept = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageDamaged("a group's offset", str(error)) from None
    if kept.version > VERSION:
        raise FormatUnsupported("a group's offset", kept.version, VERSION)
    return kept


def _nothing_is(group: str, topic_id: bytes, partition: int) -> bool:
    return False
