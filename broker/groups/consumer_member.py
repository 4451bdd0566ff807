"""A member of a group of the consumer protocol (KIP-848), what its heartbeats say and are answered."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from broker.groups.assignors import Places

NOTHING: Places = frozenset()
JOIN, LEAVE, LEAVE_FOR_A_WHILE = 0, -1, -2
"""Epochs with a meaning of their own; the last is a static member's that will be back."""


class MemberState(StrEnum):
    STABLE = "stable"
    UNREVOKED = "unrevoked"
    """It is to give up partitions first."""
    UNRELEASED = "unreleased"
    """It waits for partitions that others have not given up."""


class Beat(msgspec.Struct, frozen=True):
    """One ConsumerGroupHeartbeat. None: as said before. `owned` is what the member has now."""

    member_id: str
    epoch: int
    instance_id: str | None = None
    rack_id: str | None = None
    rebalance_timeout_ms: int | None = None
    topics: tuple[str, ...] | None = None
    pattern: str | None = None
    assignor: str | None = None
    owned: Places | None = None
    client_id: str = ""
    client_host: str = ""

    @property
    def full(self) -> bool:
        """Everything is said: the member joins, or has lost track and is told everything."""
        said = self.topics is not None or self.pattern is not None
        return self.epoch == JOIN or (self.rebalance_timeout_ms is not None and said and self.owned is not None)


class Beaten(msgspec.Struct, frozen=True):
    """The answer. `assigned` None: what it was told before."""

    member_id: str
    epoch: int
    assigned: Places | None = None


class ConsumerMember(msgspec.Struct):
    """`assigned` is what it may read, `revoking` what it was told to give up and has not, `target` what it shall have in the end.
    `matched`: the topics that `pattern` reached when it was last looked at."""

    id: str
    instance_id: str | None = None
    rack_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    rebalance_timeout_ms: int = 0
    topics: tuple[str, ...] = ()
    pattern: str | None = None
    matched: frozenset[str] = frozenset()
    assignor: str | None = None
    epoch: int = 0
    previous_epoch: int = 0
    state: MemberState = MemberState.STABLE
    assigned: Places = NOTHING
    revoking: Places = NOTHING
    target: Places = NOTHING
    expires_ms: int = 0
    revoke_until_ms: int | None = None
    looked_ms: int | None = None

    @property
    def holds(self) -> Places:
        """What nobody else may be given yet."""
        return self.assigned | self.revoking

    @property
    def away(self) -> bool:
        return self.epoch == LEAVE_FOR_A_WHILE

    def wants(self, topic: str) -> bool:
        return topic in self.topics or topic in self.matched

    def size(self) -> int:
        said = sum([len(topic) for topic in self.topics]) + sum([len(topic) for topic in self.matched])
        who = len(self.id) + len(self.instance_id or "") + len(self.rack_id or "") + len(self.client_id) + len(self.client_host)
        return who + said + len(self.pattern or "") + 24 * (len(self.assigned) + len(self.revoking) + len(self.target))

    def reconcile(self, target_epoch: int, owned: Places | None, held_by_others: Callable[[], Places]) -> None:
        """One step towards the target (KIP-848, "The reconciliation process"). `owned` None: it did not say."""
        if self.state is MemberState.STABLE and self.epoch == target_epoch and self.assigned == self.target:
            return
        if self.state is MemberState.UNREVOKED and (owned is None or owned & self.revoking):
            return
        kept = self.assigned & self.target
        revoking = self.assigned - self.target
        if revoking and (owned is None or owned & revoking):
            self._become(MemberState.UNREVOKED, self.epoch, kept, revoking)
            return
        missing = self.target - kept
        free = missing - held_by_others() if missing else missing
        state = MemberState.UNRELEASED if free != missing else MemberState.STABLE
        self._become(state, target_epoch, kept | free, NOTHING)

    def _become(self, state: MemberState, epoch: int, assigned: Places, revoking: Places) -> None:
        if epoch != self.epoch:
            self.previous_epoch, self.epoch = self.epoch, epoch
        self.state, self.assigned, self.revoking = state, assigned, revoking
        if state is not MemberState.UNREVOKED:
            self.revoke_until_ms = None
