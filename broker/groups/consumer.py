"""A group of the consumer protocol (KIP-848) as a state machine: heartbeats and the passing of time in, answers out. No I/O.

Everything is said in heartbeats. The group has an epoch, which grows when members go or change what they want (those who come
wanted nothing before), or when their topics change; for each epoch there is a target, who shall read what; and each member walks
towards it on its own:

    joins (epoch 0) --> told what is free of its part --+--> STABLE at the target's epoch
                            ^                           |
    gave up what it was     |                           +--> UNRELEASED: others still hold a part of it; looked at each time
    told to <-- UNREVOKED <-+ the target takes something away from it; its epoch stays until it has given that up

A partition is never told to two members: what one has, or has not yet given up, is held. Who speaks with an epoch that it was not
given, or takes longer than its rebalance timeout to give up partitions, is fenced: it gives up everything and joins again.

`dirty` says that the members in `changed` are to be saved before the answer is given. Times are monotonic milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from hashlib import blake2b

from broker.engine.base import Topic
from broker.groups.assignors import ASSIGNORS, DEFAULT, Places
from broker.groups.consumer_member import JOIN, LEAVE, LEAVE_FOR_A_WHILE, NOTHING, Beat, Beaten, ConsumerMember, MemberState
from broker.groups.group_errors import (
    AssignorUnsupported,
    GroupFull,
    InstanceUnreleased,
    MemberEpochFenced,
    MemberEpochStale,
)
from broker.groups.group_options import GroupOptions
from broker.groups.machine import GroupMachine
from broker.groups.offsets import DIGEST_BYTES
from broker.groups.patterns import matching

FIRST_EPOCH = 1  # Kafka's: the first member that wants something makes it 2


class ConsumerState(StrEnum):
    """As Kafka's tools show it."""

    EMPTY = "Empty"
    ASSIGNING = "Assigning"
    RECONCILING = "Reconciling"
    STABLE = "Stable"


class ConsumerGroup(GroupMachine[ConsumerMember]):
    """One group. Methods raise `GroupProblem` for what is refused."""

    kind = "consumer"
    protocol_type = "consumer"

    def __init__(self, name: str, options: GroupOptions, epoch: int = FIRST_EPOCH) -> None:
        super().__init__(name, options)
        self.epoch = epoch
        self.assignment_epoch = epoch
        self.changed: set[str] = set()
        self.unused = True  # nobody was ever in it
        self.topics_digest = _digest([])  # of the topics that members want, with their partitions, as the target was made for
        self._looked_ms: int | None = None

    # Heartbeats

    def beat(self, beat: Beat, topics: Mapping[str, Topic], visible: Callable[[str], bool], now_ms: int) -> Beaten:
        """`visible`: which topics the member may know of, for its pattern. MemberUnknown, MemberEpochFenced, InstanceFenced,
        InstanceUnreleased, AssignorUnsupported, SubscriptionInvalid, GroupFull."""
        if beat.epoch in (LEAVE, LEAVE_FOR_A_WHILE):
            return self._leave(beat, now_ms)
        if beat.assignor is not None and beat.assignor not in ASSIGNORS:
            raise AssignorUnsupported(beat.assignor, ", ".join(ASSIGNORS))
        if beat.pattern:
            matching(beat.pattern, ())  # refused before anything changes
        member = self._join(beat) if beat.epoch == JOIN else self._speaking(beat)
        behind = beat.epoch != member.epoch
        before = (member.epoch, member.state, member.assigned, member.revoking, member.target)
        if self._hear(member, beat, topics, visible, now_ms):
            self._grow(member)
        self._look_at_topics(topics, now_ms)
        if self.epoch > self.assignment_epoch:
            self._assign(topics)
        told = member.assigned
        member.reconcile(self.assignment_epoch, beat.owned, lambda: self._held_by_others(member))
        if member.state is MemberState.UNREVOKED and member.revoke_until_ms is None:
            member.revoke_until_ms = now_ms + member.rebalance_timeout_ms
        member.expires_ms = now_ms + self._options.consumer_session_timeout_ms
        if before != (member.epoch, member.state, member.assigned, member.revoking, member.target):
            self._change(member)
        say = beat.full or behind or told != member.assigned
        return Beaten(member.id, member.epoch, member.assigned if say else None)

    def _join(self, beat: Beat) -> ConsumerMember:
        holder = self.members.holder(beat.instance_id)
        if holder is not None and holder.id != beat.member_id:
            return self._take_over(holder, beat)
        if (member := self.members.get(beat.member_id)) is not None:
            return member
        if len(self.members) >= self._options.members_max:
            raise GroupFull("groups.members_max", self._options.members_max)
        member = ConsumerMember(beat.member_id, beat.instance_id)
        self.members.add(member)
        self._change(member)
        return member

    def _take_over(self, member: ConsumerMember, beat: Beat) -> ConsumerMember:
        """A static member that went for a while is back under another id, and has what it had."""
        if not member.away:
            raise InstanceUnreleased
        self.changed.add(member.id)  # its entry goes
        self.members.rename(member, beat.member_id)
        member.epoch = member.previous_epoch = 0
        member.state, member.revoking = MemberState.STABLE, NOTHING
        self._change(member)
        return member

    def _speaking(self, beat: Beat) -> ConsumerMember:
        """The member, with an epoch that it was given: its own, or the one before where the last answer was lost."""
        member = self.members.known(beat.member_id, beat.instance_id)
        if beat.epoch == member.epoch:
            return member
        if beat.epoch == member.previous_epoch and beat.owned is not None and beat.owned <= member.assigned:
            return member
        raise MemberEpochFenced(f"the member's epoch is {member.epoch}, not {beat.epoch}")

    def _leave(self, beat: Beat, now_ms: int) -> Beaten:
        member = self.members.known(beat.member_id, beat.instance_id)
        if beat.epoch == LEAVE_FOR_A_WHILE and member.instance_id is not None:
            member.epoch, member.state, member.revoking = LEAVE_FOR_A_WHILE, MemberState.STABLE, NOTHING
            member.revoke_until_ms = None
            member.expires_ms = now_ms + self._options.consumer_session_timeout_ms
            self._change(member)
        else:
            self._forget(member)
        return Beaten(beat.member_id, beat.epoch)

    def _hear(
        self, member: ConsumerMember, beat: Beat, topics: Mapping[str, Topic], visible: Callable[[str], bool], now_ms: int
    ) -> bool:
        """Take over what is said anew; whether it changes who reads what."""
        wanted = (member.topics, member.pattern, member.matched)
        said = (member.assignor, member.rack_id, member.rebalance_timeout_ms, member.client_id, member.client_host)
        if beat.rack_id is not None:
            member.rack_id = beat.rack_id
        if beat.rebalance_timeout_ms is not None:
            member.rebalance_timeout_ms = beat.rebalance_timeout_ms
        if beat.topics is not None:
            member.topics = tuple(sorted(set(beat.topics)))
        if beat.assignor is not None:
            member.assignor = beat.assignor
        if beat.pattern is not None:
            member.pattern = beat.pattern or None
        if beat.pattern is not None or (member.pattern and self._due(member.looked_ms, now_ms)):
            member.looked_ms = now_ms
            member.matched = matching(member.pattern, filter(visible, topics)) if member.pattern else frozenset()
        member.client_id, member.client_host = beat.client_id, beat.client_host
        if said != (member.assignor, member.rack_id, member.rebalance_timeout_ms, member.client_id, member.client_host):
            self._change(member)
        return wanted != (member.topics, member.pattern, member.matched)

    def _due(self, looked_ms: int | None, now_ms: int) -> bool:
        return looked_ms is None or now_ms - looked_ms >= self._options.consumer_refresh_ms

    def _look_at_topics(self, topics: Mapping[str, Topic], now_ms: int) -> None:
        """Topics that came, went or grew make a new epoch; looked at now and then, and whenever there is one anyway."""
        if self.epoch == self.assignment_epoch and not self._due(self._looked_ms, now_ms):
            return
        self._looked_ms = now_ms
        names = {name for member in self.members.values() for name in (*member.topics, *member.matched)}
        found = sorted([(topic.topic_id, topic.partitions) for name in names if (topic := topics.get(name)) is not None])
        digest = _digest(found)
        if digest != self.topics_digest:
            self.topics_digest = digest
            if self.epoch == self.assignment_epoch:  # else there will be a new target anyway
                self._grow(None)

    def _assign(self, topics: Mapping[str, Topic]) -> None:
        """The target of this epoch."""
        wanted = {
            member.id: [topics[name] for name in sorted({*member.topics, *member.matched}) if name in topics]
            for member in sorted(self.members.values(), key=lambda one: (one.instance_id is None, one.instance_id or one.id))
        }
        held = {member.id: member.target or member.assigned for member in self.members.values()}
        for member_id, target in ASSIGNORS[self.assignor](wanted, held).items():
            member = self.members[member_id]
            if member.target != target:
                member.target = target
                self._change(member)
        self.assignment_epoch, self.dirty = self.epoch, True

    def _held_by_others(self, member: ConsumerMember) -> Places:
        return NOTHING.union(*[other.holds for other in self.members.values() if other is not member])

    # Time

    def _times(self) -> Iterator[int]:
        for member in self.members.values():
            yield member.expires_ms
            if member.revoke_until_ms is not None:
                yield member.revoke_until_ms

    def tick(self, now_ms: int) -> None:
        for member in list(self.members.values()):
            late = member.revoke_until_ms is not None and member.revoke_until_ms <= now_ms
            if late or member.expires_ms <= now_ms:
                self._forget(member)

    def revive(self, now_ms: int) -> None:
        """After a restart: members have a session timeout from now on, and as long as they had to give up partitions."""
        self.unused = False
        for member in self.members.values():
            member.expires_ms = now_ms + self._options.consumer_session_timeout_ms
            if member.state is MemberState.UNREVOKED:
                member.revoke_until_ms = now_ms + member.rebalance_timeout_ms

    # Offsets

    def check_commit(self, member_id: str, instance_id: str | None, epoch: int, now_ms: int, *, transaction: bool) -> None:
        """As of a classic group; epochs are the members' own. MemberUnknown, InstanceFenced, MemberEpochStale."""
        if epoch < 0 and not member_id and (transaction or not self.members):
            return
        self.check_fetch(member_id, epoch, instance_id)

    def check_fetch(self, member_id: str, epoch: int, instance_id: str | None = None) -> None:
        member = self.members.known(member_id, instance_id)
        if epoch != member.epoch:
            raise MemberEpochStale(epoch, member.epoch)

    # What is to be known from outside

    @property
    def assignor(self) -> str:
        """The one that most members ask for."""
        votes = Counter(member.assignor for member in self.members.values() if member.assignor is not None)
        return votes.most_common(1)[0][0] if votes else DEFAULT

    @property
    def state(self) -> ConsumerState:
        if not self.members:
            return ConsumerState.EMPTY
        if self.epoch > self.assignment_epoch:
            return ConsumerState.ASSIGNING
        settled = all(
            member.state is MemberState.STABLE and member.epoch == self.assignment_epoch for member in self.members.values()
        )
        return ConsumerState.STABLE if settled else ConsumerState.RECONCILING

    @property
    def generation(self) -> int:
        return self.epoch

    # Parts

    def _grow(self, member: ConsumerMember | None) -> None:
        """A new epoch."""
        self.epoch += 1
        self.dirty = True
        if member is not None:
            self._change(member)

    def _change(self, member: ConsumerMember) -> None:
        self.changed.add(member.id)
        self.dirty, self.unused = True, False

    def _forget(self, member: ConsumerMember) -> None:
        self.members.remove(member)
        self._change(member)
        self._grow(None)


def _digest(topics: list[tuple[bytes, int]]) -> bytes:
    return blake2b(repr(topics).encode(), digest_size=DIGEST_BYTES).digest()
