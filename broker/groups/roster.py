"""Who is in a group, of either protocol: members by id, and who of them holds which static instance id (KIP-345)."""

from __future__ import annotations

from typing import Protocol, TypeVar

from broker.groups.group_errors import InstanceFenced, MemberUnknown


class Rostered(Protocol):
    """A member as far as the roster knows it."""

    id: str
    instance_id: str | None

    def size(self) -> int:
        """Bytes of what it says of itself and is assigned."""
        ...


Member = TypeVar("Member", bound=Rostered)


class Roster(dict[str, Member]):
    """Members by id, in the order in which they came. They come and go by these methods alone."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[str, str] = {}

    def add(self, member: Member) -> None:
        self[member.id] = member
        if member.instance_id is not None:
            self._holders[member.instance_id] = member.id

    def remove(self, member: Member) -> None:
        del self[member.id]
        if member.instance_id is not None and self._holders.get(member.instance_id) == member.id:
            del self._holders[member.instance_id]

    def rename(self, member: Member, new_id: str) -> None:
        """It comes back as a new process, and is the last that came."""
        self.remove(member)
        member.id = new_id
        self.add(member)

    def holder(self, instance_id: str | None) -> Member | None:
        """Who has the instance id."""
        member_id = None if instance_id is None else self._holders.get(instance_id)
        return None if member_id is None else self[member_id]

    def known(self, member_id: str, instance_id: str | None) -> Member:
        """MemberUnknown; InstanceFenced where another has taken over the instance id."""
        if instance_id is not None:
            holder = self.holder(instance_id)
            if holder is None:
                raise MemberUnknown
            if holder.id != member_id:
                raise InstanceFenced
        if (member := self.get(member_id)) is None:
            raise MemberUnknown
        return member

    def size(self) -> int:
        return sum([member.size() for member in self.values()])
