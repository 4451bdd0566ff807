"""Requests of one connection that may not go on yet, and those that came after them: none overtakes another."""

from __future__ import annotations

import asyncio


class HeldBack:
    """`turn` is taken in the order of the requests; `requests` are those that wait for it or have it."""

    __slots__ = ("requests", "turn")

    def __init__(self) -> None:
        self.turn, self.requests = asyncio.Lock(), 0
