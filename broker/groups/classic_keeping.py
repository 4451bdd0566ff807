"""A classic group as it is kept, and brought back."""

from __future__ import annotations

import msgspec

from broker.errors import StorageDamaged
from broker.groups import keeping
from broker.groups.classic import ClassicGroup, ClassicState
from broker.groups.classic_member import Member
from broker.groups.group_options import GroupOptions
from broker.groups.keeping import Head, Kept


class _KeptMember(msgspec.Struct, frozen=True, array_like=True):
    """`metadata` is that of the protocol that the group has chosen: the others are of no use until the member joins again."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    metadata: bytes
    assignment: bytes


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_KeptMember)


def entries(group: ClassicGroup, now_ms: int) -> dict[bytes, bytes]:
    """`now_ms` is Unix time."""
    head = Head(
        keeping.VERSION, group.name, group.kind, group.generation, group.protocol_type, group.protocol, group.leader, now_ms
    )
    return keeping.entries(head, [(member.id, _encode(_kept(member, group.protocol))) for member in group.members.values()])


def restore(kept: Kept, options: GroupOptions, now_ms: int) -> ClassicGroup:
    """`now_ms` is monotonic: members have a session timeout from now on. StorageDamaged."""
    head = kept.head
    group = ClassicGroup(head.name, options)
    group.generation, group.protocol_type, group.protocol, group.leader = (
        head.generation, head.protocol_type, head.protocol, head.leader,
    )  # fmt: skip
    for value in kept.members:
        try:
            member = _member(_decoder.decode(value), head.protocol)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageDamaged("a group's member", str(error)) from None
        group.members.add(member)
    if group.members:
        group.state = ClassicState.STABLE
    group.revive(now_ms)
    return group


def _kept(member: Member, protocol: str | None) -> _KeptMember:
    return _KeptMember(
        member.id,
        member.instance_id,
        member.client_id,
        member.client_host,
        member.session_timeout_ms,
        member.rebalance_timeout_ms,
        member.metadata(protocol),
        member.assignment,
    )


def _member(kept: _KeptMember, protocol: str | None) -> Member:
    return Member(
        kept.id,
        kept.instance_id,
        kept.client_id,
        kept.client_host,
        kept.session_timeout_ms,
        kept.rebalance_timeout_ms,
        ((protocol or "", kept.metadata),),
        kept.assignment,
    )
