"""Fan-out at the live end: one read and one encoded frame for everybody who stands there.

A `Broadcast` reads one topic, key or filter for all its members. Its rules:

- Only subscribers at the live end are members. Whoever is behind (late, slow, or allowed some keys only) reads for itself, in
  bounded steps (`websocket_subscriber.py`), and joins when its cursor has reached the broadcast's.
- A member may join ahead of the broadcast's cursor (both woke up for one commit and the member read first): its `floor`. Records
  below it are not sent to it again.
- A member whose output is full when a batch comes leaves with the cursor from before that batch. No record waits in memory for
  anybody: the log is the queue.
- Every batch is authorised again at the moment of writing, once for each credential that listens.
- Reading stops when the last member leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from broker.delivery.filter import Filter
from broker.delivery.position import Cursor
from broker.delivery.subscription import Delivered, record_bytes
from broker.topics.addresses import Address
from gateway.endpoints.websocket_frames import Chunk, Frames, Losses, encode_chunks
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.sse_live import LiveStream
    from gateway.endpoints.websocket_hub import Hub
    from gateway.endpoints.websocket_subscriber import Subscriber

    Member: TypeAlias = Subscriber | LiveStream

READY_MAX = 8
"""Names of subscriptions whose frames of one batch are kept for the next group: most have one and the same."""

Interest: TypeAlias = Address | Filter
"""An address, whose key of None is here the whole topic; or a filter that is no such thing."""


def plainest(wanted: Filter) -> Interest:
    """The interest that says the same with the least: equal ones share a broadcast."""
    if wanted.open and wanted.topic is not None:
        return Address(wanted.topic, None)
    if wanted.exact is not None and wanted.exact[1] is not None and not wanted.headers and wanted.key_prefix is None:
        return Address(*wanted.exact)
    return wanted


class Group:
    """Members that get the same bytes by the same right: one credential, one sub-protocol, one name of the subscription."""

    __slots__ = ("frames", "key", "members", "session", "sub")

    def __init__(self, key: tuple[object, ...], session: Session, frames: Frames, sub: bytes) -> None:
        self.key = key
        self.frames = frames
        self.session = session
        self.sub = sub
        self.members: dict[Member, None] = {}


class Broadcast:
    """Made by its first member at that member's cursor, which is the live end."""

    def __init__(self, hub: Hub, interest: Interest, cursor: Cursor) -> None:
        self.cursor = cursor
        """Where the next batch to deliver begins."""
        self._hub = hub
        self._interest = interest
        self._groups: dict[tuple[object, ...], Group] = {}
        self._task = asyncio.create_task(self._run(), name="broadcast")

    def join(self, member: Member) -> None:
        """`member.cursor` must not be below ours."""
        assert member.group is None
        assert member.cursor >= self.cursor
        member.floor = member.cursor
        principal = member.session.principal
        key = (principal.identity_key, principal.credential_id, member.frames, member.sub)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, member.session, member.frames, member.sub)
        group.members[member] = None
        member.group, member.broadcast = group, self

    def leave(self, member: Member) -> None:
        """From here on the member goes on by itself, from its own cursor."""
        group = member.group
        assert group is not None
        member.cursor = self.position_of(member)
        member.group = member.broadcast = member.floor = None
        del group.members[member]
        if not group.members:
            del self._groups[group.key]
            if not self._groups:
                self._hub.forget(self._interest)
                self._task.cancel()

    async def ended(self) -> None:
        """Returns at once while it has members, else when it has stopped reading."""
        if not self._groups:
            await asyncio.wait([self._task])

    def position_of(self, member: Member) -> Cursor:
        return self.cursor if member.floor is None else max(member.floor, self.cursor)

    async def _run(self) -> None:
        options = self._hub.options
        try:
            subscription = await self._hub.follow(self._interest, self.cursor)
            while True:
                bytes_max, records_max = self._hub.piece
                delivered = await subscription.next(
                    bytes_max=bytes_max, records_max=records_max, wait_max_ms=options.read_wait_ms
                )
                losses = Losses(list(subscription.damage.values()), list(subscription.gaps.values()))
                subscription.damage.clear()
                subscription.gaps.clear()
                self._deliver(delivered, losses, subscription.cursor)
                self.cursor = subscription.cursor
                await self._hub.flusher.flushed()  # else the pieces of a burst would gather, for every member
        except Exception as error:
            for group in list(self._groups.values()):
                _fail(group, error)

    def _deliver(self, delivered: Sequence[Delivered], losses: Losses, cursor: Cursor) -> None:
        """To every member; those that cannot take it leave while `cursor` is still where they have to go on."""
        if not delivered and not losses:
            return
        size = sum([record_bytes(record.record) for record in delivered])
        frame_bytes_max = self._hub.options.frame_bytes_max
        topics = {record.topic for record in delivered} | losses.topics()
        chunks: dict[Frames, list[Chunk]] = {}
        ready: dict[tuple[Frames, bytes], list[bytes]] = {}
        for group in list(self._groups.values()):
            if self._admit(group, topics, size):
                frames = group.frames
                shared = ready.get((frames, group.sub))
                if shared is None:
                    if frames not in chunks:
                        chunks[frames] = encode_chunks(frames, delivered, losses, cursor, frame_bytes_max)
                    if len(ready) >= READY_MAX:
                        ready.clear()  # names that nobody shares: what is held for them is the connections' own to bound
                    shared = ready[frames, group.sub] = [frames.records(group.sub, chunk) for chunk in chunks[frames]]
                written = self._write(group, shared, delivered)
                self._hub.pipeline.deliver(group.session, len(delivered) * written, size * written)

    def _admit(self, group: Group, topics: set[str], size: int) -> bool:
        """Ask again, and charge; members that may not share the whole batch leave, to be served, paced or refused alone."""
        try:
            admitted = self._hub.shares(group.session, self._interest, topics) and self._hub.pays(
                group.session, size * len(group.members)
            )
        except Exception as error:
            _fail(group, error)
            return False
        if not admitted:
            for member in list(group.members):
                member.fall_behind()
        return admitted

    def _write(self, group: Group, shared: list[bytes], delivered: Sequence[Delivered]) -> int:
        """The number of members that took it. The hot loop of a fan-out."""
        written = 0
        pressed = self._hub.buffers.pressed
        for member in list(group.members):
            output = member.output
            if not output.writable or (pressed and not output.takes()):
                member.fall_behind()
                continue
            frames = shared if member.floor is None else self._above_floor(member, shared, delivered)
            for frame in frames:
                output.write(frame)
            written += 1
        return written

    def _above_floor(self, member: Member, shared: list[bytes], delivered: Sequence[Delivered]) -> list[bytes]:
        """A member's first batches after joining: what it has read already is left out."""
        floor = member.floor
        assert floor is not None
        newer = [record for record in delivered if record.cursor > floor]
        if not newer:
            return []
        member.floor = None
        if len(newer) == len(delivered):
            return shared
        chunks = encode_chunks(member.frames, newer, None, newer[-1].cursor, self._hub.options.frame_bytes_max)
        return [member.frames.records(member.sub, chunk) for chunk in chunks]


def _fail(group: Group, error: Exception) -> None:
    for member in list(group.members):
        member.fail(error)
