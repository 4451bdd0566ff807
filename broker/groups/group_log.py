"""What of each group is in the engine's state: entries written, replaced, deleted, read back."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import TypeAlias

from broker.engine.base import Engine, StateChange, StateSpace
from broker.errors import BrokerError, StorageProblem
from broker.groups import classic_keeping, consumer_keeping, keeping
from broker.groups.classic import ClassicGroup
from broker.groups.consumer import ConsumerGroup
from broker.groups.group_options import GroupOptions
from broker.seams import Clock

logger = logging.getLogger("sprawl.groups")

Group: TypeAlias = ClassicGroup | ConsumerGroup


class GroupLog:
    """On the owner thread. Writes of one group reach the log in the order in which they were asked for."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self._keys: dict[str, frozenset[bytes]] = {}  # entries of each group that may be in the log
        self._replaced: set[str] = set()  # groups that were of the other kind: all of that goes with their first entries
        self._changed_at_ms: dict[str, int] = {}

    def load(self, options: GroupOptions) -> Iterator[Group]:
        """Every group; one that cannot be read is left out, and told to the node's log."""
        now_ms = self._clock.monotonic_ms()
        for kept in keeping.load(self._engine.states(StateSpace.GROUP)):
            try:
                if isinstance(kept, StorageProblem):
                    raise kept
                restore = consumer_keeping.restore if kept.head.kind == ConsumerGroup.kind else classic_keeping.restore
                group: Group = restore(kept, options, now_ms)
            except StorageProblem as problem:
                logger.error("a group cannot be read: %s", problem)
                continue
            self._keys[group.name] = kept.keys
            self._changed_at_ms[group.name] = kept.head.changed_at_ms
            yield group

    def changed_at_ms(self, name: str) -> int:
        """When the group was last written, Unix time; 0 where it never was."""
        return self._changed_at_ms.get(name, 0)

    async def save(self, group: ClassicGroup) -> None:
        """The whole group, as it is now. What the log refuses."""
        await self._append(group, classic_keeping.entries(group, self._clock.now_ms()), None)

    async def save_members(self, group: ConsumerGroup, changed: Collection[str]) -> None:
        """The group's head, and these members as they are now, or are not any more. What the log refuses."""
        entries = consumer_keeping.entries(group, changed, self._clock.now_ms())
        await self._append(group, entries, {keeping.member_key(group.name, member_id) for member_id in changed})

    def replace(self, name: str) -> None:
        """The group becomes one of the other kind."""
        self._replaced.add(name)

    def forget(self, name: str) -> None:
        """Nothing is known of the group any more, which has nothing in the log, or is about to."""
        self._changed_at_ms.pop(name, None)
        self._replaced.discard(name)

    async def delete(self, name: str, besides: Collection[StateChange]) -> None:
        """All of the group's entries, and what else goes with them in one frame. What the log refuses."""
        keys = self._keys.pop(name, frozenset())
        changes = [*keeping.changes({}, keys), *besides]
        try:
            if changes:
                await self._engine.append([], changes=changes)
        except BrokerError:
            self._keys[name] = keys | self._keys.get(name, frozenset())
            raise

    async def _append(self, group: Group, new: dict[bytes, bytes], about: Collection[bytes] | None) -> None:
        """Entries in place of those that there are, or of those of some members."""
        name, now_ms = group.name, self._clock.now_ms()
        old, replaced = self._keys.get(name, frozenset()), name in self._replaced
        self._replaced.discard(name)
        whole = about is None or replaced
        gone = frozenset([key for key in old if key not in new and (whole or keeping.member_part(key) in (about or ()))])
        self._keys[name] = expected = old | new.keys()
        try:
            await self._engine.append([], changes=keeping.changes(new, gone))
        except BrokerError:
            if replaced:
                self._replaced.add(name)
            raise
        self._changed_at_ms[name] = now_ms
        if self._keys.get(name) == expected:
            self._keys[name] = expected - gone
