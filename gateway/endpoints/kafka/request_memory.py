"""Memory of requests, arriving and under way, of all connections of a node together.

A large request is admitted by the size that it announces, before anything is taken for it; where there is no room it stays in the
socket until others have given theirs back, first come first served. One alone is always admitted, whatever its size: each
connection's own bound has let it pass. Small ones, which every connection has room for, are counted and never wait.
"""

from __future__ import annotations

from collections.abc import Callable


class RequestMemory:
    """`held_bytes` is added to by whoever holds what needs no admission."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def short(self) -> bool:
        """Whether somebody waits, or would."""
        return bool(self._waiting) or self.held_bytes >= self.bytes_max

    def admit(self, size: int, retry: Callable[[], None]) -> bool:
        """Take it, or be called back when there may be room."""
        if self.held_bytes and self.held_bytes + size > self.bytes_max:
            self._waiting[retry] = None
            return False
        self._waiting.pop(retry, None)
        self.held_bytes += size
        return True

    def give_back(self, size: int) -> None:
        self.held_bytes -= size
        if size and self._waiting:
            waiting = list(self._waiting)
            self._waiting.clear()
            for retry in waiting:  # those for whom there is no room wait again, in the same order
                retry()

    def forget(self, retry: Callable[[], None]) -> None:
        self._waiting.pop(retry, None)
