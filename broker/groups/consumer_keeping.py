"""A group of the consumer protocol as it is kept, and brought back."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker.errors import StorageDamaged
from broker.groups import keeping
from broker.groups.assignors import Places
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_member import ConsumerMember, MemberState
from broker.groups.group_options import GroupOptions
from broker.groups.keeping import Head, Kept


class _KeptMember(msgspec.Struct, frozen=True, array_like=True):
    """Partitions by topic id."""

    id: str
    instance_id: str | None
    rack_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    topics: tuple[str, ...]
    pattern: str | None
    matched: frozenset[str]
    assignor: str | None
    epoch: int
    previous_epoch: int
    state: MemberState
    assigned: dict[bytes, list[int]]
    revoking: dict[bytes, list[int]]
    target: dict[bytes, list[int]]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_KeptMember)


def entries(group: ConsumerGroup, changed: Iterable[str], now_ms: int) -> dict[bytes, bytes]:
    """The head, and these members as far as they are still there. `now_ms` is Unix time."""
    extra = {"assignment_epoch": group.assignment_epoch, "topics": group.topics_digest}
    head = Head(keeping.VERSION, group.name, group.kind, group.epoch, group.protocol_type, group.assignor, None, now_ms, extra)
    found = [member for member_id in changed if (member := group.members.get(member_id)) is not None]
    return keeping.entries(head, [(member.id, _encode(_kept(member))) for member in found])


def restore(kept: Kept, options: GroupOptions, now_ms: int) -> ConsumerGroup:
    """`now_ms` is monotonic. StorageDamaged."""
    head = kept.head
    group = ConsumerGroup(head.name, options, head.generation)
    try:
        group.assignment_epoch, group.topics_digest = int(head.extra["assignment_epoch"]), bytes(head.extra["topics"])
        for value in kept.members:
            member = _member(_decoder.decode(value))
            group.members.add(member)
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, ValueError) as error:
        raise StorageDamaged("a group's member", str(error)) from None
    group.revive(now_ms)
    return group


def _kept(member: ConsumerMember) -> _KeptMember:
    said = {name: getattr(member, name) for name in _KeptMember.__struct_fields__}
    return _KeptMember(**{**said, **{name: by_topic(said[name]) for name in ("assigned", "revoking", "target")}})


def _member(kept: _KeptMember) -> ConsumerMember:
    said = {name: getattr(kept, name) for name in _KeptMember.__struct_fields__}
    return ConsumerMember(**{**said, **{name: _places(said[name]) for name in ("assigned", "revoking", "target")}})


def by_topic(places: Places) -> dict[bytes, list[int]]:
    """Topic ids and their partitions, both in order."""
    found: dict[bytes, list[int]] = {}
    for topic_id, partition in sorted(places):
        found.setdefault(topic_id, []).append(partition)
    return found


def _places(topics: dict[bytes, list[int]]) -> Places:
    return frozenset([(topic_id, partition) for topic_id, partitions in topics.items() for partition in partitions])
