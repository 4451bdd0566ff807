"""What groups of either protocol are: a name, members, and times at which something is due. They do no I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic

from broker.groups.group_options import GroupOptions
from broker.groups.roster import Member, Roster


class GroupMachine(ABC, Generic[Member]):
    """`dirty`: it is to be saved before anything is answered. Times are monotonic milliseconds."""

    def __init__(self, name: str, options: GroupOptions) -> None:
        self.name = name
        self.members: Roster[Member] = Roster()
        self.dirty = False
        self._options = options

    @property
    def empty(self) -> bool:
        """Nobody is in it or about to be."""
        return not self.members

    def size(self) -> int:
        return self.members.size()

    def next_ms(self) -> int | None:
        """When `tick` has something to do, as far as is known now; never later than it really has."""
        return min(self._times(), default=None)

    @abstractmethod
    def _times(self) -> Iterator[int]:
        """When each thing is due that is known."""

    @abstractmethod
    def tick(self, now_ms: int) -> None:
        """What is due is done."""
