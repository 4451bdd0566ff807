"""A member of a classic group, what it asks for and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from broker.groups.group_errors import GroupProblem

Ticket: TypeAlias = object


class Join(msgspec.Struct, frozen=True):
    """`id_first`: a new member is told its id and joins again (JoinGroup 4+). `may_skip`: it knows that a leader may be told to
    assign nothing (9+). `protocols` in the order of its preference, each with its metadata."""

    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    id_first: bool = True
    may_skip: bool = True


class Sync(msgspec.Struct, frozen=True):
    """`protocol_type` and `protocol` None: not said (SyncGroup below 5)."""

    member_id: str
    instance_id: str | None
    generation: int
    protocol_type: str | None = None
    protocol: str | None = None
    assignments: Mapping[str, bytes] = {}


class Joined(msgspec.Struct, frozen=True):
    """`members` (id, instance id, metadata) are told to the leader only."""

    member_id: str
    generation: int
    protocol_type: str
    protocol: str
    leader: str
    members: tuple[tuple[str, str | None, bytes], ...] = ()
    skip_assignment: bool = False


class Synced(msgspec.Struct, frozen=True):
    protocol_type: str
    protocol: str
    assignment: bytes


Answer: TypeAlias = Joined | Synced | GroupProblem


class Member(msgspec.Struct):
    """One member. `joining` and `syncing` are the tickets of what waits; while something waits it does not expire."""

    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    assignment: bytes = b""
    expires_ms: int = 0
    joining: Ticket | None = None
    syncing: Ticket | None = None

    @property
    def waits(self) -> bool:
        return self.joining is not None or self.syncing is not None

    def metadata(self, protocol: str | None) -> bytes:
        return next((metadata for name, metadata in self.protocols if name == protocol), b"")

    def refresh(self, now_ms: int) -> None:
        self.expires_ms = now_ms + self.session_timeout_ms

    def size(self) -> int:
        who = len(self.id) + len(self.instance_id or "") + len(self.client_id) + len(self.client_host)
        return who + sum([len(name) + len(metadata) for name, metadata in self.protocols]) + len(self.assignment)
