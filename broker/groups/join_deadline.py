"""Until when a rebalance waits for members to join."""

from __future__ import annotations


class JoinDeadline:
    """A group's first rebalance ends after a delay, put off by the same again and again while further members come, up to the
    rebalance timeout (KIP-134); any other waits for that timeout. Times are monotonic milliseconds."""

    __slots__ = ("_delay_ms", "_grew", "_left_ms", "at_ms")

    def __init__(self, delay_ms: int) -> None:
        self.at_ms = 0
        self._delay_ms = delay_ms
        self._left_ms: int | None = None  # by how much the first may still be put off; None in any other
        self._grew = False

    def begin_first(self, now_ms: int, timeout_ms: int) -> None:
        self._grew = False
        self._left_ms = max(0, timeout_ms - self._delay_ms)
        self.at_ms = now_ms + self._delay_ms

    def begin(self, now_ms: int, timeout_ms: int) -> None:
        self._left_ms = None
        self.at_ms = now_ms + timeout_ms

    @property
    def is_first(self) -> bool:
        """It is waited for even if all have joined: there may be more."""
        return self._left_ms is not None

    def came(self) -> None:
        """A member more."""
        self._grew = True

    def put_off(self, now_ms: int) -> bool:
        """Time is up: whether there is more of it."""
        if not self._left_ms or not self._grew:
            self._left_ms = None
            return False
        self._grew = False
        delay_ms = min(self._delay_ms, self._left_ms)
        self._left_ms -= delay_ms
        self.at_ms = now_ms + delay_ms
        return True
