"""A group of the classic protocol as a state machine: requests and the passing of time in, answers out. It does no I/O.

              first join                all have joined, or time is up             the leader's assignment
    EMPTY ----------------> PREPARING ---------------------------------> COMPLETING ----------------------> STABLE
      ^                      ^     | nobody is left                          |  a member joins, leaves, dies  |
      +----------------------|-----+                                         |  or does not fetch its part     |
                             +-----------------------------------------------+--------------------------------+

What waits (a join for the others, a sync for the leader) is known by the ticket it came with; `answers` holds what is to be told
to whom, and `dirty` says that the group is to be saved before they are told. What a machine that crashed before saving has told
is harmless: members find an older generation, and join again.

Behaviour is that of Kafka 4.3, of KIP-134 (initial delay), KIP-345 (static members), KIP-394 (member ids first), KIP-814 (a
static leader that comes back assigns nothing). Times are monotonic milliseconds, always given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from broker.groups.classic_member import Answer, Join, Joined, Member, Sync, Synced, Ticket
from broker.groups.group_errors import (
    GenerationIllegal,
    GroupFull,
    InstanceFenced,
    MemberIdRequired,
    MemberUnknown,
    ProtocolInconsistent,
    RebalanceUnderWay,
)
from broker.groups.group_options import GroupOptions
from broker.groups.join_deadline import JoinDeadline
from broker.groups.machine import GroupMachine
from broker.groups.protocols import chosen, common


class ClassicState(StrEnum):
    """As Kafka's tools show it."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


class ClassicGroup(GroupMachine[Member]):
    """One group. Methods raise `GroupProblem` for what is refused at once."""

    kind = "classic"

    def __init__(self, name: str, options: GroupOptions) -> None:
        super().__init__(name, options)
        self.state = ClassicState.EMPTY
        self.generation = 0
        self.protocol_type = ""
        self.protocol: str | None = None
        self.leader: str | None = None
        self.answers: list[tuple[Ticket, Answer]] = []
        self._pending: dict[str, int] = {}  # ids that were given and have not joined yet, and until when
        self._deadline = JoinDeadline(options.initial_rebalance_delay_ms)
        self._sync_until_ms = 0
        self._unsynced: set[str] = set()

    # Requests

    def join(self, ticket: Ticket, asked: Join, new_id: str, now_ms: int) -> None:
        """`new_id` is for a member that has none. MemberIdRequired, ProtocolInconsistent, GroupFull, MemberUnknown,
        InstanceFenced."""
        self._require_protocols(asked)
        if not asked.member_id:
            self._join_new(ticket, asked, new_id, now_ms)
        elif self._pending.pop(asked.member_id, None) is not None:
            self._add(ticket, asked, asked.member_id, now_ms)
        else:
            self._join_again(ticket, asked, self.members.known(asked.member_id, asked.instance_id), now_ms)

    def sync(self, ticket: Ticket, asked: Sync, now_ms: int) -> None:
        """MemberUnknown, InstanceFenced, GenerationIllegal, ProtocolInconsistent, RebalanceUnderWay, GroupFull."""
        member = self.members.known(asked.member_id, asked.instance_id)
        self._require_generation(asked.generation)
        if asked.protocol_type not in (None, self.protocol_type) or asked.protocol not in (None, self.protocol):
            raise ProtocolInconsistent("the protocol is not the one that the group has chosen")
        if self.state is ClassicState.PREPARING:
            raise RebalanceUnderWay
        self._unsynced.discard(member.id)
        if self.state is ClassicState.STABLE:
            member.refresh(now_ms)
            self.answers.append((ticket, self._synced(member)))
            return
        self._park_sync(member, ticket)
        if member.id == self.leader:
            self._assign(asked.assignments, now_ms)

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int, now_ms: int) -> None:
        """MemberUnknown, InstanceFenced, GenerationIllegal, RebalanceUnderWay."""
        member = self.members.known(member_id, instance_id)
        self._require_generation(generation)
        member.refresh(now_ms)
        if self.state is ClassicState.PREPARING:
            raise RebalanceUnderWay

    def leave(self, member_id: str, instance_id: str | None, now_ms: int) -> None:
        """Without a member id, the member with the instance id. MemberUnknown, InstanceFenced."""
        if member_id and self._pending.pop(member_id, None) is not None:
            self._try_to_complete(now_ms)
            return
        holder = None if member_id else self.members.holder(instance_id)
        self._remove([self.members.known(member_id, instance_id) if holder is None else holder], now_ms)

    def check_commit(self, member_id: str, instance_id: str | None, generation: int, now_ms: int, *, transaction: bool) -> None:
        """Whether this member may commit offsets now. Consumers that assign their partitions themselves have no member id and
        generation -1: they may while the group has no members, producers that say so little at any time (KIP-447)."""
        if generation < 0 and not member_id and instance_id is None:
            if transaction or self.state is ClassicState.EMPTY:
                return
            raise MemberUnknown
        if generation < 0 and self.state is ClassicState.EMPTY:
            return
        member = self.members.known(member_id, instance_id)
        self._require_generation(generation)
        member.refresh(now_ms)
        if self.state is ClassicState.COMPLETING and not transaction:
            raise RebalanceUnderWay

    def abandon(self, ticket: Ticket, now_ms: int) -> None:
        """The connection that waited is gone: the member has its session timeout to come back on another."""
        for member in self.members.values():
            if ticket in (member.joining, member.syncing):
                member.joining = member.syncing = None
                member.refresh(now_ms)

    # Time

    def _times(self) -> Iterator[int]:
        yield from self._pending.values()
        yield from (member.expires_ms for member in self.members.values() if not member.waits)
        if self.state is ClassicState.PREPARING:
            yield self._deadline.at_ms
        elif self._unsynced:
            yield self._sync_until_ms

    def tick(self, now_ms: int) -> None:
        for member_id in [one for one, until_ms in self._pending.items() if until_ms <= now_ms]:
            del self._pending[member_id]
        dead = [member for member in self.members.values() if not member.waits and member.expires_ms <= now_ms]
        if dead:
            self._remove(dead, now_ms)
        if self.state is ClassicState.PREPARING:
            if now_ms < self._deadline.at_ms:
                self._try_to_complete(now_ms)
            elif not self._deadline.put_off(now_ms):
                self._complete_joining(now_ms)
        elif self._unsynced and now_ms >= self._sync_until_ms:
            self._remove([self.members[one] for one in self._unsynced if one in self.members], now_ms)

    # What is to be known from outside

    @property
    def empty(self) -> bool:
        return not self.members and not self._pending

    def revive(self, now_ms: int) -> None:
        """After a restart: members have a session timeout from now on."""
        for member in self.members.values():
            member.refresh(now_ms)

    def unsaved(self, generation: int, now_ms: int) -> None:
        """What was to be saved could not be: the members begin again."""
        if generation == self.generation and self.state is ClassicState.STABLE:
            self._prepare(now_ms)

    # Joining

    def _require_protocols(self, asked: Join) -> None:
        if not asked.protocol_type or not asked.protocols:
            raise ProtocolInconsistent("a protocol type and at least one protocol are needed")
        if not self.members:
            return
        if asked.protocol_type != self.protocol_type:
            raise ProtocolInconsistent("the group's members are of another protocol type")
        if not common(self.members.values()) & {name for name, _ in asked.protocols}:
            raise ProtocolInconsistent("no protocol that the group's members know is among those offered")

    def _join_new(self, ticket: Ticket, asked: Join, new_id: str, now_ms: int) -> None:
        if asked.instance_id is not None:
            if (old := self.members.holder(asked.instance_id)) is not None:
                self._replace(ticket, asked, old, new_id, now_ms)
            else:
                self._add(ticket, asked, new_id, now_ms)
        elif asked.id_first:
            self._require_place()
            self._pending[new_id] = now_ms + asked.session_timeout_ms
            raise MemberIdRequired(new_id)
        else:
            self._add(ticket, asked, new_id, now_ms)

    def _require_place(self) -> None:
        if len(self.members) + len(self._pending) >= self._options.members_max:
            raise GroupFull("groups.members_max", self._options.members_max)

    def _add(self, ticket: Ticket, asked: Join, member_id: str, now_ms: int) -> None:
        self._require_place()
        if self.state is ClassicState.EMPTY or not self.members:
            self.protocol_type = asked.protocol_type
        member = Member(
            member_id, asked.instance_id, asked.client_id, asked.client_host,
            asked.session_timeout_ms, asked.rebalance_timeout_ms, asked.protocols,
        )  # fmt: skip
        self.members.add(member)
        if self.leader is None:
            self.leader = member_id
        self._deadline.came()
        self._rebalance_with(member, ticket, asked, now_ms)

    def _rebalance_with(self, member: Member, ticket: Ticket, asked: Join, now_ms: int) -> None:
        """The member waits for the next generation, which begins to be made if it was not."""
        member.protocols = asked.protocols
        member.session_timeout_ms, member.rebalance_timeout_ms = asked.session_timeout_ms, asked.rebalance_timeout_ms
        member.client_id, member.client_host = asked.client_id, asked.client_host
        if member.joining is not None:
            self.answers.append((member.joining, RebalanceUnderWay()))
        member.joining = ticket
        if self.state is ClassicState.PREPARING:
            self._try_to_complete(now_ms)
        else:
            self._prepare(now_ms)

    def _join_again(self, ticket: Ticket, asked: Join, member: Member, now_ms: int) -> None:
        answered = self.state is ClassicState.COMPLETING or (self.state is ClassicState.STABLE and member.id != self.leader)
        if answered and member.protocols == asked.protocols:  # the answer to its join was lost
            self._answer_join(ticket, member, now_ms)
        else:
            self._rebalance_with(member, ticket, asked, now_ms)

    def _replace(self, ticket: Ticket, asked: Join, member: Member, new_id: str, now_ms: int) -> None:
        """A static member comes back as a new process: it takes over the old one's place and partitions (KIP-345)."""
        for waiting in (member.joining, member.syncing):
            if waiting is not None:
                self.answers.append((waiting, InstanceFenced()))
        old_id, led = member.id, member.id == self.leader
        member.joining = member.syncing = None
        self.members.rename(member, new_id)
        if old_id in self._unsynced:
            self._unsynced = self._unsynced - {old_id} | {new_id}
        if led:
            self.leader = new_id
        before, member.protocols = member.protocols, asked.protocols
        if self.state is not ClassicState.STABLE or self._choose() != self.protocol:
            member.protocols = before
            self._rebalance_with(member, ticket, asked, now_ms)
            return
        member.session_timeout_ms, member.rebalance_timeout_ms = asked.session_timeout_ms, asked.rebalance_timeout_ms
        member.client_id, member.client_host = asked.client_id, asked.client_host
        self.dirty = True
        member.refresh(now_ms)
        self.answers.append((ticket, self._joined_back(member, old_id if led and not asked.may_skip else None)))

    def _joined_back(self, member: Member, told_leader: str | None) -> Joined:
        """A leader that cannot be told to skip the assignment is told of another leader (KIP-814)."""
        joined = self._joined(member)
        if told_leader is not None:
            return msgspec.structs.replace(joined, leader=told_leader, members=())
        return msgspec.structs.replace(joined, skip_assignment=member.id == self.leader)

    def _answer_join(self, ticket: Ticket, member: Member, now_ms: int) -> None:
        member.refresh(now_ms)
        self.answers.append((ticket, self._joined(member)))

    def _joined(self, member: Member) -> Joined:
        members: tuple[tuple[str, str | None, bytes], ...] = ()
        if member.id == self.leader:
            members = tuple([(one.id, one.instance_id, one.metadata(self.protocol)) for one in self.members.values()])
        return Joined(member.id, self.generation, self.protocol_type, self.protocol or "", self.leader or "", members)

    # Rebalancing

    def _prepare(self, now_ms: int) -> None:
        """Everybody is to join again."""
        first = self.state is ClassicState.EMPTY
        self._end_syncing()
        self.state = ClassicState.PREPARING
        if first:
            self._deadline.begin_first(now_ms, self._rebalance_timeout_ms())
        else:
            self._deadline.begin(now_ms, self._rebalance_timeout_ms())
            self._try_to_complete(now_ms)

    def _end_syncing(self) -> None:
        for member in self.members.values():
            if self.state is ClassicState.COMPLETING:
                member.assignment = b""
            if member.syncing is not None:
                self.answers.append((member.syncing, RebalanceUnderWay()))
                member.syncing = None
        self._unsynced.clear()

    def _try_to_complete(self, now_ms: int) -> None:
        if self.state is not ClassicState.PREPARING or self._deadline.is_first or self._pending:
            return
        if all(member.joining is not None for member in self.members.values()):
            self._complete_joining(now_ms)

    def _complete_joining(self, now_ms: int) -> None:
        """The next generation: those who have joined, and static members, who are given up only when their session ends."""
        for member in [one for one in self.members.values() if one.joining is None and one.instance_id is None]:
            self._forget(member)
        joined = [member for member in self.members.values() if member.joining is not None]
        if self.members and not joined:
            self._deadline.begin(now_ms, self._rebalance_timeout_ms())
            return
        self.generation += 1
        if not self.members:
            self.state, self.protocol, self.leader = ClassicState.EMPTY, None, None
            self.dirty = True
            return
        if self.leader not in [member.id for member in joined]:
            self.leader = joined[0].id
        self.protocol = self._choose()
        self.state = ClassicState.COMPLETING
        self._sync_until_ms = now_ms + self._rebalance_timeout_ms()
        self._unsynced = {member.id for member in joined}
        for member in joined:
            ticket, member.joining = member.joining, None
            assert ticket is not None
            self._answer_join(ticket, member, now_ms)

    def _rebalance_timeout_ms(self) -> int:
        return max([member.rebalance_timeout_ms for member in self.members.values()], default=0)

    def _choose(self) -> str:
        return chosen(self.members.values(), self.members.get(self.leader or "") or next(iter(self.members.values())))

    def _assign(self, assignments: Mapping[str, bytes], now_ms: int) -> None:
        for assignment in assignments.values():
            if len(assignment) > self._options.member_bytes_max:
                raise GroupFull("groups.member_bytes_max", self._options.member_bytes_max)
        self.state, self.dirty = ClassicState.STABLE, True
        for member in self.members.values():
            member.assignment = assignments.get(member.id, b"")
            if member.syncing is not None:
                ticket, member.syncing = member.syncing, None
                member.refresh(now_ms)
                self.answers.append((ticket, self._synced(member)))

    def _park_sync(self, member: Member, ticket: Ticket) -> None:
        if member.syncing is not None:
            self.answers.append((member.syncing, RebalanceUnderWay()))
        member.syncing = ticket

    def _synced(self, member: Member) -> Synced:
        return Synced(self.protocol_type, self.protocol or "", member.assignment)

    # Members

    def _require_generation(self, generation: int) -> None:
        if generation != self.generation:
            raise GenerationIllegal(generation, self.generation)

    def _remove(self, members: Sequence[Member], now_ms: int) -> None:
        for member in members:
            self._forget(member)
        if self.state in (ClassicState.STABLE, ClassicState.COMPLETING):
            self._prepare(now_ms)
        else:
            self._try_to_complete(now_ms)

    def _forget(self, member: Member) -> None:
        for waiting in (member.joining, member.syncing):
            if waiting is not None:
                self.answers.append((waiting, MemberUnknown()))
        member.joining = member.syncing = None
        self.members.remove(member)
        self._unsynced.discard(member.id)
        if self.leader == member.id:
            self.leader = next(iter(self.members), None)
