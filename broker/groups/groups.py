"""The groups of a node: asked, woken, kept, expired. The machines decide (`classic.py`, `consumer.py`); here are their clock,
their waits and their place in the log.

What a machine wants kept is appended before its answers are given, so a member never learns what a restart would not know. Who
waits in a join or a sync and goes away is taken out of the wait at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from broker.engine.base import Engine
from broker.errors import BrokerError
from broker.groups.alarms import Alarms
from broker.groups.bounds import Bounds
from broker.groups.classic import ClassicGroup
from broker.groups.classic_member import Answer, Join, Joined, Sync, Synced, Ticket
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_member import Beat, Beaten
from broker.groups.group_errors import (
    GenerationIllegal,
    GroupNotEmpty,
    GroupProblem,
    GroupUnknown,
    MemberUnknown,
)
from broker.groups.group_log import Group, GroupLog
from broker.groups.group_options import GroupOptions
from broker.groups.group_table import GroupTable
from broker.groups.offsets import GroupOffset, GroupOffsets
from broker.groups.subscription import PROTOCOL_TYPE, subscribed_topics
from broker.seams import Clock, Random

logger = logging.getLogger("sprawl.groups")

CLIENT_ID_CHARS_MAX = 200  # of a member's id; what the client calls itself may be anything


class GroupStats(msgspec.Struct, frozen=True):
    groups: int
    members: int
    members_bytes: int


class Groups:
    """One for each node. Owner thread of the engine."""

    def __init__(self, engine: Engine, clock: Clock, random: Random, options: GroupOptions | None = None) -> None:
        self.options = options or GroupOptions()
        self.offsets = GroupOffsets(engine, clock, self.options)
        self._engine, self._clock, self._random = engine, clock, random
        self._bounds = Bounds(self.options)
        self._log = GroupLog(engine, clock)
        self._alarms = Alarms()
        self._table = GroupTable(self._log, self.offsets, self.options, self._alarms.cancel)
        self._expiry: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Bring the groups back, and begin to look after them. After the engine was started."""
        for group in self._table:
            self._arm(group)
        self._expiry = asyncio.get_running_loop().create_task(self._expire_for_ever(), name="expiry of groups")

    async def close(self) -> None:
        """Before the engine is closed."""
        self._alarms.close()
        tasks = [*self._background, *([self._expiry] if self._expiry is not None else [])]
        if self._expiry is not None:
            self._expiry.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Members

    async def join(self, name: str, asked: Join) -> Joined:
        """Waits for the other members. GroupProblem of any kind, and what the log refuses."""
        self._bounds.check_name(name)
        self._bounds.check_join(asked, self._table.bytes)
        new = self._table.get(name) is None
        if asked.member_id and new:
            raise MemberUnknown
        timeout_ms = min(max(asked.rebalance_timeout_ms, 0), self.options.rebalance_timeout_ms_max)
        asked = msgspec.structs.replace(asked, rebalance_timeout_ms=timeout_ms)
        group = self._table.classic(name)
        try:
            answer = await self._wait(group, lambda ticket: group.join(ticket, asked, self._new_id(asked), self._now_ms()))
        except GroupProblem:
            if new and group.empty and group in self._table:
                self._table.drop(group)  # it never came to be
            raise
        assert isinstance(answer, Joined)
        return answer

    async def sync(self, name: str, asked: Sync) -> Synced:
        """Waits for the leader. GroupProblem of any kind, and what the log refuses."""
        self._bounds.check_name(name)
        group = self._table.of_member(name)
        self._bounds.check_sync(asked, self._table.bytes)
        answer = await self._wait(group, lambda ticket: group.sync(ticket, asked, self._now_ms()))
        assert isinstance(answer, Synced)
        return answer

    async def beat(self, name: str, beat: Beat, visible: Callable[[str], bool]) -> Beaten:
        """A heartbeat of the consumer protocol (KIP-848). `visible`: the topics that the member may know of. GroupUnknown, and
        what `ConsumerGroup.beat` and the log refuse."""
        self._bounds.check_name(name)
        self._bounds.check_beat(beat, self._table.bytes)
        group = self._table.consumer(name, beat)
        try:
            beaten = group.beat(beat, self._engine.topics(), visible, self._now_ms())
        except GroupProblem:
            self._settle(group)
            raise
        if group.dirty:
            await self._keep(group)
        return beaten

    def heartbeat(self, name: str, member_id: str, instance_id: str | None, generation: int) -> None:
        """MemberUnknown, InstanceFenced, GenerationIllegal, RebalanceUnderWay."""
        self._bounds.check_name(name)
        self._table.of_member(name).heartbeat(member_id, instance_id, generation, self._now_ms())

    def leave(self, name: str, identities: Sequence[tuple[str, str | None]]) -> list[GroupProblem | None]:
        """Of members by id and instance id: what was wrong with each."""
        self._bounds.check_name(name)
        group = self._table.get(name)
        if not isinstance(group, ClassicGroup):
            return [MemberUnknown() for _ in identities]
        told: list[GroupProblem | None] = []
        for member_id, instance_id in identities:
            try:
                group.leave(member_id, instance_id, self._now_ms())
                told.append(None)
            except GroupProblem as problem:
                told.append(problem)
        self._settle(group)
        return told

    # Offsets

    async def commit(
        self, name: str, member_id: str, instance_id: str | None, generation: int, offsets: Iterable[GroupOffset]
    ) -> None:
        """Durable when it returns. GroupProblem of any kind, and what the log refuses."""
        self.check_commit(name, member_id, instance_id, generation)
        wanted = list(offsets)
        if wanted and self._table.get(name) is None:
            self._table.classic(name)
        changes = self.offsets.changes(name, wanted)
        if changes:
            await self._engine.append([], changes=changes)

    def check_commit(self, name: str, member_id: str, instance_id: str | None, generation: int) -> None:
        """Whether this member may commit offsets now. GroupProblem of any kind."""
        self._check_commit(name, member_id, instance_id, generation, transaction=False)

    def check_transactional_commit(self, name: str, member_id: str, instance_id: str | None, generation: int) -> None:
        """Whether a producer may add offsets of the group to its transaction (KIP-447). A producer that knows neither member nor
        generation (-1) always may. GroupProblem of any kind."""
        self._check_commit(name, member_id, instance_id, generation, transaction=True)

    def _check_commit(self, name: str, member_id: str, instance_id: str | None, generation: int, *, transaction: bool) -> None:
        self._bounds.check_name(name, chars_min=0)  # as old clients commit that assign their partitions themselves
        group = self._table.get(name)
        if group is None:
            if generation >= 0:
                raise GenerationIllegal(generation, -1)
            group = self._table.classic(name) if transaction else ClassicGroup(name, self.options)
        group.check_commit(member_id, instance_id, generation, self._now_ms(), transaction=transaction)

    def check_fetch(self, name: str, member_id: str | None, epoch: int) -> None:
        """Whether offsets of the group are told to this member; None and -1 where it does not say who it is. GroupProblem."""
        self._bounds.check_name(name, chars_min=0)
        group = self._table.get(name)
        if isinstance(group, ConsumerGroup) and (member_id is not None or epoch >= 0):
            group.check_fetch(member_id or "", epoch)

    async def delete_offsets(self, name: str, places: Sequence[tuple[bytes, int]]) -> None:
        """Topic ids and partitions; those that are in use are the caller's to leave out. Durable when it returns."""
        changes = self.offsets.removals(name, places)
        if changes:
            await self._engine.append([], changes=changes)
            self.offsets.forget(name)

    def subscribed(self, group: Group) -> Callable[[str], bool] | None:
        """Which topics the members have subscribed to; None where the members are no consumers, so that nobody knows."""
        if isinstance(group, ConsumerGroup):
            members = list(group.members.values())
            return lambda topic: any(member.wants(topic) for member in members)
        if group.protocol_type != PROTOCOL_TYPE:
            return None
        topics: set[str] = set()
        for member in group.members.values():
            for _, metadata in member.protocols:
                topics |= subscribed_topics(metadata)
        return topics.__contains__

    # Care

    def names(self) -> list[str]:
        return self._table.names()

    def find(self, name: str) -> Group | None:
        """Also one that a transaction's offsets have made."""
        return self._table.get(name) or (ClassicGroup(name, self.options) if name in self.offsets else None)

    async def delete(self, name: str) -> None:
        """With its offsets, durably. GroupUnknown, GroupNotEmpty."""
        group = self.find(name)
        if group is None:
            raise GroupUnknown(name)
        if not group.empty:
            raise GroupNotEmpty(name)
        await self._remove(group)

    async def expire(self) -> int:
        """Offsets that nobody has used for `groups.offsets_retention_ms` go, and groups that have neither members nor offsets;
        returns how many offsets."""
        before_ms, gone = self._clock.now_ms() - self.options.offsets_retention_ms, 0
        for group in self._table:
            unused = not group.empty or self._log.changed_at_ms(group.name) < before_ms
            places = self.offsets.expired(group.name, before_ms if unused else 0, self._in_use(group))
            if places:
                await self.delete_offsets(group.name, places)
                gone += len(places)
            if group in self._table and group.empty and group.name not in self.offsets:
                await self._remove(group)
            await asyncio.sleep(0)
        return gone

    def stats(self) -> GroupStats:
        return GroupStats(len(self._table), sum([len(group.members) for group in self._table]), self._table.bytes)

    # Parts

    def _in_use(self, group: Group) -> Callable[[bytes], bool]:
        if group.empty:
            return lambda topic_id: False
        subscribed = self.subscribed(group)
        if subscribed is None:
            return lambda topic_id: True
        ids = {topic.topic_id for name, topic in self._engine.topics().items() if subscribed(name)}
        return ids.__contains__

    async def _remove(self, group: Group) -> None:
        """An empty group. Whoever joins while it goes makes it anew, which is appended after."""
        self._table.drop(group)
        try:
            await self._log.delete(group.name, self.offsets.removals(group.name))
        except BrokerError:
            self._table.restore(group)
            raise
        self.offsets.forget(group.name)

    def _new_id(self, asked: Join) -> str:
        told = asked.instance_id or asked.client_id
        drawn = self._random.bytes(16).hex()
        return f"{told[:CLIENT_ID_CHARS_MAX]}-{drawn[:8]}-{drawn[8:12]}-{drawn[12:16]}-{drawn[16:20]}-{drawn[20:]}"

    async def _wait(self, group: ClassicGroup, ask: Callable[[Ticket], None]) -> Answer:
        ticket: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            ask(ticket)
        finally:
            self._settle(group)
        try:
            return await ticket
        except asyncio.CancelledError:
            group.abandon(ticket, self._now_ms())
            self._arm(group)
            raise

    def _settle(self, group: Group) -> None:
        """After whatever changed a group: keep it, answer, and wake up in time."""
        if isinstance(group, ConsumerGroup):
            if group.dirty:
                self._spawn(self._keep_later(group))
            elif group.unused:
                self._table.drop(group)
            self._arm(group)
            return
        self._table.measure(group)
        answers, group.answers = group.answers, []
        if group.dirty:
            group.dirty = False
            self._spawn(self._save(group, group.generation, answers))
        else:
            _deliver(answers)
        self._arm(group)

    async def _save(self, group: ClassicGroup, generation: int, answers: list[tuple[Ticket, Answer]]) -> None:
        try:
            if group in self._table:  # else it was deleted, or became the other kind
                await self._log.save(group)
        except BrokerError as problem:
            logger.warning("group %r could not be saved: %s", group.name, problem)
            group.unsaved(generation, self._now_ms())
            _deliver([(ticket, problem) for ticket, _ in answers])
            self._settle(group)
            return
        _deliver(answers)

    async def _keep(self, group: ConsumerGroup) -> None:
        """The members that have changed. What the log refuses is told, and kept with the next change."""
        self._table.measure(group)
        self._arm(group)
        changed, group.changed, group.dirty = group.changed, set(), False
        try:
            if group in self._table:
                await self._log.save_members(group, changed)
        except BrokerError:
            group.changed |= changed
            group.dirty = True
            raise

    async def _keep_later(self, group: ConsumerGroup) -> None:
        try:
            await self._keep(group)
        except BrokerError as problem:
            logger.warning("group %r could not be saved: %s", group.name, problem)

    def _arm(self, group: Group) -> None:
        next_ms = group.next_ms()
        if next_ms is not None and group in self._table:
            self._alarms.arm(group.name, next_ms, self._now_ms(), lambda: self._on_time(group))

    def _on_time(self, group: Group) -> None:
        group.tick(self._now_ms())
        self._settle(group)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.options.expiry_check_ms / 1_000)
            try:
                await self.expire()
            except BrokerError as problem:
                logger.warning("offsets of groups could not be expired: %s", problem)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _now_ms(self) -> int:
        return self._clock.monotonic_ms()


def _deliver(answers: Iterable[tuple[Ticket, Answer | BrokerError]]) -> None:
    for ticket, answer in answers:
        assert isinstance(ticket, asyncio.Future)
        if ticket.done():
            continue
        if isinstance(answer, BrokerError):
            ticket.set_exception(answer)
        else:
            ticket.set_result(answer)
