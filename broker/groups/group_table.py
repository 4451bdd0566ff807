"""Which groups there are, of which kind, and what their members take.

A group is of one kind at a time. An empty one becomes the other kind when a member of that kind comes, and keeps its offsets;
while it has members, the other kind is refused: there is no upgrade of a running group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from broker.groups.classic import ClassicGroup
from broker.groups.consumer import FIRST_EPOCH, ConsumerGroup
from broker.groups.consumer_member import JOIN, Beat
from broker.groups.group_errors import GroupFull, GroupUnknown, MemberUnknown, ProtocolInconsistent
from broker.groups.group_log import Group, GroupLog
from broker.groups.group_options import GroupOptions
from broker.groups.offsets import GroupOffsets


class GroupTable:
    """On the owner thread. `dropped` is told the name of each group that goes."""

    def __init__(self, log: GroupLog, offsets: GroupOffsets, options: GroupOptions, dropped: Callable[[str], None]) -> None:
        self._log, self._offsets, self._options, self._dropped = log, offsets, options, dropped
        self._known: dict[str, Group] | None = None
        self._awaited: dict[str, None] = {}  # groups that were made, the oldest first; many have got members since
        self._sizes: dict[str, int] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[Group]:
        """Those of this moment."""
        return iter(list(self._all().values()))

    def __contains__(self, group: Group) -> bool:
        """Whether it is still the one of its name."""
        return self._all().get(group.name) is group

    def get(self, name: str) -> Group | None:
        return self._all().get(name)

    def names(self) -> list[str]:
        """Also of those that are there for their offsets alone."""
        return sorted({*self._all(), *[name for name in self._offsets.groups() if name in self._offsets]})

    def classic(self, name: str) -> ClassicGroup:
        """Made where there is none. ProtocolInconsistent, GroupFull."""
        group = self.get(name)
        if isinstance(group, ClassicGroup):
            return group
        if group is not None and not group.empty:
            raise ProtocolInconsistent("the group's members are of the consumer protocol (KIP-848): stop them first")
        made = ClassicGroup(name, self._options)
        made.generation = 0 if group is None else group.epoch
        self._put(made)
        return made

    def consumer(self, name: str, beat: Beat) -> ConsumerGroup:
        """Made where there is none and a member joins. GroupUnknown, GroupFull."""
        group = self.get(name)
        if isinstance(group, ConsumerGroup):
            return group
        if beat.epoch != JOIN:
            raise GroupUnknown(name, "does not exist" if group is None else "is not a consumer group")
        if group is not None and not group.empty:
            raise GroupUnknown(name, "has members of the classic protocol: stop them first")
        made = ConsumerGroup(name, self._options, FIRST_EPOCH if group is None else max(FIRST_EPOCH, group.generation))
        self._put(made)
        return made

    def of_member(self, name: str) -> ClassicGroup:
        """MemberUnknown where it is none."""
        group = self.get(name)
        if not isinstance(group, ClassicGroup):
            raise MemberUnknown
        return group

    def drop(self, group: Group) -> None:
        """It is not there any more; in the log it may be."""
        self._all().pop(group.name, None)
        self._awaited.pop(group.name, None)
        self._log.forget(group.name)
        self.bytes -= self._sizes.pop(group.name, 0)
        self._dropped(group.name)

    def restore(self, group: Group) -> None:
        """After all it could not be removed."""
        self._all().setdefault(group.name, group)

    def measure(self, group: Group) -> None:
        size = group.size()
        self.bytes += size - self._sizes.get(group.name, 0)
        self._sizes[group.name] = size

    def _put(self, group: Group) -> None:
        """In the place of an empty one of the other kind, if there is one."""
        groups = self._all()
        if group.name in groups:
            self._log.replace(group.name)
        else:
            if len(groups) >= self._options.groups_max and not self._let_one_go():
                raise GroupFull("groups.groups_max", self._options.groups_max)
            self._awaited[group.name] = None
        groups[group.name] = group

    def _let_one_go(self) -> bool:
        """The oldest group that nobody ever came to, but for an id that was given for it: whoever has that asks again. Else
        anybody could keep all places for as long as the longest session."""
        while self._awaited:
            name = next(iter(self._awaited))
            del self._awaited[name]
            group = self.get(name)
            if group is not None and not group.members and not self._log.changed_at_ms(name) and name not in self._offsets:
                self.drop(group)
                return True
        return False

    def _all(self) -> dict[str, Group]:
        """Read from the engine once. What cannot be read is left out, and made anew when it is joined."""
        if self._known is None:
            self._known = {}
            for group in self._log.load(self._options):
                self._known[group.name] = group
                self.measure(group)
            for name in self._offsets.groups():
                self._known.setdefault(name, ClassicGroup(name, self._options))
        return self._known
